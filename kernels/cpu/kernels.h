// What every CPU target provides: a table of kernels. One translation unit per target.

#ifndef SRIGL_KERNELS_CPU_KERNELS_H_
#define SRIGL_KERNELS_CPU_KERNELS_H_

#include <stddef.h>
#include <stdint.h>

#include "attention.h"
#include "layout.h"

namespace srigl {

struct Conv;

// Numbered as Python's `backends.cpu.matmul.ACTIVATIONS`. kGelu is its tanh form.
enum class Activation : int32_t {
  kNone = 0,
  kRelu = 1,
  kGelu = 2,
  kGeluExact = 3,
  kSilu = 4,
  kRelu6 = 5,
  kHardSilu = 6,
  kLast = kHardSilu
};

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

  // A batch row is a pixel of x then.
  bool IsPointwise() const {
    return y.kernel == 1 && y.stride == 1 && y.padding == 0 && y.out == y.size && x.kernel == 1 &&
           x.stride == 1 && x.padding == 0 && x.out == x.size;
  }

  // Whether the patches of neighbouring pixels share enough inputs for the lines that they read to be
  // copied first. Copies are four pixels at least.
  bool IsStaged() const {
    return y.kernel * x.kernel > y.stride * x.stride && x.out >= 4 && channels > 0;
  }
};

// How numbers become integers of 8 bits: integer = round(x * inverse) within [low, high], and x is
// about integer * scale. A scale that is not finite makes NaN of whatever is multiplied by it.
struct Steps {
  float scale, inverse, low, high;
};

// The steps of numbers of a range that contains 0: to 0..255 where none is negative, else to
// -127..127.
Steps StepsOf(float low, float high, bool has_nan);

// Those of a range as calls have one: the least and the largest number, and 0.
Steps StepsOf(const float* range);

// What is added to the integers, so that they fit into a byte without a sign.
inline int32_t ZeroOf(const Steps& steps) { return steps.low < 0 ? 128 : 0; }

// What layers of 8 bits pass on: of each number of a row (of an image, a pixel) its integer plus
// `zero`, and for each row the scale, NaN if one of its numbers is.
struct Quantized {
  const uint8_t* integers = nullptr;  // [rows, features]
  const float* scales = nullptr;      // [rows]
  int32_t zero = 0;
};

// The same to be written.
struct QuantizedOutput {
  uint8_t* integers = nullptr;
  float* scales = nullptr;
  Steps steps = {};
};

// y[b, o] = activation(sum + bias[o] + residual[b, o]); row-major x [batch, in], residual and y
// [batch, out].
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
  // What the sum of output o and batch row b is multiplied by, if given: scales[o] * row_scales[b],
  // either of them 1 where it is not given.
  const float* scales = nullptr;      // [out]
  const float* row_scales = nullptr;  // [batch]; without `scales`, powers of two
  // Whether inputs are rounded to integers of 8 bits, within this range, or each batch row within
  // its own: see quantize-inl.h.
  bool quantized = false;
  const float* range = nullptr;  // [2], the least and the largest input
  const float* residual = nullptr;  // [batch, out]: what is added before the activation, if given
  const float* image_ranges = nullptr;  // [images, 2] of a convolution without `range`
  // Whether whole registers of y are written past the caches, which want all of a line: y and its rows
  // lie at multiples of a line. Whoever runs a kernel then fences its stores.
  bool streamed = false;
  // Of a convolution, whether these are in tiles; see activation_tiles.h.
  bool x_is_tiled = false, residual_is_tiled = false, y_is_tiled = false;
  // In place of x, residual and y, if they have integers: those of x are by the steps of `range`.
  Quantized x8, residual8;
  QuantizedOutput y8;
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

// Entries of a neuron that lie in one block of inputs.
struct Segment {
  int32_t neuron;  // within its chunk
  int32_t first, count;  // of the neuron's entries
};

