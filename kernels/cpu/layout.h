// The packed form of a condensed layer: two byte strings ("patterns") and their values.
//
// A packed layer is data: it may come from a file, and nobody promises that it was not changed.
// Therefore no content of a pattern may lead a kernel out of bounds. Three means, by cost:
//   * sizes: a pattern's header determines the size of every section; `Parse` compares them with
//     the sizes of the buffers, so a view never points outside its buffer;
//   * tables (a few entries per group or panel) are checked by `Parse`, in every call;
//   * what there is one of per weight or per packet cannot be wrong: a column is one byte that
//     indexes 256 rows of scratch memory or 32 lanes of a register pair; a row is masked to its
//     panel; a window's start and a row's count are clamped by the kernel (one instruction).
// A changed pattern gives wrong numbers or an error, nothing worse.
//
// Tile pattern, for every batch size and CPU target (see tile-inl.h):
//   The inputs are cut into blocks of `block_columns` (at most 256), the active neurons ("rows")
//   into panels of 64. The weights of a (block, panel) lie together, row by row, the rows sorted
//   by their count so that trip counts repeat. In a paired pattern every two rows lie together: first
//   the weights of columns that both have, then others in turn, then what is left of the longer row;
//   of a register of inputs two products are made then. The transpose, for gradients, has a tile pattern like
//   any other; its inputs are the active neurons, which a call lists (see pack_transposed.cc). Such
//   a list is checked in every call, an order of values (gradients.h) clamped entry by entry.
//
// Window pattern, for small batches on AVX-512 (see kernels_avx512.cc):
//   Sixteen rows make a group, one per lane. A packet holds four steps of one weight per row, and
//   reads five windows of 16 columns, the nodes of a path: the columns of a step lie in the two
//   windows that it joins, and one two-register permutation finds its inputs. A path takes five
//   loads where four pairs would take eight; the same two windows in turn make four steps of one
//   pair. Rows have equal fan-in, so packets can be filled nearly completely by choosing windows in
//   a good order (see pack_windows.cc). The permutation reads the lowest five bits of its index only.
//   So where weights may be rounded, a float32 whose lowest five bits are its column (`Embed`) is its
//   own index, and there is no other: a fifth less to read.
//
// Dot pattern, for CPUs whose lanes multiply several small numbers at once (see dots-inl.h):
//   Sixteen rows make a group. A step reads one window of 64 bytes of a batch row, 64 inputs of 8
//   bits or 32 of 16, and a permutation finds four or two inputs of each row in it: what one
//   instruction multiplies by as many weights, and adds up in 32 bits. Windows begin anywhere and go
//   from left to right: each begins at the leftmost input that some row still needs, and every row
//   takes the next ones that lie within. Values, their scales and places are one byte string.
//   Of a layer that is nearly dense a step has values only: those of the next four bytes of a batch
//   row, which every lane reads. It costs less than half as much, and so such a pattern is chosen where
//   there are not that many more steps (see pack_dots.cc). Float32 has no other.

#ifndef SRIGL_KERNELS_CPU_LAYOUT_H_
#define SRIGL_KERNELS_CPU_LAYOUT_H_

#include <stddef.h>
#include <stdint.h>

