// Attention: products with packed keys, a softmax, and products with packed values, for some queries at a
// time, so that their products stay in the first-level cache. Many keys are taken in chunks, sums of
// earlier ones being scaled where a later one has a larger product. Included after vectors-inl.h, whose
// rules apply.

namespace srigl {
namespace SRIGL_TARGET {
namespace {

constexpr int kQueries = kWidth == 16 ? 8 : 4;  // whose sums are kept in registers, two of each
constexpr int64_t kPair = 2 * kWidth;

struct RowState {
  float largest, sum;
  float factor;  // of the sums before this chunk
};

inline int64_t RoundUp(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// Where keys lie, or values: the first `count` of them, and the others.
struct KeyRows {
  const float* first;
  int64_t stride, count;
  const float* tail;
  int64_t tail_stride;
  bool is_far;  // whether to fetch rows ahead: few queries spend most of their time reading keys

  const float* At(int64_t j) const {
    return j < count ? first + j * stride : tail + (j - count) * tail_stride;
  }
};

// Has the numbers of rows [begin, end) fetched: those of one head lie in pieces, between the others'.
inline void FetchRows(const KeyRows& from, int64_t begin, int64_t end, int64_t size) {
  constexpr int64_t kLine = 64 / sizeof(float);
  for (int64_t j = begin; from.is_far && j < end; ++j) {
    for (int64_t d = 0; d < size; d += kLine) __builtin_prefetch(from.At(j) + d);
  }
}

// to[d, j] = from[begin + j, d], for `padded` keys; those beyond `count` are 0.
inline void PackKeys(const KeyRows& from, int64_t begin, int64_t count, int64_t padded,
                     int64_t depth, float* to) {
  for (int64_t j = 0; j < padded; j += kWidth) {
    FetchRows(from, begin + j + kWidth, begin + Min(j + 2 * kWidth, count), depth);
    for (int64_t d = 0; d < depth; d += kWidth) {
      const int64_t left = depth - d;
      Vec rows[kWidth];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        rows[i] = j + i < count ? LoadSome(from.At(begin + j + i) + d, left) : Vec{};
      }
      Transpose(rows);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth; ++i) {
        if (i < left) Store(to + (d + i) * padded + j, rows[i]);
      }
    }
  }
}

// to[j, d] = from[begin + j, d]; columns beyond `width` are 0.
inline void PackValueRows(const KeyRows& from, int64_t begin, int64_t count, int64_t width,
                          int64_t padded, float* to) {
  for (int64_t j = 0; j < count; ++j, to += padded) {
    constexpr int64_t kAhead = 8;
    FetchRows(from, begin + j + kAhead, begin + Min(j + kAhead + 1, count), width);
    const float* const row = from.At(begin + j);
    for (int64_t d = 0; d < padded; d += kWidth) {
      const int64_t left = width - d;
      Store(to + d, left > 0 ? LoadSome(row + d, left) : Vec{});
    }
  }
}

// scores[r, j] = scale * sum over d of q[r, d] keys[d, j].
template <int kRows>
void Scores(const float* q, int64_t stride, const float* keys, int64_t padded, int64_t depth,
            float scale, float* scores) {
  for (int64_t j = 0; j < padded; j += kPair) {
    Vec a[kRows], b[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) a[r] = b[r] = Vec{};
    const float* key = keys + j;
    for (int64_t d = 0; d < depth; ++d, key += padded) {
      const Vec x = Load(key), y = Load(key + kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec w = Vec{} + q[r * stride + d];
        a[r] += w * x;
        b[r] += w * y;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      Store(scores + r * padded + j, a[r] * scale);
      Store(scores + r * padded + j + kWidth, b[r] * scale);
    }
  }
}

// sums[r, d] = factor of r * sums[r, d] + sum over j of p[r, j] values[j, d].
template <int kRows>
void WeighValues(const float* p, int64_t padded, int64_t count, const float* values, int64_t wide,
                 const RowState* states, bool first, float* sums) {
  for (int64_t d = 0; d < wide; d += kPair) {
    Vec a[kRows], b[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const float* sum = sums + r * wide + d;
      a[r] = first ? Vec{} : Load(sum) * states[r].factor;
      b[r] = first ? Vec{} : Load(sum + kWidth) * states[r].factor;
    }
    const float* value = values + d;
    for (int64_t j = 0; j < count; ++j, value += wide) {
      const Vec x = Load(value), y = Load(value + kWidth);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const Vec w = Vec{} + p[r * padded + j];
        a[r] += w * x;
        b[r] += w * y;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      Store(sums + r * wide + d, a[r]);
      Store(sums + r * wide + d + kWidth, b[r]);
    }
  }
}

// exp(x), and 0 where that is hardly a normal number.
inline Vec Power(Vec x) { return x < -87.0f ? Vec{} : Exp(x); }

inline Vec LanesBelow(int64_t count, Vec inside, Vec beyond) {
  IntVec lane;
  for (int i = 0; i < kWidth; ++i) lane[i] = i;
  return lane < static_cast<int32_t>(count) ? inside : beyond;
}

inline Vec Choose(const uint8_t* mask, int64_t count, Vec kept, float fill) {
  typedef uint8_t Flags __attribute__((vector_size(SRIGL_WIDTH)));
  Flags flags = {};
  memcpy(&flags, mask, Min(count, kWidth));
  return __builtin_convertvector(flags, IntVec) != 0 ? kept : Vec{} + fill;
}

// Makes a row's products powers of their distance from the largest so far.
inline void Normalize(const uint8_t* mask, float fill, int64_t count, int64_t padded, float* row,
                      RowState* state) {
  const float kLeast = -__builtin_inff();
  Vec most = Vec{} + kLeast;
  for (int64_t j = 0; j < padded; j += kWidth) {
    const int64_t left = count - j;
    Vec v = Load(row + j);
    if (mask != nullptr && left > 0) v = Choose(mask + j, left, v, fill);
    if (left < kWidth) v = LanesBelow(left, v, Vec{} + kLeast);
    Store(row + j, v);
    most = v > most ? v : most;
  }
  float largest = state->largest;
  for (int i = 0; i < kWidth; ++i) largest = most[i] > largest ? most[i] : largest;
  const float shift = largest == kLeast ? 0.0f : largest;
  state->factor = Power(Vec{} + (state->largest - shift))[0];
  Vec total = {};
  for (int64_t j = 0; j < padded; j += kWidth) {
    const Vec v = Power(Load(row + j) - shift);
    Store(row + j, v);
    total += v;
  }
  float sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += total[i];
  state->largest = largest;
  state->sum = state->sum * state->factor + sum;
}

inline int64_t OffsetOf(const Attention& call, const AttentionStrides& strides, int64_t part) {
  int64_t offset = 0;
  for (int axis = kAttentionAxes - 1; axis >= 0; --axis) {
    offset += part % call.batch[axis] * strides.batch[axis];
    part /= call.batch[axis];
  }
  return offset;
}

template <int kRows>
void SomeQueries(const Attention& call, const float* q, const uint8_t* mask, const float* keys,
                 const float* values, int64_t count, int64_t padded, int64_t wide, bool first,
                 float* scores, RowState* states, float* sums) {
  Scores<kRows>(q, call.q_strides.row, keys, padded, call.depth, call.scale, scores);
  for (int r = 0; r < kRows; ++r) {
    Normalize(mask == nullptr ? nullptr : mask + r * call.mask_strides.row, call.fill, count,
              padded, scores + r * padded, states + r);
  }
  WeighValues<kRows>(scores, padded, count, values, wide, states, first, sums);
}

// Queries [begin, end), at most kAttentionRows, of one part of the batch.
void AttendTo(const Attention& call, int64_t part, int64_t begin, int64_t end, float* scratch) {
  const float* q = call.q + OffsetOf(call, call.q_strides, part);
  const auto rows_of = [&](const float* first, const AttentionStrides& strides, const float* tail,
                           const AttentionStrides& tail_strides) {
    const float* rest = call.tail == 0 ? nullptr : tail + OffsetOf(call, tail_strides, part);
    return KeyRows{first + OffsetOf(call, strides, part), strides.row, call.keys - call.tail, rest,
                   tail_strides.row, call.queries < kQueries};
  };
  const KeyRows k = rows_of(call.k, call.k_strides, call.k_tail, call.k_tail_strides);
  const KeyRows v = rows_of(call.v, call.v_strides, call.v_tail, call.v_tail_strides);
  const uint8_t* mask =
      call.mask == nullptr ? nullptr : call.mask + OffsetOf(call, call.mask_strides, part);
  float* out = call.out + OffsetOf(call, call.out_strides, part);
  const int64_t wide = RoundUp(call.width, kPair);
  const int64_t deep = call.depth > wide ? call.depth : wide;
  const int64_t chunk = Min(kAttentionKeys, kAttentionFloats / deep) / kPair * kPair;
  float* keys = scratch;
  float* values = keys + kAttentionFloats;
  float* scores = values + kAttentionFloats;
  float* sums = scores + kQueries * kAttentionKeys;
  RowState states[kAttentionRows];
  for (int64_t i = 0; i < end - begin; ++i) states[i] = {-__builtin_inff(), 0.0f, 0.0f};
  for (int64_t key = 0; key < call.keys; key += chunk) {
    const int64_t count = Min(chunk, call.keys - key), padded = RoundUp(count, kPair);
    PackKeys(k, key, count, padded, call.depth, keys);
    PackValueRows(v, key, count, call.width, wide, values);
    for (int64_t i = begin; i < end;) {
      const int64_t left = end - i;
      const int rows = left >= kQueries ? kQueries : left >= 4 ? 4 : left >= 2 ? 2 : 1;
      const auto some = rows == kQueries ? SomeQueries<kQueries>
                        : rows == 4      ? SomeQueries<4>
                        : rows == 2      ? SomeQueries<2>
                                         : SomeQueries<1>;
      some(call, q + i * call.q_strides.row,
           mask == nullptr ? nullptr : mask + i * call.mask_strides.row + key, keys, values, count,
           padded, wide, key == 0, scores, states + (i - begin), sums + (i - begin) * wide);
      i += rows;
    }
  }
  for (int64_t i = begin; i < end; ++i) {
    const float* from = sums + (i - begin) * wide;
    float* to = out + i * call.out_strides.row;
    const float share = 1.0f / states[i - begin].sum;
    for (int64_t d = 0; d < call.width; d += kWidth) {
      float buffer[kWidth];
      Store(buffer, Load(from + d) * share);
      memcpy(to + d, buffer, Min(kWidth, call.width - d) * sizeof(float));
    }
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
