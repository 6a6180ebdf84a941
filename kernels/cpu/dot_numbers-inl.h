// From float32 to the numbers that dots multiply: `ScaleOf...` finds the steps of some inputs, by the
// range if one is given: then no input is looked at. `Convert...` writes `size` of them, rounded up to
// whole registers, and says whether one is NaN, where that is not seen in what it writes. Only int8 has
// more steps than `scale` and `inverse`. Included by dots-inl.h, whose rules apply.

#ifndef SRIGL_KERNELS_CPU_DOT_NUMBERS_INL_H_
#define SRIGL_KERNELS_CPU_DOT_NUMBERS_INL_H_

namespace srigl {
namespace avx512 {
namespace {

inline __m512 LoadUpTo16(const float* x, int64_t left) {
  if (left >= kWidth) return _mm512_loadu_ps(x);
  return _mm512_maskz_loadu_ps((1 << left) - 1, x);
}

// As StepsOfRow and Integers, by the instructions of this target.
inline Steps ScaleOfInt8(const float* x, int64_t size, const float* range) {
  if (range != nullptr) return StepsOf(range);
  __m512 low = _mm512_setzero_ps();
  __m512i largest = _mm512_setzero_si512();  // sizes, NaN above all others
  for (int64_t i = 0; i < size; i += kWidth) {
    const __m512 v = LoadUpTo16(x + i, size - i);
    low = _mm512_min_ps(v, low);  // which NaN leaves as it is
    largest = _mm512_max_epu32(largest, _mm512_castps_si512(_mm512_abs_ps(v)));
  }
  const uint32_t bits = _mm512_reduce_max_epu32(largest);
  float high;  // or -low, which then takes its place
  memcpy(&high, &bits, sizeof(high));
  return StepsOf(_mm512_reduce_min_ps(low), high, bits >= 0x7f800000);
}

inline bool ConvertInt8(const float* x, int64_t size, const Steps& steps, uint8_t* to) {
  const __m512i shift = _mm512_set1_epi32(ZeroOf(steps));
  const __m512 inverse = _mm512_set1_ps(steps.inverse), least = _mm512_set1_ps(steps.low),
               most = _mm512_set1_ps(steps.high);
  __mmask16 nan = 0;
  for (int64_t i = 0; i < size; i += kWidth) {
    const __m512 input = LoadUpTo16(x + i, size - i), v = _mm512_mul_ps(input, inverse);
    nan |= _mm512_cmp_ps_mask(input, input, _CMP_UNORD_Q);
    const __m512i integers = _mm512_cvtps_epi32(_mm512_min_ps(_mm512_max_ps(v, least), most));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i),
                     _mm512_cvtepi32_epi8(_mm512_add_epi32(integers, shift)));
  }
  return nan != 0;
}

inline Steps NoScale(const float*, int64_t, const float*) { return {1, 1, 0, 0}; }

SRIGL_BF16 inline bool ConvertBFloat16(const float* x, int64_t size, const Steps&, uint8_t* to) {
  for (int64_t i = 0; i < size; i += kWidth) {
    const __m256bh half = _mm512_cvtneps_pbh(LoadUpTo16(x + i, size - i));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i), (__m256i)half);
  }
  return false;
}

inline bool ConvertFloat32(const float* x, int64_t size, const Steps&, uint8_t* to) {
  for (int64_t i = 0; i < size; i += kWidth) {
    _mm512_storeu_ps(reinterpret_cast<float*>(to) + i, LoadUpTo16(x + i, size - i));
  }
  return false;
}

#ifdef SRIGL_HAS_FP16

// A power of two by which the largest of some numbers comes to lie in 256..512, and what undoes it:
// NaN if there is NaN or infinity.
inline void PowerOfRow(const float* x, int64_t size, float* scale, float* inverse) {
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = 0; i < size; i += kWidth) {
    const __m512 v = _mm512_abs_ps(LoadUpTo16(x + i, size - i));
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

inline Steps ScaleOfFloat16(const float* x, int64_t size, const float*) {
  Steps steps = {};
  PowerOfRow(x, size, &steps.scale, &steps.inverse);
  return steps;
}

SRIGL_FP16 inline bool ConvertFloat16(const float* x, int64_t size, const Steps& steps,
                                      uint8_t* to) {
  const __m512 inverse = _mm512_set1_ps(steps.inverse);
  for (int64_t i = 0; i < size; i += kWidth) {
    const __m512 v = _mm512_mul_ps(LoadUpTo16(x + i, size - i), inverse);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 2 * i), (__m256i)_mm512_cvtxps_ph(v));
  }
  return false;
}

#endif  // SRIGL_HAS_FP16

}  // namespace
}  // namespace avx512
}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_DOT_NUMBERS_INL_H_
