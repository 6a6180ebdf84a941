// Kernels for x86-64 with AVX-512 (F, BW, VL, DQ): the tile kernel, and the window kernel.

#define SRIGL_TARGET avx512
#define SRIGL_WIDTH 16
#include <immintrin.h>

#include "gradients-inl.h"

namespace srigl {
namespace avx512 {
namespace {

inline __m512 LoadValues(const float* values) { return _mm512_loadu_ps(values); }
inline __m512 LoadValues(const uint16_t* values) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// The columns of a packet, kSteps bytes per lane, as one integer per lane: the permutation reads
// the lowest five bits, so going on to the next step is a shift.
template <int kSteps>
inline __m512i LoadColumns(const uint8_t* columns) {
  if constexpr (kSteps == 4) return _mm512_loadu_si512(columns);
  if constexpr (kSteps == 2) {
    return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(columns)));
  }
  return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(columns)));
}

// Where a run of packets stands, and the inputs it reads.
template <typename Value>
struct Stream {
  const WindowHeader* headers;
  const uint8_t* columns;
  const Value* values;
  const float* x;
  int64_t stride;
  uint32_t last_start;  // a start beyond it is clamped to it
};

// Adds `num_packets` packets of kSteps steps to the sums of kRows batch rows. Several sums per
// batch row (kChains) hide the latency of the additions when there are few rows.
template <int kSteps, int kRows, int kChains, typename Value>
inline void AddPackets(Stream<Value>* stream, int64_t num_packets, __m512 (&sums)[kRows][kChains]) {
  const WindowHeader* headers = stream->headers;
  const uint8_t* columns = stream->columns;
  const Value* values = stream->values;
  for (int64_t p = 0; p < num_packets; ++p) {
    uint32_t start0 = headers[p].start[0], start1 = headers[p].start[1];
    if (start0 > stream->last_start) start0 = stream->last_start;
    if (start1 > stream->last_start) start1 = stream->last_start;
    __m512i index[kSteps];
    __m512 value[kSteps];
    index[0] = LoadColumns<kSteps>(columns);
    asm("" : "+v"(index[0]));  // else GCC loads it once more for every step
#pragma GCC unroll 4
    for (int s = 0; s < kSteps; ++s) {
      if (s > 0) index[s] = _mm512_srli_epi32(index[0], 8 * s);
      value[s] = LoadValues(values + s * kGroupRows);
    }
    const float* x = stream->x;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 low = _mm512_loadu_ps(x + start0);
      const __m512 high = _mm512_loadu_ps(x + start1);
#pragma GCC unroll 4
      for (int s = 0; s < kSteps; ++s) {
        const __m512 picked = _mm512_permutex2var_ps(low, index[s], high);
        sums[r][s % kChains] = _mm512_fmadd_ps(value[s], picked, sums[r][s % kChains]);
      }
      x += stream->stride;
    }
    columns += kSteps * kGroupRows;
    values += kSteps * kGroupRows;
  }
  stream->headers = headers + num_packets;
  stream->columns = columns;
  stream->values = values;
}

// Spreads the sums of one group over the outputs it owns, ablated neurons between them.
inline void WriteGroup(const WindowView& view, const MatMul& call, int64_t g, int64_t row,
                       __m512 sums) {
  float buffer[2 * kGroupRows];
  _mm512_storeu_ps(buffer, sums);
  _mm512_storeu_ps(buffer + kGroupRows, _mm512_setzero_ps());
  const uint16_t* masks = view.masks + view.groups[g].mask_begin;
  const int64_t end = view.groups[g + 1].output_begin;
  int used = 0;
  for (int64_t o = view.groups[g].output_begin; o < end; o += kGroupRows) {
    const __mmask16 active = *masks++;
    const int64_t left = end - o;
    const __mmask16 inside = left >= kGroupRows ? 0xffff : (1 << left) - 1;
    __m512 out = _mm512_maskz_expand_ps(active, _mm512_loadu_ps(buffer + used));
    used += __builtin_popcount(active);
    if (used > kGroupRows) used = kGroupRows;
    if (call.bias != nullptr) {
      out = _mm512_add_ps(out, _mm512_maskz_loadu_ps(inside, call.bias + o));
    }
    if (call.activation != Activation::kNone) out = Activate(out, call.activation);
    _mm512_mask_storeu_ps(call.y + row * call.out_features + o, inside, out);
  }
}

template <int kRows, typename Value>
void Group(const WindowView& view, const MatMul& call, const float* x, int64_t stride, int64_t row,
           int64_t g) {
  constexpr int kChains = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;
  const WindowGroup& group = view.groups[g];
  const int64_t columns = view.in_features > kWindowColumns ? view.in_features : kWindowColumns;
  Stream<Value> stream = {view.headers + group.packet_begin,
                          view.columns + group.step_begin * kGroupRows,
                          static_cast<const Value*>(view.values) + group.step_begin * kGroupRows,
                          x,
                          stride,
                          static_cast<uint32_t>(columns - kWindowColumns)};
  __m512 sums[kRows][kChains];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) sums[r][c] = _mm512_setzero_ps();
  }
  AddPackets<4>(&stream, group.num_packets4, sums);
  AddPackets<2>(&stream, group.num_packets2, sums);
  AddPackets<1>(&stream,
                view.groups[g + 1].packet_begin - group.packet_begin - group.num_packets4 -
                    group.num_packets2,
                sums);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    __m512 sum = sums[r][0];
#pragma GCC unroll 4
    for (int c = 1; c < kChains; ++c) sum = _mm512_add_ps(sum, sums[r][c]);
    WriteGroup(view, call, g, row + r, sum);
  }
}

template <typename Value>
void WindowOfValues(const WindowView& view, const MatMul& call, int64_t row_begin, int64_t row_end,
                    int64_t group_begin, int64_t group_end) {
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t left = row_end - row;
    const int64_t rows = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
    const float* x = call.x + row * call.in_features;
    int64_t stride = call.in_features;
    float narrow[8 * kWindowColumns];
    if (stride < kWindowColumns) {  // a window is wider than the row
      memset(narrow, 0, sizeof(narrow));
      for (int64_t r = 0; r < rows; ++r) {
        memcpy(narrow + r * kWindowColumns, x + r * stride, stride * sizeof(float));
      }
      x = narrow;
      stride = kWindowColumns;
    }
    for (int64_t g = group_begin; g < group_end; ++g) {
      if (rows == 8) Group<8, Value>(view, call, x, stride, row, g);
      if (rows == 4) Group<4, Value>(view, call, x, stride, row, g);
      if (rows == 2) Group<2, Value>(view, call, x, stride, row, g);
      if (rows == 1) Group<1, Value>(view, call, x, stride, row, g);
    }
    row += rows;
  }
}

void Window(const WindowView& view, const MatMul& call, int64_t row_begin, int64_t row_end,
            int64_t group_begin, int64_t group_end) {
  if (view.value_type == ValueType::kFloat32) {
    WindowOfValues<float>(view, call, row_begin, row_end, group_begin, group_end);
  } else {
    WindowOfValues<uint16_t>(view, call, row_begin, row_end, group_begin, group_end);
  }
}

}  // namespace
}  // namespace avx512

const Kernels kAvx512Kernels = {"avx512",
                                avx512::TileOfAny,
                                avx512::Window,
                                avx512::Constant,
                                avx512::ValuesGradientOfRange,
                                avx512::Gather};

}  // namespace srigl
