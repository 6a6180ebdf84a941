#include "training.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>

namespace srigl {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

enum class Kind { kForward, kInputGradient, kValuesGradient };

// A call cut into tasks: tiles of batch rows times ranges of active neurons, or of inputs where the
// gradient in these is wanted.
struct Plan {
  Training call;
  Kind kind;
  const Kernels* kernels;
  int64_t rows;  // of a task
  int64_t size, unit;  // what is cut into ranges; multiples of so many
  int64_t ranges;
  std::atomic<bool>* failed;
};

void RunTask(const void* context, int64_t task) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const int64_t range = task % plan.ranges, row = task / plan.ranges * plan.rows;
  const int64_t row_end = std::min(row + plan.rows, plan.call.batch);
  const auto bound = [&plan](int64_t i) {
    return std::min(CeilDiv(plan.size, plan.unit) * i / plan.ranges * plan.unit, plan.size);
  };
  const int64_t begin = bound(range), end = bound(range + 1);
  float* scratch = TrainingScratch(TrainingScratchFloats(plan.call.in_features));
  bool ok = false;
  switch (plan.kind) {
    case Kind::kForward:
      ok = plan.kernels->train_forward(plan.call, row, row_end, begin, end, scratch);
      break;
    case Kind::kInputGradient:
      ok = plan.kernels->train_input_gradient(plan.call, row, row_end, begin, end, scratch);
      break;
    case Kind::kValuesGradient:
      ok = plan.kernels->train_values_gradient(plan.call, begin, end, scratch);
  }
  if (!ok) plan.failed->store(true, std::memory_order_relaxed);
}

const char* Check(const Training& call) {
  if (call.batch < 0 || call.in_features < 0) return "a size is negative";
  return CheckPattern({call.active, call.num_active, call.fan_in, call.in_features,
                       call.out_features, call.wide_indices});
}

// In products of a weight and a row: what packing a row of an input costs, and checking an index.
constexpr double kProductsPerPacked = 3, kProductsPerChecked = 2;

const char* Run(const Training& call, Kind kind, Executor* executor) {
  std::atomic<bool> failed{false};
  Plan plan = {call, kind, &CurrentKernels(), 0, call.num_active, 1, 1, &failed};
  const double weights = static_cast<double>(call.num_active) * static_cast<double>(call.fan_in);
  const int64_t threads = ThreadsFor(weights * static_cast<double>(call.batch), *executor);
  plan.rows = kind == Kind::kValuesGradient ? call.batch : TrainingLanes(call.in_features);
  double shared = kProductsPerPacked * static_cast<double>(call.in_features);
  if (kind == Kind::kInputGradient) {
    plan.size = call.in_features;
    plan.unit = 16;
    shared = kProductsPerPacked * static_cast<double>(call.num_active) +
             kProductsPerChecked * weights / static_cast<double>(plan.rows);
  }
  // As many ranges as end soonest. Each repeats what is the same for all ranges of its rows.
  const int64_t tiles = CeilDiv(call.batch, plan.rows);
  const int64_t most = std::min(2 * threads, std::max<int64_t>(CeilDiv(plan.size, plan.unit), 1));
  double best = -1;
  for (int64_t ranges = 1; ranges <= most; ++ranges) {
    const double time = static_cast<double>(CeilDiv(tiles * ranges, threads)) *
                        (shared + weights / static_cast<double>(ranges));
    if (best >= 0 && time >= best) continue;
    best = time;
    plan.ranges = ranges;
  }
  executor->Run(tiles * plan.ranges, threads, RunTask, &plan);
  return failed.load() ? "an index lies beyond the inputs" : nullptr;
}

}  // namespace

const char* CheckPattern(const PatternSizes& sizes) {
  if (sizes.out_features < 0 || sizes.num_active < 0 || sizes.fan_in < 0) {
    return "a size is negative";
  }
  if (sizes.fan_in > sizes.in_features) return "the fan-in is larger than the number of inputs";
  if (sizes.in_features > 0x7fffffff) return "there are more than 2^31 - 1 inputs";
  if (!sizes.wide_indices && sizes.in_features > 0x10000) {
    return "uint16 indices cannot reach all inputs";
  }
  int64_t before = -1;
  bool ascend = true;
  for (int64_t a = 0; a < sizes.num_active; ++a) {
    ascend &= sizes.active[a] > before;
    before = sizes.active[a];
  }
  if (!ascend || before >= sizes.out_features) {
    return "the active neurons do not ascend within the neurons";
  }
  return nullptr;
}

float* TrainingScratch(size_t floats) {
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  thread_local std::unique_ptr<float, Free> scratch;
  thread_local size_t size = 0;
  if (size < floats) {
    scratch.reset();
    size = 0;
    scratch.reset(
        static_cast<float*>(::operator new(floats * sizeof(float), std::align_val_t{64})));
    size = floats;
  }
  return scratch.get();
}

const char* TrainingForward(const Training& call, Executor* executor) {
  const char* error = Check(call);
  if (error != nullptr || call.batch == 0 || call.out_features == 0) return error;
  return Run(call, Kind::kForward, executor);
}

const char* TrainingInputGradient(const Training& call, Executor* executor) {
  const char* error = Check(call);
  if (error != nullptr || call.batch == 0 || call.in_features == 0) return error;
  return Run(call, Kind::kInputGradient, executor);
}

const char* TrainingValuesGradient(const Training& call, Executor* executor) {
  const char* error = Check(call);
  if (error != nullptr || call.num_active == 0 || call.fan_in == 0) return error;
  if (call.batch == 0) {
    memset(call.dvalues, 0, call.num_active * call.fan_in * sizeof(float));
    return nullptr;
  }
  return Run(call, Kind::kValuesGradient, executor);
}

}  // namespace srigl
