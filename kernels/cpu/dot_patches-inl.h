// How dot kernels read convolutions: a task converts the lines of images that its pixels read, with
// their padding, channels last as they come; a pixel's batch row is then some pieces of these lines,
// one for each line of the kernel, and is read where it lies if these are long enough, else put
// together. Included by dots-inl.h, whose rules apply.

#ifndef SRIGL_KERNELS_CPU_DOT_PATCHES_INL_H_
#define SRIGL_KERNELS_CPU_DOT_PATCHES_INL_H_

namespace srigl {
namespace avx512 {
namespace {

struct DotStage {
  const uint8_t* data;
  int64_t line;         // bytes of a line
  int64_t first;        // the first line's number; those of image i begin at i * image_lines
  int64_t image_lines;
  int64_t first_image;  // whose steps come first
  const float* scales;  // of each pixel of `data`, where that is what the call reads; else nullptr
  Steps steps[kMaxDotLines];  // of each image's part, so that none knows of another's numbers
};

inline void CopyBytes(const uint8_t* from, int64_t size, uint8_t* to) {
  int64_t i = 0;
  for (; i + kDotBytes <= size; i += kDotBytes) {
    _mm512_storeu_si512(to + i, _mm512_loadu_si512(from + i));
  }
  if (i == size) return;
  const __mmask64 rest = (uint64_t{1} << (size - i)) - 1;
  _mm512_mask_storeu_epi8(to + i, rest, _mm512_maskz_loadu_epi8(rest, from + i));
}

// Bytes of a line of the kernel, which lie together.
inline int64_t PieceBytes(const Patches& patches, int64_t element) {
  return patches.x.kernel * patches.channels * element;
}

// Whether kernels can read batch rows in pieces: a window must lie in at most two, a dense step in one.
inline bool ReadsPieces(const DotView& view, const Patches& patches, int64_t element) {
  if (patches.x.dilation != 1 && patches.x.kernel != 1) return false;
  const int64_t bytes = PieceBytes(patches, element);
  return view.dense == nullptr ? bytes >= kDotBytes : bytes > 0 && bytes % 4 == 0;
}

// Whether a convolution of integers picks whole pixels, so that these are its batch rows.
inline bool PicksPixels(const MatMul& call) {
  const Axis &y = call.patches->y, &x = call.patches->x;
  return call.x8.integers != nullptr && y.kernel == 1 && x.kernel == 1 && y.padding == 0 &&
         x.padding == 0 && PaddedSize(y) <= y.size && PaddedSize(x) <= x.size;
}

// Converts the lines that rows [row_begin, row_end) of a convolution read into `to`, where there is
// room for them: see `DotLines`.
inline DotStage StageForDots(const DotKernel& kernel, const MatMul& call, bool in_pieces,
                             int64_t element, int64_t row_begin, int64_t row_end, uint8_t* to) {
  const Patches& patches = *call.patches;
  const Axis &y = patches.y, &x = patches.x;
  const int64_t height = PaddedSize(y), width = PaddedSize(x), channels = patches.channels;
  const Pixel first = PixelAt(patches, row_begin), last = PixelAt(patches, row_end - 1);
  DotStage stage;
  stage.first_image = first.image;
  if (in_pieces && PicksPixels(call)) {
    stage.data = call.x8.integers;
    stage.line = x.size * channels;
    stage.first = 0;
    stage.image_lines = y.size;
    stage.scales = call.x8.scales;
    std::fill_n(stage.steps, last.image - first.image + 1, StepsOf(call.range));
    return stage;
  }
  stage.data = to;
  stage.scales = nullptr;
  stage.image_lines = height;
  stage.line = width * channels * element;
  stage.first = first.image * height + first.y * y.stride;
  const int64_t pixel_bytes = channels * element;
  // Columns of the image that some output reads, and where they come to lie.
  const int64_t begin = Min(x.padding > 0 ? x.padding : 0, width);
  const int64_t from = x.padding < 0 ? -x.padding : 0;
  const int64_t inside = Min(x.size - from, width - begin);
  const int64_t count = inside > 0 ? inside : 0;
  for (int64_t image = first.image; image <= last.image; ++image) {
    const int64_t line_begin = image == first.image ? first.y * y.stride : 0;
    const int64_t line_end = image == last.image ? last.y * y.stride + Reach(y) : height;
    const int64_t in_begin = std::max<int64_t>(line_begin - y.padding, 0);
    const int64_t in_end = std::max(Min(line_end - y.padding, y.size), in_begin);
    const int64_t pixel = image * y.size * x.size;
    const float* pixels = call.x == nullptr ? nullptr : call.x + pixel * channels;
    const bool is_quantized = call.x8.integers != nullptr;
    Steps& steps = stage.steps[image - first.image];
    steps = is_quantized
                ? StepsOf(call.range)
                : kernel.scale_of(pixels + in_begin * x.size * channels,
                                  (in_end - in_begin) * x.size * channels,
                                  call.image_ranges != nullptr ? call.image_ranges + 2 * image
                                                               : call.range);
    bool has_nan = false;
    const auto zero = static_cast<uint8_t>(ZeroOf(steps));
    for (int64_t line = line_begin; line < line_end; ++line, to += stage.line) {
      const int64_t in_y = line - y.padding;
      if (count == 0 || !Inside(in_y, y.size)) {
        memset(to, zero, stage.line);
        continue;
      }
      memset(to, zero, begin * pixel_bytes);
      // Whole registers are written; what lies behind is written after.
      if (is_quantized) {
        const int64_t at = pixel + in_y * x.size + from;
        CopyBytes(call.x8.integers + at * channels, count * channels, to + begin * pixel_bytes);
        const float* scales = call.x8.scales + at;
        for (int64_t i = 0; i < count; ++i) has_nan |= scales[i] != scales[i];
      } else {
        has_nan |= kernel.convert(pixels + (in_y * x.size + from) * channels, count * channels,
                                  steps, to + begin * pixel_bytes);
      }
      memset(to + (begin + count) * pixel_bytes, zero, (width - begin - count) * pixel_bytes);
    }
    if (has_nan) steps.scale = __builtin_nanf("");
  }
  _mm512_storeu_si512(to, _mm512_setzero_si512());  // finite numbers, for weights of 0
  return stage;
}

// Bytes from a pixel's patch to the next one's.
inline int64_t PixelStride(const Patches& patches, int64_t element) {
  return patches.x.stride * patches.channels * element;
}

// Where the patch of a pixel begins.
inline const uint8_t* PatchAt(const Patches& patches, const DotStage& stage, int64_t element,
                              const Pixel& pixel) {
  const int64_t line = pixel.image * stage.image_lines + pixel.y * patches.y.stride - stage.first;
  return stage.data + line * stage.line + pixel.x * PixelStride(patches, element);
}

// Puts together the patch of a pixel.
inline void CopyPatch(const Patches& patches, const DotStage& stage, int64_t element,
                      const Pixel& pixel, uint8_t* to) {
  const Axis &y = patches.y, &x = patches.x;
  const uint8_t* const patch = PatchAt(patches, stage, element, pixel);
  const int64_t pixel_bytes = patches.channels * element;
  // Taps that are neighbours lie together.
  const int64_t taps = x.dilation == 1 ? x.kernel : 1, bytes = taps * pixel_bytes;
  for (int64_t i = 0; i < y.kernel; ++i) {
    const uint8_t* from = patch + i * y.dilation * stage.line;
    for (int64_t k = 0; k < x.kernel; k += taps, to += bytes) {
      CopyBytes(from + k * x.dilation * pixel_bytes, bytes, to);
    }
  }
}

}  // namespace
}  // namespace avx512
}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_DOT_PATCHES_INL_H_
