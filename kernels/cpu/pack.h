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

// A sparse matrix whose row r is output active[r], with indices[begin[r]], ... as its inputs.
struct SparseRows {
  const int64_t* begin;    // [num_active + 1]
  const int32_t* indices;  // [begin[num_active]] ascending in each row
  const int32_t* active;   // [num_active] ascending
  int64_t num_active;
  int64_t in_features;
  int64_t out_features;
};

// Kinds of tile patterns: with rows in pairs, or for tiles of float16.
enum class Tiles { kPlain, kPaired, kHalf };

struct Pattern {
  std::vector<uint8_t> bytes;
  // For every packed value its place in the flat `values`, -1 where a packet is padded.
  std::vector<int64_t> sources;
  // For every packed value the column to embed in it; empty where values stay as they are.
  std::vector<uint8_t> embedded;
};

// What is wrong with the layer, or nothing. `active` and every row of `indices` must ascend without
// repetition.
std::string CheckCondensed(const Condensed& layer);

// All expect a layer that `CheckCondensed` accepts.
Pattern PackTiles(const Condensed& layer, Tiles tiles = Tiles::kPlain);

// With `embed`, the columns go into the values, which must be finite float32.
Pattern PackWindows(const Condensed& layer, bool embed);

// The dot pattern, values and all: of `type`, whose raw numbers stand where `layer.values` points,
// with a scale for each active neuron. Windows begin at multiples of `alignment` bytes, a power of two
// up to 32: see WindowAlignment. It is dense where that takes less, see DenseStepCost.
std::vector<uint8_t> PackDots(const Condensed& layer, DotType type, const float* scales,
                              int64_t alignment, double dense_step_cost);

// Rows of any length.
Pattern PackTiles(const SparseRows& layer, Tiles tiles = Tiles::kPlain);

// Whether pairs of rows share enough columns for kPaired, where registers are `width` floats.
bool PairsPay(const Condensed& layer, int64_t width);

// The tiles of the transpose, from neurons to inputs: its inputs are the active neurons as `active`
// numbers them, its outputs all inputs of the layer. Sizes depend on those of the layer only.
Pattern PackTransposedTiles(const Condensed& layer);

// The float32 with these lowest five bits that is nearest to a finite value: of a normal one it
// differs by at most 2**-19 of its size. 0 stays 0, whatever its column.
float Embed(float value, uint8_t column);

// Whether columns can be embedded: the values are finite float32.
bool CanEmbed(const Condensed& layer);

// The values that go with a pattern.
std::vector<uint8_t> GatherValues(const Condensed& layer, const Pattern& pattern);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_PACK_H_
