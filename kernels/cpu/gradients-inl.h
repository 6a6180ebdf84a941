// Gradient in the values, for any target: for every weight a scalar product over the batch, whose
// factors both lie with the batch in the lanes. Included by each target's translation unit after
// tile-inl.h, whose rules hold here too.

#include "tile-inl.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// Weights whose products are summed over the lanes together.
constexpr int kDots = SRIGL_WIDTH < 8 ? 4 : 8;

typedef float Dots __attribute__((vector_size(SRIGL_WIDTH < 8 ? 16 : 32)));
typedef float DotsU
    __attribute__((vector_size(SRIGL_WIDTH < 8 ? 16 : 32), aligned(4), may_alias));

// ---- sums over lanes ----

#if SRIGL_WIDTH == 16
inline Vec UnpackLow(Vec a, Vec b) {
  return SRIGL_SHUFFLE(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
inline Vec UnpackHigh(Vec a, Vec b) {
  return SRIGL_SHUFFLE(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31);
}
// Sums of eight products from two registers whose quarters each hold parts of four.
inline Dots SumParts(Vec a, Vec b) {
  const Vec low = SRIGL_SHUFFLE(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
  const Vec high = SRIGL_SHUFFLE(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  const __m512 sum = (__m512)(low + high);
  const __m256 even = _mm512_castps512_ps256(_mm512_shuffle_f32x4(sum, sum, 0x08));
  const __m256 odd = _mm512_castps512_ps256(_mm512_shuffle_f32x4(sum, sum, 0x0d));
  return (Dots)(even + odd);
}
#elif SRIGL_WIDTH == 8
inline Vec UnpackLow(Vec a, Vec b) { return SRIGL_SHUFFLE(a, b, 0, 8, 1, 9, 4, 12, 5, 13); }
inline Vec UnpackHigh(Vec a, Vec b) { return SRIGL_SHUFFLE(a, b, 2, 10, 3, 11, 6, 14, 7, 15); }
inline Dots SumParts(Vec a, Vec b) {
  return SRIGL_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11) +
         SRIGL_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
}
#else
inline Vec UnpackLow(Vec a, Vec b) { return SRIGL_SHUFFLE(a, b, 0, 4, 1, 5); }
inline Vec UnpackHigh(Vec a, Vec b) { return SRIGL_SHUFFLE(a, b, 2, 6, 3, 7); }
inline Dots SumParts(Vec a, Vec) { return a; }
#endif

// Adds two registers up by half, within each quarter: elements of a, b, a, b.
inline Vec SumPair(Vec a, Vec b) { return UnpackLow(a, b) + UnpackHigh(a, b); }

// ---- the gradient ----

// The scalar products of `g` with kDots columns of the tile, eight bits each of `columns`; only the
// first `count` are needed.
template <int kVecs>
inline Dots Multiply(const Vec (&g)[kVecs], const float* tile, uint64_t columns, int64_t count) {
  constexpr int kLanes = kVecs * kWidth;
  const auto product = [&g, tile, columns](int i) __attribute__((always_inline)) {
    const float* x = tile + ((columns >> (8 * i)) & 255) * kLanes;
    Vec sum = g[0] * Load(x);
#pragma GCC unroll 8
    for (int v = 1; v < kVecs; ++v) sum += g[v] * Load(x + v * kWidth);
    return sum;
  };
  const auto four = [&product](int i) __attribute__((always_inline)) {
    return SumPair(SumPair(product(i), product(i + 2)), SumPair(product(i + 1), product(i + 3)));
  };
  const Vec low = four(0);
  if (kDots == 4 || count <= 4) return SumParts(low, Vec{});
  return SumParts(low, four(4));
}

// Weights [0, count) of one row in one block; adds to `out`, or overwrites it. Of `columns`
// `readable` are there.
template <int kVecs>
inline void AddRow(const Vec (&g)[kVecs], const float* tile, const uint8_t* columns, int64_t count,
                   int64_t readable, bool overwrite, float* out) {
  int64_t j = 0;
  for (; j + kDots <= count; j += kDots) {
    uint64_t some = 0;
    memcpy(&some, columns + j, kDots);
    Dots sums = Multiply<kVecs>(g, tile, some, kDots);
    DotsU* to = reinterpret_cast<DotsU*>(out + j);
    if (!overwrite) sums += *to;
    *to = sums;
  }
  if (j == count) return;
  uint64_t some = 0;
  if (j + kDots <= readable) {
    memcpy(&some, columns + j, kDots);
  } else {
    memcpy(&some, columns + j, count - j);
  }
  const Dots sums = Multiply<kVecs>(g, tile, some, count - j);
  for (int i = 0; j + i < count; ++i) out[j + i] = overwrite ? sums[i] : out[j + i] + sums[i];
}

// Where the weights of each row go on, as the kernel walks through the blocks: weights of a row
// ascend, and so do blocks, so those of a (row, block) are neighbours.
struct Places {
  int32_t next[kMaxPanels * kPanelRows];
};

// Calls `visit(row, columns, count, readable)` for each row of a (block, panel): its columns there, as
// its weights have them, ascending; `readable` may be read. The rows of a pair lie mixed, and are sorted.
template <typename Visit>
inline void ForEachRow(const TileView& view, int64_t block, int64_t panel, const Visit& visit) {
  const int64_t table = block * view.num_panels + panel;
  const TileRow* rows = view.rows + table * kPanelRows;
  const uint8_t* columns = view.columns + view.starts[table];
  int64_t left = view.starts[table + 1] - view.starts[table];
  for (int i = 0; !view.is_paired && i < kPanelRows; ++i) {
    const int64_t count = Min(rows[i].count, left);
    visit(rows[i].row % kPanelRows, columns, count, left);
    columns += count;
    left -= count;
  }
  for (int i = 0; view.is_paired && i < kPanelRows; i += 2) {
    const Pair pair(rows + i, left);
    constexpr int kWords = kMaxBlockColumns / 64;
    uint64_t found[2][kWords] = {};
    const int64_t both = 2 * (pair.shared + pair.own);
    const int64_t entries = both + pair.left + pair.other_left;
    for (int64_t j = 0; j < entries; ++j) {
      const bool is_other = j < both ? j % 2 == 1 : j >= both + pair.left;
      found[is_other][columns[j] / 64] |= uint64_t{1} << columns[j] % 64;
    }
    for (int r = 0; r < 2; ++r) {
      uint8_t own[kMaxBlockColumns + kDots] = {};
      int64_t count = 0;
      for (int word = 0; word < kWords; ++word) {
        for (uint64_t bits = found[r][word]; bits != 0; bits &= bits - 1) {
          own[count++] = static_cast<uint8_t>(64 * word + __builtin_ctzll(bits));
        }
      }
      visit(r == 0 ? pair.row : pair.other, own, count, static_cast<int64_t>(sizeof(own)));
    }
    columns += entries;
    left -= entries;
  }
}

// All weights of a (block, panel), for the lanes of one tile.
template <int kVecs>
void AddPanel(const TileView& view, const ValuesGradient& call, int64_t block, int64_t panel,
              const float* tile, const float* g, bool overwrite, int32_t* next) {
  constexpr int kLanes = kVecs * kWidth;
  ForEachRow(view, block, panel, [&](int64_t row, const uint8_t* columns, int64_t count,
                                     int64_t readable) {
    const int64_t a = panel * kPanelRows + row;
    if (a >= call.num_active) return;
    count = Min(count, call.fan_in - next[row]);
    Vec lanes[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) lanes[v] = Load(g + row * kLanes + v * kWidth);
    AddRow<kVecs>(lanes, tile, columns, count, readable, overwrite,
                  call.dvalues + a * call.fan_in + next[row]);
    next[row] += static_cast<int32_t>(count);
  });
}

// Walks over blocks without computing.
inline void SkipPanel(const TileView& view, const ValuesGradient& call, int64_t block,
                      int64_t panel, int32_t* next) {
  ForEachRow(view, block, panel, [&](int64_t row, const uint8_t*, int64_t count, int64_t) {
    if (panel * kPanelRows + row >= call.num_active) return;
    next[row] += static_cast<int32_t>(Min(count, call.fan_in - next[row]));
  });
}

// Batch rows [row_begin, row_end), at most as many as kVecs registers have lanes.
template <int kVecs>
void AddTile(const TileView& view, const ValuesGradient& call, int64_t row_begin, int64_t row_end,
             int64_t panel_begin, int64_t panel_end, int64_t block_begin, int64_t block_end,
             Places* places, float* scratch) {
  constexpr int kLanes = kVecs * kWidth;
  float* tile = scratch;
  float* g = tile + kMaxBlockColumns * kLanes;
  const int64_t num_rows = row_end - row_begin;
  const int64_t first = panel_begin * kPanelRows;
  const int64_t left = call.num_active - first;
  const int64_t neurons = (panel_end - panel_begin) * kPanelRows;
  PackColumns<kVecs>(call.g, call.out_features, call.active + first,
                     neurons < left ? neurons : left, row_begin, num_rows, g);
  for (int64_t block = block_begin; block < block_end; ++block) {
    const int64_t column = block * view.block_columns;
    const int64_t columns_left = view.in_features - column;
    PackRows<kVecs>(call.x, call.in_features, row_begin, num_rows, column,
                    columns_left < view.block_columns ? columns_left : view.block_columns, tile);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t row = (panel - panel_begin) * kPanelRows;
      AddPanel<kVecs>(view, call, block, panel, tile, g + row * kLanes, row_begin == 0,
                      places->next + row);
    }
  }
}

void ValuesGradientOfRange(const TileView& view, const ValuesGradient& call, int64_t panel_begin,
                           int64_t panel_end, int64_t block_begin, int64_t block_end,
                           float* scratch) {
  Places first = {}, places = {};
  for (int64_t block = 0; block < block_begin; ++block) {
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      SkipPanel(view, call, block, panel, first.next + (panel - panel_begin) * kPanelRows);
    }
  }
  constexpr int64_t kStep = kWidth < 16 ? 8 * kWidth : 4 * kWidth;
  for (int64_t row = 0; row < call.batch; row += kStep) {
    const int64_t end = row + kStep < call.batch ? row + kStep : call.batch;
    places = first;
#define SRIGL_ADD_TILE(vecs)                                                              \
  if (end - row <= vecs * kWidth) {                                                       \
    AddTile<vecs>(view, call, row, end, panel_begin, panel_end, block_begin, block_end,   \
                  &places, scratch);                                                      \
    continue;                                                                             \
  }
    SRIGL_ADD_TILE(1)
    SRIGL_ADD_TILE(2)
    SRIGL_ADD_TILE(4)
#if SRIGL_WIDTH < 16
    SRIGL_ADD_TILE(8)
#endif
#undef SRIGL_ADD_TILE
  }
  if (block_end < view.num_blocks) return;
  // A pattern that is not what the packer made may have left something out.
  for (int64_t i = 0; i < (panel_end - panel_begin) * kPanelRows; ++i) {
    const int64_t a = panel_begin * kPanelRows + i;
    if (a >= call.num_active) return;
    memset(call.dvalues + a * call.fan_in + places.next[i], 0,
           (call.fan_in - places.next[i]) * sizeof(float));
  }
}

// ---- values in a pattern's order ----

template <typename Value>
void GatherOf(const Value* __restrict values, uint32_t last, const int32_t* __restrict sources,
              int64_t begin, int64_t end, Value* __restrict packed) {
  for (int64_t i = begin; i < end; ++i) {
    const uint32_t source = static_cast<uint32_t>(sources[i]);
    packed[i] = values[source < last ? source : last];
  }
}

void Gather(const void* values, int64_t num_values, const int32_t* sources, int64_t begin,
            int64_t end, ValueType type, void* packed) {
  const uint32_t last = static_cast<uint32_t>(num_values - 1);
  if (type == ValueType::kFloat32) {
    GatherOf(static_cast<const float*>(values), last, sources, begin, end,
             static_cast<float*>(packed));
  } else {
    GatherOf(static_cast<const uint16_t*>(values), last, sources, begin, end,
             static_cast<uint16_t*>(packed));
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
