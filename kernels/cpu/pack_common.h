// What packing tiles and packing windows share.

#ifndef SRIGL_KERNELS_CPU_PACK_COMMON_H_
#define SRIGL_KERNELS_CPU_PACK_COMMON_H_

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <vector>

#include "layout.h"

namespace srigl {

template <typename T>
T* Section(std::vector<uint8_t>* bytes, size_t begin) {
  return reinterpret_cast<T*>(bytes->data() + begin);
}

template <typename Layer>
PatternHeader Header(const Layer& layer, uint32_t magic) {
  PatternHeader header = {};
  header.magic = magic;
  header.in_features = static_cast<int32_t>(layer.in_features);
  header.out_features = static_cast<int32_t>(layer.out_features);
  header.num_active = static_cast<int32_t>(layer.num_active);
  return header;
}

// First output that a range of rows beginning with `row` owns: ablated neurons belong to the
// active one before them, and those before the first to the first.
template <typename Layer>
int32_t OutputBegin(const Layer& layer, int64_t row) {
  if (row == 0) return 0;
  return row < layer.num_active ? layer.active[row] : static_cast<int32_t>(layer.out_features);
}

// Says where a group of rows begins in the outputs and in `masks`, to which it adds its own; the
// entry after the last group closes the ranges.
template <typename Layer>
void BeginGroup(const Layer& layer, int64_t g, int64_t num_groups, WindowGroup* group,
                std::vector<uint16_t>* masks) {
  group->mask_begin = static_cast<int64_t>(masks->size());
  group->output_begin = num_groups > 0 ? OutputBegin(layer, g * kGroupRows) : 0;
  if (g == num_groups) return;
  int64_t a = g * kGroupRows;
  const int64_t end = OutputBegin(layer, (g + 1) * kGroupRows);
  for (int64_t o = group->output_begin; o < end; o += kGroupRows) {
    uint16_t mask = 0;
    const int64_t stop = o + kGroupRows < end ? o + kGroupRows : end;
    for (; a < layer.num_active && layer.active[a] < stop; ++a) {
      mask = static_cast<uint16_t>(mask | 1u << (layer.active[a] - o));
    }
    masks->push_back(mask);
  }
}

template <typename Item>
void CopySection(const std::vector<Item>& items, size_t begin, std::vector<uint8_t>* bytes) {
  if (!items.empty()) memcpy(bytes->data() + begin, items.data(), items.size() * sizeof(Item));
}

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_PACK_COMMON_H_
