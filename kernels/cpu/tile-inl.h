// Tile kernel, for any target: lanes are batch rows. Included by each target's translation unit,
// compiled with that target's flags into that target's namespace. No std:: header may be included
// here: a template instantiated with wide instructions could be linked into code for all targets.
//
// The includer defines SRIGL_TARGET (a namespace name) and SRIGL_WIDTH (floats of a register).

#include <stdint.h>
#include <string.h>

#include "kernels.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

constexpr int kWidth = SRIGL_WIDTH;

typedef float Vec __attribute__((vector_size(4 * SRIGL_WIDTH)));
typedef float VecU __attribute__((vector_size(4 * SRIGL_WIDTH), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * SRIGL_WIDTH)));
typedef uint32_t Word __attribute__((vector_size(4 * SRIGL_WIDTH)));

inline Vec Load(const float* p) { return *reinterpret_cast<const VecU*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<VecU*>(p) = v; }

inline float ToFloat(float value) { return value; }
inline float ToFloat(uint16_t bfloat16) {
  const uint32_t bits = uint32_t{bfloat16} << 16;
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

inline Vec Load(const uint16_t* bfloat16) {
  typedef uint16_t Half __attribute__((vector_size(2 * SRIGL_WIDTH)));
  Half half;
  memcpy(&half, bfloat16, sizeof(half));
  return reinterpret_cast<Vec>(__builtin_convertvector(half, Word) << 16);
}

inline float ToFloat(int8_t value) { return value; }

// The first `left` numbers, at most a register of them; zeros after them.
template <typename Element>
inline Vec LoadSome(const Element* p, int64_t left) {
  if (left >= kWidth) return Load(p);
  Element buffer[kWidth] = {};
  memcpy(buffer, p, left * sizeof(Element));
  return Load(buffer);
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl

#include "quantize-inl.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// ---- element-wise ----

// exp(x), relative error below 2e-7; 0 below -87, infinity above 88.7; NaN stays NaN.
inline Vec Exp(Vec x) {
  x = x < -87.0f ? Vec{} - 87.0f : x;
  x = x > 88.8f ? Vec{} + 88.8f : x;
  const float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = x * 1.44269504f + kRound;
  const Vec n = shifted - kRound;
  Vec r = x - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec p = 1.98756915e-4f * r + 1.39819995e-3f;
  p = p * r + 8.33345219e-3f;
  p = p * r + 4.16657962e-2f;
  p = p * r + 1.66666655e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  const Word bits = (reinterpret_cast<Word>(shifted) + 127u) << 23;  // of NaN it overflows
  return p * reinterpret_cast<Vec>(bits);
}

inline Vec Activate(Vec v, Activation activation) {
  if (activation == Activation::kRelu) return v < 0.0f ? Vec{} : v;
  if (activation == Activation::kGelu) {
    // 0.5 v (1 + tanh(u)) = v / (1 + exp(-2u)), u = sqrt(2 / pi) (v + 0.044715 v^3)
    const Vec u = v * (0.797884561f + 0.0356774081f * (v * v));
    return v / (1.0f + Exp(-2.0f * u));
  }
  return v;
}

// Writes `count` (at most kWidth) outputs of one batch row, scaling them and adding the bias.
inline void Finish(Vec sums, const MatMul& call, int64_t row, int64_t output, int64_t count) {
  float* y = call.y + row * call.out_features + output;
  if (call.scales != nullptr) {
    const float row_scale = call.row_scales == nullptr ? 1.0f : call.row_scales[row];
    sums *= LoadSome(call.scales + output, count) * row_scale;
    SRIGL_ROUND(sums);
  }
  if (count == kWidth) {
    if (call.bias != nullptr) sums += Load(call.bias + output);
    Store(y, Activate(sums, call.activation));
    return;
  }
  float buffer[kWidth] = {};
  if (call.bias != nullptr) memcpy(buffer, call.bias + output, count * sizeof(float));
  Store(buffer, Activate(sums + Load(buffer), call.activation));
  memcpy(y, buffer, count * sizeof(float));
}

void Constant(const MatMul& call, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t o = 0; o < call.out_features; o += kWidth) {
      const int64_t left = call.out_features - o;
      Finish(Vec{}, call, row, o, left < kWidth ? left : kWidth);
    }
  }
}

// ---- transposition ----

#if defined(__clang__) || __GNUC__ >= 12
#define SRIGL_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SRIGL_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

