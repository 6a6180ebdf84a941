// Packs a condensed layer for the kernels: once, when a model is made or loaded.

#ifndef SRIGL_KERNELS_CPU_PACK_H_
#define SRIGL_KERNELS_CPU_PACK_H_

#include <stdint.h>

#include <string>
#include <vector>

#include "layout.h"

namespace srigl {

// A condensed layer: neuron active[a] is the sum over j of values[a, j] * x[indices[a, j]].
struct Condensed {
  const void* values;      // [num_active, fan_in]
  const int32_t* indices;  // [num_active, fan_in]
  const int32_t* active;   // [num_active] ascending
  ValueType value_type;
  int64_t num_active;
  int64_t fan_in;
  int64_t in_features;
  int64_t out_features;
};

struct Pattern {
  std::vector<uint8_t> bytes;
  // For every packed value its place in the flat `values`, -1 where a packet is padded.
  std::vector<int64_t> sources;
};

// What is wrong with the layer, or nothing. `active` and every row of `indices` must ascend without
// repetition.
std::string CheckCondensed(const Condensed& layer);

// Both expect a layer that `CheckCondensed` accepts.
Pattern PackTiles(const Condensed& layer);
Pattern PackWindows(const Condensed& layer);

// The values that go with a pattern.
std::vector<uint8_t> GatherValues(const Condensed& layer, const Pattern& pattern);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_PACK_H_
