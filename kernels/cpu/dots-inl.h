// Dot kernels: lanes are neurons, and one instruction multiplies several small inputs of each.
// Included by kernels_avx512_dots.cc. Each kernel needs more of the CPU than that file is compiled
// for, which its functions say by themselves.
//
// A task first turns its batch rows into the numbers that are multiplied, each row with a scale.
// Then a step takes a load of its window, a permutation and a product for every batch row; its
// weights and their places are loaded once for all of them.
//
//   int8      products of VNNI, summed exactly in 32 bits
//   bfloat16  products of AVX512-BF16, summed in float32
//   float16   where AVX512-FP16 is: on Intel's processors, whose dot products of bfloat16 take four
//             times as long as its products and sums of float16. A bfloat16 fits into a float16 but
//             for its range, hence powers of two as scales; and sums move on to float32 every
//             kSumSteps products, so that their error stays below that of rounding to bfloat16.

#ifndef SRIGL_KERNELS_CPU_DOTS_INL_H_
#define SRIGL_KERNELS_CPU_DOTS_INL_H_

#define SRIGL_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,fma"
#define SRIGL_VNNI __attribute__((target(SRIGL_AVX512 ",avx512vbmi,avx512vnni")))
#define SRIGL_BF16 __attribute__((target(SRIGL_AVX512 ",avx512bf16")))
#define SRIGL_FP16 __attribute__((target(SRIGL_AVX512 ",avx512fp16")))
#if !defined(__clang__) && __GNUC__ >= 12
#define SRIGL_HAS_FP16
#endif

namespace srigl {
namespace avx512 {
namespace {

constexpr int kDotRows = 8;        // batch rows whose sums are kept in registers
constexpr int kDotTaskRows = 32;   // batch rows that a task converts at once, at most
constexpr int kSumSteps = 16;
constexpr int64_t kDotInputBytes = 1 << 15;  // of batch rows that stay in the first-level cache
constexpr int64_t kDotChunkSteps = 1 << 12;  // 512 KB of weights and their places

// Batch rows as the kernels read them, some of those of the call.
struct DotInputs {
  const uint8_t* rows;
  int64_t stride;
  const int32_t* zeros;  // by row, the integer that stands for 0
  int64_t last_start;    // first byte of the last window
};

inline __m512i LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }

inline uint32_t DotStart(const DotView& view, const DotInputs& inputs, int64_t step) {
  uint32_t start = view.starts[step];
  asm("" : "+r"(start));  // else GCC takes the minimum in a vector register
  const auto last = static_cast<uint32_t>(inputs.last_start);
  return start < last ? start : last;  // GCC keeps sums in memory beside std::min
}

// Each of the next functions puts the sums of a group for kRows batch rows, from `local` on, into
// `out` [row][lane]. They are not inlined: beside what writes outputs GCC would keep sums in memory.

template <int kRows>
SRIGL_VNNI __attribute__((noinline)) void SumInt8(const DotView& view, const DotInputs& inputs,
                                                  int64_t local, int64_t g, float* out) {
  const uint8_t* x = inputs.rows + local * inputs.stride;
  const int64_t stride = inputs.stride, end = view.groups[g + 1].packet_begin;
  __m512i sums[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) sums[i] = _mm512_setzero_si512();
  int64_t step = view.groups[g].packet_begin;
  for (; step < end; ++step) {
    const uint8_t* window = x + DotStart(view, inputs, step);
    const __m512i columns = LoadBytes(view.steps[step].columns);
    const __m512i values = LoadBytes(view.steps[step].values);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i picked = _mm512_permutexvar_epi8(columns, LoadBytes(window + r * stride));
      sums[r] = _mm512_dpbusd_epi32(sums[r], picked, values);
      asm("" : "+v"(sums[r]));  // else GCC moves it to and fro
    }
  }
  const __m512i weights = _mm512_loadu_si512(view.sums + g * kGroupRows);
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    const __m512i zero = _mm512_mullo_epi32(weights, _mm512_set1_epi32(inputs.zeros[local + r]));
    _mm512_storeu_ps(out + r * kGroupRows, _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[r], zero)));
  }
}

