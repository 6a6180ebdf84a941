// How a convolution packs its tile: lanes are output pixels, and a pixel's inputs are the patch of
// the image below the kernel. Included by tile-inl.h, whose rules apply; nothing else of the
// kernels knows of convolutions.
//
// Two ways, with the same result. `PackPatches` transposes pixels and channels anew for every tap
// of the kernel. Where taps overlap, `StageImages` transposes the lines of the images that a task
// reads once, channel by channel; then a tap of sixteen neighbouring pixels is one load, also with
// strides (pixels of equal remainder lie together), and `PackStaged` only copies.

#include "activation_tiles-inl.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

struct Pixel {
  int64_t image, y, x;  // of the outputs
};

inline Pixel PixelAt(const Patches& patches, int64_t row) {
  const int64_t line = row / patches.x.out;
  return {line / patches.y.out, line % patches.y.out, row % patches.x.out};
}

// The first pixel of the next line.
inline Pixel NextLine(const Patches& patches, Pixel pixel) {
  if (++pixel.y < patches.y.out) return {pixel.image, pixel.y, 0};
  return {pixel.image + 1, 0, 0};
}

inline int64_t Reach(const Axis& axis) { return (axis.kernel - 1) * axis.dilation + 1; }

// Size with the padding that some output reads.
inline int64_t PaddedSize(const Axis& axis) { return (axis.out - 1) * axis.stride + Reach(axis); }

inline bool Inside(int64_t position, int64_t size) { return position >= 0 && position < size; }

inline Vec LoadUpTo(const float* from, int64_t count) {
  if (count >= kWidth) return Load(from);
  float buffer[kWidth] = {};
  memcpy(buffer, from, count * sizeof(float));
  return Load(buffer);
}

// Columns of one tap: `count` channels from `channel`.
struct Tap {
  int64_t y, x;  // offset from the patch's first pixel
  int64_t channel, count;
};

inline Tap TapAt(const Patches& patches, int64_t column, int64_t num_columns) {
  const int64_t tap = column / patches.channels, channel = column % patches.channels;
  return {tap / patches.x.kernel * patches.y.dilation, tap % patches.x.kernel * patches.x.dilation,
          channel, Min(patches.channels - channel, num_columns)};
}

// tile[c, lane] = column column_begin + c of the patch of pixel row_begin + lane.
template <int kVecs>
void PackPatches(const MatMul& call, int64_t row_begin, int64_t num_rows, int64_t column_begin,
                 int64_t num_columns, float* tile) {
  constexpr int kLanes = kVecs * kWidth;
  const Patches& patches = *call.patches;
  int64_t y[kLanes], x[kLanes], start[kLanes];  // of every patch's first pixel, maybe outside
  Pixel pixel = PixelAt(patches, row_begin);
  for (int64_t lane = 0; lane < num_rows; ++lane) {
    y[lane] = pixel.y * patches.y.stride - patches.y.padding;
    x[lane] = pixel.x * patches.x.stride - patches.x.padding;
    start[lane] = (pixel.image * patches.y.size + y[lane]) * patches.x.size + x[lane];
    if (++pixel.x == patches.x.out) pixel = NextLine(patches, pixel);
  }
  Tap tap;
  for (int64_t column = 0; column < num_columns; column += tap.count) {
    tap = TapAt(patches, column_begin + column, num_columns - column);
    const int64_t shift = tap.y * patches.x.size + tap.x;
    for (int lane = 0; lane < kLanes; lane += kWidth) {
      const float* from[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        const int l = lane + i;
        const bool inside = l < num_rows && Inside(y[l] + tap.y, patches.y.size) &&
                            Inside(x[l] + tap.x, patches.x.size);
        from[i] = inside ? call.x + (start[l] + shift) * patches.channels + tap.channel : nullptr;
      }
      for (int64_t c = 0; c < tap.count; c += kWidth) {
        const int64_t left = tap.count - c;
        Vec rows[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) {
          rows[i] = from[i] == nullptr ? Vec{} : LoadUpTo(from[i] + c, left);
        }
        Transpose(rows);
        float* to = tile + (column + c) * kLanes + lane;
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) {
          if (i < left) Store(to + i * kLanes, rows[i]);
        }
      }
    }
  }
}

