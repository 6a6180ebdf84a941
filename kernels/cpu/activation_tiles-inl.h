// How the tile kernel reads activations that are in tiles already. Included by patch-inl.h, whose rules
// apply.

#include "activation_tiles.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// to[c, lane] = from[c, lane] for some columns, whose lanes are `stride` apart in `from`; `lanes` of them
// are there, zeros follow. For columns that InputsInPlace does not take.
template <int kVecs>
void CopyTile(const float* from, int64_t stride, int64_t lanes, int64_t num_columns, float* to) {
  constexpr int kLanes = kVecs * kWidth;
  for (int64_t c = 0; c < num_columns; ++c) {
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const bool inside = v == 0 || v * kWidth < lanes;
      Store(to + c * kLanes + v * kWidth, inside ? Load(from + c * stride + v * kWidth) : Vec{});
    }
  }
}

// Every second one of the numbers of two registers.
inline Vec EvenOf(Vec a, Vec b) {
#if SRIGL_WIDTH == 16
  return SRIGL_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
#elif SRIGL_WIDTH == 8
  return SRIGL_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14);
#else
  return SRIGL_SHUFFLE(a, b, 0, 2, 4, 6);
#endif
}

// to[i] = from[i * step] for i < count, and up to a register more; `end`: beyond what can be read.
inline void CopySteps(const float* from, const float* end, int64_t step, int64_t count, float* to) {
  const int64_t whole = (count + kWidth - 1) / kWidth * kWidth;
  if (step > 2 || end - from < whole * step) {
    for (int64_t i = 0; i < count; ++i) to[i] = from[i * step];
    return;
  }
  for (int64_t i = 0; i < count; i += kWidth) {
    Store(to + i, step == 1 ? Load(from + i) : EvenOf(Load(from + 2 * i), Load(from + 2 * i + kWidth)));
  }
}

// Pixels of a line, and where their channels go.
struct LinePart {
  int64_t image, pixel, step;  // the first pixel, and how far the next one is from it
  int64_t begin, end;          // where the pixels go: to[begin], ...
  int64_t length;              // of the line
  float fill;                  // its other pixels
};

// As StageLine, of an image in tiles; `x_end`: beyond the last of its floats.
inline void StageTiledLine(const float* x, const float* x_end, const ActivationTiles& tiles,
                           const LinePart& part, int64_t channel, int64_t channels, int64_t plane,
                           float* to) {
  const auto fill = [&](int64_t q, int64_t end) {
    for (; q < end; q += kWidth) {
      for (int64_t c = 0; c < channels; ++c) Store(to + c * plane + q, Vec{} + part.fill);
    }
  };
  fill(0, part.begin);
  int64_t count;
  for (int64_t q = part.begin; q < part.end; q += count) {
    const int64_t pixel = part.pixel + (q - part.begin) * part.step;
    const int64_t left = ActivationTiles::kWidth - pixel % ActivationTiles::kWidth;
    count = Min((left + part.step - 1) / part.step, part.end - q);
    const auto place = tiles.At(part.image, pixel);
    for (int64_t c = 0; c < channels; ++c) {
      CopySteps(x + place.offset + (channel + c) * place.stride, x_end, part.step, count,
                to + c * plane + q);
    }
  }
  fill(part.end, part.length);
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
