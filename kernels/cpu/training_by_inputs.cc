#include "training_by_inputs.h"

#include <algorithm>
#include <atomic>
#include <vector>

#include "training.h"

namespace srigl {
namespace {

constexpr int64_t kChunk = 256;        // neurons, whose gradients the second-level cache holds
constexpr int64_t kMostChunk = 4096;
constexpr int64_t kChunkEntries = 12;  // of an input: fewer cost more to begin than to multiply
constexpr int64_t kBlock = 256;        // inputs, of which many have as many entries
constexpr int64_t kMostInputs = 4096;  // of a task, whose gradients the second-level cache holds
constexpr int64_t kRoom = 32;          // inputs and neurons that kernels write beyond their end
constexpr double kProductsPerPacked = 3;  // what packing a row of a neuron costs
constexpr double kMostBytes = 64 << 20;   // of a layer by its inputs
constexpr int64_t kLeastRows = 129;       // worth the sorting

ByInputs PlanChunks(const Training& call) {
  ByInputs layer = {};
  const int64_t enough = kChunkEntries * call.in_features / std::max<int64_t>(call.fan_in, 1);
  layer.chunk = std::min(std::max(kChunk, enough), kMostChunk);
  layer.num_chunks = CeilDiv(call.num_active, layer.chunk);
  // Blocks are shared among threads.
  const int64_t eighth = CeilDiv(CeilDiv(call.in_features, 8), 16) * 16;
  layer.block = std::clamp<int64_t>(eighth, 64, kBlock);
  layer.num_blocks = CeilDiv(call.in_features, layer.block);
  return layer;
}

struct Sorting {
  const Training* call;
  const ByInputs* layer;
  std::atomic<bool> failed{false};
};

// Sorts the entries of a chunk, and in each input they stay in the order of their neurons. False if
// an index lies beyond the inputs.
template <typename Index>
bool SortChunk(const Training& call, const ByInputs& layer, int64_t chunk) {
  const int64_t begin = chunk * layer.chunk;
  const int64_t neurons = std::min(call.num_active - begin, layer.chunk);
  const int64_t first = begin * call.fan_in, entries = neurons * call.fan_in;
  const Index* indices = static_cast<const Index*>(call.indices) + first;
  bool inside = true;
  for (int64_t e = 0; e < entries; ++e) {
    inside &= static_cast<uint64_t>(indices[e]) < static_cast<uint64_t>(call.in_features);
  }
  if (!inside) return false;
  thread_local std::vector<int32_t> next;  // by input: how many entries, then where the next one goes
  next.assign(static_cast<size_t>(call.in_features), 0);
  for (int64_t e = 0; e < entries; ++e) ++next[indices[e]];
  BlockRow* rows = layer.rows + chunk * call.in_features;
  int32_t total = 0;
  for (int64_t block = 0; block < layer.num_blocks; ++block) {
    const int64_t input = block * layer.block;
    const int64_t inputs = std::min(call.in_features - input, layer.block);
    layer.starts[chunk * layer.num_blocks + block] = first + total;
    constexpr int32_t kMost = 127;  // more are sorted no further
    int32_t places[kMost + 1] = {};
    const auto rank = [](int32_t count) { return kMost - (count < kMost ? count : kMost); };
    for (int64_t i = 0; i < inputs; ++i) ++places[rank(next[input + i])];
    for (int32_t i = 0, sum = 0; i <= kMost; ++i) {
      sum += places[i];
      places[i] = sum - places[i];
    }
    for (int64_t i = 0; i < inputs; ++i) {
      const int32_t count = next[input + i];
      rows[input + places[rank(count)]++] = {static_cast<int32_t>(i), count};
    }
    for (int64_t i = 0; i < inputs; ++i) {
      const BlockRow& row = rows[input + i];
      next[input + row.row] = total;
      total += row.count;
    }
  }
  uint16_t* to_neurons = layer.neurons + first;
  float* to_values = layer.values + first;
  const float* values = call.values + first;
  for (int64_t a = 0, e = 0; a < neurons; ++a) {
    for (int64_t j = 0; j < call.fan_in; ++j, ++e) {
      const int32_t place = next[indices[e]]++;
      to_neurons[place] = static_cast<uint16_t>(a);
      to_values[place] = values[e];
    }
  }
  return true;
}

void SortTask(const void* context, int64_t chunk) {
  Sorting& sorting = *static_cast<Sorting*>(const_cast<void*>(context));
  const auto sort = sorting.call->wide_indices ? SortChunk<int32_t> : SortChunk<uint16_t>;
  if (!sort(*sorting.call, *sorting.layer, chunk)) {
    sorting.failed.store(true, std::memory_order_relaxed);
  }
}

struct Plan {
  const Training* call;
  const ByInputs* layer;
  int64_t ranges;
};

void GatherTask(const void* context, int64_t task) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const ByInputs& layer = *plan.layer;
  const int64_t range = task % plan.ranges, row = task / plan.ranges * kMaxLanes;
  const auto bound = [&](int64_t i) {
    return std::min(layer.num_blocks * i / plan.ranges * layer.block, plan.call->in_features);
  };
  const int64_t begin = bound(range), end = bound(range + 1);
  const auto floats = static_cast<size_t>((end - begin + layer.chunk + kRoom) * kMaxLanes);
  CurrentKernels().train_input_gradient_by_inputs(*plan.call, layer, row,
                                                  std::min(row + kMaxLanes, plan.call->batch), begin,
                                                  end, TrainingScratch(floats));
}

}  // namespace