// As PackPatches, of images in tiles, channel by channel.
template <int kVecs>
void PackTiledPatches(const MatMul& call, int64_t row_begin, int64_t num_rows,
                      int64_t column_begin, int64_t num_columns, float* tile) {
  constexpr int kLanes = kVecs * kWidth;
  const Patches& patches = *call.patches;
  const ActivationTiles tiles = {patches.y.size * patches.x.size, patches.channels};
  const int64_t images = call.batch / (patches.y.out * patches.x.out);
  const float* const end = call.x + images * tiles.ImageFloats();
  Tap tap;
  for (int64_t column = 0; column < num_columns; column += tap.count) {
    tap = TapAt(patches, column_begin + column, num_columns - column);
    // Lanes whose pixels follow each other in a tile; or that are outside, where `from` is nullptr.
    struct {
      int64_t lane, count;
      const float* from;
      int64_t stride, last;  // of channels; the last pixel
    } runs[kLanes];
    int64_t num_runs = 0;
    Pixel pixel = PixelAt(patches, row_begin);
    for (int64_t lane = 0; lane < num_rows; ++lane) {
      const int64_t y = pixel.y * patches.y.stride - patches.y.padding + tap.y;
      const int64_t x = pixel.x * patches.x.stride - patches.x.padding + tap.x;
      const bool inside = Inside(y, patches.y.size) && Inside(x, patches.x.size);
      const int64_t number = inside ? y * patches.x.size + x : -1;
      auto* const run = runs + num_runs - 1;
      const bool follows =
          num_runs > 0 && (!inside ? run->from == nullptr
                                   : run->from != nullptr &&
                                         number == run->last + patches.x.stride &&
                                         number / ActivationTiles::kWidth ==
                                             run->last / ActivationTiles::kWidth);
      if (follows) {
        ++run->count;
        run->last = number;
      } else {
        const auto place = tiles.At(pixel.image, inside ? number : 0);
        const float* const from = call.x + place.offset + tap.channel * place.stride;
        runs[num_runs++] = {lane, 1, inside ? from : nullptr, place.stride, number};
      }
      if (++pixel.x == patches.x.out) pixel = NextLine(patches, pixel);
    }
    for (int64_t c = 0; c < tap.count; ++c) {
      float* const to = tile + (column + c) * kLanes;
      for (int64_t i = 0; i < num_runs; ++i) {
        const float* const from = runs[i].from;
        if (from == nullptr) {
          for (int64_t q = 0; q < runs[i].count; q += kWidth) Store(to + runs[i].lane + q, Vec{});
        } else {
          CopySteps(from + c * runs[i].stride, end, patches.x.stride, runs[i].count,
                    to + runs[i].lane);
        }
      }
      for (int64_t lane = num_rows; lane < kLanes; ++lane) to[lane] = 0;
    }
  }
}

// Lines of images, padded, channel by channel. Pixel x of a line lies at
// x % stride * phase + x / stride.
struct Stage {
  float* data;
  int64_t plane;  // floats of a channel
  int64_t line;   // floats of a line
  int64_t phase;  // floats of the pixels of equal x % stride
  int64_t lines;
  int64_t first;  // the first line's number; those of image i begin at i * PaddedSize
  float fill = 0;  // what lies outside of an image in tiles
};

// How far a tap lies from the patch's first pixel.
inline int64_t TapOffset(const Patches& patches, const Stage& stage, int64_t y, int64_t x) {
  return y * stage.line + x % patches.x.stride * stage.phase + x / patches.x.stride;
}

