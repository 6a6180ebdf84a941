// Tile kernel, for any target: lanes are batch rows. The rules of vectors-inl.h apply.

#include "vectors-inl.h"

#include "quantize-inl.h"
#include "outputs-inl.h"
#include "patch-inl.h"
#include "tile_sums-inl.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

void Constant(const MatMul& call, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t o = 0; o < call.out_features; o += kWidth) {
      const int64_t left = call.out_features - o;
      Finish(Vec{}, call, row, o, left < kWidth ? left : kWidth);
    }
  }
}

// tile[c, lane] = x[row_begin + lane, column_begin + c], x being `width` wide; lanes beyond the batch
// are 0.
template <int kVecs, typename Element>
void PackRows(const Element* x, int64_t width, int64_t row_begin, int64_t num_rows,
              int64_t column_begin, int64_t num_columns, float* tile) {
  constexpr int kLanes = kVecs * kWidth;
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    // Each row lies in a place of its own: the next ones are fetched meanwhile, of the next block at the end.
    const int64_t ahead =
        lane + kWidth < kLanes ? kWidth * width : num_columns - (kLanes - kWidth) * width;
    for (int64_t c = 0; c < num_columns; c += kWidth) {
      const int64_t left = num_columns - c;
      Vec rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        rows[i] = Vec{};
        if (lane + i >= num_rows) continue;
        const Element* from = x + (row_begin + lane + i) * width + column_begin + c;
        rows[i] = LoadSome(from, left);
        __builtin_prefetch(from + ahead, 0, 2);
      }
      Transpose(rows);
      // The scratch memory has whole registers of columns, so the last one needs no care.
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) Store(tile + (c + i) * kLanes + lane, rows[i]);
    }
  }
}

// tile[c, lane] = x[row_begin + lane, columns[c]], x being `width` wide; lanes beyond the batch are
// 0. Each turn takes the columns that lie within a register from its first one: all that follow, if
// they are neighbours.
template <int kVecs, typename Element>
void PackColumns(const Element* x, int64_t width, const int32_t* columns, int64_t num_columns,
                 int64_t row_begin, int64_t num_rows, float* tile) {
  constexpr int kLanes = kVecs * kWidth;
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    for (int64_t c = 0; c < num_columns;) {
      const int64_t first = columns[c], left = width - first;
      Vec rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        rows[i] = Vec{};
        if (lane + i >= num_rows) continue;
        rows[i] = LoadSome(x + (row_begin + lane + i) * width + first, left);
      }
      Transpose(rows);
      float turned[kWidth * kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) Store(turned + i * kWidth, rows[i]);
      for (; c < num_columns; ++c) {
        const int64_t i = columns[c] - first;
        if (i < 0 || i >= kWidth) break;
        Store(tile + c * kLanes + lane, Load(turned + i * kWidth));
      }
    }
  }
}

// tile[c, lane] = input column_begin + c of batch row row_begin + lane, wherever the call has it;
// lanes beyond the batch may hold anything finite.
template <int kVecs>
void PackInputs(const MatMul& call, const Stage* stage, int64_t row_begin, int64_t num_rows,
                int64_t column_begin, int64_t num_columns, float* tile) {
  if (call.columns != nullptr) {
    PackColumns<kVecs>(call.x, call.in_features, call.columns + column_begin, num_columns,
                       row_begin, num_rows, tile);
  } else if (call.patches == nullptr || (call.patches->IsPointwise() && !call.x_is_tiled)) {
    PackRows<kVecs>(call.x, call.in_features, row_begin, num_rows, column_begin, num_columns,
                    tile);
  } else if (call.patches->IsPointwise()) {
    const int64_t pixels = call.patches->y.size * call.patches->x.size;
    const auto place =
        ActivationTiles{pixels, call.in_features}.At(row_begin / pixels, row_begin % pixels);
    const int64_t lanes = place.stride - row_begin % pixels % ActivationTiles::kWidth;
    CopyTile<kVecs>(call.x + place.offset + column_begin * place.stride, place.stride, lanes,
                    num_columns, tile);
  } else if (stage == nullptr) {
    const auto pack = call.x_is_tiled ? PackTiledPatches<kVecs> : PackPatches<kVecs>;
    pack(call, row_begin, num_rows, column_begin, num_columns, tile);
  } else {
    PackStaged<kVecs>(*call.patches, *stage, row_begin, num_rows, column_begin, num_columns, tile);
  }
}

// Where these inputs lie as PackInputs would pack them: within a tile of x, whose channels are as many
// lanes apart. Else nullptr. A column is one byte, which may point beyond those that there are: so many
// must be readable.
template <int kVecs>
const float* InputsInPlace(const MatMul& call, int64_t row_begin, int64_t column_begin) {
  if (!call.x_is_tiled || !call.patches->IsPointwise()) return nullptr;
  constexpr int64_t kLanes = kVecs * kWidth;
  const int64_t pixels = call.patches->y.size * call.patches->x.size;
  const ActivationTiles tiles = {pixels, call.in_features};
  const auto place = tiles.At(row_begin / pixels, row_begin % pixels);
  const int64_t begin = place.offset + column_begin * kLanes;
  const bool is_inside =
      begin + kMaxBlockColumns * kLanes <= call.batch / pixels * tiles.ImageFloats();
  return place.stride == kLanes && is_inside ? call.x + begin : nullptr;
}

