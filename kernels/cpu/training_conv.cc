#include "training_conv.h"

#include <string.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "conv.h"
#include "training.h"

namespace srigl {
namespace {

// ---- the matrix in blocks ----

struct Matrix {
  BlockedRows view;
  std::vector<int64_t> starts;
  std::vector<BlockRow> rows;
  std::vector<uint16_t> columns;
  std::unique_ptr<float[]> values;
  std::vector<int64_t> places;  // of the entries, as they are stored in the layer; if asked for
};

constexpr int64_t kWideBlockBytes = 40 << 10, kNarrowBlockBytes = 48 << 10;  // of 48 KB caches
constexpr double kFewEntries = 5;    // of a row in a block: then blocks of twice the inputs are faster
constexpr int64_t kPanelBytes = 256 << 10;  // sums of a panel's rows
constexpr int64_t kStageChannels = 16;      // a line of memory

// Lines that a tile of so many pixels reads at most.
double TileLines(const Patches& patches, int64_t lanes) {
  const Axis& y = patches.y;
  const double reach = static_cast<double>(y.kernel - 1) * static_cast<double>(y.dilation) + 1;
  const auto stride = static_cast<double>(y.stride);
  const int64_t lines = (lanes - 1) / patches.x.out + 2;
  const int64_t images = (lanes - 1) / (patches.x.out * y.out) + 2;
  return static_cast<double>(images - 1) * std::max(reach - stride, 0.0) +
         static_cast<double>(lines - 1) * stride + reach;
}

// Chooses blocks of channels if a tile of them can be staged.
void PlanChannels(const Patches& patches, int64_t bytes, BlockedRows* view) {
  const int64_t taps = patches.y.kernel * patches.x.kernel;
  if (taps == 1) return;
  int64_t channels = kStageChannels;
  while (channels > 1 && channels * taps * view->lanes * 4 > bytes) channels /= 2;
  const double width = static_cast<double>(patches.x.out - 1) * static_cast<double>(patches.x.stride) +
                       static_cast<double>(patches.x.kernel - 1) *
                           static_cast<double>(patches.x.dilation) + 1;
  const double line = width + static_cast<double>(patches.x.stride);  // as whole phases
  if ((TileLines(patches, view->lanes) * line + 16) * kStageChannels > kStageFloats) return;
  if (channels * taps > 0xffff) return;
  view->block_channels = channels;
  view->stage_channels = kStageChannels;
  view->block_inputs = channels * taps;
  view->num_blocks = CeilDiv(patches.channels, channels);
}

// How to cut a matrix of so many entries that is applied to such patches.
BlockedRows PlanBlocks(const Patches& patches, int64_t num_rows, int64_t num_entries,
                       int64_t ranges) {
  BlockedRows view = {};
  view.num_rows = num_rows;
  view.num_inputs = patches.y.kernel * patches.x.kernel * patches.channels;
  const int64_t width = CurrentKernels().width;
  const auto cut = [&](int64_t lanes, int64_t bytes) {
    view.lanes = lanes;
    view.block_inputs = bytes / (lanes * 4);
    view.num_blocks = CeilDiv(view.num_inputs, view.block_inputs);
    PlanChannels(patches, bytes, &view);
  };
  cut(8 * width, kWideBlockBytes);
  const double in_block = static_cast<double>(num_entries) * static_cast<double>(view.block_inputs) /
                          (static_cast<double>(num_rows) * static_cast<double>(view.num_inputs) + 1);
  if (in_block < kFewEntries) {
    view.block_channels = view.stage_channels = 0;
    cut(4 * width, kNarrowBlockBytes);
  }
  const int64_t most = std::max<int64_t>(kPanelBytes / (view.lanes * 4), 1);
  view.panel_rows = std::max<int64_t>(std::min(CeilDiv(num_rows, ranges), most), 1);
  view.num_panels = CeilDiv(num_rows, view.panel_rows);
  return view;
}

// Sorts the entries that `visit(callback)` shows, always the same, as (row, input, place), into
// panels and blocks. In a row of a block they stay in the order in which they were shown.
template <typename Visit>
Matrix Block(const BlockedRows& plan, const Patches& patches, const float* values,
             const Visit& visit) {
  Matrix matrix;
  BlockedRows& view = matrix.view;
  view = plan;
  const int64_t tables = view.num_panels * view.num_blocks, cells = tables * view.panel_rows;
  // Where an input and a row lie: looked up, as divisions would take longer than all the rest.
  struct Input {
    int64_t cell;
    uint16_t column;
  };
  std::vector<Input> inputs(view.num_inputs);
  const int64_t taps = patches.y.kernel * patches.x.kernel;
  for (int64_t i = 0, tap = 0, channel = 0; i < view.num_inputs; ++i) {
    const int64_t place = view.block_channels == 0 ? i : channel * taps + tap;
    const int64_t block = place / view.block_inputs;
    inputs[i] = {block * view.panel_rows,
                 static_cast<uint16_t>(place - block * view.block_inputs)};
    if (++channel == patches.channels) {
      channel = 0;
      ++tap;
    }
  }
  std::vector<int64_t> row_cells(view.num_rows);
  for (int64_t r = 0; r < view.num_rows; ++r) {
    const int64_t panel = r / view.panel_rows;
    row_cells[r] = panel * view.num_blocks * view.panel_rows + r - panel * view.panel_rows;
  }
  std::vector<int64_t> next(cells);
  visit([&](int64_t row, int64_t input, int64_t) { ++next[row_cells[row] + inputs[input].cell]; });
  matrix.rows.resize(cells);
  matrix.starts.resize(tables + 1);
  std::vector<int64_t> first(view.block_inputs + 2);  // by count; more than inputs if any is double
  int64_t total = 0;
  for (int64_t t = 0; t < tables; ++t) {
    int64_t* counts = next.data() + t * view.panel_rows;
    const auto place_of = [&](int64_t count) { return std::min(count, view.block_inputs + 1); };
    std::fill(first.begin(), first.end(), 0);
    for (int64_t i = 0; i < view.panel_rows; ++i) ++first[place_of(counts[i])];
    for (int64_t i = 0, sum = 0; i < static_cast<int64_t>(first.size()); ++i) {
      sum += first[i];
      first[i] = sum - first[i];
    }
    BlockRow* rows = matrix.rows.data() + t * view.panel_rows;
    for (int64_t i = 0; i < view.panel_rows; ++i) {
      rows[first[place_of(counts[i])]++] = {static_cast<int32_t>(i),
                                            static_cast<int32_t>(counts[i])};
    }
    matrix.starts[t] = total;
    for (int64_t i = 0; i < view.panel_rows; ++i) {
      counts[rows[i].row] = total;
      total += rows[i].count;
    }
  }
  matrix.starts[tables] = total;
  matrix.columns.resize(total + 8);
  if (values != nullptr) matrix.values.reset(new float[total]);
  if (values == nullptr) matrix.places.resize(total);
  visit([&](int64_t row, int64_t input, int64_t place) {
    const int64_t to = next[row_cells[row] + inputs[input].cell]++;
    matrix.columns[to] = inputs[input].column;
    if (values != nullptr) {
      matrix.values[to] = values[place];
    } else {
      matrix.places[to] = place;
    }
  });
  view.starts = matrix.starts.data();
  view.rows = matrix.rows.data();
  view.columns = matrix.columns.data();
  view.values = matrix.values.get();
  return matrix;
}

// Shows `callback(neuron number, index, place)` all entries of the layer.
template <typename Index, typename Callback>
void VisitEntries(const SparseConv& call, const Callback& callback) {
  const Index* indices = static_cast<const Index*>(call.indices);
  for (int64_t a = 0, e = 0; a < call.num_active; ++a) {
    for (int64_t j = 0; j < call.fan_in; ++j, ++e) callback(a, int64_t{indices[e]}, e);
  }
}

template <typename Callback>
void Visit(const SparseConv& call, const Callback& callback) {
  call.wide_indices ? VisitEntries<int32_t>(call, callback)
                    : VisitEntries<uint16_t>(call, callback);
}

// The layer's own matrix: neurons times the inputs of a patch.
Matrix BlockNeurons(const SparseConv& call, bool with_values, int64_t ranges) {
  return Block(PlanBlocks(call.patches, call.num_active, call.num_active * call.fan_in, ranges),
               call.patches, with_values ? call.values : nullptr,
               [&call](const auto& callback) { Visit(call, callback); });
}

// ---- tasks ----

// Pixels of a task, few enough for all threads to end at about the same time.
constexpr int64_t kTaskPixels = 2048;
constexpr int64_t kTasksPerThread = 4;

// In how many ranges the rows are cut so that all threads work, each with some pixels.
int64_t Ranges(int64_t pixels, int64_t threads) {
  const int64_t tasks = std::max<int64_t>(CeilDiv(pixels, 8 * CurrentKernels().width), 1);
  return tasks >= 2 * threads ? 1 : CeilDiv(2 * threads, tasks);
}

int64_t Threads(const SparseConv& call, int64_t pixels, const Executor& executor) {
  return ThreadsFor(static_cast<double>(call.num_active) * static_cast<double>(call.fan_in) *
                        static_cast<double>(pixels),
                    executor);
}

size_t ScratchFloats(const BlockedRows& view) {
  return static_cast<size_t>(view.panel_rows + 2 + view.block_inputs + 16) *
             static_cast<size_t>(view.lanes) +
         kStageFloats;
}

struct Plan {
  const void* call;
  int64_t pixels, task_pixels, panels;
};

void RunProducts(const void* context, int64_t task) {
  const Plan& plan = *static_cast<const Plan*>(context);
  const ConvProducts& call = *static_cast<const ConvProducts*>(plan.call);
  const int64_t begin = task / plan.panels * plan.task_pixels;
  CurrentKernels().conv_products(call, begin, std::min(begin + plan.task_pixels, plan.pixels),
                                 task % plan.panels, TrainingScratch(call.scratch_floats));
}

void Multiply(ConvProducts* call, const BlockedRows& view, int64_t pixels, int64_t threads,
              Executor* executor) {
  call->matrix = &view;
  call->scratch_floats = ScratchFloats(view);
  const int64_t wanted = CeilDiv(pixels, kTasksPerThread * threads);
  const int64_t task = std::min(CeilDiv(wanted, view.lanes) * view.lanes, kTaskPixels);
  const Plan plan = {call, pixels, task, view.num_panels};
  executor->Run(CeilDiv(pixels, task) * plan.panels, threads, RunProducts, &plan);
}

// ---- the gradient in the inputs ----

// The inputs y with (y + padding) % stride == phase, along one axis: which of the kernel's taps reach
// them, and the convolution of g by which they do.
struct Phase {
  Axis axis;        // kernel 0: no tap reaches them
  Placement place;
  int64_t first_tap, tap_step;

