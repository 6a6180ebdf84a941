// Fuzzes the plain C++ layer, to be compiled with AddressSanitizer and UBSan: random layers, batches
// and their gradients, packed and in training, on every CPU target against a double-precision
// reference, then the same layers
// with corrupted, truncated and exchanged packed buffers, which may give wrong numbers or an error
// but must not touch memory out of bounds. Every other case is a convolution.
//
//   srigl_fuzz [cases] [seed]

#include <stdlib.h>
#include <string.h>

#include "fuzz_common.h"

namespace srigl {
namespace {

// The largest error over what the rounding of so many products allows.
double Error(const Case& c, const float* x, const float* bias, const float* residual,
             const float* y) {
  const int64_t out = c.layer.out_features;
  double worst = 0;
  std::vector<double> sums(out), sizes(out);
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t o = 0; o < out; ++o) {
      sums[o] = c.has_bias ? bias[o] : 0.0;
      if (c.has_residual) sums[o] += residual[b * out + o];
      sizes[o] = fabs(sums[o]);
    }
    for (int64_t a = 0; a < c.layer.num_active; ++a) {
      for (int64_t j = a * c.layer.fan_in; j < (a + 1) * c.layer.fan_in; ++j) {
        const double product =
            double{c.values[j]} * x[b * c.layer.in_features + c.indices[j]];
        sums[c.active[a]] += product;
        sizes[c.active[a]] += fabs(product);
      }
    }
    for (int64_t o = 0; o < out; ++o) {
      const double error = fabs(y[b * out + o] - Activated(sums[o], c.activation));
      worst = std::max(worst, error / (1e-6 * (1 + sizes[o])));
      if (std::isnan(error)) return error;
    }
  }
  return worst;
}

// Dot patterns, whole and corrupted: whatever they hold, nothing beyond the buffers is touched. What
// they compute is tested from Python; here, that it is the same when threads help other calls. False if
// it is not.
bool FuzzDots(const Case& c, Random* random, const Exact<float>& x, int64_t* refused,
              int64_t* accepted) {
  const Condensed& layer = c.layer;
  const int64_t count = layer.num_active * layer.fan_in;
  std::vector<uint8_t> raw(4 * count);
  for (uint8_t& byte : raw) byte = static_cast<uint8_t>(Uniform(random, 0, 255));
  const Exact<float> scales(layer.out_features), range(2), y(c.batch * layer.out_features);
  const Exact<float> residual(c.has_residual ? y.size() : 0);
  std::fill_n(residual.data(), residual.size(), 0.25f);
  std::fill_n(scales.data(), scales.size(), 0.5f);
  range.data()[0] = -1;
  range.data()[1] = 2;
  const QuantizedRows x8(random, c.batch, layer.in_features, range.data());
  const QuantizedRows rows8(random, c.batch, layer.out_features, range.data());
  const QuantizedRows y8(random, c.batch, layer.out_features, range.data());
  const int64_t threads = Uniform(random, 1, 9);
  SplitExecutor executor(threads), alone(threads, false);
  for (int type = 0; type < kNumDotTypes; ++type) {
    const bool quantized = type == 0;
    Condensed numbers = layer;
    numbers.values = raw.data();
    const bool is_half = !quantized && type != static_cast<int>(DotType::kFloat32);
    numbers.value_type = quantized  ? ValueType::kInt8
                         : is_half ? ValueType::kBFloat16
                                   : ValueType::kFloat32;
    const Pattern tiles = PackTiles(numbers, is_half ? Tiles::kHalf : RandomTiles(random));
    const std::vector<uint8_t> tile_values = GatherValues(numbers, tiles);
    const std::vector<uint8_t> dots =
        PackDots(numbers, static_cast<DotType>(type), scales.data(),
                 Uniform(random, 0, 1) == 0 ? 1 : 32, Uniform(random, 0, 1) == 0 ? 0.4 : 0.7);
    for (int isa = 0; isa < kNumIsas; ++isa) {
      if (!SetIsa(static_cast<Isa>(isa))) continue;
      for (int i = 0; i < 4; ++i) {
        const Buffers buffers = {Copy(i == 3 ? Corrupt(random, tiles.bytes) : tiles.bytes),
                                 Copy(tile_values), Copy({}), Copy({})};
        const auto pattern = Copy(i % 3 == 0 ? dots : Corrupt(random, dots));
        PackedLayer packed = buffers.Layer(numbers.value_type);
        packed.dot_pattern = {pattern.data(), pattern.size()};
        MatMul call = {};
        call.x = x.data();
        call.y = y.data();
        call.batch = c.batch;
        call.in_features = layer.in_features;
        call.out_features = layer.out_features;
        call.activation = c.activation;
        call.scales = quantized ? scales.data() : nullptr;
        call.quantized = quantized;
        call.range = i == 2 ? range.data() : nullptr;
        call.residual = c.has_residual ? residual.data() : nullptr;
        if (Uniform(random, 0, 1)) {
          call.residual = nullptr;
          call.residual8 = rows8.Read();
        }
        const bool has_y8 = Uniform(random, 0, 1);
        if (has_y8) call.y8 = y8.Write();
        if (quantized && i % 2 == 1) {
          call.range = range.data();
          call.x = nullptr;
          call.x8 = x8.Read();
        }
        const bool ran = CondensedMatMul(packed, call, &executor) == nullptr;
        ++*(ran ? accepted : refused);
        if (!ran || has_y8 || i > 0 || y.size() == 0) continue;
        const std::vector<float> helping(y.data(), y.data() + y.size());
        CondensedMatMul(packed, call, &alone);
        if (memcmp(helping.data(), y.data(), y.size() * sizeof(float)) != 0) {
          printf("%s: dots of type %d change when threads help other calls\n", c.Name().c_str(),
                 type);
          return false;
        }
      }
    }
  }
  return true;
}

