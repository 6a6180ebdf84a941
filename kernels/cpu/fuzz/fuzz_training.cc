// Fuzzes the kernels of layers in training: see fuzz.cc.

#include <math.h>
#include <stdio.h>

#include <algorithm>
#include <random>
#include <vector>

#include "fuzz_common.h"
#include "training.h"

namespace srigl {
namespace {

// Activations, in buffers of exactly their size.
struct Activations {
  bool bfloat16;
  std::vector<float> numbers;
  Exact<float> floats;
  Exact<uint16_t> halves;

  Activations(Random* random, size_t size, bool half)
      : bfloat16(half), numbers(size), floats(half ? 0 : size), halves(half ? size : 0) {
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < size; ++i) {
      const float number = normal(*random);
      numbers[i] = half ? FromBFloat16(ToBFloat16(number)) : number;
      if (half) halves.data()[i] = ToBFloat16(number);
      if (!half) floats.data()[i] = number;
    }
  }
  void* data() const { return bfloat16 ? static_cast<void*>(halves.data()) : floats.data(); }
  float Get(size_t i) const { return bfloat16 ? FromBFloat16(halves.data()[i]) : floats.data()[i]; }
  void Spoil() {
    std::fill_n(floats.data(), floats.size(), NAN);
    std::fill_n(halves.data(), halves.size(), 0x7fc0);
  }
};

// The largest error over what rounding allows.
template <typename Get>
double Worst(const std::vector<double>& expected, const std::vector<double>& sizes, bool bfloat16,
             const Get& get) {
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double error = fabs(get(i) - expected[i]);
    if (std::isnan(error)) return error;
    const double rounding = bfloat16 ? fabs(expected[i]) / 256 : 0;
    worst = std::max(worst, error / (1e-6 * (1 + sizes[i]) + rounding));
  }
  return worst;
}

}  // namespace