template <int kVecs, typename Value>
void Tile(const TileView& view, const MatMul& call, const Stage* stage, int64_t row_begin,
          int64_t row_end, int64_t panel_begin, int64_t panel_end, float* scratch) {
  constexpr int kLanes = kVecs * kWidth;
  float* tile = scratch;
  float* zeros = tile + (kMaxBlockColumns + 1) * kLanes;  // packing may write beyond the columns
  float* sums = zeros + kLanes;
  memset(zeros, 0, kLanes * sizeof(float));
  const int64_t num_rows = row_end - row_begin;
  if (view.num_blocks == 0) {  // no inputs: else the first block writes the sums
    memset(sums, 0, (panel_end - panel_begin) * kPanelRows * kLanes * sizeof(float));
  }
  for (int64_t block = 0; block < view.num_blocks; ++block) {
    const int64_t column = block * view.block_columns;
    const int64_t columns_left = view.in_features - column;
    const float* inputs = InputsInPlace<kVecs>(call, row_begin, column);
    if (inputs == nullptr) {
      PackInputs<kVecs>(call, stage, row_begin, num_rows, column,
                        columns_left < view.block_columns ? columns_left : view.block_columns, tile);
      inputs = tile;
    }
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      auto multiply = MultiplyPanel<kVecs, Value>;
      if constexpr (kVecs <= 4) {
        if (view.is_paired) multiply = MultiplyPairs<kVecs, Value>;
      }
      multiply(view, block, panel, inputs, sums + (panel - panel_begin) * kPanelRows * kLanes);
    }
  }
  const int64_t last_row = panel_end * kPanelRows;
  WriteOutputs<kVecs>(view, call, row_begin, num_rows, panel_begin * kPanelRows,
                      last_row < view.num_active ? last_row : view.num_active,
                      view.panel_outputs[panel_begin], view.panel_outputs[panel_end], sums, zeros);
}

// One batch row: the inputs are read where they are.
template <typename Value>
void Row(const TileView& view, const MatMul& call, int64_t row, int64_t panel_begin,
         int64_t panel_end, float* sums) {
  memset(sums, 0, (panel_end - panel_begin) * kPanelRows * sizeof(float));
  float tail[kMaxBlockColumns];  // a column is one byte, so 256 inputs must be readable
  for (int64_t block = 0; block < view.num_blocks; ++block) {
    const int64_t column = block * view.block_columns;
    const float* x = call.x + row * call.in_features;
    if (call.columns != nullptr) {
      const int64_t left = view.in_features - column;
      const int64_t num_columns = left < view.block_columns ? left : view.block_columns;
      memset(tail, 0, sizeof(tail));
      for (int64_t c = 0; c < num_columns; ++c) tail[c] = x[call.columns[column + c]];
      x = tail;
    } else if (x += column; view.in_features - column < kMaxBlockColumns) {
      memset(tail, 0, sizeof(tail));
      memcpy(tail, x, (view.in_features - column) * sizeof(float));
      x = tail;
    }
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const auto multiply = view.is_paired ? MultiplyRowByPairs<Value> : MultiplyRow<Value>;
      multiply(view, block, panel, x, sums + (panel - panel_begin) * kPanelRows);
    }
  }
  const int64_t first_row = panel_begin * kPanelRows;
  const int64_t last_row = panel_end * kPanelRows;
  int64_t count;
  for (int64_t o = view.panel_outputs[panel_begin]; o < view.panel_outputs[panel_end];
       o += count) {
    count = view.panel_outputs[panel_end] - o;
    if (count > kWidth) count = kWidth;
    float buffer[kWidth] = {};
    for (int i = 0; i < count; ++i) {
      const int64_t r = view.output_rows[o + i];
      if (r >= first_row && r < last_row) buffer[i] = sums[r - first_row];
    }
    Finish(Load(buffer), call, row, o, count);
  }
}

template <typename Value>
void TileOfValues(const TileView& view, const MatMul& call, const Stage* stage, int64_t row_begin,
                  int64_t row_end, int64_t panel_begin, int64_t panel_end, float* scratch) {
  const int64_t rows = row_end - row_begin;
#define SRIGL_TILE(vecs)                                                                      \
  if (rows <= vecs * kWidth) {                                                                \
    return Tile<vecs, Value>(view, call, stage, row_begin, row_end, panel_begin, panel_end,   \
                             scratch);                                                        \
  }
  if (rows == 1 && call.patches == nullptr) {
    return Row<Value>(view, call, row_begin, panel_begin, panel_end, scratch);
  }
  SRIGL_TILE(1)
  SRIGL_TILE(2)
  SRIGL_TILE(4)
#if SRIGL_WIDTH < 16
  SRIGL_TILE(8)
#endif
#undef SRIGL_TILE
}

void TileOfAny(const TileView& view, const MatMul& call, int64_t row_begin, int64_t row_end,
               int64_t panel_begin, int64_t panel_end, float* scratch) {
  // A tile as wide as registers allow, and as its block of inputs allows; the rest follows.
  const int64_t widest = (kWidth < 16 && !view.is_paired ? 8 : 4) * kWidth;
  const int64_t step = Min(widest, TileLanes(view.block_columns));
  Stage stage;
  const bool staged = call.patches != nullptr &&
                      PlanStage(*call.patches, row_begin, row_end,
                                scratch + kScratchFloats + kStageFloats, &stage);
  if (staged) StageImages(call, stage, 0, call.patches->channels);
  for (int64_t row = row_begin; row < row_end; row += step) {
    const int64_t end = Min(row + step, row_end);
    const auto tile = view.value_type == ValueType::kFloat32    ? TileOfValues<float>
                      : view.value_type == ValueType::kBFloat16 ? TileOfValues<uint16_t>
                                                                : TileOfValues<int8_t>;
    tile(view, call, staged ? &stage : nullptr, row, end, panel_begin, panel_end, scratch);
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