// As StepsOfRow and Integers, by the instructions of this target.
inline void ConvertInt8(const MatMul& call, int64_t row, uint8_t* to, float* scale, int32_t* zero) {
  const float* x = call.x + row * call.in_features;
  __m512 low = _mm512_setzero_ps();
  __m512i largest = _mm512_setzero_si512();  // sizes, NaN above all others
  for (int64_t i = 0; i < call.in_features; i += kWidth) {
    const __m512 v = (__m512)LoadSome(x + i, call.in_features - i);
    low = _mm512_min_ps(v, low);  // which NaN leaves as it is
    largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(v)));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(largest);
  float high;  // or -low, which then takes its place
  memcpy(&high, &bits, sizeof(high));
  const float* range = call.range;
  const Steps steps =
      range == nullptr
          ? StepsOf(_mm512_reduce_min_ps(low), high, bits >= 0x7f800000)
          : StepsOf(range[0] < 0 ? range[0] : 0, range[1] > 0 ? range[1] : 0,
                    bits > 0x7f800000 || range[0] != range[0] || range[1] != range[1]);
  *scale = steps.scale;
  *zero = steps.low < 0 ? 128 : 0;
  const __m512i shift = _mm512_set1_epi32(*zero);
  const __m512 inverse = _mm512_set1_ps(steps.inverse), least = _mm512_set1_ps(steps.low),
               most = _mm512_set1_ps(steps.high);
  for (int64_t i = 0; i < call.in_features; i += kWidth) {
    const __m512 v = _mm512_mul_ps((__m512)LoadSome(x + i, call.in_features - i), inverse);
    const __m512i integers = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, least), most));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm512_cvtepi32_epi8(_mm512_add_epi32(integers, shift)));
  }
}

template <int kRows>
SRIGL_BF16 __attribute__((noinline)) void SumBFloat16(const DotView& view, const DotInputs& inputs,
                                                      int64_t local, int64_t g, float* out) {
  const uint8_t* x = inputs.rows + local * inputs.stride;
  const int64_t stride = inputs.stride, end = view.groups[g + 1].packet_begin;
  __m512 sums[kRows];
#pragma GCC unroll 8
  for (int i = 0; i < kRows; ++i) sums[i] = _mm512_setzero_ps();
  int64_t step = view.groups[g].packet_begin;
  for (; step < end; ++step) {
    const uint8_t* window = x + DotStart(view, inputs, step);
    const __m512i columns = LoadBytes(view.steps[step].columns);
    const __m512i values = LoadBytes(view.steps[step].values);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512i picked = _mm512_permutexvar_epi16(columns, LoadBytes(window + r * stride));
      sums[r] = _mm512_dpbf16_ps(sums[r], (__m512bh)picked, (__m512bh)values);
      asm("" : "+v"(sums[r]));
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_ps(out + r * kGroupRows, sums[r]);
  }
}

SRIGL_BF16 inline void ConvertBFloat16(const MatMul& call, int64_t row, uint8_t* to, float* scale,
                                       int32_t* zero) {
  const float* x = call.x + row * call.in_features;
  *scale = 1;
  *zero = 0;
  for (int64_t i = 0; i < call.in_features; i += kWidth) {
    const __m256bh half = _mm512_cvtneps_pbh((__m512)LoadSome(x + i, call.in_features - i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i), (__m256i)half);
  }
}

#ifdef SRIGL_HAS_FP16

// Adds the two float16 of every lane to its float32, and makes them 0.
SRIGL_FP16 inline void MoveSums(__m512h* halves, __m512* sums) {
  const __m512i both = _mm512_castph_si512(*halves);
  const __m512h swapped = _mm512_castsi512_ph(_mm512_rol_epi32(both, 16));
  const __m512i pairs = _mm512_castph_si512(_mm512_add_ph(*halves, swapped));
  const __m256h narrow = (__m256h)_mm512_cvtepi32_epi16(pairs);
  *sums = _mm512_add_ps(*sums, _mm512_cvtxph_ps(narrow));
  *halves = _mm512_setzero_ph();
}