// A stage before `end` for some channels of the lines that these rows read; false where it has no room.
inline bool LayStage(const Patches& patches, int64_t channels, int64_t row_begin, int64_t row_end,
                     float* end, Stage* stage) {
  const Axis &y = patches.y, &x = patches.x;
  const Pixel first = PixelAt(patches, row_begin), last = PixelAt(patches, row_end - 1);
  stage->first = first.image * PaddedSize(y) + first.y * y.stride;
  stage->lines = last.image * PaddedSize(y) + last.y * y.stride + Reach(y) - stage->first;
  stage->phase = (PaddedSize(x) + x.stride - 1) / x.stride;
  stage->line = stage->phase * x.stride;
  const double size = (static_cast<double>(stage->lines) * static_cast<double>(stage->line) +
                       kWidth) * static_cast<double>(channels);
  if (size > kStageFloats) return false;
  // Whole registers are written and read, beyond the last line too.
  stage->plane = stage->lines * stage->line + kWidth;
  stage->data = end - stage->plane * channels;
  return true;
}

// Whether the patches of these rows are staged, and fit before `end`.
inline bool PlanStage(const Patches& patches, int64_t row_begin, int64_t row_end, float* end,
                      Stage* stage) {
  return patches.IsStaged() &&
         LayStage(patches, patches.channels, row_begin, row_end, end, stage);
}

typedef float Four __attribute__((vector_size(16)));
typedef float FourU __attribute__((vector_size(16), aligned(4), may_alias));
typedef float EightU __attribute__((vector_size(32), aligned(4), may_alias));

#if defined(__clang__) || __GNUC__ >= 12
#define SRIGL_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t FourInts __attribute__((vector_size(16)));
#define SRIGL_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, FourInts{__VA_ARGS__})
#endif
// to[c, q] = from[q, c] for c < 4, q < 4.
inline void TransposeFour(const float* from, int64_t step, int64_t plane, float* to) {
  Four rows[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) rows[i] = *reinterpret_cast<const FourU*>(from + i * step);
  const Four a = SRIGL_SHUFFLE(rows[0], rows[2], 0, 4, 1, 5);
  const Four b = SRIGL_SHUFFLE(rows[0], rows[2], 2, 6, 3, 7);
  const Four c = SRIGL_SHUFFLE(rows[1], rows[3], 0, 4, 1, 5);
  const Four d = SRIGL_SHUFFLE(rows[1], rows[3], 2, 6, 3, 7);
  *reinterpret_cast<FourU*>(to) = SRIGL_SHUFFLE(a, c, 0, 4, 1, 5);
  *reinterpret_cast<FourU*>(to + plane) = SRIGL_SHUFFLE(a, c, 2, 6, 3, 7);
  *reinterpret_cast<FourU*>(to + 2 * plane) = SRIGL_SHUFFLE(b, d, 0, 4, 1, 5);
  *reinterpret_cast<FourU*>(to + 3 * plane) = SRIGL_SHUFFLE(b, d, 2, 6, 3, 7);
}

// Of so many channels, all pixels of a line are staged before other channels: enough for whole
// lines of memory to be read one after the other, few enough that what is written stays in cache.
constexpr int64_t kStageChannels = 64;

