// Max-pooling of images in tiles: see max_pool.h. Included by the kernels after patch-inl.h, whose rules
// apply: the lines that are read are staged, so that each tap is a load.

#include "max_pool.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// Results [pixel_begin, pixel_end) of an image, whole tiles, for channels [channel_begin, channel_end).
void MaxPoolTiles(const Conv& pool, int64_t image, int64_t pixel_begin, int64_t pixel_end,
                  int64_t channel_begin, int64_t channel_end, float* scratch) {
  constexpr int64_t kLanes = ActivationTiles::kWidth, kVecs = kLanes / kWidth;
  const Patches& patches = pool.patches;
  const int64_t pixels = patches.y.out * patches.x.out, channels = channel_end - channel_begin;
  MatMul call = {};
  call.x = pool.x;
  call.batch = pool.images * pixels;
  call.patches = &patches;
  call.x_is_tiled = true;
  Stage stage = {};
  stage.fill = -__builtin_inff();
  if (!LayStage(patches, channels, image * pixels + pixel_begin, image * pixels + pixel_end,
                scratch + kScratchFloats + kStageFloats, &stage)) {
    __builtin_trap();  // TiledMaxPool leaves room
  }
  StageImages(call, stage, channel_begin, channels);
  int64_t taps[kMaxPoolTaps], num_taps = 0;
  for (int64_t y = 0; y < patches.y.kernel; ++y) {
    for (int64_t k = 0; k < patches.x.kernel; ++k) {
      taps[num_taps++] = TapOffset(patches, stage, y * patches.y.dilation, k * patches.x.dilation);
    }
  }
  for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += kLanes) {
    const Copies<kVecs, CopyRegister> copies(patches, stage, image * pixels + pixel,
                                             Min(kLanes, pixel_end - pixel));
    const auto place = ActivationTiles{pixels, pool.out_features}.At(image, pixel);
    float* to = pool.out + place.offset + channel_begin * place.stride;
    for (int64_t c = 0; c < channels; ++c, to += place.stride) {
      const float* const source = stage.data + c * stage.plane;
      float row[kLanes + kWidth];  // what one register writes too much, the next one replaces
      for (int i = 0; i < copies.count; ++i) {
        const float* const from = source + copies.from[i];
        Vec largest = Load(from + taps[0]);
        for (int64_t t = 1; t < num_taps; ++t) {
          const Vec other = Load(from + taps[t]);
          largest = other > largest ? other : largest;
          largest = other != other ? other : largest;
        }
        Store(row + copies.to[i], largest);
      }
      for (int64_t lane = 0; lane < place.stride; lane += kWidth) {
        Store(to + lane, Load(row + lane));
      }
    }
  }
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