template <int kRows>
SRIGL_FP16 __attribute__((noinline)) void SumFloat16(const DotView& view, const DotInputs& inputs,
                                                     int64_t local, int64_t g, float* out) {
  const uint8_t* x = inputs.rows + local * inputs.stride;
  const int64_t stride = inputs.stride, end = view.groups[g + 1].packet_begin;
  __m512 sums[kRows];
  __m512h halves[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    sums[r] = _mm512_setzero_ps();
    halves[r] = _mm512_setzero_ph();
  }
  for (int64_t step = view.groups[g].packet_begin; step < end;) {
    for (const int64_t stop = Min(step + kSumSteps, end); step < stop; ++step) {
      const uint8_t* window = x + DotStart(view, inputs, step);
      const __m512i columns = LoadBytes(view.steps[step].columns);
      const __m512h values = _mm512_castsi512_ph(LoadBytes(view.steps[step].values));
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const __m512h picked = _mm512_castsi512_ph(
            _mm512_permutexvar_epi16(columns, LoadBytes(window + r * stride)));
        halves[r] = _mm512_fmadd_ph(picked, values, halves[r]);
        asm("" : "+v"(halves[r]));
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) MoveSums(&halves[r], &sums[r]);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(out + r * kGroupRows, sums[r]);
}

// A power of two by which the row's largest number comes to lie in 256..512, and what undoes it: NaN
// if the row has NaN or infinity.
inline void PowerOfRow(const float* x, int64_t size, float* scale, float* inverse) {
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = 0; i < size; i += kWidth) {
    const __m512 v = _mm512_abs_ps((__m512)LoadSome(x + i, size - i));
    largest = _mm512_max_epu32(largest, _mm512_castps_si512(v));  // NaN above all numbers
  }
  const uint32_t bits = static_cast<uint32_t>(_mm512_reduce_max_epu32(largest));
  const uint32_t exponent = std::min(std::max(bits >> 23, uint32_t{24}), uint32_t{254});
  const auto power = [](uint32_t exponent) {
    const uint32_t bits = exponent << 23;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return value;
  };
  *scale = bits >= 0x7f800000 ? __builtin_nanf("") : power(exponent - 8);
  *inverse = power(254 + 8 - exponent);
}

SRIGL_FP16 inline void ConvertFloat16(const MatMul& call, int64_t row, uint8_t* to, float* scale,
                                      int32_t* zero) {
  const float* x = call.x + row * call.in_features;
  float inverse;
  PowerOfRow(x, call.in_features, scale, &inverse);
  *zero = 0;
  for (int64_t i = 0; i < call.in_features; i += kWidth) {
    const __m512 v = (__m512)(LoadSome(x + i, call.in_features - i) * inverse);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i), (__m256i)_mm512_cvtxps_ph(v));
  }
}

#endif  // SRIGL_HAS_FP16

using DotSum = void (*)(const DotView&, const DotInputs&, int64_t, int64_t, float*);
using DotConvert = void (*)(const MatMul&, int64_t, uint8_t*, float*, int32_t*);

struct DotKernel {
  DotConvert convert;
  DotSum eight, four, two, one;
};

// Sums and outputs of some groups for batch rows [first, last) of those in `inputs`, of which the
// first is row `begin` of the call.
inline void RunGroups(const DotKernel& kernel, const DotView& view, const MatMul& call,
                      const DotInputs& inputs, const float* scales, int64_t begin, int64_t first,
                      int64_t last, int64_t group_begin, int64_t group_end) {
  for (int64_t g = group_begin; g < group_end; ++g) {
    const __m512 weight_scales = _mm512_loadu_ps(view.scales + g * kGroupRows);
    for (int64_t i = first; i < last;) {
      const int64_t left = last - i;
      const int64_t rows = left >= 8 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const DotSum sum = rows == 8   ? kernel.eight
                         : rows == 4 ? kernel.four
                         : rows == 2 ? kernel.two
                                     : kernel.one;
      float sums[kDotRows * kGroupRows];
      sum(view, inputs, i, g, sums);
      for (int64_t r = 0; r < rows; ++r, ++i) {
        const __m512 scale = _mm512_mul_ps(weight_scales, _mm512_set1_ps(scales[i]));
        WriteGroup(view, call, g, begin + i,
                   _mm512_mul_ps(_mm512_loadu_ps(sums + r * kGroupRows), scale));
      }
    }
  }
}