// to[c, q] = from[q - begin, c] for q in [begin, end), 0 for other q in [0, length); from's rows
// are `step` floats apart. Up to kWidth - 1 floats follow that have no meaning.
inline void StageLine(const float* from, int64_t step, int64_t begin, int64_t end, int64_t length,
                      int64_t channels, int64_t plane, float* to) {
  // Short lines would leave most of a register empty.
  const bool by_four = end - begin < kWidth && (end - begin) % 4 == 0 && channels % 4 == 0;
  for (int64_t block = 0; block < channels; block += kStageChannels) {
    const int64_t block_end = Min(block + kStageChannels, channels);
    const auto zeros = [=](int64_t q) {
      for (int64_t c = block; c < block_end; ++c) Store(to + c * plane + q, Vec{});
    };
    int64_t q = 0;
    for (; q < begin; q += kWidth) zeros(q);
    q = begin;
    for (; channels < 4 && q < end; ++q) {  // too few for a register
      for (int64_t c = 0; c < channels; ++c) to[c * plane + q] = from[(q - begin) * step + c];
    }
    for (; by_four && q < end; q += 4) {
      for (int64_t c = block; c < block_end; c += 4) {
        TransposeFour(from + (q - begin) * step + c, step, plane, to + c * plane + q);
      }
    }
    for (; q < end; q += kWidth) {
      for (int64_t c = block; c < block_end; c += kWidth) {
        const int64_t left = block_end - c;
        Vec rows[kWidth];
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) {
          rows[i] = q + i < end ? LoadUpTo(from + (q - begin + i) * step + c, left) : Vec{};
        }
        Transpose(rows);
#pragma GCC unroll 16
        for (int j = 0; j < kWidth; ++j) {
          if (j < left) Store(to + (c + j) * plane + q, rows[j]);
        }
      }
    }
    for (; q < length; q += kWidth) zeros(q);
  }
}

inline int64_t CeilDivClamped(int64_t a, int64_t b, int64_t low, int64_t high) {
  if (a <= 0) return low;
  const int64_t result = (a + b - 1) / b;
  return result < low ? low : Min(result, high);
}

// Fills the stage with `channels` channels from `channel` on.
inline void StageImages(const MatMul& call, const Stage& stage, int64_t channel, int64_t channels) {
  const Patches& patches = *call.patches;
  const Axis &y = patches.y, &x = patches.x;
  const int64_t height = PaddedSize(y), images = call.batch / (y.out * x.out);
  for (int64_t line = 0; line < stage.lines; ++line) {
    const int64_t image = (stage.first + line) / height;
    const int64_t in_y = (stage.first + line) % height - y.padding;
    for (int64_t phase = 0; phase < x.stride; ++phase) {
      float* to = stage.data + line * stage.line + phase * stage.phase;
      // The pixels q of this phase are those of the image from x.padding on: q * stride + phase.
      const int64_t begin = CeilDivClamped(x.padding - phase, x.stride, 0, stage.phase);
      const int64_t end =
          Inside(in_y, y.size)
              ? CeilDivClamped(x.size + x.padding - phase, x.stride, begin, stage.phase)
              : begin;
      const int64_t pixel =
          (image * y.size + in_y) * x.size + begin * x.stride + phase - x.padding;
      if (call.x_is_tiled) {
        const ActivationTiles tiles = {y.size * x.size, patches.channels};
        const LinePart part = {image, pixel - image * tiles.pixels, x.stride, begin, end,
                               stage.phase, stage.fill};
        StageTiledLine(call.x, call.x + images * tiles.ImageFloats(), tiles, part, channel,
                       channels, stage.plane, to);
        continue;
      }
      const float* from = begin < end ? call.x + pixel * patches.channels + channel : nullptr;
      StageLine(from, x.stride * patches.channels, begin, end, stage.phase, channels, stage.plane,
                to);
    }
  }
}

// What a copy moves: structs, as a template's argument loses a type's alignment.
struct CopyFour {
  FourU floats;
};
struct CopyEight {
  EightU floats;
};
struct CopyRegister {
  VecU floats;
};

// How a tile's lanes are copied from staged images: what one copy writes too much, the next one
// replaces.
template <int kVecs, typename Copy>
struct Copies {
  static constexpr int kLanes = kVecs * kWidth;
  static constexpr int kCopy = sizeof(Copy) / sizeof(float);
  static constexpr int kWhole = kLanes / kCopy;
  int64_t to[kLanes], from[kLanes];
  int count = 0;
  bool whole;  // whether copy i writes lanes from i * kCopy on

