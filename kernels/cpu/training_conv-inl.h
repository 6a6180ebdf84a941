// Convolutions in training, for any target: lanes are output pixels. Included by each target's
// translation unit; the rules of tile-inl.h hold here too.
//
// A tile of pixels takes the inputs block by block: packed [input, lane], a block stays in the
// first-level cache while all rows multiply with it. Eight registers of lanes to a row are as many as
// fit: each weight is loaded once for them, and loads are what limits the kernels.

#include "training-inl.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// ---- blocks ----

// Calls use(block) with the inputs of each block in `tile`, one after the other. The stage is at the
// end of the call's scratch memory.
template <int kVecs, typename Call, typename Use>
void ForBlocks(const Call& call, int64_t pixel, int64_t num_pixels, float* tile, float* scratch,
               const Use& use) {
  const BlockedRows& matrix = *call.matrix;
  MatMul source = {};
  source.x = call.source;
  source.patches = &call.patches;
  if (matrix.block_channels == 0) {
    for (int64_t block = 0; block < matrix.num_blocks; ++block) {
      const int64_t column = block * matrix.block_inputs;
      PackPatches<kVecs>(source, pixel, num_pixels, column,
                         Min(matrix.block_inputs, matrix.num_inputs - column), tile);
      use(block);
    }
    return;
  }
  Stage stage;
  LayStage(call.patches, matrix.stage_channels, pixel, pixel + num_pixels,
           scratch + call.scratch_floats, &stage);
  int64_t block = 0;
  for (int64_t first = 0; first < call.patches.channels; first += matrix.stage_channels) {
    const int64_t channels = Min(matrix.stage_channels, call.patches.channels - first);
    StageImages(source, stage, first, channels);
    for (int64_t c = 0; c < channels; c += matrix.block_channels, ++block) {
      PackChannels<kVecs>(call.patches, stage, pixel, num_pixels, c,
                          Min(matrix.block_channels, channels - c), tile);
      use(block);
    }
  }
}

// ---- products ----

// sums[row, lane] += the entries of one (panel, block) times the block's inputs. Not inlined, for the
// reason given at MultiplyPanel.
template <int kVecs>
__attribute__((noinline)) void MultiplyRows(const BlockRow* rows, int64_t num_rows,
                                            const uint16_t* columns, const float* values,
                                            const float* tile, float* sums) {
  constexpr int kLanes = kVecs * kWidth;
  constexpr int kChains = kVecs >= 4 ? 1 : 4 / kVecs;  // hide the latency
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t count = rows[i].count;
    float* sum = sums + int64_t{rows[i].row} * kLanes;
    Vec total[kChains][kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      total[0][v] = Load(sum + v * kWidth);
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total[c][v] = Vec{};
    }
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
      const FourIndices four(columns + j);
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const float* x = tile + four.Get<uint16_t>(u) * kLanes;
        const Vec value = Broadcast(values[j + u]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) total[u % kChains][v] += Load(x + v * kWidth) * value;
      }
    }
    for (; j < count; ++j) {
      const float* x = tile + int64_t{columns[j]} * kLanes;
      const Vec value = Broadcast(values[j]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) total[0][v] += Load(x + v * kWidth) * value;
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total[0][v] += total[c][v];
      Store(sum + v * kWidth, total[0][v]);
    }
    columns += count;
    values += count;
  }
}

// Writes the outputs of a panel: its rows, and the zeros of the outputs between them.
template <int kVecs>
void WritePixels(const ConvProducts& call, int64_t panel, int64_t pixel_begin, int64_t num_pixels,
                 const float* sums, const float* zeros) {
  constexpr int kLanes = kVecs * kWidth;
  float* to[kLanes];
  Pixel pixel = PixelAt(call.patches, pixel_begin);
  for (int64_t lane = 0; lane < num_pixels; ++lane) {
    const int64_t y = call.y.first + pixel.y * call.y.step, x = call.x.first + pixel.x * call.x.step;
    to[lane] = call.out + ((pixel.image * call.y.size + y) * call.x.size + x) * call.out_features;
    if (++pixel.x == call.patches.x.out) pixel = NextLine(call.patches, pixel);
  }
  const BlockedRows& matrix = *call.matrix;
  const int64_t first = panel * matrix.panel_rows;
  const int64_t end = Min(first + matrix.panel_rows, matrix.num_rows);
  const int64_t last = end == matrix.num_rows ? call.out_features : call.outputs[end];
  int64_t row = first, count;
  for (int64_t o = panel == 0 ? 0 : call.outputs[first]; o < last; o += count) {
    count = Min(kWidth - o % kWidth, last - o);  // the next stores are aligned as the outputs are
    const float* sources[kWidth];
    for (int i = 0; i < kWidth; ++i) {
      const bool is_active = i < count && row < end && call.outputs[row] == o + i;
      sources[i] = is_active ? sums + (row++ - first) * kLanes : zeros;
    }
    for (int64_t lane = 0; lane < num_pixels; lane += kWidth) {
      Vec rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) rows[i] = Load(sources[i] + lane);
      Transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        if (lane + i < num_pixels) StoreSome(to[lane + i] + o, rows[i], count);
      }
    }
  }
}

