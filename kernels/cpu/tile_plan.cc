#include "tile_plan.h"

#include <algorithm>

namespace srigl {
namespace {

// Of a convolution: pixels of a task at most, and what counts as few.
constexpr int64_t kMaxTaskPixels = 512, kFewPixels = 3 * kMaxLanes;

// A task's costs are in weights: what it takes to multiply one with a tile of kMaxLanes rows.
struct Costs {
  double pack;           // of all inputs of such a tile
  double panel;          // weights of a panel
  const Patches* stage;  // whose lines a task copies first, or nullptr
  int64_t tile_lanes;

  // Of `lanes` rows of some panels. A tile's weights are read and its sums are written however few lanes
  // it has, which is as much as sixteen lanes.
  double Of(int64_t lanes, int64_t panels) const {
    constexpr int64_t kLeast = 16;
    const int64_t rest = CeilDiv(lanes % tile_lanes, kLeast) * kLeast;
    const int64_t all = lanes / tile_lanes * (tile_lanes + kLeast) + (rest > 0 ? rest + kLeast : 0);
    const double tiles = static_cast<double>(all) / (kMaxLanes + kLeast);
    return tiles * (1 + pack + panel * static_cast<double>(panels)) + Staging(lanes);
  }

  // Floats of the lines that `lanes` pixels read, with their padding.
  double StagedFloats(int64_t lanes) const {
    const Axis &y = stage->y, &x = stage->x;
    const double lines = static_cast<double>(std::min(CeilDiv(lanes, x.out) + 1, y.out) - 1) *
                             static_cast<double>(y.stride) +
                         static_cast<double>((y.kernel - 1) * y.dilation + 1);
    const double width = static_cast<double>((x.out - 1) * x.stride + (x.kernel - 1) * x.dilation + 1);
    return lines * width * static_cast<double>(stage->channels);
  }