  Copies(const Patches& patches, const Stage& stage, int64_t row_begin, int64_t num_rows) {
    Pixel pixel = PixelAt(patches, row_begin);
    int64_t pixels;
    for (int64_t lane = 0; lane < num_rows; lane += pixels) {
      pixels = Min(patches.x.out - pixel.x, num_rows - lane);
      const int64_t line =
          pixel.image * PaddedSize(patches.y) + pixel.y * patches.y.stride - stage.first;
      for (int64_t i = 0; i < pixels; i += kCopy) {
        to[count] = lane + i;
        from[count++] = line * stage.line + pixel.x + i;
      }
      pixel = NextLine(patches, pixel);
    }
    for (int64_t lane = num_rows; lane < kLanes; lane += kCopy) {
      to[count] = lane;
      from[count++] = 0;  // any place in the plane
    }
    whole = count == kWhole;
    for (int i = 0; i < count; ++i) whole = whole && to[i] == i * kCopy;
  }

  void Run(const float* source, float* row) const {
    const auto copy = [](float* to, const float* from) {
      reinterpret_cast<Copy*>(to)->floats = reinterpret_cast<const Copy*>(from)->floats;
    };
    if (whole) {
#pragma GCC unroll 16
      for (int i = 0; i < kWhole; ++i) copy(row + i * kCopy, source + from[i]);
    } else {
      for (int i = 0; i < count; ++i) copy(row + to[i], source + from[i]);
    }
  }
};

// As `PackPatches`, from staged images.
template <int kVecs, typename Copy>
void PackStagedBy(const Patches& patches, const Stage& stage, int64_t row_begin, int64_t num_rows,
                  int64_t column_begin, int64_t num_columns, float* tile) {
  const Copies<kVecs, Copy> copies(patches, stage, row_begin, num_rows);
  Tap tap;
  for (int64_t column = 0; column < num_columns; column += tap.count) {
    tap = TapAt(patches, column_begin + column, num_columns - column);
    const float* source =
        stage.data + tap.channel * stage.plane + TapOffset(patches, stage, tap.y, tap.x);
    float* row = tile + column * kVecs * kWidth;
    for (int64_t c = 0; c < tap.count; ++c) {
      copies.Run(source, row);
      source += stage.plane;
      row += kVecs * kWidth;
    }
  }
}

// All taps of some channels of the stage, tap by tap in each channel.
template <int kVecs, typename Copy>
void PackChannelsBy(const Patches& patches, const Stage& stage, int64_t row_begin, int64_t num_rows,
                    int64_t channel, int64_t channels, float* tile) {
  const Copies<kVecs, Copy> copies(patches, stage, row_begin, num_rows);
  float* row = tile;
  for (int64_t c = channel; c < channel + channels; ++c) {
    for (int64_t y = 0; y < patches.y.kernel; ++y) {
      for (int64_t k = 0; k < patches.x.kernel; ++k, row += kVecs * kWidth) {
        const int64_t tap =
            TapOffset(patches, stage, y * patches.y.dilation, k * patches.x.dilation);
        copies.Run(stage.data + c * stage.plane + tap, row);
      }
    }
  }
}

template <int kVecs>
void PackStaged(const Patches& patches, const Stage& stage, int64_t row_begin, int64_t num_rows,
                int64_t column_begin, int64_t num_columns, float* tile) {
  const auto pack = kWidth > 4 && patches.x.out <= 4   ? PackStagedBy<kVecs, CopyFour>
                    : kWidth > 8 && patches.x.out <= 8 ? PackStagedBy<kVecs, CopyEight>
                                                       : PackStagedBy<kVecs, CopyRegister>;
  pack(patches, stage, row_begin, num_rows, column_begin, num_columns, tile);
}

template <int kVecs>
void PackChannels(const Patches& patches, const Stage& stage, int64_t row_begin, int64_t num_rows,
                  int64_t channel, int64_t channels, float* tile) {
  const auto pack = kWidth > 4 && patches.x.out <= 4   ? PackChannelsBy<kVecs, CopyFour>
                    : kWidth > 8 && patches.x.out <= 8 ? PackChannelsBy<kVecs, CopyEight>
                                                       : PackChannelsBy<kVecs, CopyRegister>;
  pack(patches, stage, row_begin, num_rows, channel, channels, tile);
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
