// Sums of products by dots, for each kind of numbers. Included by dots-inl.h, whose rules apply.

#ifndef SRIGL_KERNELS_CPU_DOT_SUMS_INL_H_
#define SRIGL_KERNELS_CPU_DOT_SUMS_INL_H_

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
constexpr int64_t kStepsAhead = 24;          // of a step that is fetched, by its first line

// What a kernel reads: whole batch rows, or rows in pieces; or whole ones, and steps from afar.
enum class Reads { kWhole, kPieces, kFar };
constexpr int kNumReads = 3;

// Batch rows as the kernels read them, some of those of the call: each whole, `stride` bytes after the
// one before; or, if there are `pieces`, each in `num_pieces` of `piece_bytes`, `piece_stride` apart.
struct DotInputs {
  const uint8_t* rows;
  int64_t stride;
  const int32_t* signs;  // by row: -1 where 128 stands for 0, 0 where 0 does
  int64_t last_start;    // first byte of the last window
  const uint8_t* pieces[kDotTaskRows];  // the first of each row
  int64_t num_pieces, piece_bytes, piece_stride;
  Reads reads;
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
// `Carry` comes after every `kSteps` steps. `Finish` gives the sums as float32, of inputs with a sign of
// `DotInputs`; `Excess` is what signed inputs add to the sums of a group's weights, `weights`.

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
  static __m512i Excess(const int32_t* weights) {
    return _mm512_slli_epi32(_mm512_loadu_si512(weights), 7);
  }
  __m512 Finish(__m512i excess, int32_t sign) const {
    const __m512i signed_excess = _mm512_and_si512(excess, _mm512_set1_epi32(sign));
    return _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, signed_excess));
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
  static __m512i Excess(const int32_t*) { return _mm512_setzero_si512(); }
  __m512 Finish(__m512i, int32_t) const { return sum; }
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
  static __m512i Excess(const int32_t*) { return _mm512_setzero_si512(); }
  __m512 Finish(__m512i, int32_t) const { return sum; }
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
  static __m512i Excess(const int32_t*) { return _mm512_setzero_si512(); }
  __m512 Finish(__m512i, int32_t) const { return sum; }
};
#endif

// Sums##Name puts the sums of a group for kRows batch rows, from `local` on, into `out` [row][lane];
// DenseSums##Name those of a dense pattern's two groups into `out` [group][row][lane]; with kPieces
// of rows in pieces. They are not inlined: beside what writes outputs GCC would keep sums in memory. A
// macro, because a template cannot pass on what it needs of the CPU.
#define SRIGL_DOT_SUMS(Name, TARGET)                                                              \
  template <int kRows, Reads kReads>                                                              \
  TARGET __attribute__((noinline)) void Sums##Name(const DotView& view, const DotInputs& inputs,  \
                                                   int64_t local, const int64_t* groups,          \
                                                   float* out) {                                  \
    constexpr bool kPieces = kReads == Reads::kPieces;                                            \
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
        if constexpr (kReads == Reads::kFar) {                                                    \
          __builtin_prefetch(view.steps + step + kStepsAhead);                                    \
        }                                                                                         \
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
    const int32_t* const signs = inputs.signs + local;                                            \
    const __m512i excess = Name::Excess(view.sums + g * kGroupRows);                              \
    _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                                     \
      _mm512_storeu_ps(out + r * kGroupRows, sums[r].Finish(excess, signs[r]));                   \
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
    const int32_t* const signs = inputs.signs + local;                                            \
    for (int i = 0; i < kDenseGroups; ++i) {                                                      \
      const __m512i excess = Name::Excess(view.sums + groups[i] * kGroupRows);                    \
      _Pragma("GCC unroll 8") for (int r = 0; r < kRows; ++r) {                                   \
        _mm512_storeu_ps(out + (i * kRows + r) * kGroupRows,                                      \
                         sums[i][r].Finish(excess, signs[r]));                                    \
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

}  // namespace
}  // namespace avx512
}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_DOT_SUMS_INL_H_
