#include "training.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <vector>

#include "training_by_inputs.h"

namespace srigl {
namespace {

enum class Kind { kForward, kInputGradient, kValuesGradient };

// The best of 24..96 KB with first-level caches of 48; where a block is written, too, the smaller.
constexpr int64_t kBlockBytes = 64 << 10, kWrittenBlockBytes = 48 << 10;
constexpr int64_t kBlockEntries = 12;  // of a neuron: fewer cost more to begin than to multiply
constexpr int64_t kInputRanges = 4;    // divides the number of blocks, so that threads share them

// A call divided into tasks: tiles of batch rows times ranges of chunks of neurons, or of blocks of
// inputs where the gradient in these is wanted.
struct Plan {
  Training call;
  Kind kind;
  const Kernels* kernels;
  int64_t rows;  // of a task
  int64_t size, unit;  // what is cut into ranges; multiples of so many
  int64_t ranges;
  std::atomic<bool>* failed;
};

// Of the places of a chunk's neurons in each block.
size_t StartsFloats(const Cut& cut) {
  return static_cast<size_t>(cut.chunk * (cut.num_blocks + 1));
}

size_t ScratchFloats(const Training& call) {
  const auto segments = static_cast<size_t>(call.cut.chunk * call.cut.num_blocks);
  return TrainingScratchFloats(call.in_features) + segments * sizeof(Segment) / sizeof(float) +
         StartsFloats(call.cut);
}

void CutTask(const void* context, int64_t chunk) {
  const Plan& plan = *static_cast<const Plan*>(context);
  int32_t* starts = reinterpret_cast<int32_t*>(TrainingScratch(StartsFloats(plan.call.cut)));
  if (!plan.kernels->train_cut(plan.call, chunk, starts)) {
    plan.failed->store(true, std::memory_order_relaxed);
  }
}

void RunTask(const void* context, int64_t task) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const int64_t range = task % plan.ranges, row = task / plan.ranges * plan.rows;
  const int64_t row_end = std::min(row + plan.rows, plan.call.batch);
  const auto bound = [&plan](int64_t i) {
    return std::min(CeilDiv(plan.size, plan.unit) * i / plan.ranges * plan.unit, plan.size);
  };
  const int64_t begin = bound(range), end = bound(range + 1);
  float* scratch = TrainingScratch(ScratchFloats(plan.call));
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

// Chooses chunks and blocks. Blocks do not depend on the number of threads, since sums go by them,
// and neither do chunks where these are added up.
Cut PlanCut(const Training& call, Kind kind, int64_t ranges, int64_t width) {
  int64_t lanes = width;
  while (lanes < std::min(call.batch, TrainingLanes(call.in_features))) lanes *= 2;
  Cut cut = {};
  cut.exact = kind == Kind::kInputGradient;
  const int64_t bytes = cut.exact ? kWrittenBlockBytes : kBlockBytes;
  cut.block = std::max(bytes / (lanes * static_cast<int64_t>(sizeof(float))),
                       kBlockEntries * call.in_features / (call.fan_in + 1));
  cut.num_blocks = CeilDiv(call.in_features, cut.block);
  if (cut.exact) cut.num_blocks = CeilDiv(cut.num_blocks, kInputRanges) * kInputRanges;
  cut.num_blocks = std::max<int64_t>(cut.num_blocks, 1);
  cut.block = std::max<int64_t>(CeilDiv(CeilDiv(call.in_features, cut.num_blocks), 16) * 16, 16);
  cut.num_blocks = std::max<int64_t>(CeilDiv(call.in_features, cut.block), 1);
  cut.chunk = kTrainingNeurons;
  if (!cut.exact) {
    const int64_t per_range = std::max<int64_t>(CeilDiv(call.num_active, ranges), 1);
    cut.chunk = CeilDiv(per_range, CeilDiv(per_range, kTrainingNeurons));
  }
  cut.num_chunks = CeilDiv(call.num_active, cut.chunk);
  return cut;
}

// In products of a weight and a row: what packing a row of an input costs.
constexpr double kProductsPerPacked = 3;

const char* Run(const Training& call, Kind kind, Executor* executor) {
  std::atomic<bool> failed{false};
  Plan plan = {call, kind, &CurrentKernels(), 0, call.num_active, 1, 1, &failed};
  const double weights = static_cast<double>(call.num_active) * static_cast<double>(call.fan_in);
  const int64_t threads = ThreadsFor(weights * static_cast<double>(call.batch), *executor);
  plan.rows = kind == Kind::kValuesGradient ? call.batch : TrainingLanes(call.in_features);
  double shared = kProductsPerPacked * static_cast<double>(call.in_features);
  int64_t most = std::min(2 * threads, std::max<int64_t>(call.num_active, 1));
  if (kind == Kind::kInputGradient) {
    plan.call.cut = PlanCut(call, kind, 1, plan.kernels->width);
    plan.size = call.in_features;
    plan.unit = plan.call.cut.block;
    most = std::min(2 * threads, plan.call.cut.num_blocks);
    shared = kProductsPerPacked * static_cast<double>(call.num_active);
  }
  // As many ranges as end soonest. Each repeats what is the same for all ranges of its rows.
  const int64_t tiles = CeilDiv(call.batch, plan.rows);
  double best = -1;
  for (int64_t ranges = 1; ranges <= most; ++ranges) {
    const double time = static_cast<double>(CeilDiv(tiles * ranges, threads)) *
                        (shared + weights / static_cast<double>(ranges));
    if (best >= 0 && time >= best) continue;
    best = time;
    plan.ranges = ranges;
  }
  Cut& cut = plan.call.cut;
  if (kind != Kind::kInputGradient) {
    cut = PlanCut(call, kind, plan.ranges, plan.kernels->width);
    plan.unit = cut.chunk;
    plan.ranges = std::min(plan.ranges, std::max<int64_t>(cut.num_chunks, 1));  // none is empty
  }
  thread_local std::vector<int32_t> block_of;
  block_of.resize(static_cast<size_t>(call.in_features / 16 + 1));
  for (size_t i = 0; i < block_of.size(); ++i) {
    block_of[i] = static_cast<int32_t>(static_cast<int64_t>(i) * 16 / cut.block);
  }
  cut.block_of = block_of.data();
  // What several tasks read is cut before. What one reads is cut when it is about to be read: its
  // indices are fetched once for both.
  if (kind == Kind::kInputGradient || call.batch > TrainingLanes(call.in_features)) {
    thread_local std::vector<Segment> segments;
    const auto count = static_cast<size_t>(cut.num_chunks * cut.num_blocks * cut.chunk);
    if (segments.size() < count) segments.resize(count);
    cut.segments = segments.data();
    executor->Run(cut.num_chunks, threads, CutTask, &plan);
  }
  if (!failed.load()) executor->Run(tiles * plan.ranges, threads, RunTask, &plan);
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
  if (IsWorthSorting(call)) {
    const double products = static_cast<double>(call.num_active) *
                            static_cast<double>(call.fan_in) * static_cast<double>(call.batch);
    return InputGradientByInputs(call, ThreadsFor(products, *executor), executor);
  }
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
