// Kernels for x86-64 with AVX-512 (F, BW, VL, DQ): the tile kernel, and the window kernel.

#define SRIGL_TARGET avx512
#define SRIGL_WIDTH 16
#include <immintrin.h>

#include <algorithm>

#include "training_by_inputs-inl.h"
#include "topology-inl.h"
#include "attention-inl.h"
#include "depthwise-inl.h"
#include "max_pool-inl.h"

#include "groups-inl.h"

namespace srigl {
namespace avx512 {
namespace {

inline __m512 LoadValues(const float* values) { return _mm512_loadu_ps(values); }
inline __m512 LoadValues(const uint16_t* values) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline __m512 LoadValues(const int8_t* values) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(values));
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
}

// Where the columns of a packet come from: bytes, or the values themselves.
enum class Columns { kBytes, kValues };

template <int kRows, Columns kColumns, typename Value>
void Group(const WindowView& view, const MatMul& call, const float* x, int64_t stride, int64_t row,
           int64_t g) {
  constexpr int kChains = kRows == 1 ? 4 : kRows == 2 ? 2 : 1;  // hide the latency of additions
  const int64_t end = view.groups[g + 1].packet_begin;
  int64_t packet = view.groups[g].packet_begin;
  const uint8_t* columns = view.columns;
  const Value* values = static_cast<const Value*>(view.values);
  // A start beyond it is clamped to it.
  const auto last_start =
      static_cast<uint32_t>(std::max<int64_t>(view.in_features - kWindowColumns, 0));
  __m512 sums[kRows][kChains];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) sums[r][c] = _mm512_setzero_ps();
  }
  for (; packet < end; ++packet) {
    const WindowPath path = view.paths[packet];
    uint32_t starts[kPacketSteps + 1];
#pragma GCC unroll 5
    for (int i = 0; i <= kPacketSteps; ++i) starts[i] = std::min(WindowStart(path, i), last_start);
    __m512i index[kPacketSteps];
    __m512 value[kPacketSteps];
    if constexpr (kColumns == Columns::kBytes) {
      index[0] = _mm512_loadu_si512(columns + packet * kPacketValues);
      asm("" : "+v"(index[0]));  // else GCC loads it once more for every step
    }
#pragma GCC unroll 4
    for (int s = 0; s < kPacketSteps; ++s) {
      __m512 loaded = LoadValues(values + packet * kPacketValues + s * kGroupRows);
      // The permutation reads the lowest five bits only.
      if constexpr (kColumns == Columns::kValues) {
        asm("" : "+v"(loaded));  // else GCC loads it twice
        index[s] = _mm512_castps_si512(loaded);
      } else if (s > 0) {
        index[s] = _mm512_srli_epi32(index[0], 8 * s);
      }
      value[s] = loaded;
    }
    const float* inputs = x;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      __m512 window = _mm512_loadu_ps(inputs + starts[0]);
#pragma GCC unroll 4
      for (int s = 0; s < kPacketSteps; ++s) {
        __m512 next = _mm512_loadu_ps(inputs + starts[s + 1]);
        asm("" : "+v"(next));  // else GCC loads it twice
        const __m512 picked = _mm512_permutex2var_ps(window, index[s], next);
        sums[r][s % kChains] = _mm512_fmadd_ps(value[s], picked, sums[r][s % kChains]);
        window = next;
      }
      inputs += stride;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    __m512 sum = sums[r][0];
#pragma GCC unroll 4
    for (int c = 1; c < kChains; ++c) sum = _mm512_add_ps(sum, sums[r][c]);
    WriteGroup(view, call, g, row + r, sum);
  }
}

template <Columns kColumns, typename Value>
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
      if (rows == 8) Group<8, kColumns, Value>(view, call, x, stride, row, g);
      if (rows == 4) Group<4, kColumns, Value>(view, call, x, stride, row, g);
      if (rows == 2) Group<2, kColumns, Value>(view, call, x, stride, row, g);
      if (rows == 1) Group<1, kColumns, Value>(view, call, x, stride, row, g);
    }
    row += rows;
  }
}

void Window(const WindowView& view, const MatMul& call, int64_t row_begin, int64_t row_end,
            int64_t group_begin, int64_t group_end) {
  const auto window = view.columns == nullptr ? WindowOfValues<Columns::kValues, float>
                      : view.value_type == ValueType::kFloat32
                          ? WindowOfValues<Columns::kBytes, float>
                      : view.value_type == ValueType::kBFloat16
                          ? WindowOfValues<Columns::kBytes, uint16_t>
                          : WindowOfValues<Columns::kBytes, int8_t>;
  window(view, call, row_begin, row_end, group_begin, group_end);
}

}  // namespace
}  // namespace avx512

const Kernels kAvx512Kernels = {"avx512",
                                avx512::TileOfAny,
                                avx512::Window,
                                avx512::Constant,
                                avx512::ValuesGradientOfRange,
                                avx512::Gather,
                                avx512::TrainCut,
                                avx512::TrainForward,
                                avx512::TrainInputGradient,
                                avx512::TrainInputGradientByInputs,
                                avx512::TrainValuesGradient,
                                avx512::ConvProductsOf,
                                avx512::ConvDotsOf,
                                avx512::GradientKeys,
                                avx512::FindReaching,
                                16,
                                avx512::Quantize,
                                avx512::RangeOf,
                                avx512::AttendTo,
                                avx512::DepthwiseLines,
                                avx512::MaxPoolTiles};

}  // namespace srigl
