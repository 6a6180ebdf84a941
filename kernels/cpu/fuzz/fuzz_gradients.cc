// Fuzzes the gradients: see fuzz.cc.

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <random>
#include <vector>

#include "fuzz_common.h"
#include "gradients.h"
#include "pack.h"

namespace srigl {
namespace {

// What the kernels should compute, and the sum of the magnitudes that were added up for it.
struct Expected {
  std::vector<double> dx, dx_sizes, dvalues, dvalues_sizes;
};

Expected Reference(const Case& c, const float* g, const float* x) {
  const int64_t in = c.layer.in_features, out = c.layer.out_features, fan_in = c.layer.fan_in;
  Expected e;
  e.dx.resize(c.batch * in);
  e.dx_sizes.resize(c.batch * in);
  e.dvalues.resize(c.indices.size());
  e.dvalues_sizes.resize(c.indices.size());
  for (int64_t b = 0; b < c.batch; ++b) {
    for (size_t s = 0; s < c.indices.size(); ++s) {
      const double from_above = g[b * out + c.active[s / fan_in]];
      const int64_t input = b * in + c.indices[s];
      e.dx[input] += from_above * c.values[s];
      e.dx_sizes[input] += fabs(from_above * c.values[s]);
      e.dvalues[s] += from_above * x[input];
      e.dvalues_sizes[s] += fabs(from_above * x[input]);
    }
  }
  return e;
}

// The largest error over what rounding allows.
double Worst(const Exact<float>& actual, const std::vector<double>& expected,
             const std::vector<double>& sizes) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = fabs(actual.data()[i] - expected[i]);
    if (std::isnan(error)) return error;
    worst = std::max(worst, error / (1e-6 * (1 + sizes[i])));
  }
  return worst;
}

// All that the gradients of a layer read, each buffer its own allocation.
struct Inputs {
  Exact<uint8_t> tiles, transposed, values;
  Exact<int32_t> active, sources;
};

Exact<int32_t> Copy32(const std::vector<int32_t>& from) { return {from.data(), from.size()}; }

// Three gradients in a row, on buffers of exactly their sizes.
struct Call {
  const Case& c;
  const Exact<float>& g;
  const Exact<float>& x;
  SplitExecutor executor;

  const char* Pack(const Inputs& in, const Exact<uint8_t>& packed) {
    const int64_t count = static_cast<int64_t>(packed.size() / ValueBytes(c.layer.value_type));
    return PackValues(in.values.bytes(), c.layer.value_type, in.sources.data(), count,
                      packed.data(), &executor);
  }
  const char* Input(const Inputs& in, const Exact<uint8_t>& packed, const Exact<float>& dx) {
    const InputGradient call = {g.data(),
                                in.active.data(),
                                dx.data(),
                                c.batch,
                                c.layer.in_features,
                                c.layer.out_features,
                                static_cast<int64_t>(in.active.size())};
    return CondensedInputGradient(in.transposed.bytes(), packed.bytes(), c.layer.value_type, call,
                                  &executor);
  }
  const char* Values(const Inputs& in, int64_t fan_in, const Exact<float>& dvalues) {
    const ValuesGradient call = {g.data(),
                                 x.data(),
                                 in.active.data(),
                                 dvalues.data(),
                                 c.batch,
                                 c.layer.in_features,
                                 c.layer.out_features,
                                 static_cast<int64_t>(in.active.size()),
                                 fan_in};
    return CondensedValuesGradient(in.tiles.bytes(), call, &executor);
  }
};

// Integers as they should not be: of any size, or of the right size in another order.
std::vector<int32_t> CorruptIntegers(Random* random, std::vector<int32_t> integers) {
  if (integers.empty()) return integers;
  if (Uniform(random, 0, 2) == 0) {
    std::shuffle(integers.begin(), integers.end(), *random);
    integers.resize(Uniform(random, 0, static_cast<int64_t>(integers.size())));
    return integers;
  }
  const int64_t last = static_cast<int64_t>(integers.size()) - 1;
  for (int64_t i = Uniform(random, 1, 8); i > 0; --i) {
    integers[Uniform(random, 0, last)] = static_cast<int32_t>((*random)());
  }
  return integers;
}

}  // namespace