bool RunCase(uint64_t seed, int64_t* refused, int64_t* accepted) {
  Random random(seed);
  const int64_t in_features = Size(&random, 0, 1500), out_features = Size(&random, 0, 1300);
  const Case c(&random, in_features, out_features);
  const std::string invalid = CheckCondensed(c.layer);
  if (!invalid.empty()) {
    printf("seed %lu: %s: refused: %s\n", static_cast<unsigned long>(seed), c.Name().c_str(),
           invalid.c_str());
    return false;
  }
  const bool embed = CanEmbed(c.layer) && Uniform(&random, 0, 1) == 1;
  const Pattern tiles = PackTiles(c.layer, RandomTiles(&random));
  const Pattern windows = PackWindows(c.layer, embed);
  const std::vector<uint8_t> tile_values = GatherValues(c.layer, tiles);
  const std::vector<uint8_t> window_values = GatherValues(c.layer, windows);
  const Exact<float> x(c.batch * c.layer.in_features), bias(c.layer.out_features);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < x.size(); ++i) x.data()[i] = normal(random);
  for (size_t i = 0; i < bias.size(); ++i) bias.data()[i] = normal(random);
  const Exact<float> residual(c.has_residual ? c.batch * c.layer.out_features : 0);
  for (size_t i = 0; i < residual.size(); ++i) residual.data()[i] = normal(random);

  SplitExecutor executor(Uniform(&random, 1, 9));
  const auto multiply = [&](const Buffers& buffers, const Exact<float>& y) {
    MatMul call = {x.data(),     c.has_bias ? bias.data() : nullptr,
                   y.data(),     c.batch,
                   c.layer.in_features, c.layer.out_features,
                   c.activation};
    call.residual = c.has_residual ? residual.data() : nullptr;
    return CondensedMatMul(buffers.Layer(c.layer.value_type), call, &executor);
  };

  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    for (const bool with_windows : {true, false}) {
      const Buffers buffers = {
          Copy(tiles.bytes), Copy(tile_values),
          Copy(with_windows ? windows.bytes : std::vector<uint8_t>()),
          Copy(with_windows ? window_values : std::vector<uint8_t>())};
      const Exact<float> y(c.batch * c.layer.out_features);
      std::fill_n(y.data(), y.size(), NAN);  // every output must be written
      const char* error = multiply(buffers, y);
      const double worst =
          error == nullptr ? Error(c, x.data(), bias.data(), residual.data(), y.data()) : 0.0;
      // What embedding does to a weight, 2**-19 of it, is twice what the bound allows already.
      if (error != nullptr || !(worst <= (embed ? 3.0 : 1.0))) {
        printf("seed %lu: %s, %s: %s, error %.2f times the bound\n",
               static_cast<unsigned long>(seed), c.Name().c_str(),
               IsaName(static_cast<Isa>(isa)), error == nullptr ? "wrong" : error, worst);
        return false;
      }
    }
    for (int i = 0; i < 6; ++i) {
      std::vector<uint8_t> tile = tiles.bytes, window = windows.bytes;
      std::vector<uint8_t> tile_data = tile_values, window_data = window_values;
      switch (i) {
        case 0:
          tile = CorruptBody(&random, tile, UncheckedTileBegin(tile));
          window = CorruptBody(&random, window, UncheckedWindowBegin(window));
          break;
        case 1:
          std::swap(tile, window);
          std::swap(tile_data, window_data);
          break;
        case 2:
          tile_data.resize(Uniform(&random, 0, tile_data.size() + 8));
          window_data.resize(Uniform(&random, 0, window_data.size() + 8));
          break;
        default:
          tile = Corrupt(&random, tile);
          window = Corrupt(&random, window);
      }
      const Buffers buffers = {Copy(tile), Copy(tile_data), Copy(window), Copy(window_data)};
      const Exact<float> y(c.batch * c.layer.out_features);
      ++*(multiply(buffers, y) == nullptr ? accepted : refused);
    }
  }
  return FuzzDots(c, &random, x, refused, accepted) &&
         FuzzGradients(c, &random, seed, refused, accepted) &&
         FuzzTraining(c, &random, seed, refused, accepted);
}

}  // namespace
}  // namespace srigl

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? atoll(argv[1]) : 1000;
  const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : std::random_device()();
  printf("%ld cases from seed %lu\n", static_cast<long>(cases), static_cast<unsigned long>(seed));
  fflush(stdout);  // a sanitizer may end the process
  int64_t refused = 0, accepted = 0;
  for (uint64_t at = seed; at < seed + cases; ++at) {
    // By the seed of the case, not by its number: so it can be run again by itself.
    const auto run = at % 2 == 0 ? srigl::RunCase : srigl::RunConvCase;
    if (!run(at, &refused, &accepted) || !srigl::RunTopologyCase(at, &refused, &accepted) ||
        !srigl::RunAttentionCase(at) || !srigl::RunDepthwiseCase(at, &refused, &accepted) ||
        !srigl::RunMaxPoolCase(at, &refused, &accepted) || !srigl::RunTilePlanCase(at)) {
      printf("again: srigl_fuzz 1 %lu\n", static_cast<unsigned long>(at));
      return 1;
    }
  }
  printf("%ld cases without a finding; of the corrupted layers %ld were refused, %ld run.\n",
         static_cast<long>(cases), static_cast<long>(refused), static_cast<long>(accepted));
  return 0;
}
