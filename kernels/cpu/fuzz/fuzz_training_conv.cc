// Fuzzes the convolutions of layers in training: see fuzz.cc.

#include "fuzz_common.h"
#include "training_conv.h"

namespace srigl {
namespace {

// What a result should be, and the size of its terms.
struct Expected {
  std::vector<double> sums, sizes;

  explicit Expected(size_t size) : sums(size), sizes(size) {}
  void Add(size_t i, double product) {
    sums[i] += product;
    sizes[i] += fabs(product);
  }
  // The largest error over what rounding allows.
  double Worst(const float* got) const {
    double worst = 0;
    for (size_t i = 0; i < sums.size(); ++i) {
      const double error = fabs(got[i] - sums[i]);
      if (std::isnan(error)) return error;
      worst = std::max(worst, error / (1e-6 * (1 + sizes[i])));
    }
    return worst;
  }
};

const char* RunAll(const SparseConv& call, Executor* executor) {
  const char* error = SparseConvForward(call, executor);
  if (error == nullptr) error = SparseConvInputGradient(call, executor);
  if (error == nullptr) error = SparseConvValuesGradient(call, executor);
  return error;
}

}  // namespace

bool FuzzTrainingConv(const Case& c, const Conv& conv, Random* random, uint64_t seed,
                      int64_t* refused, int64_t* accepted) {
  const Patches& p = conv.patches;
  const int64_t fan_in = c.layer.fan_in, out = conv.out_features;
  const size_t x_size = conv.images * p.y.size * p.x.size * p.channels;
  const size_t y_size = conv.images * p.y.out * p.x.out * out;
  const bool wide = Uniform(random, 0, 2) == 0;
  const std::vector<uint16_t> narrow(c.indices.begin(), c.indices.end());
  const Exact<uint16_t> indices16(narrow.data(), wide ? 0 : narrow.size());
  const Exact<int32_t> indices32(c.indices.data(), wide ? c.indices.size() : 0);
  const Exact<int32_t> active(c.active.data(), c.active.size());
  const Exact<float> values(c.values.data(), c.values.size()), x(conv.x, x_size), g(y_size);
  const Exact<float> y(y_size), dx(x_size), dvalues(c.values.size());
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < y_size; ++i) g.data()[i] = normal(*random);

  Expected want_y(y_size), want_dx(x_size), want_dvalues(c.values.size());
  for (int64_t pixel = 0; pixel < conv.images * p.y.out * p.x.out; ++pixel) {
    const int64_t image = pixel / (p.y.out * p.x.out);
    const int64_t first_y = pixel / p.x.out % p.y.out * p.y.stride - p.y.padding;
    const int64_t first_x = pixel % p.x.out * p.x.stride - p.x.padding;
    for (size_t e = 0; e < c.values.size(); ++e) {
      const int64_t tap = c.indices[e] / p.channels, channel = c.indices[e] % p.channels;
      const int64_t in_y = first_y + tap / p.x.kernel * p.y.dilation;
      const int64_t in_x = first_x + tap % p.x.kernel * p.x.dilation;
      if (in_y < 0 || in_y >= p.y.size || in_x < 0 || in_x >= p.x.size) continue;
      const int64_t from = ((image * p.y.size + in_y) * p.x.size + in_x) * p.channels + channel;
      const int64_t to = pixel * out + c.active[e / fan_in];
      want_y.Add(to, double{c.values[e]} * x.data()[from]);
      want_dx.Add(from, double{c.values[e]} * g.data()[to]);
      want_dvalues.Add(e, double{x.data()[from]} * g.data()[to]);
    }
  }

  SparseConv call = {};
  call.values = values.data();
  call.indices = wide ? static_cast<const void*>(indices32.data()) : indices16.data();
  call.active = active.data();
  call.x = x.data();
  call.g = g.data();
  call.y = y.data();
  call.dx = dx.data();
  call.dvalues = dvalues.data();
  call.images = conv.images;
  call.out_features = out;
  call.num_active = c.layer.num_active;
  call.fan_in = fan_in;
  call.patches = p;
  call.padding_after[0] = conv.padding_after[0];
  call.padding_after[1] = conv.padding_after[1];
  call.wide_indices = wide;
  SplitExecutor executor(Uniform(random, 1, 9));
  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    for (const Exact<float>* result : {&y, &dx, &dvalues}) {  // all of it must be written
      std::fill_n(result->data(), result->size(), NAN);
    }
    const char* error = RunAll(call, &executor);
    const auto results = [&] {
      std::vector<float> all(y.data(), y.data() + y.size());
      all.insert(all.end(), dx.data(), dx.data() + dx.size());
      all.insert(all.end(), dvalues.data(), dvalues.data() + dvalues.size());
      return all;
    };
    const std::vector<float> before = results();
    SerialExecutor serial;
    if (error == nullptr) error = RunAll(call, &serial);
    if (error == nullptr && results() != before) error = "other sums with other threads";
    const double worst[] = {want_y.Worst(y.data()), want_dx.Worst(dx.data()),
                            want_dvalues.Worst(dvalues.data())};
    if (error != nullptr || !(worst[0] <= 1.0) || !(worst[1] <= 1.0) || !(worst[2] <= 1.0)) {
      printf("seed %lu: convolution in training of %s, %ld images, %ld channels, %s: %s, errors "
             "%.2f, %.2f and %.2f times the bound\n",
             static_cast<unsigned long>(seed), c.Name().c_str(), static_cast<long>(conv.images),
             static_cast<long>(p.channels), IsaName(static_cast<Isa>(isa)),
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
                                  : Uniform(random, 0, c.layer.in_features);
        if (wide) bad32.data()[e] = static_cast<int32_t>(index);
        if (!wide) bad16.data()[e] = static_cast<uint16_t>(index);
      }
      if (i == 3 && active.size() > 0) {
        bad_active.data()[Uniform(random, 0, active.size() - 1)] =
            static_cast<int32_t>((*random)());
      }
      SparseConv bad = call;
      bad.indices = wide ? static_cast<const void*>(bad32.data()) : bad16.data();
      bad.active = bad_active.data();
      if (i == 2) bad.fan_in = Uniform(random, -1, fan_in);
      if (i == 1) bad.num_active = Uniform(random, -1, call.num_active);
      if (i == 0) {
        Conv disturbed = conv;
        Disturb(random, &disturbed);
        bad.patches = disturbed.patches;
        bad.padding_after[0] = disturbed.padding_after[0];
        bad.padding_after[1] = disturbed.padding_after[1];
      }
      ++*(SparseConvForward(bad, &executor) == nullptr ? accepted : refused);
      ++*(SparseConvInputGradient(bad, &executor) == nullptr ? accepted : refused);
      ++*(SparseConvValuesGradient(bad, &executor) == nullptr ? accepted : refused);
    }
  }
  return true;
}

}  // namespace srigl
