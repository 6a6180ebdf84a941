// What every CPU target provides: a table of kernels. One translation unit per target.

#ifndef SRIGL_KERNELS_CPU_KERNELS_H_
#define SRIGL_KERNELS_CPU_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

#include "layout.h"

namespace srigl {

enum class Activation : int32_t { kNone = 0, kRelu = 1, kGelu = 2 };  // gelu: tanh form

// One spatial axis of a convolution. Output o reads inputs o * stride - padding + k * dilation for
// k < kernel; those outside 0..size - 1 are 0.
struct Axis {
  int64_t size, out;
  int64_t kernel, stride, dilation;
  int64_t padding;  // before the first input; negative: these inputs are not read
};

// What a convolution multiplies: x is [images, y.size, x.size, channels], a batch row is an output
// pixel (image, y, x), and its inputs are the patch below the kernel, ordered (ky, kx, channel).
struct Patches {
  Axis y, x;
  int64_t channels;
};

// y[b, o] = activation(sum + bias[o]); row-major x [batch, in], y [batch, out].
struct MatMul {
  const float* x;
  const float* bias;  // [out] or nullptr
  float* y;
  int64_t batch;
  int64_t in_features;
  int64_t out_features;
  Activation activation;
  const Patches* patches = nullptr;  // if given, a row of x is not stored but put together
  // Columns of x that the layer reads, as it numbers its inputs; nullptr: all of them, in order.
  // Each lies within 0..in_features - 1.
  const int32_t* columns = nullptr;  // [num_columns]
  int64_t num_columns = 0;
};

// dvalues[a, j] = sum over b of g[b, active[a]] * x[b, index of (a, j)]; all row-major.
struct ValuesGradient {
  const float* g;         // [batch, out_features]
  const float* x;         // [batch, in_features]
  const int32_t* active;  // [num_active], each within 0..out_features - 1
  float* dvalues;         // [num_active, fan_in]
  int64_t batch;
  int64_t in_features;
  int64_t out_features;
  int64_t num_active;
  int64_t fan_in;
};

inline constexpr int kMaxLanes = 64;    // batch rows of a tile
inline constexpr int kMaxPanels = 16;   // panels of one tile task: bounds the scratch memory
inline constexpr size_t kScratchFloats =
    (kMaxBlockColumns + (kMaxPanels + 1) * kPanelRows) * size_t{kMaxLanes};
inline constexpr size_t kStageFloats = 1 << 18;  // of a convolution's images: 1 MB

// Lanes of a tile, so that a block's inputs stay in the first-level cache.
constexpr int64_t TileLanes(int64_t block_columns) {
  return block_columns <= kMaxBlockColumns / 2 ? kMaxLanes : kMaxLanes / 2;
}

struct Kernels {
  const char* name;

  // Batch rows [row_begin, row_end), and panels [panel_begin, panel_end), at most kMaxPanels;
  // writes every output these panels own. `scratch`: kScratchFloats, 64-aligned, and for a
  // convolution kStageFloats more.
  void (*tile)(const TileView& view, const MatMul& call, int64_t row_begin, int64_t row_end,
               int64_t panel_begin, int64_t panel_end, float* scratch);

  // Batch rows [row_begin, row_end), groups [group_begin, group_end), and every output they own.
  // nullptr where the target has no two-register permutation.
  void (*window)(const WindowView& view, const MatMul& call, int64_t row_begin, int64_t row_end,
                 int64_t group_begin, int64_t group_end);

  // y = activation(bias) for batch rows [row_begin, row_end): a layer without active neurons.
  void (*constant)(const MatMul& call, int64_t row_begin, int64_t row_end);

  // The weights of panels [panel_begin, panel_end), at most kMaxPanels, in blocks [block_begin,
  // block_end), over the whole batch; with the last block also what the pattern leaves out of these
  // panels' rows: zeros. `scratch`: kScratchFloats, 64-aligned.
  void (*values_gradient)(const TileView& view, const ValuesGradient& call, int64_t panel_begin,
                          int64_t panel_end, int64_t block_begin, int64_t block_end,
                          float* scratch);

  // packed[i] = values[sources[i]] for i in [begin, end); a source beyond the last value is taken
  // for the last. `num_values` lies within 1..2^31 - 1.
  void (*gather)(const void* values, int64_t num_values, const int32_t* sources, int64_t begin,
                 int64_t end, ValueType type, void* packed);
};

extern const Kernels kGenericKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_KERNELS_H_
