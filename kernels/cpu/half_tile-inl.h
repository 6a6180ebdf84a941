// The tile kernel in float16, for large batches: lanes are batch rows, twice as many to a register.
// Included by kernels_avx512_dots.cc, where SRIGL_HAS_FP16 is.
//
// As in the dot kernel of float16, batch rows and neurons are multiplied by powers of two, which
// outputs are multiplied by in turn, and sums move on to float32: here after at most kHalfTerms
// products, at 1 or less times 512. On an Intel Xeon layers of 236,000 weights, from 768 to 3072 and
// from 3072 to 768, took one core 379 and 346 us at batch 64; in float32 488 and 384 us.

#ifndef SRIGL_KERNELS_CPU_HALF_TILE_INL_H_
#define SRIGL_KERNELS_CPU_HALF_TILE_INL_H_

namespace srigl {
namespace avx512 {
namespace {

constexpr int kHalfTerms = 32;

// The weights over the neuron's scale, each twice, so that a load brings one to every lane.
SRIGL_FP16 inline void DoubleWeights(const uint16_t* values, int64_t count, __m512 inverse,
                                     uint32_t* doubled) {
  for (int64_t j = 0; j < count; j += kWidth) {
    const __mmask16 inside = count - j >= kWidth ? 0xffff : (1 << (count - j)) - 1;
    const __m256i bits = _mm256_maskz_loadu_epi16(inside, values + j);
    const __m512 exact = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    const __m256i half = (__m256i)_mm512_cvtxps_ph(_mm512_mul_ps(exact, inverse));
    const __m512i wide = _mm512_cvtepu16_epi32(half);
    _mm512_storeu_si512(doubled + j, _mm512_or_si512(wide, _mm512_slli_epi32(wide, 16)));
  }
}

// As MultiplyPanel, 32 lanes to a register; `scales` and `inverses` are those of the panel's rows.
template <int kVecs>
SRIGL_FP16 __attribute__((noinline)) void MultiplyHalfPanel(const TileView& view, int64_t block,
                                                            int64_t panel, const _Float16* tile,
                                                            const float* scales,
                                                            const float* inverses, float* sums) {
  constexpr int kLanes = 2 * kVecs * kWidth;
  const int64_t table = block * view.num_panels + panel;
  const TileRow* rows = view.rows + table * kPanelRows;
  const auto* values = static_cast<const uint16_t*>(view.values) + view.starts[table];
  const uint8_t* columns = view.columns + view.starts[table];
  int64_t left = view.starts[table + 1] - view.starts[table];
  for (int i = 0; i < kPanelRows; ++i) {
    const int row = rows[i].row % kPanelRows;
    float* sum = sums + row * kLanes;
    const int64_t count = rows[i].count < left ? rows[i].count : left;
    const __m512 scale = _mm512_set1_ps(scales[row]), inverse = _mm512_set1_ps(inverses[row]);
    __m512 exact[2 * kVecs];
#pragma GCC unroll 4
    for (int v = 0; v < 2 * kVecs; ++v) {
      exact[v] = block == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sum + v * kWidth);
    }
    for (int64_t begin = 0; begin < count; begin += kHalfTerms) {
      const int64_t terms = Min(kHalfTerms, count - begin);
      alignas(64) uint32_t doubled[kHalfTerms];
      DoubleWeights(values + begin, terms, inverse, doubled);
      __m512h total[2][kVecs];
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) total[0][v] = total[1][v] = _mm512_setzero_ph();
      const auto multiply = [&](int64_t column, int64_t j, __m512h* total) SRIGL_FP16 {
        const _Float16* x = tile + column * kLanes;
        const __m512h weight = _mm512_castsi512_ph(_mm512_set1_epi32(doubled[j]));
#pragma GCC unroll 2
        for (int v = 0; v < kVecs; ++v) {
          total[v] = _mm512_fmadd_ph(_mm512_load_ph(x + 32 * v), weight, total[v]);
        }
      };
      int64_t j = 0;
      for (; j + 4 <= terms; j += 4) {
        uint32_t four;
        memcpy(&four, columns + begin + j, sizeof(four));
#pragma GCC unroll 4
        for (int u = 0; u < 4; ++u) multiply((four >> (8 * u)) & 255, j + u, total[u % 2]);
      }
      for (; j < terms; ++j) multiply(columns[begin + j], j, total[0]);
#pragma GCC unroll 2
      for (int v = 0; v < kVecs; ++v) {
        const __m512i both = _mm512_castph_si512(_mm512_add_ph(total[0][v], total[1][v]));
        const __m512 low = _mm512_cvtxph_ps((__m256h)_mm512_castsi512_si256(both));
        const __m512 high = _mm512_cvtxph_ps((__m256h)_mm512_extracti64x4_epi64(both, 1));
        exact[2 * v] = _mm512_fmadd_ps(low, scale, exact[2 * v]);
        exact[2 * v + 1] = _mm512_fmadd_ps(high, scale, exact[2 * v + 1]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < 2 * kVecs; ++v) _mm512_store_ps(sum + v * kWidth, exact[v]);
    values += count;
    columns += count;
    left -= count;
  }
}

// tile[c, lane] = x[row_begin + lane, column_begin + c] * inverses[lane]; 0 beyond the batch.
template <int kVecs>
SRIGL_FP16 __attribute__((noinline)) void PackHalfRows(const MatMul& call, int64_t row_begin,
                                                       int64_t num_rows, int64_t column_begin,
                                                       int64_t num_columns, const float* inverses,
                                                       _Float16* tile) {
  constexpr int kLanes = 2 * kVecs * kWidth;
  for (int lane = 0; lane < kLanes; lane += kWidth) {
    for (int64_t c = 0; c < num_columns; c += kWidth) {
      Vec rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        rows[i] = Vec{};
        if (lane + i >= num_rows) continue;
        const float* x = call.x + (row_begin + lane + i) * call.in_features + column_begin + c;
        rows[i] = LoadSome(x, num_columns - c) * inverses[lane + i];
      }
      Transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(tile + (c + i) * kLanes + lane),
                           (__m256i)_mm512_cvtxps_ph((__m512)rows[i]));
      }
    }
  }
}