namespace srigl {

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline constexpr int kPanelRows = 64;         // rows of a panel
inline constexpr int kMaxBlockColumns = 256;  // a column within a block is one byte
inline constexpr int kGroupRows = 16;         // rows of a window group: the lanes of a register
inline constexpr int kWindowColumns = 16;     // columns of one window
inline constexpr int kPacketSteps = 4;        // steps of a packet, the bytes of an index register
inline constexpr int kPacketValues = kPacketSteps * kGroupRows;
inline constexpr int kSectionBytes = 64;      // sections start at multiples of this

inline constexpr uint32_t kTileMagic = 0x31545253;    // "SRT1"
inline constexpr uint32_t kPairedTileMagic = 0x32545253;  // "SRT2"
inline constexpr uint32_t kWindowMagic = 0x32575253;  // "SRW2"
inline constexpr uint32_t kDotMagic = 0x31445253;     // "SRD1"

// Of int8 weights a neuron has a scale, which the call brings along.
enum class ValueType : int32_t { kFloat32 = 0, kBFloat16 = 1, kInt8 = 2 };

constexpr size_t ValueBytes(ValueType type) {
  return type == ValueType::kFloat32 ? 4 : type == ValueType::kBFloat16 ? 2 : 1;
}

// Types of the numbers that dot patterns hold, weights and inputs alike.
enum class DotType : int32_t { kInt8 = 0, kBFloat16 = 1, kFloat16 = 2, kFloat32 = 3 };
inline constexpr int kNumDotTypes = 4;

inline constexpr int kDotBytes = 64;  // of a window, and of its weights and their places
constexpr int DotElementBytes(DotType type) {
  return type == DotType::kInt8 ? 1 : type == DotType::kFloat32 ? 4 : 2;
}
// Steps of a group in a dense dot pattern: of each, a lane has four bytes.
constexpr int64_t DenseSteps(DotType type, int64_t in_features) {
  return (in_features * DotElementBytes(type) + 3) / 4;
}

// First bytes of either pattern.
struct PatternHeader {
  uint32_t magic;
  int32_t in_features;
  int32_t out_features;
  int32_t num_active;
  int32_t block_columns;  // tile pattern; of a dot pattern its DotType; 0 in a window pattern
  int32_t is_embedded;    // window pattern, 0 or 1: columns stand within the values; dot: is dense
  int64_t num_values;  // tile: weights; window: packets * 64; dot: steps
  int64_t num_masks;   // window and dot pattern; 0 in a tile pattern
};

// One row of a (block, panel): which row of the panel, and how many weights it has. In a paired pattern
// the first of two rows tells, in multiples of kPanelRows, how many columns they share.
struct TileRow {
  uint16_t row;
  uint16_t count;
};

// One group of sixteen rows; an entry after the last group closes the ranges.
struct WindowGroup {
  int64_t packet_begin;
  int64_t mask_begin;  // one mask per 16 outputs of [output_begin, next.output_begin)
  int32_t output_begin;
  int32_t reserved;
};

// The five windows of a packet in one word, because a load costs more than taking it apart. Lowest
// 32 bits: the first column of the leftmost window. Then for each window six bits, how many windows
// it lies to the right of that one.
using WindowPath = uint64_t;

inline constexpr int kPathReach = 64;

// First column of window `i` of a path; that it may lie outside the layer is not noticed.
inline uint32_t WindowStart(WindowPath path, int i) {
  constexpr uint32_t kMask = (kPathReach - 1) * kWindowColumns;
  // (path >> (32 + 6 * i)) % 64 * 16
  return static_cast<uint32_t>(path) + (static_cast<uint32_t>(path >> (28 + 6 * i)) & kMask);
}

struct TileView {
  int64_t in_features;
  int64_t out_features;
  int64_t num_active;
  int64_t block_columns;
  int64_t num_blocks;
  int64_t num_panels;
  int64_t num_values;
  const int64_t* starts;         // [num_blocks * num_panels + 1] first weight of a (block, panel)
  const int32_t* panel_outputs;  // [num_panels + 1] first output that a panel writes
  const TileRow* rows;           // [num_blocks, num_panels, kPanelRows]
  const int32_t* output_rows;    // [out_features] row of an output, -1 when it is ablated
  const uint8_t* columns;        // [num_values]
  const void* values;            // [num_values]
  ValueType value_type;
  bool is_paired;
};

struct WindowView {
  int64_t in_features;
  int64_t out_features;
  int64_t num_active;
  int64_t num_groups;
  const WindowGroup* groups;  // [num_groups + 1]
  const WindowPath* paths;    // [num_packets]
  const uint16_t* masks;      // [num_masks] bit i: output i of the sixteen is active
  // [num_packets][lane][step]: bit 4 chooses the step's second window; nullptr: within the values
  const uint8_t* columns;
  const void* values;         // [num_packets][step][lane]
  ValueType value_type;
};

// One step of a dot pattern.
struct DotStep {
  uint8_t columns[kDotBytes];  // within the window, one for each value, in its width
  uint8_t values[kDotBytes];   // of lane r the r-th four bytes
};

struct DotView {
  int64_t in_features;
  int64_t out_features;
  int64_t num_active;
  int64_t num_groups;
  int64_t num_steps;
  DotType type;
  const WindowGroup* groups;  // [num_groups + 1], steps in place of packets
  const uint16_t* masks;      // as in a window pattern
  const float* scales;        // [num_groups * kGroupRows] what a row's sum is multiplied by
  const int32_t* sums;        // [num_groups * kGroupRows] of int8, the sum of a row's weights
  const uint32_t* starts;     // [num_steps] first byte of the window in a batch row
  const DotStep* steps;       // [num_steps]
  // Of a dense pattern, in place of both, [num_groups, DenseSteps][kDotBytes], else nullptr: of lane
  // r the r-th four bytes.
  const uint8_t* dense;
};

// A read-only buffer.
struct Bytes {
  const void* data;
  size_t size;
};

// Fills `view` from a pattern and its values. Returns nullptr, or what is wrong.
const char* ParseTile(Bytes pattern, Bytes values, ValueType type, TileView* view);
const char* ParseWindow(Bytes pattern, Bytes values, ValueType type, WindowView* view);
const char* ParseDots(Bytes pattern, DotView* view);

// Size of a pattern with this header and, section by section, where it begins; false when the
// header makes no sense.
struct TileSections {
  size_t starts, panel_outputs, rows, output_rows, columns, total;
};
struct WindowSections {
  size_t groups, paths, masks, columns, total;
};
struct DotSections {
  size_t groups, masks, scales, sums, starts, steps, total;
};
bool TileLayout(const PatternHeader& header, TileSections* sections);
bool WindowLayout(const PatternHeader& header, WindowSections* sections);
bool DotLayout(const PatternHeader& header, DotSections* sections);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_LAYOUT_H_
