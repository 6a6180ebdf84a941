// Fuzzes topology updates: see fuzz.cc. Inputs and gradients are small integers, so that dense
// gradients are exact and tie often.

#include <math.h>
#include <stdio.h>

#include <algorithm>
#include <random>
#include <set>
#include <tuple>
#include <vector>

#include "fuzz_common.h"
#include "topology.h"

namespace srigl {
namespace {

using Key = std::tuple<double, int64_t, int64_t>;  // minus the magnitude, input, neuron

std::set<Key> Largest(std::vector<Key> all, int64_t count) {
  std::sort(all.begin(), all.end());
  all.resize(std::min<int64_t>(count, all.size()));
  return {all.begin(), all.end()};
}

struct Layer {
  int64_t in, out, fan_in, batch, capacity, num_pruned, required;
  bool by_scores;
  std::vector<int32_t> active, indices;
  std::vector<float> values, x, g, scores;

  explicit Layer(Random* random) {
    in = Size(random, 1, 200);
    out = Size(random, 1, 150);
    batch = Uniform(random, 0, 9);
    const int64_t num_active = Uniform(random, 0, 3) == 0 ? Uniform(random, 1, out) : out;
    fan_in = Uniform(random, 0, in);
    active = Choose(random, out, num_active);
    const int64_t levels = Uniform(random, 0, 1) == 0 ? 3 : 1000;
    for (int64_t a = 0; a < num_active; ++a) {
      for (const int32_t index : Choose(random, in, fan_in)) {
        indices.push_back(index);
        values.push_back(static_cast<float>(Uniform(random, -levels, levels)));
      }
    }
    const int64_t used = num_active * fan_in;
    capacity = used + Uniform(random, 0, std::min<int64_t>(in * out - used, num_active));
    num_pruned = Uniform(random, 0, used);
    required = Uniform(random, 0, 2) == 0 ? 0 : Uniform(random, 1, std::max<int64_t>(fan_in, 1));
    const int64_t zeros = Uniform(random, 0, 4);
    const auto number = [&] {
      return Uniform(random, 0, 4) < zeros ? 0.0f : static_cast<float>(Uniform(random, -9, 9));
    };
    by_scores = Uniform(random, 0, 2) == 0;
    if (by_scores) batch = 0;
    for (int64_t i = 0; i < batch * in; ++i) x.push_back(number());
    for (int64_t i = 0; i < batch * out; ++i) g.push_back(number());
    for (int64_t i = 0; by_scores && i < in * out; ++i) scores.push_back(number());
  }

  double Gradient(int64_t input, int64_t neuron) const {
    if (by_scores) return scores[input * out + neuron];
    double sum = 0;
    for (int64_t b = 0; b < batch; ++b) sum += double{x[b * in + input]} * g[b * out + neuron];
    return sum;
  }