bool FuzzTraining(const Case& c, Random* random, uint64_t seed, int64_t* refused,
                  int64_t* accepted) {
  const int64_t in = c.layer.in_features, out = c.layer.out_features, fan_in = c.layer.fan_in;
  const bool half = Uniform(random, 0, 2) == 0, wide = Uniform(random, 0, 2) == 0;
  const std::vector<uint16_t> narrow(c.indices.begin(), c.indices.end());
  const Exact<uint16_t> indices16(narrow.data(), wide ? 0 : narrow.size());
  const Exact<int32_t> indices32(c.indices.data(), wide ? c.indices.size() : 0);
  const Exact<int32_t> active(c.active.data(), c.active.size());
  const Exact<float> values(c.values.data(), c.values.size()), bias(out);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < out; ++i) bias.data()[i] = normal(*random);
  const Activations x(random, c.batch * in, half), g(random, c.batch * out, half);
  Activations y(random, c.batch * out, half), dx(random, c.batch * in, half);
  const Exact<float> dvalues(c.values.size());

  std::vector<double> want_y(c.batch * out), want_dx(c.batch * in), want_dvalues(c.values.size());
  std::vector<double> size_y(want_y), size_dx(want_dx), size_dvalues(want_dvalues);
  const auto add = [](double product, double* sum, double* size) {
    *sum += product;
    *size += fabs(product);
  };
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t o = 0; c.has_bias && o < out; ++o) {
      want_y[b * out + o] = bias.data()[o];
      size_y[b * out + o] = fabs(want_y[b * out + o]);
    }
    for (size_t e = 0; e < c.values.size(); ++e) {
      const int64_t input = b * in + c.indices[e], neuron = b * out + c.active[e / fan_in];
      const double value = c.values[e];
      add(value * x.numbers[input], &want_y[neuron], &size_y[neuron]);
      add(value * g.numbers[neuron], &want_dx[input], &size_dx[input]);
      add(double{x.numbers[input]} * g.numbers[neuron], &want_dvalues[e], &size_dvalues[e]);
    }
  }

  Training call = {};
  call.values = values.data();
  call.indices = wide ? static_cast<const void*>(indices32.data()) : indices16.data();
  call.active = active.data();
  call.x = x.data();
  call.g = g.data();
  call.bias = c.has_bias ? bias.data() : nullptr;
  call.y = y.data();
  call.dx = dx.data();
  call.dvalues = dvalues.data();
  call.batch = c.batch;
  call.in_features = in;
  call.out_features = out;
  call.num_active = c.layer.num_active;
  call.fan_in = fan_in;
  call.wide_indices = wide;
  call.bfloat16 = half;
  SplitExecutor executor(Uniform(random, 1, 9));
  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    y.Spoil();  // every result must be written
    dx.Spoil();
    std::fill_n(dvalues.data(), dvalues.size(), NAN);
    const char* error = TrainingForward(call, &executor);
    if (error == nullptr) error = TrainingInputGradient(call, &executor);
    if (error == nullptr) error = TrainingValuesGradient(call, &executor);
    // The order of sums does not depend on the number of threads.
    const auto results = [&] {
      std::vector<float> all(dvalues.data(), dvalues.data() + dvalues.size());
      for (size_t i = 0; i < want_y.size(); ++i) all.push_back(y.Get(i));
      for (size_t i = 0; i < want_dx.size(); ++i) all.push_back(dx.Get(i));
      return all;
    };
    const std::vector<float> before = results();
    SerialExecutor serial;
    TrainingForward(call, &serial);
    TrainingInputGradient(call, &serial);
    TrainingValuesGradient(call, &serial);
    if (error == nullptr && results() != before) error = "other sums with other threads";
    const double worst[] = {
        Worst(want_y, size_y, half, [&](size_t i) { return y.Get(i); }),
        Worst(want_dx, size_dx, half, [&](size_t i) { return dx.Get(i); }),
        Worst(want_dvalues, size_dvalues, false, [&](size_t i) { return dvalues.data()[i]; })};
    if (error != nullptr || !(worst[0] <= 1.0) || !(worst[1] <= 1.0) || !(worst[2] <= 1.0)) {
      printf("seed %lu: training of %s, %s indices, %s activations, %s: %s, errors %.2f, %.2f and "
             "%.2f times the bound\n",
             static_cast<unsigned long>(seed), c.Name().c_str(), wide ? "wide" : "narrow",
             half ? "bfloat16" : "float32", IsaName(static_cast<Isa>(isa)),
             error == nullptr ? "wrong" : error, worst[0], worst[1], worst[2]);
      return false;
    }
    // Indices, neurons and sizes come from the device: as they should not be.
    for (int i = 0; i < 4; ++i) {
      const Exact<uint16_t> bad16(indices16.data(), indices16.size());
      const Exact<int32_t> bad32(indices32.data(), indices32.size());
      const Exact<int32_t> bad_active(active.data(), active.size());
      for (int64_t n = Uniform(random, 1, 4); n > 0 && !c.indices.empty(); --n) {
        const int64_t e = Uniform(random, 0, static_cast<int64_t>(c.indices.size()) - 1);
        const int64_t index = Uniform(random, 0, 1) == 0
                                  ? static_cast<int64_t>((*random)())
                                  : Uniform(random, 0, in);  // perhaps only in the wrong order
        if (wide) bad32.data()[e] = static_cast<int32_t>(index);
        if (!wide) bad16.data()[e] = static_cast<uint16_t>(index);
      }
      if (i == 3 && active.size() > 0) {
        bad_active.data()[Uniform(random, 0, active.size() - 1)] =
            static_cast<int32_t>((*random)());
      }
      Training bad = call;
      bad.indices = wide ? static_cast<const void*>(bad32.data()) : bad16.data();
      bad.active = bad_active.data();
      if (i == 2) bad.fan_in = Uniform(random, -1, fan_in);
      if (i == 1) bad.num_active = Uniform(random, -1, call.num_active);
      ++*(TrainingForward(bad, &executor) == nullptr ? accepted : refused);
      ++*(TrainingInputGradient(bad, &executor) == nullptr ? accepted : refused);
      ++*(TrainingValuesGradient(bad, &executor) == nullptr ? accepted : refused);
    }
  }
  return true;
}

}  // namespace srigl