inline void RunDots(const DotKernel& kernel, const DotView& view, const MatMul& call,
                    int64_t row_begin, int64_t row_end, int64_t group_begin, int64_t group_end,
                    float* scratch) {
  const int64_t element = DotElementBytes(view.type);
  DotInputs inputs = {};
  inputs.stride = DotRowBytes(view.type, call.in_features);
  inputs.last_start = std::max<int64_t>(call.in_features * element - kDotBytes, 0);
  auto* rows = reinterpret_cast<uint8_t*>(scratch);
  inputs.rows = rows;
  float scales[kDotTaskRows];
  int32_t zeros[kDotTaskRows];
  inputs.zeros = zeros;
  const int64_t fit = static_cast<int64_t>(kScratchFloats * sizeof(float)) / inputs.stride;
  const int64_t most =
      std::min<int64_t>(kDotTaskRows, fit > kDotRows ? fit / kDotRows * kDotRows : fit);
  for (int64_t begin = row_begin; begin < row_end; begin += most) {
    const int64_t count = std::min(row_end - begin, most);
    for (int64_t i = 0; i < count; ++i) {
      uint8_t* to = rows + i * inputs.stride;
      // Beyond a row that is narrower than a window, weights of 0 meet finite numbers.
      memset(to + call.in_features * element, 0, inputs.stride - call.in_features * element);
      kernel.convert(call, begin + i, to, scales + i, zeros + i);
    }
    // Where all rows stay in the first-level cache, each group is read once for all of them; else
    // as many groups as stay in the second-level cache are read for each eight rows.
    const bool small = count * inputs.stride <= kDotInputBytes;
    const int64_t rows_at_once = small ? count : kDotRows;
    for (int64_t g = group_begin; g < group_end;) {
      const int64_t first_step = view.groups[g].packet_begin;
      int64_t end = g + 1;
      while (end < group_end &&
             (small || view.groups[end].packet_begin - first_step < kDotChunkSteps)) {
        ++end;
      }
      for (int64_t i = 0; i < count; i += rows_at_once) {
        RunGroups(kernel, view, call, inputs, scales, begin, i, std::min(i + rows_at_once, count),
                  g, end);
      }
      g = end;
    }
  }
}

void DotsInt8(const DotView& view, const MatMul& call, int64_t row_begin, int64_t row_end,
              int64_t group_begin, int64_t group_end, float* scratch) {
  constexpr DotKernel kKernel = {ConvertInt8, SumInt8<8>, SumInt8<4>, SumInt8<2>,
                                 SumInt8<1>};
  RunDots(kKernel, view, call, row_begin, row_end, group_begin, group_end, scratch);
}

void DotsBFloat16(const DotView& view, const MatMul& call, int64_t row_begin, int64_t row_end,
                  int64_t group_begin, int64_t group_end, float* scratch) {
  constexpr DotKernel kKernel = {ConvertBFloat16, SumBFloat16<8>, SumBFloat16<4>,
                                 SumBFloat16<2>, SumBFloat16<1>};
  RunDots(kKernel, view, call, row_begin, row_end, group_begin, group_end, scratch);
}

#ifdef SRIGL_HAS_FP16
void DotsFloat16(const DotView& view, const MatMul& call, int64_t row_begin, int64_t row_end,
                 int64_t group_begin, int64_t group_end, float* scratch) {
  constexpr DotKernel kKernel = {ConvertFloat16, SumFloat16<8>, SumFloat16<4>, SumFloat16<2>,
                                 SumFloat16<1>};
  RunDots(kKernel, view, call, row_begin, row_end, group_begin, group_end, scratch);
}
#endif

}  // namespace
}  // namespace avx512
}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_DOTS_INL_H_