bool IsWorthSorting(const Training& call) {
  const ByInputs layer = PlanChunks(call);
  const double bytes =
      static_cast<double>(call.num_active) * static_cast<double>(call.fan_in) * 6 +
      static_cast<double>(layer.num_chunks) * static_cast<double>(call.in_features) * sizeof(BlockRow);
  return call.batch >= kLeastRows && bytes <= kMostBytes;
}

const char* InputGradientByInputs(const Training& call, int64_t threads, Executor* executor) {
  ByInputs layer = PlanChunks(call);
  const int64_t entries = call.num_active * call.fan_in;
  // Kept for the next call: what the system hands out anew it clears first, which takes as long as
  // half of the sorting.
  thread_local std::vector<BlockRow> rows;
  thread_local std::vector<int64_t> starts;
  thread_local std::vector<uint16_t> neurons;
  thread_local std::vector<float> values;
  const auto room = [](auto* vector, int64_t size) {
    if (static_cast<int64_t>(vector->size()) < size) vector->resize(static_cast<size_t>(size));
    return vector->data();
  };
  layer.rows = room(&rows, layer.num_chunks * call.in_features);
  layer.starts = room(&starts, layer.num_chunks * layer.num_blocks);
  layer.neurons = room(&neurons, entries);
  layer.values = room(&values, entries);
  Sorting sorting = {&call, &layer, {}};
  executor->Run(layer.num_chunks, threads, SortTask, &sorting);
  if (sorting.failed.load()) return "an index lies beyond the inputs";
  // As many ranges of inputs as end soonest. Each packs the gradients of its rows again.
  const int64_t tiles = CeilDiv(call.batch, kMaxLanes);
  const double weights = static_cast<double>(entries);
  const double shared = kProductsPerPacked * static_cast<double>(call.num_active);
  const int64_t least = std::min(CeilDiv(call.in_features, kMostInputs), layer.num_blocks);
  Plan plan = {&call, &layer, least};
  double best = -1;
  for (int64_t ranges = least; ranges <= std::max(least, std::min(2 * threads, layer.num_blocks));
       ++ranges) {
    const double time = static_cast<double>(CeilDiv(tiles * ranges, threads)) *
                        (shared + weights / static_cast<double>(ranges));
    if (best >= 0 && time >= best) continue;
    best = time;
    plan.ranges = ranges;
  }
  executor->Run(tiles * plan.ranges, threads, GatherTask, &plan);
  return nullptr;
}

}  // namespace srigl
