#include "matmul.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <atomic>
#include <memory>

#include "scratch.h"
#include "tile_plan.h"

namespace srigl {
namespace {

// Outputs of so many bytes are written past the caches, where nobody would find them: what is written
// elsewhere is read first. On an AMD EPYC with 32 MB of third-level cache, a 1x1 convolution that writes
// and adds 26 MB took 5.0 ms so, and 6.3 through the caches.
#ifndef SRIGL_STREAMED_BYTES  // the fuzzer sets less
#define SRIGL_STREAMED_BYTES (8 << 20)
#endif

// Whether the outputs of a call are to be written so, and can be: in whole lines.
bool IsStreamed(const MatMul& call) {
#if defined(__x86_64__)
  return CurrentIsa() >= Isa::kAvx512 && call.y8.integers == nullptr &&
         call.out_features % 16 == 0 && reinterpret_cast<uintptr_t>(call.y) % 64 == 0 &&
         static_cast<double>(call.batch) * static_cast<double>(call.out_features) * sizeof(float) >=
             SRIGL_STREAMED_BYTES;
#else
  (void)call;
  return false;
#endif
}

// To be called by the thread that wrote, before others read.
void FenceStreamed(const MatMul& call) {
#if defined(__x86_64__)
  if (call.streamed) _mm_sfence();
#else
  (void)call;
#endif
}

// A call cut into tasks: first the tiles (batch rows [0, tile_rows), the panels split into ranges),
// then the windows (the other rows, the groups split into ranges).
struct Plan {
  MatMul call;
  const Kernels* kernels;
  const float* half_scales;  // of neurons, for tiles of float16; else nullptr
  TileView tiles;
  int64_t tile_rows;
  TilePlan cut;  // of the tiles
  WindowView windows;
  int64_t groups_per_task;
  int64_t window_tasks;
};

void RunTask(const void* context, int64_t task) {
  const Plan& plan = *static_cast<const Plan*>(context);
  if (task < plan.cut.tasks) {
    const TileTask at = TaskAt(plan.cut, task);
    if (plan.half_scales != nullptr) {
      CurrentDots().half_tile(plan.tiles, plan.half_scales, plan.call, at.row_begin, at.row_end,
                              at.panel_begin, at.panel_end, Scratch());
    } else {
      plan.kernels->tile(plan.tiles, plan.call, at.row_begin, at.row_end, at.panel_begin,
                         at.panel_end, Scratch());
    }
    return FenceStreamed(plan.call);
  }
  const int64_t group = (task - plan.cut.tasks) * plan.groups_per_task;
  plan.kernels->window(plan.windows, plan.call, plan.tile_rows, plan.call.batch, group,
                       std::min(group + plan.groups_per_task, plan.windows.num_groups));
}

void PlanWindows(int64_t threads, Plan* plan) {
  const int64_t groups = plan->windows.num_groups;
  plan->groups_per_task = CeilDiv(groups, threads == 1 ? 1 : 2 * threads);
  plan->window_tasks = CeilDiv(groups, plan->groups_per_task);
}

struct DotPlan {
  MatMul call;
  DotFunction dots;
  DotView view;
  int64_t pattern_bytes;
  int64_t rows_per_task, groups_per_task, group_ranges;
  uint64_t number;  // among all plans
};

void RunDotTask(const void* context, int64_t task) {
  const DotPlan& plan = *static_cast<const DotPlan*>(context);
  ScratchMemory& scratch = ScratchMemory::OfThread();
  const int64_t row = task / plan.group_ranges * plan.rows_per_task;
  const int64_t group = task % plan.group_ranges * plan.groups_per_task;
  plan.dots(plan.view, plan.call, row, std::min(row + plan.rows_per_task, plan.call.batch), group,
            std::min(group + plan.groups_per_task, plan.view.num_groups),
            scratch.floats(), scratch.Holds(plan.number, row));
  scratch.SetHeld(plan.number, row);
  FenceStreamed(plan.call);
}

// A thread converts the inputs of its rows: with many rows they are shared out, with few the groups.
// Rows are then shared out from eight for each thread on if all threads find the pattern in their
// second-level caches: so each reads the rows that it wrote. A pattern that is far is read for as many
// rows at once as a thread has, and the groups are shared out as well, for threads to end together.
constexpr int64_t kDotRowsPerTask = 32;
constexpr int64_t kSharedPatternBytes = 1 << 20;

// Output lines of a convolution that a task of dots takes, at most those that its scratch memory has
// room for, or 0: enough for taps that overlap to share what is converted, few enough for some tasks.
// The same for any number of threads, as numbers of a task may have a scale together.
int64_t DotLines(const Patches& patches, DotType type, int64_t pixels) {
  constexpr int64_t kLeastPixels = 48, kMostPixels = 512, kTasks = 8;
  const Axis &y = patches.y, &x = patches.x;
  const int64_t reach = (y.kernel - 1) * y.dilation + 1, all = pixels / x.out;
  const double width = static_cast<double>((x.out - 1) * x.stride + (x.kernel - 1) * x.dilation + 1);
  const double line = width * static_cast<double>(patches.channels) * DotElementBytes(type);
  const auto fits = [&](int64_t lines) {
    const int64_t images = (lines + y.out - 2) / y.out + 1;
    const double staged = static_cast<double>(lines) * static_cast<double>(y.stride) +
                          static_cast<double>(images) * static_cast<double>(reach);
    return staged * line + kDotBytes <= static_cast<double>(kStageFloats * sizeof(float));
  };
  int64_t lines = std::max(std::min(all / kTasks, kMostPixels / x.out),
                           CeilDiv(kLeastPixels, x.out));
  lines = std::min({lines, all, int64_t{kMaxDotLines}});
  while (lines > 0 && !fits(lines)) lines /= 2;
  return lines;
}

void RunDots(int64_t threads, int64_t lines, Executor* executor, DotPlan* plan) {
  const int64_t batch = plan->call.batch, groups = plan->view.num_groups;
  plan->rows_per_task = std::min(kDotRowsPerTask, batch);
  int64_t ranges = 1;
  if (plan->call.patches != nullptr) {
    plan->rows_per_task = lines * plan->call.patches->x.out;
    const int64_t tasks = CeilDiv(batch, plan->rows_per_task);
    if (tasks < 2 * threads) ranges = CeilDiv(2 * threads, tasks);
  } else if (batch >= 16 * threads ||
             (batch >= 8 * threads && plan->pattern_bytes <= kSharedPatternBytes)) {
    const bool is_far = IsFar(plan->view) &&
                        kDotRowsPerTask * DotRowBytes(plan->view.type, plan->view.in_features) <=
                            static_cast<int64_t>(kScratchFloats * sizeof(float));
    const int64_t shares = is_far ? threads : 4 * threads;
    plan->rows_per_task = std::min(kDotRowsPerTask, CeilDiv(CeilDiv(batch, shares), 8) * 8);
    if (is_far) ranges = CeilDiv(4 * threads, CeilDiv(batch, plan->rows_per_task));
  } else if (threads > 1) {
    ranges = 2 * threads;
  }
  plan->groups_per_task = CeilDiv(groups, ranges);
  plan->group_ranges = CeilDiv(groups, plan->groups_per_task);
  static std::atomic<uint64_t> plans{0};
  plan->number = plans.fetch_add(1, std::memory_order_relaxed) + 1;
  const int64_t row_ranges = CeilDiv(batch, plan->rows_per_task);
  executor->Run(row_ranges * plan->group_ranges, threads, RunDotTask, plan,
                row_ranges == 1 ? SharedOut::kWeights : SharedOut::kRows);
}

// Of 16-bit numbers the dots' places take as much as the values: with one batch row, where reading
// them is all there is to it, windows are faster. From some 40 rows on tiles of float16 are, where
// there are such: on an Intel Xeon a layer of 236,000 weights took one core 150 us by dots at batch 16
// and 201 us by tiles of float32, at batch 64 476 us by dots and 379 us by tiles of float16. On an AMD
// EPYC, by dots of bfloat16, two such layers took 3.1 ms at batch 512, and 3.7 ms by tiles of float32.
constexpr int64_t kMostHalfRows = 40;

// Inputs as integers, for targets without dots.
struct QuantizePlan {
  MatMul call;  // whose rows of x8 are `pixels` each
  const Kernels* kernels;
  int64_t pixels;
  float *integers, *row_scales;
  int64_t rows_per_task;
};

// The same of inputs that are integers already; where a scale of one of its pixels is NaN, a row's is.
void ReadIntegers(const QuantizePlan& plan, int64_t row_begin, int64_t row_end) {
  const Quantized& x = plan.call.x8;
  const int64_t size = plan.call.in_features;
  for (int64_t i = row_begin * size; i < row_end * size; ++i) {
    plan.integers[i] = static_cast<float>(x.integers[i] - x.zero);
  }
  for (int64_t row = row_begin; row < row_end; ++row) {
    float scale = StepsOf(plan.call.range).scale;
    for (int64_t i = row * plan.pixels; i < (row + 1) * plan.pixels; ++i) {
      if (x.scales[i] != x.scales[i]) scale = x.scales[i];
    }
    plan.row_scales[row] = scale;
  }
}

void RunQuantizeTask(const void* context, int64_t task) {
  const QuantizePlan& plan = *static_cast<const QuantizePlan*>(context);
  const int64_t row = task * plan.rows_per_task;
  const int64_t row_end = std::min(row + plan.rows_per_task, plan.call.batch);
  if (plan.call.x8.integers != nullptr) return ReadIntegers(plan, row, row_end);
  plan.kernels->quantize(plan.call, row, row_end, plan.integers, plan.row_scales);
}

// Windows cost in proportion to the batch rows and to their padding, tiles of up to 16 rows the
// same for each number of rows. So many rows of unpadded windows cost as much as a tile.
constexpr int64_t kMaxWindowRows = 12;

// Batch rows that go through windows: none, or what is left when the others fill whole tiles.
int64_t WindowRows(const PackedLayer& layer, const Kernels& kernels, int64_t batch) {
  const int64_t rows = batch % kMaxLanes;
  if (kernels.window == nullptr || layer.window_pattern.size == 0 || rows > kMaxWindowRows) {
    return 0;
  }
  const size_t padded = layer.window_values.size, unpadded = layer.tile_values.size;
  return rows == 1 || padded / kMaxWindowRows * rows <= unpadded ? rows : 0;
}

// Weights times rows per thread: some 8 us of windows. With helpers that wait from the last call
// (see helper_pool.h), 236,000 weights at batch 1 took 19.5 us in a jitted call on two threads, 16.5 on
// three and 15.5 on four; with so many for so little, each is worth less than what it disturbs.
constexpr int64_t kWorkPerThread = 100000;

}  // namespace

int64_t ThreadsFor(double work, const Executor& executor) {
  const int64_t threads = std::max<int64_t>(executor.num_threads(), 1);
  return static_cast<int64_t>(
      std::min<double>(static_cast<double>(threads), 1.0 + work / kWorkPerThread));
}

bool WithinWidth(const int32_t* columns, int64_t num_columns, int64_t width) {
  uint32_t largest = 0;  // a negative one counts as large
  for (int64_t c = 0; c < num_columns; ++c) {
    largest = std::max(largest, static_cast<uint32_t>(columns[c]));
  }
  return num_columns == 0 || int64_t{largest} < width;
}

void SerialExecutor::Run(int64_t num_tasks, int64_t, void (*task)(const void*, int64_t),
                         const void* context, SharedOut) {
  for (int64_t i = 0; i < num_tasks; ++i) task(context, i);
}

namespace {

// The product by tiles and windows, of inputs as they are; with `half`, a dot pattern of float16,
// by tiles of float16.
const char* TileMatMul(const PackedLayer& layer, const MatMul& call, const DotView* half,
                       Executor* executor) {
  Plan plan = {};
  plan.call = call;
  plan.half_scales = half == nullptr ? nullptr : half->scales;
  plan.kernels = &CurrentKernels();
  if (call.columns != nullptr &&
      !WithinWidth(call.columns, call.num_columns, call.in_features)) {
    return "a column lies beyond x";
  }
  const int64_t inputs = call.columns == nullptr ? call.in_features : call.num_columns;

  const int64_t window_rows =
      call.patches == nullptr && call.columns == nullptr && call.row_scales == nullptr &&
              half == nullptr
          ? WindowRows(layer, *plan.kernels, call.batch)
          : 0;
  const bool use_windows = window_rows > 0;
  plan.tile_rows = call.batch - window_rows;

  // Only what this call reads is checked.
  const auto fits = [&call, inputs](const auto& view) {
    return view.in_features == inputs && view.out_features == call.out_features;
  };
  if (plan.tile_rows > 0 || !use_windows) {
    const char* error =
        ParseTile(layer.tile_pattern, layer.tile_values, layer.value_type, &plan.tiles);
    if (error != nullptr) return error;
    if (!fits(plan.tiles)) return "x, y and the tile pattern differ in their features";
    if (half != nullptr && half->num_active != plan.tiles.num_active) {
      return "the tile and the dot pattern differ in their active neurons";
    }
    if (half != nullptr && plan.tiles.is_paired) {
      return "tiles of float16 are for patterns whose rows are not paired";
    }
  }
  if (use_windows) {
    const char* error =
        ParseWindow(layer.window_pattern, layer.window_values, layer.value_type, &plan.windows);
    if (error != nullptr) return error;
    if (!fits(plan.windows)) return "x, y and the window pattern differ in their features";
  }

  const int64_t weights = std::max(layer.tile_values.size, layer.window_values.size) /
                          ValueBytes(layer.value_type);
  const double work = static_cast<double>(weights) * static_cast<double>(call.batch);
  const int64_t threads = ThreadsFor(work, *executor);
  if (plan.tile_rows > 0) {
    const bool is_tiled = call.x_is_tiled || call.residual_is_tiled || call.y_is_tiled;
    if (plan.tiles.num_active == 0) {
      if (is_tiled) return "activations in tiles are for layers with active neurons";
      plan.kernels->constant(call, 0, plan.tile_rows);
    } else {
      const int64_t segment = is_tiled ? call.patches->y.out * call.patches->x.out : plan.tile_rows;
      const int64_t lanes = half != nullptr ? kMaxLanes : TileLanes(plan.tiles.block_columns);
      plan.cut = PlanTiles(plan.tiles, call, plan.tile_rows, segment, lanes, threads);
    }
  }
  if (use_windows) {
    if (plan.windows.num_active == 0) {
      plan.kernels->constant(call, plan.tile_rows, call.batch);
    } else {
      PlanWindows(threads, &plan);
    }
  }
  FenceStreamed(call);  // constants
  const int64_t tasks = plan.cut.tasks + plan.window_tasks;
  if (tasks > 0) {
    executor->Run(tasks, threads, RunTask, &plan,
                  plan.cut.rows <= plan.cut.lanes ? SharedOut::kWeights : SharedOut::kRows);
  }
  return nullptr;
}

// Numbers that a task looks through for their range.
constexpr int64_t kRangePiece = 1 << 15;

struct RangePlan {
  const float* x;
  int64_t size, pieces;  // of an image
  void (*range_of)(const float*, int64_t, float*);
  float* ranges;  // [images, pieces, 2]
};

void RunRangeTask(const void* context, int64_t task) {
  const RangePlan& plan = *static_cast<const RangePlan*>(context);
  const int64_t begin = task % plan.pieces * kRangePiece;
  plan.range_of(plan.x + task / plan.pieces * plan.size + begin,
                std::min(kRangePiece, plan.size - begin), plan.ranges + 2 * task);
}

// Finds the range of each image that a convolution reads, which it then has as `image_ranges`.
const char* FindRanges(MatMul* call, std::unique_ptr<float[]>* ranges, Executor* executor) {
  const Patches& patches = *call->patches;
  const int64_t images = call->batch / (patches.y.out * patches.x.out);
  RangePlan plan = {call->x, patches.y.size * patches.x.size * patches.channels, 0,
                    CurrentKernels().range_of, nullptr};
  plan.pieces = CeilDiv(plan.size, kRangePiece);
  ranges->reset(new (std::nothrow) float[static_cast<size_t>(2 * images * (plan.pieces + 1))]);
  if (*ranges == nullptr) return "there is no memory for the ranges of its inputs";
  float* const whole = ranges->get();
  plan.ranges = whole + 2 * images;
  executor->Run(images * plan.pieces,
                ThreadsFor(static_cast<double>(images * plan.size) / 4, *executor), RunRangeTask,
                &plan);
  for (int64_t image = 0; image < images; ++image) {
    float low = 0, high = 0;
    for (int64_t i = image * plan.pieces; i < (image + 1) * plan.pieces; ++i) {
      const float *piece = plan.ranges + 2 * i;
      low = piece[0] >= low ? low : piece[0];  // NaN stays
      high = piece[1] <= high ? high : piece[1];
      if (low != low) break;
    }
    whole[2 * image] = low;
    whole[2 * image + 1] = high;
  }
  call->image_ranges = whole;
  return nullptr;
}

// Of inputs rounded to 8 bits, for targets without dots. The rows that have a scale are batch rows,
// of a convolution images.
const char* QuantizedTiles(const PackedLayer& layer, const MatMul& call, Executor* executor) {
  MatMul rows = call;
  int64_t pixels = 1, read = 1;  // of the outputs, and of x, to which a scale belongs
  if (const Patches* patches = call.patches) {
    read = patches->y.size * patches->x.size;
    pixels = patches->y.out * patches->x.out;
    rows.batch = call.batch / pixels;
    rows.in_features = patches->y.size * patches->x.size * patches->channels;
  }
  const size_t size = static_cast<size_t>(rows.batch) * static_cast<size_t>(rows.in_features);
  const std::unique_ptr<float[]> integers(new (std::nothrow) float[size + 1]);
  const std::unique_ptr<float[]> row_scales(
      new (std::nothrow) float[static_cast<size_t>(call.batch) + 1]);
  if (integers == nullptr || row_scales == nullptr) return "there is no memory for its inputs";
  QuantizePlan plan = {rows, &CurrentKernels(), read, integers.get(), row_scales.get(),
                       call.patches == nullptr ? 8 : 1};
  executor->Run(CeilDiv(rows.batch, plan.rows_per_task),
                ThreadsFor(static_cast<double>(size), *executor), RunQuantizeTask, &plan);
  for (int64_t row = call.batch - 1; pixels > 1 && row > 0; --row) {
    row_scales[row] = row_scales[row / pixels];
  }
  MatMul rounded = call;
  rounded.x8 = {};
  rounded.x = integers.get();
  rounded.row_scales = row_scales.get();
  return TileMatMul(layer, rounded, nullptr, executor);
}

}  // namespace

Steps StepsOf(float low, float high, bool has_nan) {
  const bool is_signed = low < 0;
  const float largest = !is_signed || high > -low ? high : -low;
  Steps steps = {largest / (is_signed ? 127.0f : 255.0f), 0.0f, is_signed ? -127.0f : 0.0f,
                 is_signed ? 127.0f : 255.0f};
  if (has_nan || !(steps.scale <= 3.0e38f)) {
    steps.scale = __builtin_nanf("");
  } else if (steps.scale < 1.2e-38f) {  // its inverse would be infinite
    steps.scale = 0;
  } else {
    steps.inverse = 1.0f / steps.scale;
  }
  return steps;
}

Steps StepsOf(const float* range) {
  return StepsOf(range[0] < 0 ? range[0] : 0, range[1] > 0 ? range[1] : 0,
                 range[0] != range[0] || range[1] != range[1]);
}

const char* CondensedMatMul(const PackedLayer& layer, const MatMul& call, Executor* executor) {
  if (call.batch < 0 || call.in_features < 0 || call.out_features < 0) {
    return "a size is negative";
  }
  if ((layer.value_type == ValueType::kInt8) != (call.scales != nullptr)) {
    return "weights of 8 bits have a scale for each output, and no others";
  }
  if (call.quantized && (call.columns != nullptr || layer.value_type != ValueType::kInt8)) {
    return "inputs can be rounded to 8 bits for weights of 8 bits, and for all columns, only";
  }
  if (call.x8.integers != nullptr && (!call.quantized || call.range == nullptr)) {
    return "inputs of 8 bits are for layers that round theirs within a range";
  }
  if (call.y8.integers != nullptr) {
    std::fill_n(call.y8.scales, call.batch, call.y8.steps.scale);  // kernels mark rows with NaN
  }
  const Kernels& kernels = CurrentKernels();
  MatMul ranged = call;
  ranged.streamed = IsStreamed(call);
  std::unique_ptr<float[]> ranges;
  if (call.quantized && call.patches != nullptr && call.range == nullptr && call.batch > 0) {
    const char* error = FindRanges(&ranged, &ranges, executor);
    if (error != nullptr) return error;
  }
  if (layer.dot_pattern.size > 0 && call.batch > 0) {
    DotPlan plan = {};
    plan.call = ranged;
    plan.call.scales = nullptr;  // the pattern has them
    if (const char* error = ParseDots(layer.dot_pattern, &plan.view)) return error;
    const DotView& view = plan.view;
    plan.pattern_bytes = static_cast<int64_t>(layer.dot_pattern.size);
    if (view.in_features != call.in_features || view.out_features != call.out_features) {
      return "x, y and the dot pattern differ in their features";
    }
    if ((view.type == DotType::kInt8) != call.quantized) {
      return "the dot pattern's numbers are of another type than the call's";
    }
    if (call.columns != nullptr) return "columns are chosen for tile patterns only";
    const bool is_half = view.type == DotType::kBFloat16 || view.type == DotType::kFloat16;
    const DotKernels& dots = CurrentDots();
    const bool by_halves = view.type == DotType::kFloat16 && dots.half_tile != nullptr &&
                           layer.value_type == ValueType::kBFloat16;
    if (is_half && (by_halves || HasSlowBFloat16()) && view.dense == nullptr &&
        call.patches == nullptr && call.batch > kMostHalfRows) {
      return TileMatMul(layer, ranged, by_halves ? &view : nullptr, executor);
    }
    plan.dots = dots.dots[static_cast<int>(view.type)];
    const bool by_windows = is_half && view.dense == nullptr && call.batch == 1 &&
                            kernels.window != nullptr && layer.window_pattern.size > 0;
    const int64_t lines =
        call.patches == nullptr ? 1 : DotLines(*call.patches, view.type, call.batch);
    const bool fits = lines > 0 && DotRowBytes(view.type, view.in_features) <=
                                       static_cast<int64_t>(kScratchFloats * sizeof(float));
    if (plan.dots != nullptr && fits && view.num_groups > 0 && !by_windows) {
      // A step reads twice as many bytes as one of windows, which has a weight for each lane.
      const double work = static_cast<double>(view.num_steps) * static_cast<double>(call.batch);
      RunDots(ThreadsFor(work * 2 * kGroupRows, *executor), lines, executor, &plan);
      return nullptr;
    }
  }
  if (!call.quantized || call.batch == 0) return TileMatMul(layer, ranged, nullptr, executor);
  return QuantizedTiles(layer, ranged, executor);
}

}  // namespace srigl
