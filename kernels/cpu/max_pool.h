// Max-pooling of images in tiles, in float32. Independent of JAX.

#ifndef SRIGL_KERNELS_CPU_MAX_POOL_H_
#define SRIGL_KERNELS_CPU_MAX_POOL_H_

#include <stdint.h>

#include "conv.h"

namespace srigl {

inline constexpr int64_t kMaxPoolTaps = 64;  // numbers of a window, at most

// out[pixel, c] = the largest of x[.., c] below the kernel, NaN if one is; -infinity where all of it lies
// outside. A `conv` without weights: x and out in tiles, whose channels are as many. Returns nullptr, or
// what is wrong; `out` is then untouched.
const char* TiledMaxPool(const Conv& pool, Executor* executor);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_MAX_POOL_H_