template <int kVecs>
void HalfTileOf(const TileView& view, const float* neuron_scales, const MatMul& call,
                int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end,
                float* scratch) {
  constexpr int kLanes = 2 * kVecs * kWidth;
  auto* tile = reinterpret_cast<_Float16*>(scratch);
  float* zeros = scratch + (kMaxBlockColumns + 1) * kLanes / 2;
  float* sums = zeros + kLanes;
  memset(zeros, 0, kLanes * sizeof(float));
  const int64_t num_rows = row_end - row_begin;
  const int64_t first_row = panel_begin * kPanelRows, last_row = panel_end * kPanelRows;
  if (view.num_blocks == 0) memset(sums, 0, (last_row - first_row) * kLanes * sizeof(float));
  float lane_scales[kLanes], lane_inverses[kLanes];
  for (int64_t i = 0; i < num_rows; ++i) {
    PowerOfRow(call.x + (row_begin + i) * call.in_features, call.in_features, lane_scales + i,
               lane_inverses + i);
  }
  float scales[kMaxPanels * kPanelRows], inverses[kMaxPanels * kPanelRows];
  for (int64_t r = first_row; r < last_row; ++r) {
    scales[r - first_row] = r < view.num_active ? neuron_scales[r] : 1;
    inverses[r - first_row] = 1 / scales[r - first_row];
  }
  for (int64_t block = 0; block < view.num_blocks; ++block) {
    const int64_t column = block * view.block_columns;
    PackHalfRows<kVecs>(call, row_begin, num_rows, column,
                 Min(view.block_columns, view.in_features - column), lane_inverses, tile);
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t row = panel * kPanelRows - first_row;
      MultiplyHalfPanel<kVecs>(view, block, panel, tile, scales + row, inverses + row,
                        sums + row * kLanes);
    }
  }
  MatMul local = call;
  local.y = call.y + row_begin * call.out_features;
  if (call.residual != nullptr) local.residual += row_begin * call.out_features;
  if (call.residual8.integers != nullptr) {
    local.residual8.integers += row_begin * call.out_features;
    local.residual8.scales += row_begin;
  }
  if (call.y8.integers != nullptr) {
    local.y8.integers += row_begin * call.out_features;
    local.y8.scales += row_begin;
  }
  local.row_scales = lane_scales;
  WriteOutputs<2 * kVecs>(view, local, 0, num_rows, first_row,
                                    Min(last_row, view.num_active),
                                    view.panel_outputs[panel_begin],
                                    view.panel_outputs[panel_end], sums, zeros);
}

void HalfTile(const TileView& view, const float* neuron_scales, const MatMul& call,
              int64_t row_begin, int64_t row_end, int64_t panel_begin, int64_t panel_end,
              float* scratch) {
  const auto tile = row_end - row_begin <= 2 * kWidth ? HalfTileOf<1> : HalfTileOf<2>;
  tile(view, neuron_scales, call, row_begin, row_end, panel_begin, panel_end, scratch);
}

}  // namespace
}  // namespace avx512
}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_HALF_TILE_INL_H_
