// Dot kernels: lanes are neurons, and one instruction multiplies several small inputs of each.
// Included by kernels_avx512_dots.cc. Each kernel needs more of the CPU than that file is compiled
// for, which its functions say by themselves.
//
// A task first turns its batch rows into the numbers that are multiplied, each row with a scale; the
// rows of a convolution it reads in lines of images that it turned before, once for all patches, or
// puts together from them (see dot_patches-inl.h). Then a step takes a load of its window, a
// permutation and a product for every batch row; its weights and their places are loaded once for all
// of them. A step of a dense pattern needs no permutation: all lanes read the same inputs.
//
//   int8      products of VNNI, summed exactly in 32 bits
//   bfloat16  products of AVX512-BF16, summed in float32
//   float16   where AVX512-FP16 is: on Intel's processors, whose dot products of bfloat16 take four
//             times as long as its products and sums of float16. A bfloat16 fits into a float16 but
//             for its range, hence powers of two as scales; and sums move on to float32 every
//             kSumSteps products, so that their error stays below that of rounding to bfloat16.
//   float32   dense patterns only: for each product the tile kernel takes twice as long

#ifndef SRIGL_KERNELS_CPU_DOTS_INL_H_
#define SRIGL_KERNELS_CPU_DOTS_INL_H_

#define SRIGL_AVX512 "avx512f,avx512bw,avx512vl,avx512dq,fma"
#define SRIGL_BASE __attribute__((target(SRIGL_AVX512)))
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
constexpr int kDenseGroups = 2;    // groups of a dense pattern that are summed together
constexpr int kSumSteps = 16;
constexpr int64_t kDotInputBytes = 1 << 15;  // of batch rows that stay in the first-level cache
constexpr int64_t kDotChunkSteps = 1 << 12;  // 512 KB of weights and their places

// Batch rows as the kernels read them, some of those of the call: each whole, `stride` bytes after the
// one before; or, if there are `pieces`, each in `num_pieces` of `piece_bytes`, `piece_stride` apart.
struct DotInputs {
  const uint8_t* rows;
  int64_t stride;
  const int32_t* zeros;  // by row, the integer that stands for 0
  int64_t last_start;    // first byte of the last window
  const uint8_t* pieces[kDotTaskRows];  // the first of each row
  int64_t num_pieces, piece_bytes, piece_stride;
};

inline __m512i LoadBytes(const uint8_t* p) { return _mm512_loadu_si512(p); }

inline __m512i BroadcastBytes(const uint8_t* p) {
  int32_t four;
  memcpy(&four, p, sizeof(four));
  return _mm512_set1_epi32(four);
}

inline uint32_t DotStart(const DotView& view, const DotInputs& inputs, int64_t step) {
  uint32_t start = view.starts[step];
  asm("" : "+r"(start));  // else GCC takes the minimum in a vector register
  const auto last = static_cast<uint32_t>(inputs.last_start);
  return start < last ? start : last;  // GCC keeps sums in memory beside std::min
}

// Where windows lie in rows of pieces. Those of a group go from left to right, so that a division is
// needed once for each piece; whatever the starts, they lie within the row.
struct DotPlace {
  uint32_t begin = 0;   // of the piece
  int64_t delta = 0;    // from places in a whole row to those in this one
  uint32_t bytes;       // of the window in this piece; the others are in the next

  explicit DotPlace(const DotInputs& inputs)
      : piece_(static_cast<uint32_t>(inputs.piece_bytes)), stride_(inputs.piece_stride) {}

  void MoveTo(uint32_t start) {
    bytes = kDotBytes;
    if (__builtin_expect(start - begin <= piece_ - kDotBytes, 1)) return;
    const uint32_t piece = start / piece_;
    begin = piece * piece_;
    delta = piece * (stride_ - piece_);
    bytes = std::min<uint32_t>(piece_ - (start - begin), kDotBytes);
  }

 private:
  const uint32_t piece_;
  const int64_t stride_;
};

// A window of which all but some bytes lie at the beginning of the row's next piece.
inline __m512i LoadBroken(const uint8_t* window, uint32_t bytes, int64_t gap) {
  return _mm512_mask_loadu_epi8(LoadBytes(window), ~uint64_t{0} << bytes, window + gap);
}

