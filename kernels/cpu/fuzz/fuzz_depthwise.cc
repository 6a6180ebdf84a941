// Fuzzes depthwise convolutions: see fuzz.cc.

#include "depthwise.h"
#include "fuzz_common.h"

namespace srigl {
namespace {

// The largest error over what the rounding of so many products allows.
double DepthwiseError(const Conv& conv, const float* kernel) {
  const Patches& p = conv.patches;
  double worst = 0;
  for (int64_t i = 0; i < conv.images * p.y.out * p.x.out * p.channels; ++i) {
    const int64_t channel = i % p.channels, pixel = i / p.channels;
    const int64_t image = pixel / (p.y.out * p.x.out);
    double sum = conv.bias == nullptr ? 0.0 : conv.bias[channel];
    if (conv.residual != nullptr) sum += conv.residual[i];
    double size = fabs(sum);
    for (int64_t tap = 0; tap < p.y.kernel * p.x.kernel; ++tap) {
      const int64_t y = pixel / p.x.out % p.y.out * p.y.stride - p.y.padding +
                        tap / p.x.kernel * p.y.dilation;
      const int64_t x =
          pixel % p.x.out * p.x.stride - p.x.padding + tap % p.x.kernel * p.x.dilation;
      if (y < 0 || y >= p.y.size || x < 0 || x >= p.x.size) continue;
      const double product = double{kernel[tap * p.channels + channel]} *
                             conv.x[((image * p.y.size + y) * p.x.size + x) * p.channels + channel];
      sum += product;
      size += fabs(product);
    }
    const double error = fabs(conv.out[i] - Activated(sum, conv.activation));
    if (std::isnan(error)) return error;
    worst = std::max(worst, error / (1e-6 * (1 + size)));
  }
  return worst;
}

}  // namespace

bool RunDepthwiseCase(uint64_t seed, int64_t* refused, int64_t* accepted) {
  Random random(seed);
  Conv conv = {};
  const Window y = RandomAxis(&random), x = RandomAxis(&random);
  conv.patches.y = y.axis;
  conv.patches.x = x.axis;
  conv.padding_after[0] = y.padding_after;
  conv.padding_after[1] = x.padding_after;
  conv.patches.channels = conv.out_features = Size(&random, 0, 300);
  conv.images = Uniform(&random, 0, 5);
  const int64_t taps = y.axis.kernel * x.axis.kernel;
  while (conv.images * y.axis.out * x.axis.out * conv.out_features * taps > 500000) --conv.images;
  conv.activation =
      static_cast<Activation>(Uniform(&random, 0, static_cast<int>(Activation::kLast)));
  const auto normal = [&](int64_t size) {
    std::normal_distribution<float> distribution;
    Exact<float> numbers(size);
    for (int64_t i = 0; i < size; ++i) numbers.data()[i] = distribution(random);
    return numbers;
  };
  const int64_t size = conv.images * y.axis.out * x.axis.out * conv.out_features;
  const Exact<float> input =
      normal(conv.images * y.axis.size * x.axis.size * conv.patches.channels);
  const Exact<float> kernel = normal(taps * conv.out_features), bias = normal(conv.out_features);
  const Exact<float> residual = normal(size);
  conv.x = input.data();
  if (Uniform(&random, 0, 1)) conv.bias = bias.data();
  if (Uniform(&random, 0, 1)) conv.residual = residual.data();
  SplitExecutor executor(Uniform(&random, 1, 9));
  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    const Exact<float> out(size);
    std::fill_n(out.data(), out.size(), NAN);  // every output must be written
    conv.out = out.data();
    const char* error = DepthwiseConv(conv, kernel.data(), &executor);
    const double worst = error == nullptr ? DepthwiseError(conv, kernel.data()) : 0.0;
    if (error != nullptr || !(worst <= 1.0)) {
      printf("seed %lu: depthwise, %ld channels, %s: %s, error %.2f times the bound\n",
             static_cast<unsigned long>(seed), static_cast<long>(conv.out_features),
             IsaName(static_cast<Isa>(isa)), error == nullptr ? "wrong" : error, worst);
      return false;
    }
    Conv call = conv;
    Disturb(&random, &call);
    call.patches.y.kernel = conv.patches.y.kernel;  // those of the weights
    call.patches.x.kernel = conv.patches.x.kernel;
    ++*(DepthwiseConv(call, kernel.data(), &executor) == nullptr ? accepted : refused);
  }
  return true;
}

}  // namespace srigl