// A layer in training as a call takes it: chunks of neurons, and blocks of inputs of which a tile
// stays in the nearest cache. In each (chunk, block) neurons come by their count: the loops over
// entries then end after as many turns as before, which branch prediction lives on.
struct Cut {
  Segment* segments;  // [num_chunks, num_blocks, chunk]; nullptr: each task cuts what it comes to
  const int32_t* block_of;  // [in_features / 16 and 1 more] the block of 16 inputs
  int64_t chunk, num_chunks;  // neurons of a chunk, at most kTrainingNeurons
  int64_t block, num_blocks;  // inputs of a block, a multiple of 16
  bool exact;  // else a block has eights of a neuron's entries, those whose last one lies in it
};

// A layer in training and a batch of it. The layer is read as the optimizer keeps it, so its pattern
// may change from call to call: entry e belongs to the active neuron e / fan_in. Activations and
// their gradients (x, g, y, dx) are all float32, or all bfloat16; sums are float32.
struct Training {
  const float* values;    // [num_active, fan_in]
  const void* indices;    // [num_active, fan_in], ascending in each neuron: uint16, or int32
  const int32_t* active;  // [num_active], ascending, each within 0..out_features - 1
  const void* x;          // [batch, in_features]
  const void* g;          // [batch, out_features]
  const float* bias;      // [out_features] or nullptr
  void* y;                // [batch, out_features]
  void* dx;               // [batch, in_features]
  float* dvalues;         // [num_active, fan_in]
  int64_t batch;
  int64_t in_features;
  int64_t out_features;
  int64_t num_active;
  int64_t fan_in;
  bool wide_indices;  // int32
  bool bfloat16;
  Cut cut;  // made anew in each call; see training.cc
};

// A row's entries in one block of inputs.
struct BlockRow {
  int32_t row;  // within its panel
  int32_t count;
};

// The layer of a call by its inputs, as the gradient in these reads it: its neurons cut into chunks,
// its inputs into blocks, and in each (chunk, block) the inputs by their number of entries, so that
// trip counts repeat.
struct ByInputs {
  BlockRow* rows;     // [num_chunks, in_features] input within its block
  int64_t* starts;    // [num_chunks, num_blocks] first entry
  uint16_t* neurons;  // [num_active, fan_in] neuron within its chunk
  float* values;      // [num_active, fan_in]
  int64_t chunk, num_chunks;  // neurons of a chunk, at most 2^16
  int64_t block, num_blocks;  // inputs of a block
};

// A sparse matrix as a convolution in training reads it: its inputs cut into blocks, its rows into
// panels, and in each (panel, block) the rows by their count, so that trip counts repeat. A block is
// some channels with all taps of the kernel, tap by tap in each channel, so that its patches are put
// together within the nearest cache; or it is some inputs as they are numbered, (tap, channel).
struct BlockedRows {
  int64_t num_rows, num_inputs;
  int64_t panel_rows, num_panels;
  int64_t block_inputs, num_blocks;
  int64_t block_channels, stage_channels;  // of a block, and of so many blocks at once; or 0
  int64_t lanes;            // pixels of a tile, so that a block of them stays in the nearest cache
  const int64_t* starts;    // [num_panels * num_blocks + 1] first entry of a (panel, block)
  const BlockRow* rows;     // [num_panels, num_blocks, panel_rows]; count 0 for those not there
  const uint16_t* columns;  // [entries and 8 more] input within the block
  const float* values;      // [entries] or nullptr
};

// Where the pixels of a product lie in its result, along one axis.
struct Placement {
  int64_t size, first, step;
};

// out[pixel, outputs[row]] = row of the matrix times the pixel's patch of `source`; the outputs that
// no row has are 0.
struct ConvProducts {
  const float* source;
  Patches patches;
  const BlockedRows* matrix;
  const int32_t* outputs;  // [num_rows], ascending
  int64_t out_features;
  float* out;
  Placement y, x;
  size_t scratch_floats;
};

// dvalues[entry] += sum over pixels of g[pixel, output of its row] * its input in the pixel's patch;
// entries in the matrix's order.
struct ConvDots {
  const float* source;
  Patches patches;
  const BlockedRows* matrix;
  const int32_t* outputs;  // [num_rows], ascending
  int64_t out_features;
  const float* g;
  float* dvalues;
  size_t scratch_floats;
};