// ---- arithmetic: a sum of products in each lane ----
//
// `Carry` comes after every `kSteps` steps. `Finish` gives the sums as float32, of weights that add
// up to `weights` and inputs in which `zero`, 0 or 128, stands for 0.

struct Int8 {
  __m512i sum;
  static constexpr int64_t kSteps = INT64_MAX;
  void Clear() { sum = _mm512_setzero_si512(); }
  SRIGL_VNNI static __m512i Pick(__m512i columns, __m512i window) {
    return _mm512_permutexvar_epi8(columns, window);
  }
  SRIGL_VNNI void Add(__m512i inputs, __m512i values) {
    sum = _mm512_dpbusd_epi32(sum, inputs, values);
    asm("" : "+v"(sum));  // else GCC moves it to and fro
  }
  void Carry() {}
  __m512 Finish(const int32_t* weights, int32_t zero) const {
    const __mmask16 is_signed = zero == 0 ? 0 : 0xffff;
    const __m512i zeros = _mm512_maskz_slli_epi32(is_signed, _mm512_loadu_si512(weights), 7);
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, zeros));
  }
};

struct BFloat16 {
  __m512 sum;
  static constexpr int64_t kSteps = INT64_MAX;
  void Clear() { sum = _mm512_setzero_ps(); }
  static __m512i Pick(__m512i columns, __m512i window) {
    return _mm512_permutexvar_epi16(columns, window);
  }
  SRIGL_BF16 void Add(__m512i inputs, __m512i values) {
    sum = _mm512_dpbf16_ps(sum, (__m512bh)inputs, (__m512bh)values);
    asm("" : "+v"(sum));
  }
  void Carry() {}
  __m512 Finish(const int32_t*, int32_t) const { return sum; }
};

struct Float32 {
  __m512 sum;
  static constexpr int64_t kSteps = INT64_MAX;
  void Clear() { sum = _mm512_setzero_ps(); }
  static __m512i Pick(__m512i columns, __m512i window) {
    return _mm512_permutexvar_epi32(columns, window);
  }
  void Add(__m512i inputs, __m512i values) {
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(inputs), _mm512_castsi512_ps(values), sum);
    asm("" : "+v"(sum));
  }
  void Carry() {}
  __m512 Finish(const int32_t*, int32_t) const { return sum; }
};

#ifdef SRIGL_HAS_FP16
struct Float16 {
  __m512 sum;
  __m512h halves;
  static constexpr int64_t kSteps = kSumSteps;
  SRIGL_FP16 void Clear() {
    sum = _mm512_setzero_ps();
    halves = _mm512_setzero_ph();
  }
  static __m512i Pick(__m512i columns, __m512i window) {
    return _mm512_permutexvar_epi16(columns, window);
  }
  SRIGL_FP16 void Add(__m512i inputs, __m512i values) {
    halves = _mm512_fmadd_ph(_mm512_castsi512_ph(inputs), _mm512_castsi512_ph(values), halves);
    asm("" : "+v"(halves));
  }
  // Adds the two float16 of every lane to its float32.
  SRIGL_FP16 void Carry() {
    const __m512i both = _mm512_castph_si512(halves);
    const __m512h swapped = _mm512_castsi512_ph(_mm512_rol_epi32(both, 16));
    const __m512i pairs = _mm512_castph_si512(_mm512_add_ph(halves, swapped));
    sum = _mm512_add_ps(sum, _mm512_cvtxph_ps((__m256h)_mm512_cvtepi32_epi16(pairs)));
    halves = _mm512_setzero_ph();
  }
  __m512 Finish(const int32_t*, int32_t) const { return sum; }
};
#endif