  // The number of the tap in the phase's convolution, which goes through them backwards; or -1.
  int64_t TapOf(int64_t tap) const {
    const int64_t steps = tap - first_tap;
    if (axis.kernel == 0 || steps < 0 || steps % tap_step != 0) return -1;
    return axis.kernel - 1 - steps / tap_step;
  }
};

// The phase of which `first` is the first input.
Phase PhaseOf(const Axis& axis, int64_t first) {
  const int64_t stride = axis.stride, common = std::gcd(stride, axis.dilation);
  const int64_t phase = ((first + axis.padding) % stride + stride) % stride;
  const int64_t count = CeilDiv(axis.size - first, stride);
  Phase result = {};
  result.tap_step = stride / common;
  result.place = {axis.size, first, stride};
  result.axis.size = axis.out;
  result.axis.out = count;
  result.axis.stride = 1;
  result.axis.dilation = axis.dilation / common;
  int64_t tap = 0;
  while (tap < std::min(axis.kernel, result.tap_step) && tap * axis.dilation % stride != phase) {
    ++tap;
  }
  if (tap >= std::min(axis.kernel, result.tap_step)) return result;
  result.first_tap = tap;
  result.axis.kernel = CeilDiv(axis.kernel - tap, result.tap_step);
  // Input first + q * stride is read by output q + shift through the first tap, and by earlier ones
  // through the next.
  const int64_t shift = (first + axis.padding - tap * axis.dilation) / stride;  // exact
  result.axis.padding = (result.axis.kernel - 1) * result.axis.dilation - shift;
  return result;
}

std::vector<Phase> PhasesOf(const Axis& axis) {
  std::vector<Phase> phases;
  for (int64_t first = 0; first < std::min(axis.size, axis.stride); ++first) {
    phases.push_back(PhaseOf(axis, first));
  }
  return phases;
}

// Shows `callback(channel, input, place)` the entries whose taps belong to the phases: the rows are
// the image's channels, the inputs (tap of the phase, neuron).
template <typename Callback>
void VisitTransposed(const SparseConv& call, const std::vector<int64_t>& taps,
                     const Callback& callback) {
  const int64_t channels = call.patches.channels;
  int64_t tap = 0, begin = 0;
  Visit(call, [&](int64_t a, int64_t index, int64_t place) {
    if (index < begin || index >= begin + channels) {  // entries ascend, so a division is rare
      tap = index / channels;
      begin = tap * channels;
    }
    if (taps[tap] >= 0) {
      callback(index - begin, taps[tap] * call.out_features + call.active[a], place);
    }
  });
}

// ---- checks ----

template <typename Index>
bool AreInside(const SparseConv& call, int64_t num_inputs) {
  const Index* indices = static_cast<const Index*>(call.indices);
  bool inside = true;
  for (int64_t e = 0; e < call.num_active * call.fan_in; ++e) {
    inside &= indices[e] >= 0 && indices[e] < num_inputs;
  }
  return inside;
}

const char* Check(const SparseConv& call, int64_t* pixels, int64_t* inputs) {
  const char* error =
      CheckPatches(call.patches, call.padding_after, call.images, pixels, inputs);
  if (error != nullptr) return error;
  error = CheckPattern({call.active, call.num_active, call.fan_in, *inputs, call.out_features,
                        call.wide_indices});
  if (error != nullptr) return error;
  const bool inside =
      call.wide_indices ? AreInside<int32_t>(call, *inputs) : AreInside<uint16_t>(call, *inputs);
  return inside ? nullptr : "an index lies beyond the inputs";
}

}  // namespace

const char* SparseConvForward(const SparseConv& call, Executor* executor) {
  int64_t pixels, inputs;
  if (const char* error = Check(call, &pixels, &inputs)) return error;
  if (pixels == 0 || call.out_features == 0) return nullptr;
  if (call.num_active == 0) {
    memset(call.y, 0, pixels * call.out_features * sizeof(float));
    return nullptr;
  }
  const int64_t threads = Threads(call, pixels, *executor);
  const Matrix matrix = BlockNeurons(call, true, Ranges(pixels, threads));
  ConvProducts products = {};
  products.source = call.x;
  products.patches = call.patches;
  products.outputs = call.active;
  products.out_features = call.out_features;
  products.out = call.y;
  products.y = {call.patches.y.out, 0, 1};
  products.x = {call.patches.x.out, 0, 1};
  Multiply(&products, matrix.view, pixels, threads, executor);
  return nullptr;
}

const char* SparseConvInputGradient(const SparseConv& call, Executor* executor) {
  int64_t pixels, inputs;
  if (const char* error = Check(call, &pixels, &inputs)) return error;
  const Axis &y = call.patches.y, &x = call.patches.x;
  const int64_t channels = call.patches.channels;
  const int64_t size = call.images * y.size * x.size * channels;
  if (size == 0) return nullptr;
  const int64_t threads = Threads(call, pixels, *executor);
  std::vector<int32_t> outputs(channels);
  std::iota(outputs.begin(), outputs.end(), 0);
  const bool any = pixels > 0 && call.num_active * call.fan_in > 0;
  const std::vector<Phase> phases_y = any ? PhasesOf(y) : std::vector<Phase>();
  const std::vector<Phase> phases_x = any ? PhasesOf(x) : std::vector<Phase>();
  const auto is_idle = [](const Phase& phase) { return phase.axis.kernel == 0; };
  if (!any || std::any_of(phases_y.begin(), phases_y.end(), is_idle) ||
      std::any_of(phases_x.begin(), phases_x.end(), is_idle)) {
    memset(call.dx, 0, size * sizeof(float));  // no task writes the pixels of idle phases
  }
  std::vector<int64_t> taps(any ? y.kernel * x.kernel : 0);
  for (const Phase& phase_y : phases_y) {
    for (const Phase& phase_x : phases_x) {
      if (is_idle(phase_y) || is_idle(phase_x)) continue;
      for (int64_t tap = 0; tap < y.kernel * x.kernel; ++tap) {
        const int64_t tap_y = phase_y.TapOf(tap / x.kernel), tap_x = phase_x.TapOf(tap % x.kernel);
        taps[tap] = tap_y < 0 || tap_x < 0 ? -1 : tap_y * phase_x.axis.kernel + tap_x;
      }
      const int64_t phase_taps = phase_y.axis.kernel * phase_x.axis.kernel;
      const int64_t phase_pixels = call.images * phase_y.axis.out * phase_x.axis.out;
      const double share = static_cast<double>(phase_taps) / static_cast<double>(taps.size());
      const auto entries = static_cast<int64_t>(
          share * static_cast<double>(call.num_active) * static_cast<double>(call.fan_in));
      ConvProducts products = {};
      products.source = call.g;
      products.patches = {phase_y.axis, phase_x.axis, call.out_features};
      const Matrix matrix = Block(
          PlanBlocks(products.patches, channels, entries, Ranges(phase_pixels, threads)),
          products.patches, call.values,
          [&](const auto& callback) { VisitTransposed(call, taps, callback); });
      products.outputs = outputs.data();
      products.out_features = channels;
      products.out = call.dx;
      products.y = phase_y.place;
      products.x = phase_x.place;
      Multiply(&products, matrix.view, phase_pixels, threads, executor);
    }
  }
  return nullptr;
}

namespace {

// Pixels are cut into a fixed number of parts, each with sums of its own.
constexpr int64_t kParts = 8;

struct DotsPlan {
  ConvDots call;
  int64_t pixels, part_pixels;
  int64_t entries;
  float* sums;  // [parts, entries]
};

void RunDots(const void* context, int64_t task) {
  const DotsPlan& plan = *static_cast<const DotsPlan*>(context);
  const BlockedRows& matrix = *plan.call.matrix;
  const int64_t part = task / matrix.num_panels, panel = task % matrix.num_panels;
  ConvDots call = plan.call;
  call.dvalues = plan.sums + part * plan.entries;
  const int64_t first = matrix.starts[panel * matrix.num_blocks];
  const int64_t last = matrix.starts[(panel + 1) * matrix.num_blocks];
  memset(call.dvalues + first, 0, (last - first) * sizeof(float));
  const int64_t begin = part * plan.part_pixels;
  CurrentKernels().conv_dots(call, begin, std::min(begin + plan.part_pixels, plan.pixels), panel,
                             TrainingScratch(call.scratch_floats));
}

}  // namespace

const char* SparseConvValuesGradient(const SparseConv& call, Executor* executor) {
  int64_t pixels, inputs;
  if (const char* error = Check(call, &pixels, &inputs)) return error;
  const int64_t entries = call.num_active * call.fan_in;
  if (entries == 0) return nullptr;
  if (pixels == 0) {
    memset(call.dvalues, 0, entries * sizeof(float));
    return nullptr;
  }
  const int64_t threads = Threads(call, pixels, *executor);
  const int64_t unit = 8 * CurrentKernels().width;
  const int64_t part = CeilDiv(CeilDiv(pixels, kParts), unit) * unit, parts = CeilDiv(pixels, part);
  const Matrix matrix =
      BlockNeurons(call, false, parts >= 2 * threads ? 1 : CeilDiv(2 * threads, parts));
  const BlockedRows& view = matrix.view;
  const std::unique_ptr<float[]> sums(new float[parts * entries]);
  DotsPlan plan = {};
  plan.call.source = call.x;
  plan.call.patches = call.patches;
  plan.call.matrix = &view;
  plan.call.outputs = call.active;
  plan.call.out_features = call.out_features;
  plan.call.g = call.g;
  plan.call.scratch_floats = ScratchFloats(view);
  plan.pixels = pixels;
  plan.part_pixels = part;
  plan.entries = entries;
  plan.sums = sums.get();
  executor->Run(parts * view.num_panels, threads, RunDots, &plan);
  for (int64_t p = 1; p < parts; ++p) {
    const float* more = sums.get() + p * entries;
    for (int64_t e = 0; e < entries; ++e) sums[e] += more[e];
  }
  for (int64_t e = 0; e < entries; ++e) call.dvalues[matrix.places[e]] = sums[e];
  return nullptr;
}

}  // namespace srigl
