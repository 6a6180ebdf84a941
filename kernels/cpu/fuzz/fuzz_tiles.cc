// Fuzzes the cut of a product by tiles into tasks, and max-poolings of tiles: see fuzz.cc.

#include "activation_tiles.h"
#include "fuzz_common.h"
#include "max_pool.h"
#include "tile_plan.h"

namespace srigl {
namespace {

// Whether the largest numbers of all windows, NaN if there is one, are what `out` has.
bool IsPooled(const Conv& pool) {
  const Patches& p = pool.patches;
  const ActivationTiles in = {p.y.size * p.x.size, p.channels}, out = {p.y.out * p.x.out, p.channels};
  for (int64_t i = 0; i < pool.images * out.pixels * p.channels; ++i) {
    const int64_t channel = i % p.channels, pixel = i / p.channels % out.pixels;
    const int64_t image = i / p.channels / out.pixels;
    float largest = -INFINITY;
    for (int64_t tap = 0; tap < p.y.kernel * p.x.kernel; ++tap) {
      const int64_t y =
          pixel / p.x.out * p.y.stride - p.y.padding + tap / p.x.kernel * p.y.dilation;
      const int64_t x =
          pixel % p.x.out * p.x.stride - p.x.padding + tap % p.x.kernel * p.x.dilation;
      if (y < 0 || y >= p.y.size || x < 0 || x >= p.x.size) continue;
      const auto place = in.At(image, y * p.x.size + x);
      const float value = pool.x[place.offset + channel * place.stride];
      if (!(value <= largest) && !std::isnan(largest)) largest = value;
    }
    const auto place = out.At(image, pixel);
    const float got = pool.out[place.offset + channel * place.stride];
    if (got != largest && !(std::isnan(got) && std::isnan(largest))) return false;
  }
  return true;
}

}  // namespace

bool RunMaxPoolCase(uint64_t seed, int64_t* refused, int64_t* accepted) {
  Random random(seed);
  Conv pool = {};
  const Window y = RandomAxis(&random), x = RandomAxis(&random);
  pool.patches.y = y.axis;
  pool.patches.x = x.axis;
  pool.padding_after[0] = y.padding_after;
  pool.padding_after[1] = x.padding_after;
  pool.patches.channels = pool.out_features = Size(&random, 0, 100);
  pool.images = Uniform(&random, 0, 4);
  const ActivationTiles in = {y.axis.size * x.axis.size, pool.out_features};
  const ActivationTiles out = {y.axis.out * x.axis.out, pool.out_features};
  const Exact<float> input(pool.images * in.ImageFloats());
  const bool has_nan = Uniform(&random, 0, 2) == 0;
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < input.size(); ++i) {
    input.data()[i] = has_nan && Uniform(&random, 0, 50) == 0 ? NAN : normal(random);
  }
  pool.x = input.data();
  SplitExecutor executor(Uniform(&random, 1, 9));
  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    const Exact<float> result(pool.images * out.ImageFloats());
    std::fill_n(result.data(), result.size(), 1e30f);
    pool.out = result.data();
    const char* error = TiledMaxPool(pool, &executor);
    if (error != nullptr || !IsPooled(pool)) {
      printf("seed %lu: max-pooling of %ld channels, %s: %s\n", static_cast<unsigned long>(seed),
             static_cast<long>(pool.out_features), IsaName(static_cast<Isa>(isa)),
             error == nullptr ? "wrong" : error);
      return false;
    }
    Conv call = pool;
    Disturb(&random, &call);
    ++*(TiledMaxPool(call, &executor) == nullptr ? accepted : refused);
  }
  return true;
}

bool RunTilePlanCase(uint64_t seed) {
  Random random(seed);
  TileView view = {};
  view.num_panels = Uniform(&random, 1, 40);
  view.in_features = Size(&random, 0, 5000);
  view.num_values = view.num_panels * Uniform(&random, 0, 20000);
  MatMul call = {};
  Patches patches = {};
  int64_t segment = Size(&random, 1, 1000), segments = 1;
  if (Uniform(&random, 0, 1)) {
    do {
      patches.y = RandomAxis(&random).axis;
      patches.x = RandomAxis(&random).axis;
    } while (patches.y.out * patches.x.out == 0);
    patches.channels = Size(&random, 1, 300);
    call.patches = &patches;
    call.x_is_tiled = Uniform(&random, 0, 1);
    segment = patches.y.out * patches.x.out;
    segments = Uniform(&random, 1, 4);
    if (Uniform(&random, 0, 1)) segment *= segments, segments = 1;
  }
  const int64_t rows = segment * segments, lanes = Uniform(&random, 0, 1) ? kMaxLanes : kMaxLanes / 2;
  const TilePlan plan =
      PlanTiles(view, call, rows, segment, lanes, Uniform(&random, 1, 40));
  std::vector<int> times(rows * view.num_panels);
  for (int64_t task = 0; task < plan.tasks; ++task) {
    const TileTask at = TaskAt(plan, task);
    const bool is_one_segment = at.row_begin / segment == (at.row_end - 1) / segment;
    if (!is_one_segment || at.panel_end - at.panel_begin > kMaxPanels) times.assign(1, 2);
    for (int64_t row = at.row_begin; row < at.row_end; ++row) {
      for (int64_t panel = at.panel_begin; panel < at.panel_end; ++panel) {
        ++times.at(row * view.num_panels + panel);
      }
    }
  }
  if (std::all_of(times.begin(), times.end(), [](int n) { return n == 1; })) return true;
  printf("seed %lu: tasks do not take each tile of %ld rows and %ld panels once\n",
         static_cast<unsigned long>(seed), static_cast<long>(rows),
         static_cast<long>(view.num_panels));
  return false;
}

}  // namespace srigl