  double Staging(int64_t lanes) const {
    constexpr double kFloatsPerWeight = 6;
    return stage == nullptr ? 0 : StagedFloats(lanes) / kFloatsPerWeight;
  }
};

Costs CostsOf(const TileView& view, const MatMul& call, int64_t tile_lanes) {
  double pack = call.columns == nullptr ? 2.0 : 6.0;  // of an input
  const Patches* stage = nullptr;
  if (const Patches* patches = call.patches) {
    const bool is_pointwise = patches->IsPointwise();
    pack = !is_pointwise ? 4.5 : call.x_is_tiled ? 1.0 : 2.0;
    if (patches->IsStaged()) stage = patches;
  }
  return {pack * static_cast<double>(view.in_features),
          static_cast<double>(view.num_values) / static_cast<double>(view.num_panels), stage,
          tile_lanes};
}

// Chooses how many panels a task takes, and returns what the plan costs then.
double ChooseRanges(const Costs& costs, TilePlan* plan) {
  const int64_t threads = plan->threads, segments = CeilDiv(plan->rows, plan->segment_rows);
  const int64_t whole = segments * (plan->segment_rows / plan->lanes);
  const int64_t left = plan->segment_rows % plan->lanes, lasts = left == 0 ? 0 : segments;
  double best = 0;
  const auto consider = [&](int64_t range, int64_t last_range) {
    const double task = costs.Of(plan->lanes, range), last = costs.Of(left, last_range);
    const int64_t tasks = whole * CeilDiv(plan->panels, range);
    const int64_t rounds = CeilDiv(tasks, threads);
    // Threads without a task in the last round take last pieces meanwhile.
    double last_tasks = static_cast<double>(lasts * CeilDiv(plan->panels, last_range));
    if (lasts > 0) {
      const double idle = static_cast<double>(rounds * threads - tasks) * task;
      last_tasks = std::max(last_tasks - static_cast<double>(static_cast<int64_t>(idle / last)), 0.0);
    }
    const int64_t last_rounds = CeilDiv(static_cast<int64_t>(last_tasks), threads);
    const double cost =
        static_cast<double>(rounds) * task + static_cast<double>(last_rounds) * last;
    if (best > 0 && cost >= best) return;
    best = cost;
    plan->range = range;
    plan->last_range = last_range;
  };
  for (int64_t range = std::min<int64_t>(plan->panels, kMaxPanels); range > 0; --range) {
    // Of ranges that make equally many tasks the least, whose tasks are alike.
    if (range > 1 && CeilDiv(plan->panels, range) == CeilDiv(plan->panels, range - 1)) continue;
    consider(range, range);
    const int64_t shared = std::min(CeilDiv(plan->panels, threads), range);
    if (lasts > 0 && shared < range) consider(range, shared);
  }
  plan->last_tasks = lasts * CeilDiv(plan->panels, plan->last_range);
  plan->tasks = whole * CeilDiv(plan->panels, plan->range) + plan->last_tasks;
  return best;
}

}  // namespace

TilePlan PlanTiles(const TileView& view, const MatMul& call, int64_t rows, int64_t segment_rows,
                   int64_t lanes, int64_t threads) {
  TilePlan plan = {rows, segment_rows, lanes, view.num_panels, 0, 0, 0, 0, threads};
  const Patches* const patches = call.patches;
  if (patches == nullptr) {
    ChooseRanges(CostsOf(view, call, lanes), &plan);
    return plan;
  }
  // With few pixels rather two narrower tiles than one that two ranges pack. The limit is a constant, as
  // the width of tiles is.
  const bool is_copied = patches->IsPointwise() && call.x_is_tiled;
  const bool is_narrow = lanes == kMaxLanes && rows <= kFewPixels && !is_copied;
  if (is_narrow) lanes = plan.lanes = lanes / 2;
  const Costs costs = CostsOf(view, call, lanes);
  const int64_t pixels = std::min(patches->y.out * patches->x.out, kMaxTaskPixels);
  if (is_narrow) {
    ChooseRanges(costs, &plan);
    return plan;
  }
  if (costs.stage == nullptr) {
    // Where there are many tiles a task takes several.
    const int64_t ranges = CeilDiv(plan.panels, kMaxPanels);
    while (2 * plan.lanes <= pixels && rows * ranges >= 4 * threads * plan.lanes) plan.lanes *= 2;
    ChooseRanges(costs, &plan);
    return plan;
  }
  // A task of several tiles copies lines that they share once, as many as stay in the second-level cache.
  TilePlan best = plan;
  double best_cost = ChooseRanges(costs, &best);
  for (plan.lanes += lanes; plan.lanes <= pixels; plan.lanes += lanes) {
    if (costs.StagedFloats(plan.lanes) > kStageFloats / 2) break;
    const double cost = ChooseRanges(costs, &plan);
    if (cost >= best_cost) continue;
    best_cost = cost;
    best = plan;
  }
  return best;
}

TileTask TaskAt(const TilePlan& plan, int64_t task) {
  const int64_t tasks = plan.tasks, others = tasks - plan.last_tasks;
  int64_t share = task * plan.threads / tasks;
  const auto begin_of = [&](int64_t share) { return tasks * share / plan.threads; };
  while (begin_of(share + 1) <= task) ++share;
  const auto others_before = [=](int64_t task) { return others * task / tasks; };
  const int64_t begin = begin_of(share), end = begin_of(share + 1);
  const bool is_last = task >= begin + others_before(end) - others_before(begin);
  const int64_t number = is_last ? task - others_before(end) : task - begin + others_before(begin);

  const int64_t range = is_last ? plan.last_range : plan.range;
  const int64_t ranges = CeilDiv(plan.panels, range);
  const int64_t piece = number / ranges, panel = number % ranges * range;
  const int64_t whole = plan.segment_rows / plan.lanes;  // of a segment
  const int64_t segment = (is_last ? piece : piece / whole) * plan.segment_rows;
  const int64_t row = segment + (is_last ? whole : piece % whole) * plan.lanes;
  return {row, std::min({row + plan.lanes, segment + plan.segment_rows, plan.rows}), panel,
          std::min(panel + range, plan.panels)};
}

}  // namespace srigl