bool FuzzGradients(const Case& c, Random* random, uint64_t seed, int64_t* refused,
                   int64_t* accepted) {
  const Pattern tiles = PackTiles(c.layer, RandomTiles(random));
  const Pattern transposed = PackTransposedTiles(c.layer);
  const std::vector<int32_t> sources(transposed.sources.begin(), transposed.sources.end());
  const size_t num_weights = c.indices.size(), bytes = ValueBytes(c.layer.value_type);
  const Exact<float> g(c.batch * c.layer.out_features), x(c.batch * c.layer.in_features);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < g.size(); ++i) g.data()[i] = normal(*random);
  for (size_t i = 0; i < x.size(); ++i) x.data()[i] = normal(*random);
  const Expected expected = Reference(c, g.data(), x.data());
  const std::vector<uint8_t> packed = GatherValues(c.layer, transposed);
  const Exact<uint8_t> values(c.layer.values, num_weights * bytes);
  Call call = {c, g, x, SplitExecutor(Uniform(random, 1, 9))};

  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    const Inputs good = {Copy(tiles.bytes), Copy(transposed.bytes), {values.data(), values.size()},
                         Copy32(c.active), Copy32(sources)};
    const Exact<uint8_t> ordered(packed.size());
    const Exact<float> dx(x.size()), dvalues(num_weights);
    std::fill_n(dx.data(), dx.size(), NAN);  // every output must be written
    std::fill_n(dvalues.data(), dvalues.size(), NAN);
    const char* error = call.Pack(good, ordered);
    if (error == nullptr && !std::equal(packed.begin(), packed.end(), ordered.data())) {
      error = "values are packed wrongly";
    }
    if (error == nullptr) error = call.Input(good, ordered, dx);
    if (error == nullptr) error = call.Values(good, c.layer.fan_in, dvalues);
    const double worst_dx = Worst(dx, expected.dx, expected.dx_sizes);
    const double worst_dvalues = Worst(dvalues, expected.dvalues, expected.dvalues_sizes);
    if (error != nullptr || !(worst_dx <= 1.0) || !(worst_dvalues <= 1.0)) {
      printf("seed %lu: gradients of %s, %s: %s, errors %.2f and %.2f times the bound\n",
             static_cast<unsigned long>(seed), c.Name().c_str(), IsaName(static_cast<Isa>(isa)),
             error == nullptr ? "wrong" : error, worst_dx, worst_dvalues);
      return false;
    }
    for (int i = 0; i < 6; ++i) {
      std::vector<uint8_t> tile = tiles.bytes, transpose = transposed.bytes;
      std::vector<int32_t> active = c.active, order = sources;
      size_t num_packed = num_weights, num_values = num_weights;
      switch (i) {
        case 0:
          tile = CorruptBody(random, tile, UncheckedTileBegin(tile));
          transpose = CorruptBody(random, transpose, UncheckedTileBegin(transpose));
          break;
        case 1:
          std::swap(tile, transpose);
          break;
        case 2:
          active = CorruptIntegers(random, active);
          order = CorruptIntegers(random, order);
          num_packed = order.size();
          num_values = Uniform(random, 0, num_weights);
          break;
        default:
          tile = Corrupt(random, tile);
          transpose = Corrupt(random, transpose);
      }
      const Inputs bad = {Copy(tile), Copy(transpose), {values.data(), num_values * bytes},
                          Copy32(active), Copy32(order)};
      const Exact<uint8_t> some(num_packed * bytes);
      const int64_t fan_in = c.layer.fan_in + (Uniform(random, 0, 9) == 0 ? 1 : 0);
      const Exact<float> dsome(active.size() * fan_in);
      ++*(call.Pack(bad, some) == nullptr ? accepted : refused);
      ++*(call.Input(bad, some, dx) == nullptr ? accepted : refused);
      ++*(call.Values(bad, fan_in, dsome) == nullptr ? accepted : refused);
    }
  }
  return true;
}

}  // namespace srigl
