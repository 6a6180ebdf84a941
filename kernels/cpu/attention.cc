#include "attention.h"

#include <algorithm>

#include "isa.h"
#include "matmul.h"
#include "scratch.h"

namespace srigl {
namespace {

struct AttentionPlan {
  Attention call;
  int64_t rows, ranges;  // queries of a task, and tasks of a part of the batch
};

void RunAttentionTask(const void* context, int64_t task) {
  const AttentionPlan& plan = *static_cast<const AttentionPlan*>(context);
  const int64_t begin = task % plan.ranges * plan.rows;
  CurrentKernels().attention(plan.call, task / plan.ranges, begin,
                             std::min(begin + plan.rows, plan.call.queries), Scratch());
}

}  // namespace

const char* RunAttention(const Attention& call, Executor* executor) {
  if (call.depth < 1 || call.depth > kAttentionDepth || call.width < 1 ||
      call.width > kAttentionDepth) {
    return "queries and values must have 1 to 256 numbers";
  }
  if (call.queries < 0 || call.keys < 1) return "there must be keys";
  if (call.tail < 0 || call.tail > call.keys) return "there are fewer keys than its last ones";
  int64_t parts = 1;
  for (const int64_t size : call.batch) {
    if (size < 0 || __builtin_mul_overflow(parts, size, &parts)) return "a size is out of range";
  }
  if (parts == 0 || call.queries == 0) return nullptr;
  AttentionPlan plan = {call, std::min(call.queries, kAttentionRows), 1};
  const double work = static_cast<double>(parts) * static_cast<double>(call.queries) *
                      static_cast<double>(call.keys) * static_cast<double>(call.depth + call.width);
  const int64_t threads = ThreadsFor(work / 2, *executor);
  // Each task packs all keys and values, which takes as long as some queries.
  constexpr int64_t kLeastRows = 32;
  const auto ranges = [&] { return (call.queries + plan.rows - 1) / plan.rows; };
  while (threads > 1 && parts * ranges() < 2 * threads && plan.rows > kLeastRows) plan.rows /= 2;
  plan.ranges = ranges();
  executor->Run(parts * plan.ranges, threads, RunAttentionTask, &plan);
  return nullptr;
}

}  // namespace srigl
