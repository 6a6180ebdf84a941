// Depthwise convolutions: lanes are neighbouring channels. Some pixels of a line are summed together,
// so that a weight is loaded once for all of them. Included after patch-inl.h, whose rules apply.

#include "conv.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// The taps of some pixels that lie within the image.
struct TapRange {
  int64_t y_begin, y_end, x_begin, x_end;
};

// Outputs [pixel, pixel + kPixels) of one line, which all have these taps, for `count` channels from
// `channel` on, a register unless not kWhole. `image`: the image's numbers.
template <int kPixels, bool kWhole, Activation kActivation>
inline void SumTaps(const Conv& conv, const float* kernel, const float* image, int64_t line,
                    int64_t pixel, const TapRange& taps, int64_t channel, int64_t count) {
  const Axis &y = conv.patches.y, &x = conv.patches.x;
  const int64_t channels = conv.patches.channels, step = x.stride * channels;
  const int64_t first_x = pixel * x.stride - x.padding;
  const auto load = [count](const float* p) { return kWhole ? Load(p) : LoadSome(p, count); };
  Vec sums[kPixels];
#pragma GCC unroll 8
  for (int i = 0; i < kPixels; ++i) sums[i] = Vec{};
  for (int64_t ky = taps.y_begin; ky < taps.y_end; ++ky) {
    const int64_t in_y = line % y.out * y.stride - y.padding + ky * y.dilation;
    const int64_t in_x = first_x + taps.x_begin * x.dilation;
    const float* from = image + (in_y * x.size + in_x) * channels + channel;
    const float* weights = kernel + (ky * x.kernel + taps.x_begin) * channels + channel;
    for (int64_t kx = taps.x_begin; kx < taps.x_end; ++kx) {
      const Vec weight = load(weights);
#pragma GCC unroll 8
      for (int i = 0; i < kPixels; ++i) sums[i] += load(from + i * step) * weight;
      from += x.dilation * channels;
      weights += channels;
    }
  }
  const int64_t at = (line * x.out + pixel) * channels + channel;
  const Vec bias = conv.bias == nullptr ? Vec{} - 0.0f : load(conv.bias + channel);
  const float* const residual = conv.residual;
  float* const out = conv.out + at;
#pragma GCC unroll 8
  for (int i = 0; i < kPixels; ++i) {
    Vec sum = sums[i] + bias;  // -0 stays
    if (residual != nullptr) sum += load(residual + at + i * channels);
    sum = Activate(sum, kActivation);
    if (kWhole) {
      Store(out + i * channels, sum);
    } else {
      memcpy(out + i * channels, &sum, count * sizeof(float));
    }
  }
}

// Lines [line_begin, line_end) of the outputs, all images' lines being numbered one after the other,
// for channels [channel_begin, channel_end): a register of them at least, unless not kWhole.
template <bool kWhole, Activation kActivation>
void LinesOf(const Conv& conv, const float* kernel, int64_t line_begin, int64_t line_end,
             int64_t channel_begin, int64_t channel_end) {
  const Axis &y = conv.patches.y, &x = conv.patches.x;
  // Outputs all of whose taps lie within the line.
  const int64_t inner = CeilDivClamped(x.padding, x.stride, 0, x.out);
  const int64_t inner_end =
      CeilDivClamped(x.size + x.padding - Reach(x) + 1, x.stride, inner, x.out);
  for (int64_t line = line_begin; line < line_end; ++line) {
    const float* image = conv.x + line / y.out * y.size * x.size * conv.patches.channels;
    const int64_t in_y = line % y.out * y.stride - y.padding;
    TapRange taps = {CeilDivClamped(-in_y, y.dilation, 0, y.kernel), 0, 0, x.kernel};
    taps.y_end = CeilDivClamped(y.size - in_y, y.dilation, taps.y_begin, y.kernel);
    for (int64_t c = channel_begin; c < channel_end; c += kWidth) {
      // The last register overlaps the one before it.
      const int64_t channel = kWhole ? Min(c, channel_end - kWidth) : c;
      const int64_t count = channel_end - channel;
      const auto outer = [&](int64_t pixel) {
        const int64_t in_x = pixel * x.stride - x.padding;
        TapRange some = taps;
        some.x_begin = CeilDivClamped(-in_x, x.dilation, 0, x.kernel);
        some.x_end = CeilDivClamped(x.size - in_x, x.dilation, some.x_begin, x.kernel);
        SumTaps<1, kWhole, kActivation>(conv, kernel, image, line, pixel, some, channel, count);
      };
      const auto inside = [&](auto sum, int64_t pixel) {
        sum(conv, kernel, image, line, pixel, taps, channel, count);
      };
      int64_t pixel = 0;
      for (; pixel < inner; ++pixel) outer(pixel);
      for (; pixel + 8 <= inner_end; pixel += 8) inside(SumTaps<8, kWhole, kActivation>, pixel);
      for (; pixel + 3 <= inner_end; pixel += 3) inside(SumTaps<3, kWhole, kActivation>, pixel);
      for (; pixel < inner_end; ++pixel) inside(SumTaps<1, kWhole, kActivation>, pixel);
      for (; pixel < x.out; ++pixel) outer(pixel);
    }
  }
}

void DepthwiseLines(const Conv& conv, const float* kernel, int64_t line_begin, int64_t line_end,
                    int64_t channel_begin, int64_t channel_end) {
  const bool is_whole = channel_end - channel_begin >= kWidth;
  const auto run = [&](auto lines) {
    lines(conv, kernel, line_begin, line_end, channel_begin, channel_end);
  };
  switch (conv.activation) {
#define SRIGL_LINES(name)                                                                         \
  case Activation::name:                                                                          \
    return is_whole ? run(LinesOf<true, Activation::name>) : run(LinesOf<false, Activation::name>);
    SRIGL_LINES(kNone)
    SRIGL_LINES(kRelu)
    SRIGL_LINES(kGelu)
    SRIGL_LINES(kGeluExact)
    SRIGL_LINES(kSilu)
    SRIGL_LINES(kRelu6)
    SRIGL_LINES(kHardSilu)
#undef SRIGL_LINES
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