  // The connections of each neuron after the update, by sorting everything.
  std::vector<std::vector<int64_t>> Expected() const {
    std::vector<Key> stored, dense;
    for (size_t e = 0; e < values.size(); ++e) {
      if (values[e] != 0) stored.push_back({-fabs(values[e]), indices[e], active[e / fan_in]});
    }
    for (int64_t i = 0; i < in; ++i) {
      for (int64_t n = 0; n < out; ++n) dense.push_back({-fabs(Gradient(i, n)), i, n});
    }
    const int64_t used = values.size(), nonzero = stored.size();
    const int64_t num_kept = std::min(used - num_pruned, nonzero);
    std::set<Key> kept = Largest(stored, num_kept);
    std::vector<int64_t> salient(out);
    std::vector<bool> stays(out, true);
    if (required > 0) {
      std::set<std::pair<int64_t, int64_t>> both;
      for (const auto& [_, i, n] : kept) both.insert({i, n});
      for (const auto& [_, i, n] : Largest(dense, used - num_kept)) both.insert({i, n});
      for (const auto& [i, n] : both) ++salient[n];
      std::vector<int64_t> sorted(salient);
      std::sort(sorted.rbegin(), sorted.rend());
      const int64_t floor = sorted[std::min(capacity / in, out - 1)];
      for (int64_t n = 0; n < out; ++n) stays[n] = salient[n] >= std::min(required, floor);
      std::vector<Key> alive;
      for (const Key& key : stored) if (stays[std::get<2>(key)]) alive.push_back(key);
      kept = Largest(alive, num_kept);
    }
    const int64_t num_active = std::count(stays.begin(), stays.end(), true);
    const int64_t new_fan_in = capacity / num_active;
    std::vector<std::vector<int64_t>> rows(out);
    for (int64_t n = 0; n < out; ++n) {
      if (!stays[n]) continue;
      std::vector<Key> own, rest;
      std::set<int64_t> there;
      for (const Key& key : kept) {
        if (std::get<2>(key) != n) continue;
        own.push_back(key);
        there.insert(std::get<1>(key));
      }
      for (int64_t i = 0; i < in; ++i) {
        if (there.count(i) == 0) rest.push_back({-fabs(Gradient(i, n)), i, n});
      }
      for (const Key& key : Largest(own, new_fan_in)) rows[n].push_back(std::get<1>(key));
      const int64_t left = new_fan_in - static_cast<int64_t>(rows[n].size());
      for (const Key& key : Largest(rest, left)) rows[n].push_back(std::get<1>(key));
      std::sort(rows[n].begin(), rows[n].end());
    }
    return rows;
  }
};

}  // namespace

bool RunTopologyCase(uint64_t seed, int64_t* refused, int64_t* accepted) {
  Random random(seed);
  const Layer layer(&random);
  const bool wide = Uniform(&random, 0, 1) == 0;
  const std::vector<uint16_t> narrow(layer.indices.begin(), layer.indices.end());
  const Exact<uint16_t> indices16(narrow.data(), wide ? 0 : narrow.size());
  const Exact<int32_t> indices32(layer.indices.data(), wide ? layer.indices.size() : 0);
  const Exact<int32_t> active(layer.active.data(), layer.active.size());
  const Exact<float> values(layer.values.data(), layer.values.size());
  const Exact<float> x(layer.x.data(), layer.x.size()), g(layer.g.data(), layer.g.size());
  const Exact<float> scores(layer.scores.data(), layer.scores.size());
  const Exact<uint16_t> new16(wide ? 0 : layer.capacity);
  const Exact<int32_t> new32(wide ? layer.capacity : 0), new_active(layer.out), new_sizes(2);
  const Exact<int32_t> source(layer.capacity);
  TopologyUpdate update = {};
  update.values = values.data();
  update.indices = wide ? static_cast<const void*>(indices32.data()) : indices16.data();
  update.active = active.data();
  update.x = x.data();
  update.g = g.data();
  update.scores = layer.by_scores ? scores.data() : nullptr;
  update.capacity = layer.capacity;
  update.batch = layer.batch;
  update.in_features = layer.in;
  update.out_features = layer.out;
  update.num_active = layer.active.size();
  update.fan_in = layer.fan_in;
  update.num_pruned = layer.num_pruned;
  update.required = layer.required;
  update.wide_indices = wide;
  update.new_indices = wide ? static_cast<void*>(new32.data()) : new16.data();
  update.new_active = new_active.data();
  update.new_sizes = new_sizes.data();
  update.source = source.data();
  const auto expected = layer.Expected();
  SplitExecutor executor(Uniform(&random, 1, 9));
  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    const char* error = UpdateTopology(update, &executor);
    const int64_t num_active = new_sizes.data()[0], fan_in = new_sizes.data()[1];
    std::vector<std::vector<int64_t>> rows(layer.out);
    for (int64_t e = 0; error == nullptr && e < layer.capacity; ++e) {
      const int64_t input = wide ? new32.data()[e] : new16.data()[e], from = source.data()[e];
      if (e >= num_active * fan_in) {
        if (input != 0 || from != -1) error = "an entry that is not in use is not empty";
        continue;
      }
      const int32_t neuron = new_active.data()[e / fan_in];
      rows[neuron].push_back(input);
      int64_t old = -1;
      for (size_t o = 0; o < layer.values.size(); ++o) {
        if (layer.active[o / layer.fan_in] == neuron && layer.indices[o] == input) old = o;
      }
      if (from != old) error = "a connection comes from elsewhere";
    }
    if (error == nullptr && rows != expected) error = "another pattern";
    if (error != nullptr) {
      printf("seed %lu: update of %ld x %ld, fan-in %ld of %ld, batch %ld, required %ld, %s: %s\n",
             static_cast<unsigned long>(seed), static_cast<long>(layer.in),
             static_cast<long>(layer.out), static_cast<long>(layer.fan_in),
             static_cast<long>(layer.active.size()), static_cast<long>(layer.batch),
             static_cast<long>(layer.required), IsaName(static_cast<Isa>(isa)), error);
      return false;
    }
    for (int i = 0; i < 4; ++i) {  // what comes from the device, as it should not be
      const Exact<uint16_t> bad16(indices16.data(), indices16.size());
      const Exact<int32_t> bad32(indices32.data(), indices32.size());
      const Exact<int32_t> bad_active(active.data(), active.size());
      TopologyUpdate bad = update;
      bad.indices = wide ? static_cast<const void*>(bad32.data()) : bad16.data();
      bad.active = bad_active.data();
      if (!layer.indices.empty() && i < 2) {
        const int64_t e = Uniform(&random, 0, static_cast<int64_t>(layer.indices.size()) - 1);
        if (wide) bad32.data()[e] = static_cast<int32_t>(random());
        if (!wide) bad16.data()[e] = static_cast<uint16_t>(Uniform(&random, 0, layer.in));
      }
      if (i == 1 && active.size() > 0) {
        bad_active.data()[Uniform(&random, 0, active.size() - 1)] = static_cast<int32_t>(random());
      }
      if (i == 2) bad.num_pruned = Uniform(&random, -1, 2 * layer.values.size() + 1);
      if (i == 3) bad.fan_in = Uniform(&random, -1, layer.fan_in);
      ++*(UpdateTopology(bad, &executor) == nullptr ? accepted : refused);
    }
  }
  return true;
}

}  // namespace srigl
