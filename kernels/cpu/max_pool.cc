#include "max_pool.h"

#include <algorithm>

#include "activation_tiles.h"
#include "isa.h"
#include "matmul.h"
#include "scratch.h"

namespace srigl {
namespace {

struct PoolPlan {
  Conv pool;
  int64_t pixels, pixels_per_task, ranges;  // of an image's results
  int64_t parts, channels_per_part;
};

void RunPoolTask(const void* context, int64_t task) {
  const PoolPlan& plan = *static_cast<const PoolPlan*>(context);
  const int64_t channel = task % plan.parts * plan.channels_per_part;
  const int64_t image = task / plan.parts / plan.ranges;
  const int64_t pixel = task / plan.parts % plan.ranges * plan.pixels_per_task;
  CurrentKernels().max_pool(plan.pool, image, pixel,
                            std::min(pixel + plan.pixels_per_task, plan.pixels), channel,
                            std::min(channel + plan.channels_per_part, plan.pool.patches.channels),
                            Scratch());
}

// Floats of a channel that the staged lines of so many results take, at most: see LayStage.
double StageOf(const Patches& patches, int64_t pixels) {
  constexpr double kRegister = 16;
  const auto reach = [](const Axis& axis) {
    return static_cast<double>(axis.kernel - 1) * static_cast<double>(axis.dilation) + 1;
  };
  const Axis &y = patches.y, &x = patches.x;
  const double lines = std::min(static_cast<double>((pixels - 1) / x.out + 1),
                                static_cast<double>(y.out - 1));
  const double height = lines * static_cast<double>(y.stride) + reach(y);
  const double width = static_cast<double>(x.out) * static_cast<double>(x.stride) + reach(x);
  return height * (width + static_cast<double>(x.stride)) + kRegister;
}

}  // namespace

const char* TiledMaxPool(const Conv& pool, Executor* executor) {
  const Patches& patches = pool.patches;
  const int64_t channels = patches.channels;
  int64_t pixels, inputs;
  if (const char* error =
          CheckPatches(patches, pool.padding_after, pool.images, &pixels, &inputs)) {
    return error;
  }
  if (pool.out_features != channels) return "there is not one output for each channel";
  if (patches.y.kernel > kMaxPoolTaps / patches.x.kernel) return "a window has more than 64 numbers";
  if (pixels == 0 || channels == 0) return nullptr;
  constexpr int64_t kTile = ActivationTiles::kWidth, kMostTiles = 8, kMostChannels = 32;
  PoolPlan plan = {pool, patches.y.out * patches.x.out, kTile, 0, 0, 0};
  const int64_t threads =
      ThreadsFor(static_cast<double>(pixels) * static_cast<double>(inputs), *executor);
  // Many tiles share lines that they read.
  const int64_t tiles = pool.images * CeilDiv(plan.pixels, kTile);
  int64_t count = std::clamp<int64_t>(tiles / (4 * threads), 1, kMostTiles);
  const auto fits = [&] { return static_cast<double>(kStageFloats) / StageOf(patches, count * kTile); };
  while (count > 1 && fits() < static_cast<double>(kMostChannels)) --count;
  if (fits() < 1) return "the lines that a tile reads are too long";
  plan.pixels_per_task = count * kTile;
  plan.ranges = CeilDiv(plan.pixels, plan.pixels_per_task);
  plan.channels_per_part =
      std::min({kMostChannels, static_cast<int64_t>(std::min(fits(), 64.0)), channels});
  plan.parts = CeilDiv(channels, plan.channels_per_part);
  executor->Run(pool.images * plan.ranges * plan.parts, threads, RunPoolTask, &plan);
  return nullptr;
}

}  // namespace srigl