inline constexpr int kMaxLanes = 64;    // batch rows of a tile
inline constexpr int kMaxPanels = 16;   // panels of one tile task: bounds the scratch memory
inline constexpr size_t kScratchFloats =
    (kMaxBlockColumns + (kMaxPanels + 1) * kPanelRows) * size_t{kMaxLanes};
// Bytes from one batch row to the next as dot kernels read them; a window may be wider than a row.
constexpr int64_t DotRowBytes(DotType type, int64_t in_features) {
  return (in_features * DotElementBytes(type) + kDotBytes - 1) / kDotBytes * kDotBytes + kDotBytes;
}

// Whether a pattern with places takes more than 2 MB, twice a core's second-level cache: a batch then
// reads it from afar as often as its rows are cut.
inline bool IsFar(const DotView& view) {
  return view.dense == nullptr && view.num_steps > 1 << 14;
}

inline constexpr size_t kStageFloats = 1 << 18;  // of a convolution's images: 1 MB
inline constexpr int kMaxDotLines = 64;  // of a convolution's outputs, that a task of dots takes

// Lanes of a tile, so that a block's inputs stay in the first-level cache.
constexpr int64_t TileLanes(int64_t block_columns) {
  return block_columns <= kMaxBlockColumns / 2 ? kMaxLanes : kMaxLanes / 2;
}

// Batch rows that training takes together. All inputs of so many rows are packed, and should stay in
// the second-level cache.
constexpr int64_t TrainingLanes(int64_t in_features) {
  return in_features <= 6144 ? kMaxLanes : in_features <= 12288 ? kMaxLanes / 2 : kMaxLanes / 4;
}

inline constexpr int64_t kTrainingNeurons = 128;  // whose sums are kept at a time

// Scratch memory of a training kernel: of each lane its inputs and its neurons, as whole registers,
// and zeros.
constexpr size_t TrainingScratchFloats(int64_t in_features) {
  return static_cast<size_t>(in_features + kTrainingNeurons + 2 * 16 + 1) *
         static_cast<size_t>(TrainingLanes(in_features));
}

// Of topology updates: inputs of a panel of the packed batch, neurons whose gradients are formed at
// once at most, and the largest key that anything is ranked by.
inline constexpr int64_t kPanelInputs = 48, kGradientNeurons = 64;
inline constexpr uint32_t kLargestKey = 0x7fffffff;

// Of attention: queries of a task, keys that are packed at once, and floats that they and their values
// take, each.
inline constexpr int64_t kAttentionRows = 256, kAttentionKeys = 512, kAttentionFloats = 1 << 15;
static_assert(2 * kAttentionFloats + 8 * kAttentionKeys + kAttentionRows * kAttentionDepth <=
              kScratchFloats + kStageFloats);