// Sums##Name puts the sums of a group for kRows batch rows, from `local` on, into `out` [row][lane];
// DenseSums##Name those of a dense pattern's two groups into `out` [group][row][lane]; with kPieces
// of rows in pieces. They are not inlined: beside what writes outputs GCC would keep sums in memory. A
// macro, because a template cannot pass on what it needs of the CPU.
#define SRIGL_DOT_SUMS(Name, TARGET)                                                              \
  template <int kRows, bool kPieces>                                                              \
  TARGET __attribute__((noinline)) void Sums##Name(const DotView& view, const DotInputs& inputs,  \
                                                   int64_t local, const int64_t* groups,          \
                                                   float* out) {                                  \
    const uint8_t* x = inputs.rows + local * inputs.stride;                                       \
    const uint8_t* pieces[kRows];                                                                 \
    _Pragma("GCC unroll 8") for (int r = 0; kPieces && r < kRows; ++r) {                          \
      pieces[r] = inputs.pieces[local + r];                                                       \
    }                                                                                             \
    const int64_t g = groups[0], stride = inputs.stride, end = view.groups[g + 1].packet_begin;   \
    const int64_t gap = inputs.piece_stride - inputs.piece_bytes;                                 \
    DotPlace place(inputs);                                                                       \
    Name sums[kRows];                                                                             \
    _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) sums[r].Clear();                      \
    for (int64_t step = view.groups[g].packet_begin; step < end;) {                               \
      const int64_t stop = end - step > Name::kSteps ? step + Name::kSteps : end;                 \
      for (; step < stop; ++step) {                                                               \
        const __m512i columns = LoadBytes(view.steps[step].columns);                              \
        const __m512i values = LoadBytes(view.steps[step].values);                                \
        if constexpr (kPieces) {                                                                  \
          const uint32_t start = DotStart(view, inputs, step);                                    \
          place.MoveTo(start);                                                                    \
          const int64_t at = start + place.delta;                                                 \
          if (__builtin_expect(place.bytes == kDotBytes, 1)) {                                    \
            _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                             \
              sums[r].Add(Name::Pick(columns, LoadBytes(pieces[r] + at)), values);                \
            }                                                                                     \
          } else {                                                                                \
            _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                             \
              sums[r].Add(Name::Pick(columns, LoadBroken(pieces[r] + at, place.bytes, gap)), values);\
            }                                                                                     \
          }                                                                                       \
        } else {                                                                                  \
          const uint8_t* window = x + DotStart(view, inputs, step);                               \
          _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                               \
            sums[r].Add(Name::Pick(columns, LoadBytes(window + r * stride)), values);             \
          }                                                                                       \
        }                                                                                         \
      }                                                                                           \
      _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) sums[r].Carry();                    \
    }                                                                                             \
    _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                                     \
      _mm512_storeu_ps(out + r * kGroupRows,                                                      \
                       sums[r].Finish(view.sums + g * kGroupRows, inputs.zeros[local + r]));      \
    }                                                                                             \
  }                                                                                               \
  template <int kRows, bool kPieces>                                                              \
  TARGET __attribute__((noinline)) void DenseSums##Name(                                          \
      const DotView& view, const DotInputs& inputs, int64_t local, const int64_t* groups,         \
      float* out) {                                                                               \
    const int64_t stride = inputs.stride, all = DenseSteps(view.type, view.in_features);          \
    const uint8_t* x = inputs.rows + local * stride;                                              \
    const uint8_t* pieces[kRows];                                                                 \
    _Pragma("GCC unroll 8") for (int r = 0; kPieces && r < kRows; ++r) {                          \
      pieces[r] = inputs.pieces[local + r];                                                       \
    }                                                                                             \
    const uint8_t* first = view.dense + groups[0] * all * kDotBytes;                              \
    const uint8_t* second = view.dense + groups[1] * all * kDotBytes;                             \
    Name sums[kDenseGroups][kRows];                                                               \
    _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                                     \
      sums[0][r].Clear();                                                                         \
      sums[1][r].Clear();                                                                         \
    }                                                                                             \
    const int64_t steps = kPieces ? inputs.piece_bytes / 4 : all;                                 \
    for (int64_t piece = 0; piece < (kPieces ? inputs.num_pieces : 1); ++piece) {                 \
      for (int64_t step = 0; step < steps;) {                                                     \
        const int64_t stop = steps - step > Name::kSteps ? step + Name::kSteps : steps;           \
        for (; step < stop; ++step) {                                                             \
          const __m512i a = LoadBytes(first + step * kDotBytes);                                  \
          const __m512i b = LoadBytes(second + step * kDotBytes);                                 \
          _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                               \
            const uint8_t* row = kPieces ? pieces[r] : x + r * stride;                            \
            const __m512i input = BroadcastBytes(row + 4 * step);                                 \
            sums[0][r].Add(input, a);                                                             \
            sums[1][r].Add(input, b);                                                             \
          }                                                                                       \
        }                                                                                         \
        _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                                 \
          sums[0][r].Carry();                                                                     \
          sums[1][r].Carry();                                                                     \
        }                                                                                         \
      }                                                                                           \
      first += steps * kDotBytes;                                                                 \
      second += steps * kDotBytes;                                                                \
      _Pragma("GCC unroll 8") for (int r = 0; kPieces && r < kRows; ++r) {                        \
        pieces[r] += inputs.piece_stride;                                                         \
      }                                                                                           \
    }                                                                                             \
    _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                                     \
      for (int i = 0; i < kDenseGroups; ++i) {                                                    \
        _mm512_storeu_ps(out + (i * kRows + r) * kGroupRows,                                      \
                         sums[i][r].Finish(view.sums + groups[i] * kGroupRows,                    \
                                           inputs.zeros[local + r]));                             \
      }                                                                                           \
    }                                                                                             \
  }

