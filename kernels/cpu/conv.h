// The plain C++ layer of convolutions: packed layer times the patches of images.

#ifndef SRIGL_KERNELS_CPU_CONV_H_
#define SRIGL_KERNELS_CPU_CONV_H_

#include "matmul.h"

namespace srigl {

// A two-dimensional convolution, channels last.
struct Conv {
  const float* x;     // [images, y.size, x.size, channels]
  const float* bias;  // [out_features] or nullptr
  float* out;         // [images, y.out, x.out, out_features]
  int64_t images;
  int64_t out_features;
  Patches patches;
  int64_t padding_after[2];  // beyond the last line and column
  Activation activation;
  const float* scales = nullptr;    // [out_features], what sums are multiplied by
  const float* residual = nullptr;  // as `out`, what is added before the activation
  bool quantized = false;           // see MatMul, as of what follows
  const float* range = nullptr;
  Quantized x8 = {}, residual8 = {};
  QuantizedOutput y8 = {};
  bool x_is_tiled = false, residual_is_tiled = false, out_is_tiled = false;
};

// out = activation(the layer applied to every patch of x + bias + residual). The layer's inputs are ordered
// (ky, kx, channel). Returns nullptr, or what is wrong; `out` is then untouched.
const char* CondensedConv(const PackedLayer& layer, const Conv& conv, Executor* executor);

// Whether the sizes fit each other, and products of them do not overflow: nullptr, or what is wrong.
// Sets the number of output pixels, and of the inputs of each.
const char* CheckPatches(const Patches& patches, const int64_t (&padding_after)[2], int64_t images,
                         int64_t* pixels, int64_t* inputs);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_CONV_H_
