#include "gradients.h"

#include <string.h>

#include <algorithm>

#include "scratch.h"

namespace srigl {
namespace {

// A gradient in the values cut into tasks: ranges of panels times ranges of blocks, each over the
// whole batch, so that no two tasks write to one place.
struct ValuesPlan {
  ValuesGradient call;
  const Kernels* kernels;
  TileView view;
  int64_t panel_ranges, block_ranges;
};

void RunValuesTask(const void* context, int64_t task) {
  const ValuesPlan& plan = *static_cast<const ValuesPlan*>(context);
  const int64_t p = task % plan.panel_ranges, b = task / plan.panel_ranges;
  const int64_t panels = plan.view.num_panels, blocks = plan.view.num_blocks;
  plan.kernels->values_gradient(
      plan.view, plan.call, p * panels / plan.panel_ranges, (p + 1) * panels / plan.panel_ranges,
      b * blocks / plan.block_ranges, (b + 1) * blocks / plan.block_ranges, Scratch());
}

// Packing a column costs as much as so many of a weight's products (measured on a Zen 4).
constexpr double kProductsPerColumn = 3.2;

// Chooses the cut whose slowest thread has least to do. Every range of panels packs its inputs
// anew, every range of blocks its gradients, so more tasks than threads seldom pay.
void PlanValues(int64_t threads, ValuesPlan* plan) {
  const int64_t panels = plan->view.num_panels, blocks = plan->view.num_blocks;
  const int64_t least = CeilDiv(panels, kMaxPanels);
  const double weights_per_cell =
      static_cast<double>(plan->view.num_values) / (static_cast<double>(panels) * blocks);
  double best = -1;
  for (int64_t b = 1; b <= std::min(4 * threads, blocks); ++b) {
    for (int64_t p = least; p <= std::min(std::max(4 * threads / b, least), panels); ++p) {
      const double columns = static_cast<double>(plan->call.in_features) / b +
                             static_cast<double>(plan->call.out_features) / p;
      const double task = weights_per_cell * CeilDiv(panels, p) * CeilDiv(blocks, b) +
                          kProductsPerColumn * columns;
      const double time = task * CeilDiv(b * p, threads);
      if (best >= 0 && time >= best) continue;
      best = time;
      plan->panel_ranges = p;
      plan->block_ranges = b;
    }
  }
}

struct GatherPlan {
  const Kernels* kernels;
  const void* values;
  int64_t num_values;
  const int32_t* sources;
  int64_t num_packed;
  int64_t per_task;
  ValueType type;
  void* packed;
};

void RunGatherTask(const void* context, int64_t task) {
  const GatherPlan& plan = *static_cast<const GatherPlan*>(context);
  const int64_t begin = task * plan.per_task;
  plan.kernels->gather(plan.values, plan.num_values, plan.sources, begin,
                       std::min(begin + plan.per_task, plan.num_packed), plan.type, plan.packed);
}

// A gathered value costs as much as so many products of a weight (measured on a Zen 4).
constexpr double kProductsPerGather = 12;

}  // namespace

const char* CondensedInputGradient(Bytes pattern, Bytes values, ValueType type,
                                   const InputGradient& call, Executor* executor) {
  static constexpr int32_t kNone = 0;
  MatMul product = {};
  product.x = call.g;
  product.y = call.dx;
  product.batch = call.batch;
  product.in_features = call.out_features;
  product.out_features = call.in_features;
  product.columns = call.num_active > 0 ? call.active : &kNone;
  product.num_columns = call.num_active;
  return CondensedMatMul({pattern, values, {}, {}, type}, product, executor);
}

const char* CondensedValuesGradient(Bytes pattern, const ValuesGradient& call,
                                    Executor* executor) {
  ValuesPlan plan = {};
  plan.call = call;
  plan.kernels = &CurrentKernels();
  if (call.batch < 0 || call.in_features < 0 || call.out_features < 0 || call.num_active < 0 ||
      call.fan_in < 0) {
    return "a size is negative";
  }
  if (call.fan_in > call.in_features) return "the fan-in is larger than the number of inputs";
  if (!WithinWidth(call.active, call.num_active, call.out_features)) {
    return "an active neuron lies beyond g";
  }
  const size_t bytes = static_cast<size_t>(call.num_active) * call.fan_in * sizeof(float);
  const char* error = ParseTile(pattern, {call.dvalues, bytes}, ValueType::kFloat32, &plan.view);
  if (error != nullptr) return error;
  if (plan.view.in_features != call.in_features || plan.view.out_features != call.out_features ||
      plan.view.num_active != call.num_active) {
    return "x, g, the active neurons and the tile pattern differ in their sizes";
  }
  if (bytes == 0) return nullptr;
  if (call.batch == 0 || plan.view.num_blocks == 0) {
    memset(call.dvalues, 0, bytes);
    return nullptr;
  }
  const double work = static_cast<double>(bytes / sizeof(float)) * static_cast<double>(call.batch);
  const int64_t threads = ThreadsFor(work, *executor);
  PlanValues(threads, &plan);
  executor->Run(plan.panel_ranges * plan.block_ranges, threads, RunValuesTask, &plan);
  return nullptr;
}

const char* PackValues(Bytes values, ValueType type, const int32_t* sources, int64_t num_packed,
                       void* packed, Executor* executor) {
  GatherPlan plan = {};
  plan.kernels = &CurrentKernels();
  plan.values = values.data;
  plan.num_values = static_cast<int64_t>(values.size / ValueBytes(type));
  plan.sources = sources;
  plan.num_packed = num_packed;
  plan.type = type;
  plan.packed = packed;
  if (num_packed < 0) return "a size is negative";
  if (plan.num_values > 0x7fffffff) return "there are more than 2^31 - 1 values";
  if (num_packed == 0) return nullptr;
  if (plan.num_values == 0) return "there are no values to pack";
  const int64_t threads =
      ThreadsFor(kProductsPerGather * static_cast<double>(num_packed), *executor);
  plan.per_task = CeilDiv(num_packed, 2 * threads);
  executor->Run(CeilDiv(num_packed, plan.per_task), threads, RunGatherTask, &plan);
  return nullptr;
}

}  // namespace srigl