SRIGL_DOT_SUMS(Int8, SRIGL_VNNI)
SRIGL_DOT_SUMS(BFloat16, SRIGL_BF16)
SRIGL_DOT_SUMS(Float32, SRIGL_BASE)
#ifdef SRIGL_HAS_FP16
SRIGL_DOT_SUMS(Float16, SRIGL_FP16)
#endif
#undef SRIGL_DOT_SUMS

// ---- conversion: from float32 to the numbers that are multiplied ----
//
// `ScaleOf...` finds the steps of some inputs, by the range if one is given: then no input is looked
// at. `Convert...` writes `size` of them, rounded up to whole registers, and says whether one is NaN,
// where that is not seen in what it writes. Only int8 has more steps than `scale` and `inverse`.

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

using DotSum = void (*)(const DotView&, const DotInputs&, int64_t local, const int64_t* groups,
                        float* out);

struct DotKernel {
  Steps (*scale_of)(const float* x, int64_t size, const float* range);
  bool (*convert)(const float* x, int64_t size, const Steps& steps, uint8_t* to);
  // Of 1, 2, 4 and 8 rows, whole and in pieces.
  DotSum sums[2][4], dense_sums[2][4];
};

}  // namespace
}  // namespace avx512
}  // namespace srigl

#include "dot_patches-inl.h"

