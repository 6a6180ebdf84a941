// Activations as the tile kernel reads and writes them, for convolutions that follow each other.
//
// Of an image, 64 pixels make a tile, which lies channel by channel: [channel][pixel]. The last tile may
// have fewer pixels; it is 16, 32 or 64 wide, and what lies beyond its pixels has no meaning, but is
// written. An image's channels so take `ImageFloats`.

#ifndef SRIGL_KERNELS_CPU_ACTIVATION_TILES_H_
#define SRIGL_KERNELS_CPU_ACTIVATION_TILES_H_

#include <stdint.h>

namespace srigl {

struct ActivationTiles {
  static constexpr int64_t kWidth = 64;

  int64_t pixels;    // of an image
  int64_t channels;

  // Pixels that the last tile, of so many, is wide.
  static constexpr int64_t WidthOf(int64_t pixels) {
    return pixels > 32 ? 64 : pixels > 16 ? 32 : pixels > 0 ? 16 : 0;
  }

  int64_t ImageFloats() const {
    return (pixels / kWidth * kWidth + WidthOf(pixels % kWidth)) * channels;
  }

  // Where a pixel of an image has its first channel, and how far its channels are apart.
  struct Place {
    int64_t offset, stride;
  };
  Place At(int64_t image, int64_t pixel) const {
    const int64_t first = pixel / kWidth * kWidth;
    const int64_t left = pixels - first;
    return {image * ImageFloats() + first * channels + (pixel - first),
            left < kWidth ? WidthOf(left) : kWidth};
  }
};

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_ACTIVATION_TILES_H_
