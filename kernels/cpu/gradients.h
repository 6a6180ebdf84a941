// Gradients of the condensed product and values that change, in plain C++, independent of JAX.
// All sizes and contents are checked as layout.h says; y and dvalues are untouched on an error.

#ifndef SRIGL_KERNELS_CPU_GRADIENTS_H_
#define SRIGL_KERNELS_CPU_GRADIENTS_H_

#include <stdint.h>

#include "kernels.h"
#include "layout.h"
#include "matmul.h"

namespace srigl {

// dx = g times the transpose.
struct InputGradient {
  const float* g;         // [batch, out_features]
  const int32_t* active;  // [num_active]
  float* dx;              // [batch, in_features]
  int64_t batch;
  int64_t in_features;
  int64_t out_features;
  int64_t num_active;
};

// `pattern` is that of `PackTransposedTiles`, `values` are in its order. Returns nullptr, or what is
// wrong.
const char* CondensedInputGradient(Bytes pattern, Bytes values, ValueType type,
                                   const InputGradient& call, Executor* executor);

// `pattern` is that of `PackTiles`. Returns nullptr, or what is wrong.
const char* CondensedValuesGradient(Bytes pattern, const ValuesGradient& call, Executor* executor);

// packed[i] = values[sources[i]] for i < num_packed: puts values into the order of a pattern.
// Returns nullptr, or what is wrong.
const char* PackValues(Bytes values, ValueType type, const int32_t* sources, int64_t num_packed,
                       void* packed, Executor* executor);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_GRADIENTS_H_
