// How inputs become integers of 8 bits, on any target the same bit for bit. Included after
// vectors-inl.h, whose rules apply.
//
// Inputs that are nowhere negative are rounded to 0..255 steps of their scale, others to -127..127:
// see `Steps`.

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// Sets the least and the largest of some numbers and 0; whether one is NaN, or infinite.
inline bool LimitsOf(const float* x, int64_t size, float* least, float* largest) {
  Vec low = {}, high = {}, sum = {};
  for (int64_t i = 0; i < size; i += kWidth) {
    const Vec v = LoadSome(x + i, size - i);
    low = v < low ? v : low;
    high = v > high ? v : high;
    sum += v - v;  // NaN of NaN, and of infinity, which the range below excludes
  }
  bool has_nan = false;
  *least = *largest = 0;
  for (int i = 0; i < kWidth; ++i) {
    *least = low[i] < *least ? low[i] : *least;
    *largest = high[i] > *largest ? high[i] : *largest;
    has_nan |= sum[i] != sum[i];
  }
  return has_nan;
}

inline void RangeOf(const float* x, int64_t size, float* range) {
  if (LimitsOf(x, size, range, range + 1)) range[0] = range[1] = __builtin_nanf("");
}

inline Steps StepsOfRow(const float* x, int64_t size, const float* range) {
  float least, largest;
  bool has_nan = LimitsOf(x, size, &least, &largest);
  const bool is_infinite = least < -3.4e38f || largest > 3.4e38f;
  if (range == nullptr) return StepsOf(least, largest, has_nan);
  if (has_nan && is_infinite) {  // infinity is clipped, NaN is not
    has_nan = false;
    for (int64_t i = 0; i < size; ++i) has_nan |= x[i] != x[i];
  }
  return StepsOf(range[0] < 0 ? range[0] : 0, range[1] > 0 ? range[1] : 0,
                 has_nan || range[0] != range[0] || range[1] != range[1]);
}

inline Vec Integers(Vec x, const Steps& steps) {
  const Vec kRound = Vec{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  Vec product = x * steps.inverse;
  product = product < steps.low ? Vec{} + steps.low : product;
  product = product > steps.high ? Vec{} + steps.high : product;
  SRIGL_ROUND(product);
  Vec shifted = product + kRound;
  SRIGL_ROUND(shifted);
  return shifted - kRound;
}

// The numbers that some integers of a row stand for, at most a register of them. Not inlined, as what
// follows: there are many outputs to write in as many places.
__attribute__((noinline)) Vec LoadQuantized(const Quantized& from, int64_t row, int64_t features, int64_t begin,
                         int64_t count) {
  uint8_t bytes[kWidth] = {};
  memcpy(bytes, from.integers + row * features + begin, count);
  Vec v;
  for (int i = 0; i < kWidth; ++i) v[i] = static_cast<float>(bytes[i] - from.zero);
  v *= from.scales[row];
  SRIGL_ROUND(v);
  return v;
}

// A row that holds NaN; several threads may say so of one.
inline void MarkNaN(const QuantizedOutput& to, int64_t row) {
  const float nan = __builtin_nanf("");
  __atomic_store(to.scales + row, &nan, __ATOMIC_RELAXED);
}

__attribute__((noinline)) void StoreQuantized(const QuantizedOutput& to, int64_t row, int64_t features, int64_t begin,
                           int64_t count, Vec v) {
  bool has_nan = false;
  for (int i = 0; i < count; ++i) {
    if (v[i] != v[i]) {
      has_nan = true;
      v[i] = 0;
    }
  }
  if (has_nan) MarkNaN(to, row);
  v = Integers(v, to.steps);
  const int32_t zero = ZeroOf(to.steps);
  uint8_t bytes[kWidth];
  for (int i = 0; i < kWidth; ++i) {
    bytes[i] = static_cast<uint8_t>(static_cast<int32_t>(i < count ? v[i] : 0.0f) + zero);
  }
  memcpy(to.integers + row * features + begin, bytes, count);
}

inline void Quantize(const MatMul& call, int64_t row_begin, int64_t row_end, float* integers,
              float* row_scales) {
  const int64_t size = call.in_features;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const float* x = call.x + row * size;
    const float* range = call.image_ranges == nullptr ? call.range : call.image_ranges + 2 * row;
    const Steps steps = StepsOfRow(x, size, range);
    row_scales[row] = steps.scale;
    for (int64_t i = 0; i < size; i += kWidth) {
      const Vec v = Integers(LoadSome(x + i, size - i), steps);
      const int64_t count = size - i < kWidth ? size - i : kWidth;
      if (count == kWidth) {
        Store(integers + row * size + i, v);
      } else {
        memcpy(integers + row * size + i, &v, count * sizeof(float));
      }
    }
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