// As `Kernels::window`, by dots. `scratch`: kScratchFloats, in which a batch row must fit, and
// kStageFloats more, 64-aligned. `has_rows`: whether it is as a call for the same rows left it, whatever
// that one's groups were.
using DotFunction = void (*)(const DotView& view, const MatMul& call, int64_t row_begin,
                             int64_t row_end, int64_t group_begin, int64_t group_end,
                             float* scratch, bool has_rows);

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

  // Training; see training.h.

  // Cuts a chunk of neurons. False if an index lies beyond the inputs. `starts`: room for
  // chunk * (num_blocks + 1).
  bool (*train_cut)(const Training& call, int64_t chunk, int32_t* starts);

  // The others return false on an index beyond the inputs, with part of the result unwritten, if
  // they are given a layer that is not cut. `scratch`: TrainingScratchFloats, 64-aligned, and room
  // for a chunk's segments and `starts`.

  // y for batch rows [row_begin, row_end), of active neurons [begin, end), whole chunks, and the
  // ablated ones up to the next active one, with the first also those before it.
  bool (*train_forward)(const Training& call, int64_t row_begin, int64_t row_end, int64_t begin,
                        int64_t end, float* scratch);

  // dx for batch rows [row_begin, row_end) and inputs [begin, end), whole blocks; of an exact cut.
  bool (*train_input_gradient)(const Training& call, int64_t row_begin, int64_t row_end,
                               int64_t begin, int64_t end, float* scratch);

  // The same of a layer by its inputs, which are all within the layer; at most kMaxLanes rows.
  // `scratch`: kMaxLanes of each input from `begin` to `end` and of each neuron of a chunk, and of 32
  // more, 64-aligned.
  void (*train_input_gradient_by_inputs)(const Training& call, const ByInputs& layer,
                                         int64_t row_begin, int64_t row_end, int64_t begin,
                                         int64_t end, float* scratch);

  // dvalues of active neurons [begin, end), whole chunks.
  bool (*train_values_gradient)(const Training& call, int64_t begin, int64_t end, float* scratch);

  // Convolutions in training, see training_conv.h: output pixels [begin, end) of one panel.
  // `scratch`: as many floats as the call says, 64-aligned.
  void (*conv_products)(const ConvProducts& call, int64_t begin, int64_t end, int64_t panel,
                        float* scratch);
  void (*conv_dots)(const ConvDots& call, int64_t begin, int64_t end, int64_t panel,
                    float* scratch);

  // Topology updates; see topology.h.

  // keys[n, i]: those of the dense gradients of neurons [0, num_neurons), a multiple of 8, from
  // panels [num_panels, batch, kPanelInputs] and g [batch, kGradientNeurons]; as many columns as the
  // panels have inputs.
  void (*gradient_keys)(const float* panels, int64_t num_panels, const float* g, int64_t batch,
                        int64_t num_neurons, uint32_t* keys);

  // Finds the places, ascending, of the keys that reach `least`, and returns how many these are.
  // `found` has room for count + 16.
  int64_t (*find_reaching)(const uint32_t* keys, int64_t count, uint32_t least, int32_t* found);

  int64_t width;  // floats of a register

  // Batch rows [row_begin, row_end) of x as integers, in float32, and the scale of each; of a
  // convolution whole images, which are the rows of `call` then.
  void (*quantize)(const MatMul& call, int64_t row_begin, int64_t row_end, float* integers,
                   float* row_scales);

  // The least and the largest of `size` numbers and 0; NaN if one of them is.
  void (*range_of)(const float* x, int64_t size, float* range);

  // Queries [begin, end), at most kAttentionRows, of a part of the batch; see attention.h. `scratch`:
  // kScratchFloats and kStageFloats more, 64-aligned.
  void (*attention)(const Attention& call, int64_t part, int64_t begin, int64_t end,
                    float* scratch);

  // Lines [line_begin, line_end) of the outputs of all images, for channels [channel_begin,
  // channel_end): sixteen of them at least, or all there are; see depthwise.h.
  void (*depthwise)(const Conv& conv, const float* kernel, int64_t line_begin, int64_t line_end,
                    int64_t channel_begin, int64_t channel_end);

  // Results [pixel_begin, pixel_end) of an image, whole tiles, for channels [channel_begin,
  // channel_end); see max_pool.h. `scratch`: kScratchFloats and kStageFloats more, 64-aligned, in which
  // the lines that are read must fit.
  void (*max_pool)(const Conv& pool, int64_t image, int64_t pixel_begin, int64_t pixel_end,
                   int64_t channel_begin, int64_t channel_end, float* scratch);
};

// Of processors with AVX-512, and what later ones add to it.
struct DotKernels {
  DotFunction dots[kNumDotTypes];  // by type of the dot pattern; nullptr where the target cannot

  // As `Kernels::tile`, for bfloat16 values whose neurons have these scales in a dot pattern of
  // float16; or nullptr.
  void (*half_tile)(const TileView& view, const float* neuron_scales, const MatMul& call,
                    int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end,
                    float* scratch);
};

extern const Kernels kGenericKernels;
#if defined(__x86_64__)
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
extern const DotKernels kAvx512Dots;
extern const DotKernels kVnniDots;
extern const DotKernels kBf16Dots;
extern const DotKernels kFp16Dots;
#endif

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_KERNELS_H_
