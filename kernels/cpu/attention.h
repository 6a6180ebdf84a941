// Attention in float32, of arrays whose axes come in any order: softmax(q k^T scale) v for each part of a
// batch. Independent of JAX.

#ifndef SRIGL_KERNELS_CPU_ATTENTION_H_
#define SRIGL_KERNELS_CPU_ATTENTION_H_

#include <stdint.h>

namespace srigl {

class Executor;

inline constexpr int kAttentionAxes = 4;         // of the batch, at most
inline constexpr int64_t kAttentionDepth = 256;  // of queries and values, at most

// Where an array's rows lie, in elements: those of a row follow each other. 0 along what it lacks.
struct AttentionStrides {
  int64_t batch[kAttentionAxes], row;
};

struct Attention {
  const float *q, *k, *v;
  const float *k_tail = nullptr, *v_tail = nullptr;  // of the last `tail` keys, if there are some
  const uint8_t* mask;  // by query and key, 0 where `fill` takes a product's place; or nullptr
  float* out;
  int64_t batch[kAttentionAxes];  // sizes
  int64_t queries, keys;
  int64_t tail = 0;      // keys that k and v do not have
  int64_t depth, width;  // of a query and a key, and of a value
  AttentionStrides q_strides, k_strides, v_strides, mask_strides, out_strides;
  AttentionStrides k_tail_strides = {}, v_tail_strides = {};
  float scale, fill;
};

// out[b, i] = sum over j of p[j] v[b, j], where p = softmax over j of (mask ? scale q[b, i] . k[b, j] : fill).
// Returns nullptr, or what is wrong; `out` is then untouched.
const char* RunAttention(const Attention& call, Executor* executor);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_ATTENTION_H_
