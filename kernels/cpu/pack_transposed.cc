#include <numeric>
#include <vector>

#include "pack.h"

namespace srigl {

Pattern PackTransposedTiles(const Condensed& layer) {
  const int64_t num_weights = layer.num_active * layer.fan_in;
  std::vector<int64_t> begin(layer.in_features + 1);
  for (int64_t s = 0; s < num_weights; ++s) ++begin[layer.indices[s] + 1];
  std::partial_sum(begin.begin(), begin.end(), begin.begin());

  std::vector<int64_t> next(begin.begin(), begin.end() - 1), sources(num_weights);
  std::vector<int32_t> neurons(num_weights), inputs(layer.in_features);
  for (int64_t s = 0; s < num_weights; ++s) {
    const int64_t place = next[layer.indices[s]]++;
    neurons[place] = static_cast<int32_t>(s / layer.fan_in);
    sources[place] = s;
  }
  // An input without weights is a row like any other: so the pattern's size is known beforehand.
  std::iota(inputs.begin(), inputs.end(), 0);
  Pattern pattern = PackTiles(SparseRows{begin.data(), neurons.data(), inputs.data(),
                                         layer.in_features, layer.num_active, layer.in_features});
  for (int64_t& source : pattern.sources) source = sources[source];
  return pattern;
}

}  // namespace srigl
