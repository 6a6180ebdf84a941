// Depthwise convolutions in float32, channels last. Independent of JAX.

#ifndef SRIGL_KERNELS_CPU_DEPTHWISE_H_
#define SRIGL_KERNELS_CPU_DEPTHWISE_H_

#include <stdint.h>

#include "conv.h"

namespace srigl {

// out[.., c] = activation(sum over the taps of x[.., c] kernel[tap, c] + bias[c] + residual[.., c]): a
// `conv` of float32 in and out, without scales, whose outputs are as many as its channels. `kernel`:
// [y.kernel, x.kernel, channels]. Returns nullptr, or what is wrong; `out` is then untouched.
const char* DepthwiseConv(const Conv& conv, const float* kernel, Executor* executor);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_DEPTHWISE_H_
