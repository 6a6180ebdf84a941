// Sums of the tile kernel: the weights of one (block, panel) times the block's inputs. Included by
// tile-inl.h, whose rules apply.
//
// In a paired pattern two rows are summed together, and a register of inputs that both have is loaded
// once for two products: loads are what limits the kernel where registers are wide. On one core of an
// AMD EPYC, of rows with a quarter of the inputs, 45 products a nanosecond became 51, with half of them
// 47 became 55.

namespace srigl {
namespace SRIGL_TARGET {
namespace {

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
__attribute__((noinline)) void MultiplyPanel(const TileView& view, int64_t block, int64_t panel,
                                             const float* tile, float* sums) {
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

// How a paired pattern's next two rows lie, whatever it says.
struct Pair {
  int64_t row, other;  // of the panel
  int64_t shared;      // columns that both have, each once for both rows
  int64_t own;         // others of each, in turn
  int64_t left, other_left;  // what follows of the one or of the other

  Pair(const TileRow* rows, int64_t entries) {
    row = rows[0].row % kPanelRows;
    other = rows[1].row % kPanelRows;
    shared = Min(rows[0].row / kPanelRows, entries / 2);
    const int64_t count = rows[0].count, other_count = rows[1].count;
    const int64_t both = Min(Min(count, other_count), entries / 2);
    shared = Min(shared, both);
    own = both - shared;
    left = Min(count - both, entries - 2 * both);
    other_left = Min(other_count - both, entries - 2 * both - left);
  }
};

// As MultiplyPanel, of a paired pattern.
template <int kVecs, typename Value>
__attribute__((noinline)) void MultiplyPairs(const TileView& view, int64_t block, int64_t panel,
                                             const float* tile, float* sums) {
  constexpr int kLanes = kVecs * kWidth;
  constexpr int kChains = kVecs >= 4 ? 1 : 2;  // as above; of each row
  const int64_t table = block * view.num_panels + panel;
  const TileRow* rows = view.rows + table * kPanelRows;
  const Value* values = static_cast<const Value*>(view.values) + view.starts[table];
  const uint8_t* columns = view.columns + view.starts[table];
  int64_t entries = view.starts[table + 1] - view.starts[table];
  for (int i = 0; i < kPanelRows; i += 2) {
    const Pair pair(rows + i, entries);
    float *const sum = sums + pair.row * kLanes, *const other_sum = sums + pair.other * kLanes;
    Vec total[kChains][kVecs], other[kChains][kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      total[0][v] = block == 0 ? Vec{} : Load(sum + v * kWidth);
      other[0][v] = block == 0 ? Vec{} : Load(other_sum + v * kWidth);
      if (kChains > 1) total[kChains - 1][v] = other[kChains - 1][v] = Vec{};
    }
    const auto add = [&](Vec* to, uint32_t column, Vec value) __attribute__((always_inline)) {
      const float* x = tile + (column & 255) * kLanes;
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) to[v] += Load(x + v * kWidth) * value;
    };
    const auto add_both = [&](int c, uint32_t column, Vec value, Vec other_value)
                              __attribute__((always_inline)) {
      const float* x = tile + (column & 255) * kLanes;
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        Vec input = Load(x + v * kWidth);
        SRIGL_ROUND(input);  // else GCC loads it twice
        total[c][v] += input * value;
        other[c][v] += input * other_value;
      }
    };
    const auto one = [](Value value) { return Vec{} + ToFloat(value); };
    const int64_t shared = 2 * pair.shared, both = shared + 2 * pair.own;
    int64_t j = 0;
    for (; j + 4 <= shared; j += 4) {
      uint32_t four;
      memcpy(&four, columns + j, sizeof(four));
      Vec value[4];
      BroadcastFour(values + j, value);
      add_both(0, four, value[0], value[1]);
      add_both(kChains - 1, four >> 16, value[2], value[3]);
    }
    if (j < shared) {
      add_both(0, columns[j], one(values[j]), one(values[j + 1]));
      j += 2;
    }
    for (; j + 4 <= both; j += 4) {
      uint32_t four;
      memcpy(&four, columns + j, sizeof(four));
      Vec value[4];
      BroadcastFour(values + j, value);
      add(total[0], four, value[0]);
      add(other[0], four >> 8, value[1]);
      add(total[kChains - 1], four >> 16, value[2]);
      add(other[kChains - 1], four >> 24, value[3]);
    }
    if (j < both) {
      add(total[0], columns[j], one(values[j]));
      add(other[0], columns[j + 1], one(values[j + 1]));
      j += 2;
    }
    for (const int64_t end = j + pair.left; j < end; ++j) add(total[0], columns[j], one(values[j]));
    for (const int64_t end = j + pair.other_left; j < end; ++j) {
      add(other[0], columns[j], one(values[j]));
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVecs; ++v) {
      if (kChains > 1) total[0][v] += total[kChains - 1][v], other[0][v] += other[kChains - 1][v];
      Store(sum + v * kWidth, total[0][v]);
      Store(other_sum + v * kWidth, other[0][v]);
    }
    values += j;
    columns += j;
    entries -= j;
  }
}

// sums[row] += the weights of one (block, panel) times 256 inputs from `x` on.
template <typename Value>
void MultiplyRow(const TileView& view, int64_t block, int64_t panel, const float* x, float* sums) {
  const int64_t table = block * view.num_panels + panel;
  const TileRow* rows = view.rows + table * kPanelRows;
  const Value* values = static_cast<const Value*>(view.values) + view.starts[table];
  const uint8_t* columns = view.columns + view.starts[table];
  int64_t left = view.starts[table + 1] - view.starts[table];
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
    sums[rows[i].row % kPanelRows] += (total[0] + total[1]) + (total[2] + total[3]);
    values += count;
    columns += count;
    left -= count;
  }
}

// As MultiplyRow, of a paired pattern.
template <typename Value>
void MultiplyRowByPairs(const TileView& view, int64_t block, int64_t panel, const float* x,
                        float* sums) {
  const int64_t table = block * view.num_panels + panel;
  const TileRow* rows = view.rows + table * kPanelRows;
  const Value* values = static_cast<const Value*>(view.values) + view.starts[table];
  const uint8_t* columns = view.columns + view.starts[table];
  int64_t entries = view.starts[table + 1] - view.starts[table];
  for (int i = 0; i < kPanelRows; i += 2) {
    const Pair pair(rows + i, entries);
    const auto product = [&](int64_t j) { return x[columns[j]] * ToFloat(values[j]); };
    float total = 0, other = 0;
    int64_t j = 0;
    for (const int64_t end = 2 * (pair.shared + pair.own); j < end; j += 2) {
      total += product(j);
      other += product(j + 1);
    }
    for (const int64_t end = j + pair.left; j < end; ++j) total += product(j);
    for (const int64_t end = j + pair.other_left; j < end; ++j) other += product(j);
    sums[pair.row] += total;
    sums[pair.other] += other;
    values += j;
    columns += j;
    entries -= j;
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
