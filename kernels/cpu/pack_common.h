// What packing tiles and packing windows share.

#ifndef SRIGL_KERNELS_CPU_PACK_COMMON_H_
#define SRIGL_KERNELS_CPU_PACK_COMMON_H_

#include <stddef.h>
#include <stdint.h>

#include <vector>

#include "layout.h"

namespace srigl {

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_PACK_COMMON_H_