#if SRIGL_WIDTH == 16
inline Vec InterleaveLow(Vec a, Vec b) {
  return SRIGL_SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline Vec InterleaveHigh(Vec a, Vec b) {
  return SRIGL_SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
#elif SRIGL_WIDTH == 8
inline Vec InterleaveLow(Vec a, Vec b) {
  return SRIGL_SHUFFLE(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
inline Vec InterleaveHigh(Vec a, Vec b) {
  return SRIGL_SHUFFLE(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}
#else
inline Vec InterleaveLow(Vec a, Vec b) { return SRIGL_SHUFFLE(a, b, 0, 4, 1, 5); }
inline Vec InterleaveHigh(Vec a, Vec b) { return SRIGL_SHUFFLE(a, b, 2, 6, 3, 7); }
#endif

// Transposes kWidth registers in place: log2(kWidth) perfect shuffles of the rows.
inline void Transpose(Vec* rows) {
#pragma GCC unroll 4
  for (int step = 1; step < kWidth; step *= 2) {
    Vec mixed[kWidth];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth / 2; ++i) {
      mixed[2 * i] = InterleaveLow(rows[i], rows[i + kWidth / 2]);
      mixed[2 * i + 1] = InterleaveHigh(rows[i], rows[i + kWidth / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; ++i) rows[i] = mixed[i];
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl

#include "patch-inl.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// tile[c, lane] = x[row_begin + lane, column_begin + c], x being `width` wide; lanes beyond the batch
// are 0.
template <int kVecs, typename Element>
void PackRows(const Element* x, int64_t width, int64_t row_begin, int64_t num_rows,
              int64_t column_begin, int64_t num_columns, float* tile) {
  constexpr int kLanes = kVecs * kWidth;
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    for (int64_t c = 0; c < num_columns; c += kWidth) {
      const int64_t left = num_columns - c;
      Vec rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        rows[i] = Vec{};
        if (lane + i >= num_rows) continue;
        rows[i] = LoadSome(x + (row_begin + lane + i) * width + column_begin + c, left);
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
  } else if (call.patches == nullptr) {
    PackRows<kVecs>(call.x, call.in_features, row_begin, num_rows, column_begin, num_columns,
                    tile);
  } else if (stage == nullptr) {
    PackPatches<kVecs>(call, row_begin, num_rows, column_begin, num_columns, tile);
  } else {
    PackStaged<kVecs>(*call.patches, *stage, row_begin, num_rows, column_begin, num_columns, tile);
  }
}

// Four values, each in every lane.
#if SRIGL_WIDTH == 16
inline void BroadcastFour(__m128 four, Vec* all) {
  // From a register: with registers this wide, loads are what limits the kernel.
  const __m512 wide = _mm512_castps128_ps512(four);
  all[0] = _mm512_broadcastss_ps(four);
  all[1] = _mm512_permutexvar_ps(_mm512_set1_epi32(1), wide);
  all[2] = _mm512_permutexvar_ps(_mm512_set1_epi32(2), wide);
  all[3] = _mm512_permutexvar_ps(_mm512_set1_epi32(3), wide);
}
inline void BroadcastFour(const float* values, Vec* all) {
  BroadcastFour(_mm_loadu_ps(values), all);
}
inline void BroadcastFour(const uint16_t* values, Vec* all) {
  const __m128i bits = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(values));
  BroadcastFour(_mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(bits), 16)), all);
}
inline void BroadcastFour(const int8_t* values, Vec* all) {
  int32_t four;
  memcpy(&four, values, sizeof(four));
  BroadcastFour(_mm_cvtepi32_ps(_mm_cvtepi8_epi32(_mm_cvtsi32_si128(four))), all);
}
#else
template <typename Value>
inline void BroadcastFour(const Value* values, Vec* all) {
  for (int u = 0; u < 4; ++u) all[u] = Vec{} + ToFloat(values[u]);
}
#endif

// sums[row, lane] += the weights of one (block, panel) times the block's inputs. Inlined, its loops
// would share registers with whatever the caller does: GCC then spills sums and takes twice as long.
template <int kVecs, typename Value>
__attribute__((noinline)) void MultiplyPanel(const TileView& view, int64_t block, int64_t panel, const float* tile,
                   float* sums) {
  constexpr int kLanes = kVecs * kWidth;
  constexpr int kChains = kVecs >= 4 ? 1 : 4 / kVecs;  // independent sums hide the latency
  const int64_t table = block * view.num_panels + panel;
  const TileRow* rows = view.rows + table * kPanelRows;
  const Value* values = static_cast<const Value*>(view.values) + view.starts[table];
  const uint8_t* columns = view.columns + view.starts[table];
  int64_t left = view.starts[table + 1] - view.starts[table];
  for (int i = 0; i < kPanelRows; ++i) {
    float* sum = sums + (rows[i].row % kPanelRows) * kLanes;
    const int64_t count = rows[i].count < left ? rows[i].count : left;
    Vec total[kChains][kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      total[0][v] = block == 0 ? Vec{} : Load(sum + v * kWidth);
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total[c][v] = Vec{};
    }
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
      uint32_t four;
      memcpy(&four, columns + j, sizeof(four));
      Vec value[4];
      BroadcastFour(values + j, value);
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const float* x = tile + ((four >> (8 * u)) & 255) * kLanes;
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) total[u % kChains][v] += Load(x + v * kWidth) * value[u];
      }
    }
    for (; j < count; ++j) {
      const float* x = tile + columns[j] * kLanes;
      const Vec value = Vec{} + ToFloat(values[j]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) total[0][v] += Load(x + v * kWidth) * value;
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total[0][v] += total[c][v];
      Store(sum + v * kWidth, total[0][v]);
    }
    values += count;
    columns += count;
    left -= count;
  }
}

// Turns sums [row, lane] around and writes outputs [output_begin, output_end). The outputs of a
// layer may be many: then its lanes are done together, as looking up their rows takes time. Those
// of a convolution are few, and are written as they lie in memory, a register's lanes at a time.
template <int kVecs>
void WriteOutputs(const TileView& view, const MatMul& call, int64_t row_begin, int64_t num_rows,
                  int64_t first_row, int64_t last_row, int64_t output_begin, int64_t output_end,
                  const float* sums, const float* zeros) {
  constexpr int kLanes = kVecs * kWidth;
  const int64_t step = call.patches == nullptr ? kLanes : kWidth;
  for (int64_t lane_begin = 0; lane_begin < num_rows; lane_begin += step) {
    const int64_t lane_end = Min(lane_begin + step, num_rows);
    int64_t count;
    for (int64_t o = output_begin; o < output_end; o += count) {
      count = kWidth - o % kWidth;  // the next chunks are aligned as the outputs are
      if (count > output_end - o) count = output_end - o;
      const float* source[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        const int64_t row = i < count ? view.output_rows[o + i] : -1;
        source[i] =
            row >= first_row && row < last_row ? sums + (row - first_row) * kLanes : zeros;
      }
      for (int64_t lane = lane_begin; lane < lane_end; lane += kWidth) {
        Vec rows[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) rows[i] = Load(source[i] + lane);
        Transpose(rows);
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) {
          if (lane + i < num_rows) Finish(rows[i], call, row_begin + lane + i, o, count);
        }
      }
    }
  }
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
    PackInputs<kVecs>(call, stage, row_begin, num_rows, column,
                      columns_left < view.block_columns ? columns_left : view.block_columns, tile);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      MultiplyPanel<kVecs, Value>(view, block, panel, tile,
                                  sums + (panel - panel_begin) * kPanelRows * kLanes);
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
      const int64_t table = block * view.num_panels + panel;
      const TileRow* rows = view.rows + table * kPanelRows;
      const Value* values = static_cast<const Value*>(view.values) + view.starts[table];
      const uint8_t* columns = view.columns + view.starts[table];
      int64_t left = view.starts[table + 1] - view.starts[table];
      float* panel_sums = sums + (panel - panel_begin) * kPanelRows;
      for (int i = 0; i < kPanelRows; ++i) {
        const int64_t count = rows[i].count < left ? rows[i].count : left;
        float total[4] = {};
        int64_t j = 0;
        for (; j + 4 <= count; j += 4) {
          uint32_t four;
          memcpy(&four, columns + j, sizeof(four));
#pragma GCC unroll 4
          for (int u = 0; u < 4; ++u) {
            total[u] += x[(four >> (8 * u)) & 255] * ToFloat(values[j + u]);
          }
        }
        for (; j < count; ++j) total[0] += x[columns[j]] * ToFloat(values[j]);
        panel_sums[rows[i].row % kPanelRows] += (total[0] + total[1]) + (total[2] + total[3]);
        values += count;
        columns += count;
        left -= count;
      }
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
  // A tile as wide as a register allows, and as its block of inputs allows; the rest follows.
  constexpr int64_t kWidest = kWidth < 16 ? 8 * kWidth : 4 * kWidth;
  const int64_t step = Min(kWidest, TileLanes(view.block_columns));
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
