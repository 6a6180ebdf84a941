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
//   float32   dense patterns only, of inputs that are not in tiles: the tile kernel loads more

#ifndef SRIGL_KERNELS_CPU_DOTS_INL_H_
#define SRIGL_KERNELS_CPU_DOTS_INL_H_

#include "dot_sums-inl.h"
#include "dot_numbers-inl.h"

namespace srigl {
namespace avx512 {
namespace {

using DotSum = void (*)(const DotView&, const DotInputs&, int64_t local, const int64_t* groups,
                        float* out);

struct DotKernel {
  Steps (*scale_of)(const float* x, int64_t size, const float* range);
  bool (*convert)(const float* x, int64_t size, const Steps& steps, uint8_t* to);
  // Of 1, 2, 4 and 8 rows, by `Reads`; those of a dense pattern whole and in pieces.
  DotSum sums[kNumReads][4], dense_sums[2][4];
};

}  // namespace
}  // namespace avx512
}  // namespace srigl

#include "dot_patches-inl.h"

namespace srigl {
namespace avx512 {
namespace {

// Groups [group_begin, group_end) for batch row `row`, row `local` of `inputs`. The outputs of some
// groups are written after their sums: activations of several overlap, one waits for its own steps.
inline void RunRow(const DotKernel& kernel, const DotView& view, const MatMul& call,
                   const DotInputs& inputs, float scale, int64_t row, int64_t local,
                   int64_t group_begin, int64_t group_end) {
  constexpr int64_t kAtOnce = 4;
  const DotSum sum = kernel.sums[static_cast<int>(inputs.reads)][0];
  for (int64_t g = group_begin; g < group_end; g += kAtOnce) {
    const int64_t end = std::min(g + kAtOnce, group_end);
    float sums[kAtOnce * kGroupRows];
    for (int64_t i = g; i < end; ++i) sum(view, inputs, local, &i, sums + (i - g) * kGroupRows);
    for (int64_t i = g; i < end; ++i) {
      WriteGroupRows(view, call, i, row, 1, sums + (i - g) * kGroupRows,
                     view.scales + i * kGroupRows, &scale);
    }
  }
}

// Groups [group_begin, group_end) for rows [first, last) of `inputs`, whose row 0 is batch row
// `begin`.
inline void RunGroups(const DotKernel& kernel, const DotView& view, const MatMul& call,
                      const DotInputs& inputs, const float* scales, int64_t begin, int64_t first,
                      int64_t last, int64_t group_begin, int64_t group_end) {
  if (last - first == 1 && view.dense == nullptr) {
    return RunRow(kernel, view, call, inputs, scales[first], begin + first, first, group_begin,
                  group_end);
  }
  const int at_once = view.dense == nullptr ? 1 : kDenseGroups;
  for (int64_t g = group_begin; g < group_end; g += at_once) {
    const int64_t groups[kDenseGroups] = {g, std::min(g + 1, group_end - 1)};
    for (int64_t i = first; i < last;) {
      const int64_t left = last - i;
      const int level = left >= 8 ? 3 : left >= 4 ? 2 : left >= 2 ? 1 : 0;
      const int64_t rows = int64_t{1} << level;
      float sums[kDenseGroups * kDotRows * kGroupRows];
      if (call.residual != nullptr) {  // no stream of reads that the CPU would foresee
        const float* at =
            call.residual + (begin + i) * call.out_features + view.groups[g].output_begin;
        for (int64_t r = 0; r < rows; ++r, at += call.out_features) {
          for (int j = 0; j < at_once; ++j) __builtin_prefetch(at + j * kGroupRows);
        }
      }
      const DotSum sum = view.dense == nullptr
                             ? kernel.sums[static_cast<int>(inputs.reads)][level]
                             : kernel.dense_sums[inputs.reads == Reads::kPieces][level];
      sum(view, inputs, i, groups, sums);
      for (int64_t j = 0; j < at_once && g + j < group_end; ++j) {
        WriteGroupRows(view, call, g + j, begin + i, rows, sums + j * rows * kGroupRows,
                       view.scales + (g + j) * kGroupRows, scales + i);
      }
      i += rows;
    }
  }
}

// Scales of converted rows, and their signs: see `DotInputs`.
struct DotScales {
  float scales[kDotTaskRows];
  int32_t signs[kDotTaskRows];
};

inline void RunDots(const DotKernel& kernel, const DotView& view, const MatMul& call,
                    int64_t row_begin, int64_t row_end, int64_t group_begin, int64_t group_end,
                    float* scratch, bool has_rows) {
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
  DotScales own;
  // Of whole rows they stay in the scratch memory, beside what the rows became.
  DotScales& steps_of = call.patches != nullptr
                            ? own
                            : *reinterpret_cast<DotScales*>(scratch + kScratchFloats);
  float* const scales = steps_of.scales;
  int32_t* const signs = steps_of.signs;
  inputs.signs = signs;
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
      inputs.reads = Reads::kPieces;
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
    const bool is_there = has_rows && call.patches == nullptr && row_end - row_begin <= most;
    for (int64_t i = is_there ? count : 0; i < count; ++i) {
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
      signs[i] = ZeroOf(steps) == 0 ? 0 : -1;
    }
    // Where all rows stay in the first-level cache, each group is read once for all of them; else
    // as many groups as stay in the second-level cache are read for each eight rows: those of a far
    // pattern come there for the first eight, which fetch them ahead.
    const bool small = count * inputs.stride <= kDotInputBytes;
    const bool is_far = !small && IsFar(view);
    const int64_t rows_at_once = small ? count : kDotRows;
    for (int64_t g = group_begin; g < group_end;) {
      const int64_t first_step = view.groups[g].packet_begin;
      int64_t end = g + 1;
      while (end < group_end &&
             (small || view.groups[end].packet_begin - first_step < kDotChunkSteps)) {
        ++end;
      }
      for (int64_t i = 0; i < count; i += rows_at_once) {
        if (!in_pieces) inputs.reads = is_far && i == 0 ? Reads::kFar : Reads::kWhole;
        RunGroups(kernel, view, call, inputs, scales, begin, i, std::min(i + rows_at_once, count),
                  g, end);
      }
      g = end;
    }
  }
}

#define SRIGL_SUMS(Name, reads)                                                                   \
  {Sums##Name<1, Reads::reads>, Sums##Name<2, Reads::reads>, Sums##Name<4, Reads::reads>,         \
   Sums##Name<8, Reads::reads>}
#define SRIGL_DOTS(Name, scale_of)                                                                \
  void Dots##Name(const DotView& view, const MatMul& call, int64_t row_begin, int64_t row_end,    \
                  int64_t group_begin, int64_t group_end, float* scratch, bool has_rows) {        \
    constexpr DotKernel kKernel = {                                                               \
        scale_of,                                                                                 \
        Convert##Name,                                                                            \
        {SRIGL_SUMS(Name, kWhole), SRIGL_SUMS(Name, kPieces), SRIGL_SUMS(Name, kFar)},            \
        {{DenseSums##Name<1, false>, DenseSums##Name<2, false>, DenseSums##Name<4, false>,        \
          DenseSums##Name<8, false>},                                                             \
         {DenseSums##Name<1, true>, DenseSums##Name<2, true>, DenseSums##Name<4, true>,           \
          DenseSums##Name<8, true>}}};                                                            \
    RunDots(kKernel, view, call, row_begin, row_end, group_begin, group_end, scratch, has_rows);  \
  }

SRIGL_DOTS(Int8, ScaleOfInt8)
SRIGL_DOTS(BFloat16, NoScale)
SRIGL_DOTS(Float32, NoScale)
#ifdef SRIGL_HAS_FP16
SRIGL_DOTS(Float16, ScaleOfFloat16)
#endif
#undef SRIGL_DOTS
#undef SRIGL_SUMS

}  // namespace
}  // namespace avx512
}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_DOTS_INL_H_
