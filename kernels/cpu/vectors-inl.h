// Registers of floats, for any target. Included by each target's translation units, compiled with
// that target's flags into that target's namespace. No std:: header may be included here: a template
// instantiated with wide instructions could be linked into code for all targets.
//
// The includer defines SRIGL_TARGET (a namespace name) and SRIGL_WIDTH (floats of a register).

#include <stdint.h>
#include <string.h>

#include "kernels.h"

// Keeps the compiler from contracting a product with the sum that reads it.
#if defined(__AVX512F__)
#define SRIGL_ROUND(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define SRIGL_ROUND(v) asm("" : "+x"(v))
#elif defined(__aarch64__)
#define SRIGL_ROUND(v) asm("" : "+w"(v))
#else
#define SRIGL_ROUND(v) asm("" : "+m"(v))
#endif

namespace srigl {
namespace SRIGL_TARGET {
namespace {

constexpr int kWidth = SRIGL_WIDTH;

inline int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }

typedef float Vec __attribute__((vector_size(4 * SRIGL_WIDTH)));
typedef float VecU __attribute__((vector_size(4 * SRIGL_WIDTH), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * SRIGL_WIDTH)));
typedef uint32_t Word __attribute__((vector_size(4 * SRIGL_WIDTH)));

inline Vec Load(const float* p) { return *reinterpret_cast<const VecU*>(p); }
inline void Store(float* p, Vec v) { *reinterpret_cast<VecU*>(p) = v; }
// `p` at a multiple of a register.
inline void Stream(float* p, Vec v) {
#if SRIGL_WIDTH == 16
  _mm512_stream_ps(p, v);
#else
  Store(p, v);
#endif
}

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

inline __attribute__((always_inline)) Vec Activate(Vec v, Activation activation) {
  if (activation == Activation::kRelu) return v < 0.0f ? Vec{} : v;
  if (activation == Activation::kGelu) {
    // 0.5 v (1 + tanh(u)) = v / (1 + exp(-2u)), u = sqrt(2 / pi) (v + 0.044715 v^3)
    const Vec u = v * (0.797884561f + 0.0356774081f * (v * v));
    return v / (1.0f + Exp(-2.0f * u));
  }
  if (activation == Activation::kGeluExact) {
    // 0.5 v (1 + erf(z)), z = v / sqrt(2). With |z|: erfc(z) = p(t) exp(-z^2), t = 1 / (1 + 0.3275911
    // z), to 1.5e-7 (Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26).
    const Vec size = v < 0.0f ? -v : v;
    const Vec t = 1.0f / (1.0f + 0.231641888f * size);
    Vec p = 1.061405429f * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    const Vec tail = 0.5f * size * (p * t) * Exp(-0.5f * (v * v));
    return (v < 0.0f ? Vec{} : v) - tail;
  }
  if (activation == Activation::kSilu) return v / (1.0f + Exp(-v));
  if (activation == Activation::kRelu6) {
    v = v < 0.0f ? Vec{} : v;
    return v > 6.0f ? Vec{} + 6.0f : v;
  }
  if (activation == Activation::kHardSilu) {
    Vec gate = v + 3.0f;
    gate = gate < 0.0f ? Vec{} : gate;
    gate = gate > 6.0f ? Vec{} + 6.0f : gate;
    return v * (gate * (1.0f / 6.0f));
  }
  return v;
}

// ---- transposition ----

#if defined(__clang__) || __GNUC__ >= 12
#define SRIGL_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SRIGL_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, IntVec{__VA_ARGS__})
#endif

#if SRIGL_WIDTH == 16
// Transposes sixteen registers in place: rows of four numbers within each quarter of a register, then
// the quarters. Perfect shuffles of whole registers, as below, take half as long again.
inline void Transpose(Vec* rows) {
  __m512 four[16];  // [i + k], quarter q: column 4q + k of rows i..i + 3
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i], rows[i + 1]));
    const __m512d high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i], rows[i + 1]));
    const __m512d next_low = _mm512_castps_pd(_mm512_unpacklo_ps(rows[i + 2], rows[i + 3]));
    const __m512d next_high = _mm512_castps_pd(_mm512_unpackhi_ps(rows[i + 2], rows[i + 3]));
    four[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, next_low));
    four[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, next_low));
    four[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high, next_high));
    four[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high, next_high));
  }
  constexpr int kEven = 0x88, kOdd = 0xdd;  // quarters of two registers
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
    const __m512 even = _mm512_shuffle_f32x4(four[k], four[4 + k], kEven);
    const __m512 odd = _mm512_shuffle_f32x4(four[k], four[4 + k], kOdd);
    const __m512 next_even = _mm512_shuffle_f32x4(four[8 + k], four[12 + k], kEven);
    const __m512 next_odd = _mm512_shuffle_f32x4(four[8 + k], four[12 + k], kOdd);
    rows[k] = _mm512_shuffle_f32x4(even, next_even, kEven);
    rows[4 + k] = _mm512_shuffle_f32x4(odd, next_odd, kEven);
    rows[8 + k] = _mm512_shuffle_f32x4(even, next_even, kOdd);
    rows[12 + k] = _mm512_shuffle_f32x4(odd, next_odd, kOdd);
  }
}
#else
#if SRIGL_WIDTH == 8
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
#endif

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