struct Products {
  using Call = ConvProducts;
  template <int kVecs>
  static void Run(const Call& call, int64_t pixel, int64_t num_pixels, int64_t panel,
                  float* scratch) {
    constexpr int kLanes = kVecs * kWidth;
    const BlockedRows& matrix = *call.matrix;
    float* zeros = scratch;
    float* sums = zeros + kLanes;
    float* tile = sums + matrix.panel_rows * kLanes;
    memset(zeros, 0, (1 + matrix.panel_rows) * kLanes * sizeof(float));
    ForBlocks<kVecs>(call, pixel, num_pixels, tile, scratch, [&](int64_t block) {
      const int64_t table = panel * matrix.num_blocks + block;
      MultiplyRows<kVecs>(matrix.rows + table * matrix.panel_rows, matrix.panel_rows,
                          matrix.columns + matrix.starts[table],
                          matrix.values + matrix.starts[table], tile, sums);
    });
    WritePixels<kVecs>(call, panel, pixel, num_pixels, sums, zeros);
  }
};

// ---- scalar products ----

// dvalues += the scalar products of each row's gradient with the inputs of its entries in a block.
template <int kVecs>
__attribute__((noinline)) void AddRowDots(const BlockRow* rows, int64_t num_rows,
                                          const uint16_t* columns, const float* tile, const float* g,
                                          float* dvalues) {
  constexpr int kLanes = kVecs * kWidth;
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t count = rows[i].count;
    const float* from = g + int64_t{rows[i].row} * kLanes;
    Vec lanes[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) lanes[v] = Load(from + v * kWidth);
    // Columns of other rows follow those of the last: they are multiplied in vain.
    for (int64_t j = 0; j < count; j += kDots) {
      const Dots dots = MultiplyEntries<kVecs>(lanes, tile, columns + j);
      if (j + kDots <= count) {
        DotsU* to = reinterpret_cast<DotsU*>(dvalues + j);
        *to += dots;
      } else {
        for (int64_t d = 0; j + d < count; ++d) dvalues[j + d] += dots[d];
      }
    }
    columns += count;
    dvalues += count;
  }
}

struct RowDots {
  using Call = ConvDots;
  template <int kVecs>
  static void Run(const Call& call, int64_t pixel, int64_t num_pixels, int64_t panel,
                  float* scratch) {
    constexpr int kLanes = kVecs * kWidth;
    const BlockedRows& matrix = *call.matrix;
    float* g = scratch;
    float* tile = g + (matrix.panel_rows + 1) * kLanes;
    const int64_t first = panel * matrix.panel_rows;
    const int64_t num_rows = Min(matrix.panel_rows, matrix.num_rows - first);
    PackColumns<kVecs>(call.g, call.out_features, call.outputs + first, num_rows, pixel, num_pixels,
                       g);
    ForBlocks<kVecs>(call, pixel, num_pixels, tile, scratch, [&](int64_t block) {
      const int64_t table = panel * matrix.num_blocks + block;
      AddRowDots<kVecs>(matrix.rows + table * matrix.panel_rows, matrix.panel_rows,
                        matrix.columns + matrix.starts[table], tile, g,
                        call.dvalues + matrix.starts[table]);
    });
  }
};

// ---- tiles ----

// Pixels [begin, end), in tiles of the widest kind, the last one no wider than its pixels need.
template <typename Kernel>
void RunPixels(const typename Kernel::Call& call, int64_t begin, int64_t end, int64_t panel,
               float* scratch) {
  const int64_t lanes = call.matrix->lanes;
  for (int64_t pixel = begin; pixel < end; pixel += lanes) {
    const int64_t left = Min(lanes, end - pixel);
#define SRIGL_RUN(vecs)                                              \
  if (left <= vecs * kWidth) {                                       \
    Kernel::template Run<vecs>(call, pixel, left, panel, scratch);   \
    continue;                                                        \
  }
    SRIGL_RUN(1)
    SRIGL_RUN(2)
    SRIGL_RUN(4)
    SRIGL_RUN(8)
#undef SRIGL_RUN
  }
}

void ConvProductsOf(const ConvProducts& call, int64_t begin, int64_t end, int64_t panel,
                    float* scratch) {
  RunPixels<Products>(call, begin, end, panel, scratch);
}

void ConvDotsOf(const ConvDots& call, int64_t begin, int64_t end, int64_t panel, float* scratch) {
  RunPixels<RowDots>(call, begin, end, panel, scratch);
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
