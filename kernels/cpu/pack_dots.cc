// Plans the steps of the dot pattern.

#include <string.h>

#include <algorithm>
#include <array>

#include "pack.h"
#include "pack_common.h"

namespace srigl {
namespace {

constexpr int kLaneBytes = kDotBytes / kGroupRows;

// Steps of one group of rows, left to right. The window must begin where it does, or little before, or
// an input that some row needs would be left behind; and rows of equal fan-in stay close together.
class DotPacker {
 public:
  DotPacker(const Condensed& layer, DotType type, int64_t alignment)
      : layer_(layer),
        size_(DotElementBytes(type)),
        window_(kDotBytes / size_),
        last_start_(std::max<int64_t>(layer.in_features - window_, 0)),
        // Rows that follow each other, and pixels, are aligned only if this divides them.
        unit_(layer.in_features * size_ % alignment == 0 ? std::max<int64_t>(alignment / size_, 1)
                                                           : 1) {}

  void Pack(int64_t group, std::vector<uint32_t>* starts, std::vector<DotStep>* steps) {
    const int64_t first = group * kGroupRows;
    const int rows =
        static_cast<int>(std::min<int64_t>(layer_.num_active - first, kGroupRows));
    std::array<int64_t, kGroupRows> next = {};  // weight of each row
    while (true) {
      int64_t start = layer_.in_features;
      for (int r = 0; r < rows; ++r) {
        if (next[r] < layer_.fan_in) start = std::min<int64_t>(start, Column(first + r, next[r]));
      }
      if (start == layer_.in_features) return;
      start = std::min(start / unit_ * unit_, last_start_);
      DotStep step = {};
      for (int r = 0; r < rows; ++r) Take(first + r, r, start, &next[r], &step);
      starts->push_back(static_cast<uint32_t>(start * size_));
      steps->push_back(step);
    }
  }

 private:
  int32_t Column(int64_t row, int64_t j) const {
    return layer_.indices[row * layer_.fan_in + j];
  }

  void Take(int64_t row, int lane, int64_t start, int64_t* next, DotStep* step) const {
    const auto* values = static_cast<const uint8_t*>(layer_.values);
    for (int at = lane * kLaneBytes; at < (lane + 1) * kLaneBytes; at += size_, ++*next) {
      if (*next == layer_.fan_in || Column(row, *next) >= start + window_) return;
      step->columns[at] = static_cast<uint8_t>(Column(row, *next) - start);
      memcpy(step->values + at, values + (row * layer_.fan_in + *next) * size_, size_);
    }
  }

  const Condensed& layer_;
  const int size_, window_;
  const int64_t last_start_;
  const int64_t unit_;  // windows begin at multiples of so many inputs
};

// The steps of a dense pattern.
std::vector<uint8_t> DenseValues(const Condensed& layer, DotType type) {
  const int64_t steps = DenseSteps(type, layer.in_features), size = DotElementBytes(type);
  std::vector<uint8_t> dense(CeilDiv(layer.num_active, kGroupRows) * steps * kDotBytes);
  for (int64_t row = 0; row < layer.num_active; ++row) {
    uint8_t* lane = dense.data() + row / kGroupRows * steps * kDotBytes +
                    row % kGroupRows * kLaneBytes;
    for (int64_t j = row * layer.fan_in; j < (row + 1) * layer.fan_in; ++j) {
      const int64_t byte = layer.indices[j] * size;
      memcpy(lane + byte / kLaneBytes * kDotBytes + byte % kLaneBytes,
             static_cast<const uint8_t*>(layer.values) + j * size, size);
    }
  }
  return dense;
}

}  // namespace

std::vector<uint8_t> PackDots(const Condensed& layer, DotType type, const float* scales,
                              int64_t alignment, double dense_step_cost) {
  const int64_t num_groups = CeilDiv(layer.num_active, kGroupRows);
  const int64_t dense_steps = DenseSteps(type, layer.in_features);
  std::vector<WindowGroup> groups(num_groups + 1);
  std::vector<uint16_t> masks;
  std::vector<float> row_scales(num_groups * kGroupRows);
  std::vector<int32_t> sums(num_groups * kGroupRows);
  std::vector<uint32_t> starts;
  std::vector<DotStep> steps;
  DotPacker packer(layer, type, alignment);
  for (int64_t g = 0; g <= num_groups; ++g) {
    groups[g].packet_begin = static_cast<int64_t>(steps.size());
    BeginGroup(layer, g, num_groups, &groups[g], &masks);
    if (g < num_groups && type != DotType::kFloat32) packer.Pack(g, &starts, &steps);
  }
  const bool dense = type == DotType::kFloat32 ||
                     static_cast<double>(steps.size()) >
                         dense_step_cost * static_cast<double>(num_groups * dense_steps);
  for (int64_t g = 0; dense && g <= num_groups; ++g) groups[g].packet_begin = g * dense_steps;
  for (int64_t row = 0; row < layer.num_active; ++row) {
    row_scales[row] = scales[row];
    for (int64_t j = row * layer.fan_in; type == DotType::kInt8 && j < (row + 1) * layer.fan_in;
         ++j) {
      sums[row] += static_cast<const int8_t*>(layer.values)[j];
    }
  }

  PatternHeader header = Header(layer, kDotMagic);
  header.block_columns = static_cast<int32_t>(type);
  header.is_embedded = dense;
  header.num_values = dense ? num_groups * dense_steps : static_cast<int64_t>(steps.size());
  header.num_masks = static_cast<int64_t>(masks.size());
  DotSections sections;
  if (!DotLayout(header, &sections)) return {};
  std::vector<uint8_t> bytes(sections.total);
  memcpy(bytes.data(), &header, sizeof(header));
  CopySection(groups, sections.groups, &bytes);
  CopySection(masks, sections.masks, &bytes);
  CopySection(row_scales, sections.scales, &bytes);
  CopySection(sums, sections.sums, &bytes);
  if (dense) {
    CopySection(DenseValues(layer, type), sections.steps, &bytes);
  } else {
    CopySection(starts, sections.starts, &bytes);
    CopySection(steps, sections.steps, &bytes);
  }
  return bytes;
}

}  // namespace srigl
