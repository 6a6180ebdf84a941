#include "depthwise.h"

#include <algorithm>

#include "isa.h"
#include "matmul.h"

namespace srigl {
namespace {

struct DepthwisePlan {
  Conv conv;
  const float* kernel;
  int64_t lines, lines_per_task;
  int64_t parts, channels_per_part;  // the last part has the rest, too
};

void RunDepthwiseTask(const void* context, int64_t task) {
  const DepthwisePlan& plan = *static_cast<const DepthwisePlan*>(context);
  const int64_t line = task / plan.parts * plan.lines_per_task, part = task % plan.parts;
  const int64_t channel = part * plan.channels_per_part;
  const int64_t end =
      part + 1 == plan.parts ? plan.conv.patches.channels : channel + plan.channels_per_part;
  CurrentKernels().depthwise(plan.conv, plan.kernel, line,
                             std::min(line + plan.lines_per_task, plan.lines), channel, end);
}

}  // namespace

const char* DepthwiseConv(const Conv& conv, const float* kernel, Executor* executor) {
  const int64_t channels = conv.patches.channels;
  int64_t pixels, inputs;
  if (const char* error =
          CheckPatches(conv.patches, conv.padding_after, conv.images, &pixels, &inputs)) {
    return error;
  }
  if (conv.out_features != channels) return "there is not one output for each channel";
  if (pixels == 0 || channels == 0) return nullptr;
  DepthwisePlan plan = {conv, kernel, conv.images * conv.patches.y.out, 1, 1, channels};
  // Products of small layers take about as long as those of windows: most of it is memory.
  const int64_t threads =
      ThreadsFor(static_cast<double>(pixels) * static_cast<double>(inputs), *executor);
  const int64_t tasks = threads == 1 ? 1 : 4 * threads;
  plan.lines_per_task = std::max<int64_t>(plan.lines / tasks, 1);
  if (plan.lines < tasks) {  // two registers of channels at least
    constexpr int64_t kLeast = 32;
    plan.parts = std::max<int64_t>(std::min(tasks / plan.lines, channels / kLeast), 1);
    if (plan.parts > 1) plan.channels_per_part = channels / plan.parts / 16 * 16;
  }
  const int64_t ranges = (plan.lines + plan.lines_per_task - 1) / plan.lines_per_task;
  executor->Run(ranges * plan.parts, threads, RunDepthwiseTask, &plan);
  return nullptr;
}

}  // namespace srigl