namespace srigl {
namespace avx512 {
namespace {

// Groups [group_begin, group_end) for rows [first, last) of `inputs`, whose row 0 is batch row
// `begin`.
inline void RunGroups(const DotKernel& kernel, const DotView& view, const MatMul& call,
                      const DotInputs& inputs, const float* scales, int64_t begin, int64_t first,
                      int64_t last, int64_t group_begin, int64_t group_end) {
  const int at_once = view.dense == nullptr ? 1 : kDenseGroups;
  for (int64_t g = group_begin; g < group_end; g += at_once) {
    const int64_t groups[kDenseGroups] = {g, std::min(g + 1, group_end - 1)};
    for (int64_t i = first; i < last;) {
      const int64_t left = last - i;
      const int level = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
      const int64_t rows = int64_t{1} << level;
      float sums[kDenseGroups * kDotRows * kGroupRows];
      const bool in_pieces = inputs.num_pieces > 0;
      const auto& kernels = view.dense == nullptr ? kernel.sums : kernel.dense_sums;
      kernels[in_pieces][level](view, inputs, i, groups, sums);
      for (int64_t j = 0; j < at_once && g + j < group_end; ++j) {
        WriteGroupRows(view, call, g + j, begin + i, rows, sums + j * rows * kGroupRows,
                       view.scales + (g + j) * kGroupRows, scales + i);
      }
      i += rows;
    }
  }
}

inline void RunDots(const DotKernel& kernel, const DotView& view, const MatMul& call,
                    int64_t row_begin, int64_t row_end, int64_t group_begin, int64_t group_end,
                    float* scratch) {
  const int64_t element = DotElementBytes(view.type), size = view.in_features;
  DotInputs inputs = {};
  inputs.stride = DotRowBytes(view.type, size);
  inputs.last_start = std::max<int64_t>(size * element - kDotBytes, 0);
  auto* rows = reinterpret_cast<uint8_t*>(scratch);
  inputs.rows = rows;
  // Integers of whole windows, or whole steps, are read where they are.
  const bool in_place = call.x8.integers != nullptr && call.patches == nullptr &&
                        (view.dense == nullptr ? size >= kDotBytes : size % 4 == 0);
  if (in_place) inputs.stride = size;
  float scales[kDotTaskRows];
  int32_t zeros[kDotTaskRows];
  inputs.zeros = zeros;
  const Steps whole =
      call.range == nullptr ? Steps{} : kernel.scale_of(nullptr, 0, call.range);
  const bool in_pieces = call.patches != nullptr && ReadsPieces(view, *call.patches, element);
  DotStage stage = {};
  Pixel pixel = {};
  if (call.patches != nullptr) {
    stage = StageForDots(kernel, call, in_pieces, element, row_begin, row_end,
                         reinterpret_cast<uint8_t*>(scratch + kScratchFloats));
    pixel = PixelAt(*call.patches, row_begin);
    if (in_pieces) {
      inputs.num_pieces = call.patches->y.kernel;
      inputs.piece_bytes = PieceBytes(*call.patches, element);
      // As far as batch rows are apart in the nearest cache.
      inputs.stride = Min(inputs.stride, PixelStride(*call.patches, element) * inputs.num_pieces);
      inputs.piece_stride = inputs.num_pieces > 1 ? call.patches->y.dilation * stage.line : 0;
    }
  }
  const int64_t fit = static_cast<int64_t>(kScratchFloats * sizeof(float)) / inputs.stride;
  const int64_t most =
      std::min<int64_t>(kDotTaskRows, fit > kDotRows ? fit / kDotRows * kDotRows : fit);
  for (int64_t begin = row_begin; begin < row_end; begin += most) {
    const int64_t count = std::min(row_end - begin, most);
    if (in_place) inputs.rows = call.x8.integers + begin * size;
    for (int64_t i = 0; i < count; ++i) {
      uint8_t* to = rows + i * inputs.stride;
      Steps steps = whole;
      if (call.x8.integers != nullptr && call.patches == nullptr) {
        if (!in_place) CopyBytes(call.x8.integers + (begin + i) * size, size, to);
        steps.scale = call.x8.scales[begin + i];
      } else if (call.patches == nullptr) {
        const float* x = call.x + (begin + i) * size;
        if (call.range == nullptr) steps = kernel.scale_of(x, size, nullptr);
        if (kernel.convert(x, size, steps, to)) steps.scale = __builtin_nanf("");
      } else {
        steps = stage.steps[pixel.image - stage.first_image];
        if (in_pieces) {
          inputs.pieces[i] = PatchAt(*call.patches, stage, element, pixel);
          if (stage.scales != nullptr) {
            steps.scale = stage.scales[(inputs.pieces[i] - stage.data) / (size * element)];
          }
        } else {
          CopyPatch(*call.patches, stage, element, pixel, to);
        }
        if (++pixel.x == call.patches->x.out) pixel = NextLine(*call.patches, pixel);
      }
      // Beyond a row that is narrower than a window, weights of 0 meet finite numbers.
      if (!in_place && !in_pieces) _mm512_storeu_si512(to + size * element, _mm512_setzero_si512());
      scales[i] = steps.scale;
      zeros[i] = ZeroOf(steps);
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

#define SRIGL_DOTS(Name, scale_of)                                                                \
  void Dots##Name(const DotView& view, const MatMul& call, int64_t row_begin, int64_t row_end,    \
                  int64_t group_begin, int64_t group_end, float* scratch) {                       \
    constexpr DotKernel kKernel = {                                                               \
        scale_of,                                                                                 \
        Convert##Name,                                                                            \
        {{Sums##Name<1, false>, Sums##Name<2, false>, Sums##Name<4, false>, Sums##Name<8, false>},\
         {Sums##Name<1, true>, Sums##Name<2, true>, Sums##Name<4, true>, Sums##Name<8, true>}},   \
        {{DenseSums##Name<1, false>, DenseSums##Name<2, false>, DenseSums##Name<4, false>,        \
          DenseSums##Name<8, false>},                                                             \
         {DenseSums##Name<1, true>, DenseSums##Name<2, true>, DenseSums##Name<4, true>,           \
          DenseSums##Name<8, true>}}};                                                            \
    RunDots(kKernel, view, call, row_begin, row_end, group_begin, group_end, scratch);            \
  }

SRIGL_DOTS(Int8, ScaleOfInt8)
SRIGL_DOTS(BFloat16, NoScale)
SRIGL_DOTS(Float32, NoScale)
#ifdef SRIGL_HAS_FP16
SRIGL_DOTS(Float16, ScaleOfFloat16)
#endif
#undef SRIGL_DOTS

}  // namespace
}  // namespace avx512
}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_DOTS_INL_H_
