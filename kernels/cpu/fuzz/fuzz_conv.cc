// The convolutions of the fuzzer; see fuzz.cc.

#include "activation_tiles.h"
#include "conv.h"
#include "fuzz_common.h"

namespace srigl {
namespace {

// The largest error over what the rounding of so many products allows.
double ConvError(const Case& c, const Conv& conv) {
  const Patches& p = conv.patches;
  double worst = 0;
  const int64_t pixels = conv.images * p.y.out * p.x.out;
  std::vector<double> sums(conv.out_features), sizes(conv.out_features);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    const int64_t image = pixel / (p.y.out * p.x.out);
    const int64_t first_y = pixel / p.x.out % p.y.out * p.y.stride - p.y.padding;
    const int64_t first_x = pixel % p.x.out * p.x.stride - p.x.padding;
    for (int64_t o = 0; o < conv.out_features; ++o) {
      sums[o] = conv.bias == nullptr ? 0.0 : conv.bias[o];
      if (conv.residual != nullptr) sums[o] += conv.residual[pixel * conv.out_features + o];
      sizes[o] = fabs(sums[o]);
    }
    for (int64_t a = 0; a < c.layer.num_active; ++a) {
      for (int64_t j = a * c.layer.fan_in; j < (a + 1) * c.layer.fan_in; ++j) {
        const int64_t tap = c.indices[j] / p.channels, channel = c.indices[j] % p.channels;
        const int64_t y = first_y + tap / p.x.kernel * p.y.dilation;
        const int64_t x = first_x + tap % p.x.kernel * p.x.dilation;
        if (y < 0 || y >= p.y.size || x < 0 || x >= p.x.size) continue;
        const double product =
            double{c.values[j]} *
            conv.x[((image * p.y.size + y) * p.x.size + x) * p.channels + channel];
        sums[c.active[a]] += product;
        sizes[c.active[a]] += fabs(product);
      }
    }
    for (int64_t o = 0; o < conv.out_features; ++o) {
      const double got = conv.out[pixel * conv.out_features + o];
      const double error = fabs(got - Activated(sums[o], conv.activation));
      worst = std::max(worst, error / (1e-6 * (1 + sizes[o])));
      if (std::isnan(error)) return error;
    }
  }
  return worst;
}

std::string Name(const Case& c, const Conv& conv) {
  char name[200];
  const auto describe = [](const Axis& axis) {
    char text[100];
    snprintf(text, sizeof(text), "%ld->%ld k%ld s%ld d%ld p%ld", static_cast<long>(axis.size),
             static_cast<long>(axis.out), static_cast<long>(axis.kernel),
             static_cast<long>(axis.stride), static_cast<long>(axis.dilation),
             static_cast<long>(axis.padding));
    return std::string(text);
  };
  snprintf(name, sizeof(name), ", %ld images, %ld channels, y %s, x %s",
           static_cast<long>(conv.images), static_cast<long>(conv.patches.channels),
           describe(conv.patches.y).c_str(), describe(conv.patches.x).c_str());
  return c.Name() + name;
}

// Images [image, pixel, channel] in tiles, or back: `to_tiles` says which of both is written.
void Turn(const ActivationTiles& tiles, int64_t images, float* rows, float* tiled, bool to_tiles) {
  for (int64_t i = 0; i < images * tiles.pixels; ++i) {
    const auto place = tiles.At(i / tiles.pixels, i % tiles.pixels);
    for (int64_t c = 0; c < tiles.channels; ++c) {
      float &row = rows[i * tiles.channels + c], &tile = tiled[place.offset + c * place.stride];
      (to_tiles ? tile : row) = to_tiles ? row : tile;
    }
  }
}

// Activations in tiles, some or all of them, and corrupted patterns with them.
bool FuzzTiledConv(const Case& c, const Conv& conv, const Pattern& pattern,
                   const std::vector<uint8_t>& values, Random* random, Executor* executor,
                   int64_t* refused, int64_t* accepted) {
  const Patches& p = conv.patches;
  const ActivationTiles in = {p.y.size * p.x.size, p.channels};
  const ActivationTiles out = {p.y.out * p.x.out, conv.out_features};
  if (conv.images == 0 || c.layer.num_active == 0 || in.ImageFloats() == 0 ||
      out.ImageFloats() == 0) {
    return true;
  }
  const size_t out_size = static_cast<size_t>(conv.images * out.pixels * out.channels);
  const Exact<float> x(conv.images * in.ImageFloats());
  const Exact<float> residual(conv.residual == nullptr ? 0 : conv.images * out.ImageFloats());
  std::fill_n(x.data(), x.size(), 7.0f);  // beyond the pixels of a tile
  Turn(in, conv.images, const_cast<float*>(conv.x), x.data(), true);
  if (conv.residual != nullptr) {
    Turn(out, conv.images, const_cast<float*>(conv.residual), residual.data(), true);
  }
  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    for (int i = 0; i < 4; ++i) {
      Conv call = conv;
      call.x_is_tiled = Uniform(random, 0, 1);
      call.out_is_tiled = Uniform(random, 0, 1);
      call.residual_is_tiled = conv.residual != nullptr && Uniform(random, 0, 3) > 0;
      const bool fits = conv.residual == nullptr || call.residual_is_tiled || !call.out_is_tiled;
      const Exact<float> y(call.out_is_tiled ? conv.images * out.ImageFloats() : out_size);
      const Exact<float> rows(out_size);
      std::fill_n(y.data(), y.size(), NAN);
      call.x = call.x_is_tiled ? x.data() : conv.x;
      call.residual = call.residual_is_tiled ? residual.data() : conv.residual;
      call.out = y.data();
      const Buffers buffers = {Copy(i < 2 ? pattern.bytes : Corrupt(random, pattern.bytes)),
                               Copy(values), Copy({}), Copy({})};
      const char* error = CondensedConv(buffers.Layer(c.layer.value_type), call, executor);
      if (i >= 2 || (!fits && error != nullptr)) {
        ++*(error == nullptr ? accepted : refused);
        continue;
      }
      if (call.out_is_tiled) Turn(out, conv.images, rows.data(), y.data(), false);
      Conv plain = conv;
      plain.out = call.out_is_tiled ? rows.data() : y.data();
      const double worst = error == nullptr ? ConvError(c, plain) : 0.0;
      if (error == nullptr && worst <= 1.0 && fits) continue;
      printf("%s in tiles (%d %d %d), %s: %s, error %.2f times the bound\n", Name(c, conv).c_str(),
             call.x_is_tiled, call.residual_is_tiled, call.out_is_tiled,
             IsaName(static_cast<Isa>(isa)), error == nullptr ? "wrong" : error, worst);
      return false;
    }
  }
  return true;
}

// Dot patterns of a convolution, whole and corrupted, of any type; of float32 and bfloat16, as far as
// that is exact, also what they compute.
bool FuzzConvDots(const Case& c, const Conv& conv, size_t out_size, Random* random,
                  Executor* executor, int64_t* refused, int64_t* accepted) {
  Condensed layer = c.layer;
  const int64_t count = layer.num_active * layer.fan_in;
  std::vector<uint8_t> raw(4 * count);
  for (uint8_t& byte : raw) byte = static_cast<uint8_t>(Uniform(random, 0, 255));
  const Exact<float> ones(conv.out_features), range(2);
  std::fill_n(ones.data(), ones.size(), 1.0f);
  range.data()[0] = -1;
  range.data()[1] = 2;
  const int64_t pixels = conv.images * conv.patches.y.out * conv.patches.x.out;
  const QuantizedRows x8(random, conv.images * conv.patches.y.size * conv.patches.x.size,
                         conv.patches.channels, range.data());
  const QuantizedRows rows8(random, pixels, conv.out_features, range.data());
  const QuantizedRows y8(random, pixels, conv.out_features, range.data());
  for (int type = 0; type < kNumDotTypes; ++type) {
    const bool quantized = type == static_cast<int>(DotType::kInt8);
    const bool exact = type == static_cast<int>(DotType::kFloat32) &&
                       c.layer.value_type == ValueType::kFloat32;
    layer.values = exact ? c.layer.values : raw.data();
    layer.value_type = quantized ? ValueType::kInt8
                       : type == static_cast<int>(DotType::kFloat32) ? ValueType::kFloat32
                                                                     : ValueType::kBFloat16;
    const Pattern tiles = PackTiles(layer, RandomTiles(random));
    const std::vector<uint8_t> tile_values = GatherValues(layer, tiles);
    const std::vector<uint8_t> dots = PackDots(layer, static_cast<DotType>(type), ones.data(),
                                               Uniform(random, 0, 1) == 0 ? 1 : 32,
                                               Uniform(random, 0, 1) == 0 ? 0.4 : 0.7);
    for (int isa = 0; isa < kNumIsas; ++isa) {
      if (!SetIsa(static_cast<Isa>(isa))) continue;
      for (int i = 0; i < 5; ++i) {
        const Buffers buffers = {Copy(i == 3 ? Corrupt(random, tiles.bytes) : tiles.bytes),
                                 Copy(tile_values), Copy({}), Copy({})};
        const auto pattern = Copy(i % 4 == 0 ? dots : Corrupt(random, dots));
        PackedLayer packed = buffers.Layer(layer.value_type);
        packed.dot_pattern = {pattern.data(), pattern.size()};
        Conv call = conv;
        if (i == 4) Disturb(random, &call);
        call.scales = quantized ? ones.data() : nullptr;
        call.quantized = quantized;
        call.range = quantized && i % 2 == 0 ? range.data() : nullptr;
        const Exact<float> out(out_size);
        std::fill_n(out.data(), out.size(), NAN);
        call.out = out.data();
        if (i > 0 && Uniform(random, 0, 1)) {
          call.residual = nullptr;
          call.residual8 = rows8.Read();
        }
        if (i > 0 && Uniform(random, 0, 1)) call.y8 = y8.Write();
        if (quantized && i > 1) {
          call.range = range.data();
          call.x = nullptr;
          call.x8 = x8.Read();
        }
        const char* error = CondensedConv(packed, call, executor);
        ++*(error == nullptr ? accepted : refused);
        if (i == 0 && (error != nullptr || (exact && !(ConvError(c, call) <= 1.0)))) {
          printf("%s, dots of type %d, %s: %s\n", Name(c, conv).c_str(), type,
                 IsaName(static_cast<Isa>(isa)), error == nullptr ? "wrong" : error);
          return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

void Disturb(Random* random, Conv* conv) {
  static constexpr int64_t kNumbers[] = {0, 1, -1, 2, 3, 0x3fffffff, 0x7fffffff, INT64_MAX,
                                         INT64_MIN};
  Axis& axis = Uniform(random, 0, 1) ? conv->patches.y : conv->patches.x;
  // The sizes of x and y themselves are those of their buffers.
  int64_t* const numbers[] = {&axis.kernel, &axis.stride, &axis.dilation, &axis.padding,
                              &conv->padding_after[0], &conv->padding_after[1]};
  *numbers[Uniform(random, 0, 5)] = kNumbers[Uniform(random, 0, 8)];
}

bool RunConvCase(uint64_t seed, int64_t* refused, int64_t* accepted) {
  Random random(seed);
  Conv conv = {};
  const Window y = RandomAxis(&random), x = RandomAxis(&random);
  conv.patches.y = y.axis;
  conv.patches.x = x.axis;
  conv.padding_after[0] = y.padding_after;
  conv.padding_after[1] = x.padding_after;
  conv.patches.channels = Size(&random, 0, 90);
  conv.out_features = Size(&random, 0, 300);
  conv.images = Uniform(&random, 0, 5);
  const Case c(&random, y.axis.kernel * x.axis.kernel * conv.patches.channels, conv.out_features);
  while (conv.images * y.axis.out * x.axis.out * c.layer.num_active * c.layer.fan_in > 2000000) {
    --conv.images;
  }
  conv.activation = c.activation;
  const Pattern tiles = PackTiles(c.layer, RandomTiles(&random));
  const std::vector<uint8_t> tile_values = GatherValues(c.layer, tiles);
  const Exact<float> input(conv.images * y.axis.size * x.axis.size * conv.patches.channels);
  const Exact<float> bias(conv.out_features);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < input.size(); ++i) input.data()[i] = normal(random);
  for (size_t i = 0; i < bias.size(); ++i) bias.data()[i] = normal(random);
  conv.x = input.data();
  conv.bias = c.has_bias ? bias.data() : nullptr;

  SplitExecutor executor(Uniform(&random, 1, 9));
  const auto run = [&](const Buffers& buffers, Conv call, const Exact<float>& out) {
    call.out = out.data();
    return CondensedConv(buffers.Layer(c.layer.value_type), call, &executor);
  };
  const size_t out_size = conv.images * y.axis.out * x.axis.out * conv.out_features;
  const Exact<float> residual(c.has_residual ? out_size : 0);
  for (size_t i = 0; i < residual.size(); ++i) residual.data()[i] = normal(random);
  conv.residual = c.has_residual ? residual.data() : nullptr;
  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    const Buffers buffers = {Copy(tiles.bytes), Copy(tile_values), Copy({}), Copy({})};
    const Exact<float> out(out_size);
    std::fill_n(out.data(), out.size(), NAN);  // every output must be written
    const char* error = run(buffers, conv, out);
    conv.out = out.data();
    const double worst = error == nullptr ? ConvError(c, conv) : 0.0;
    if (error != nullptr || !(worst <= 1.0)) {
      printf("seed %lu: %s, %s: %s, error %.2f times the bound\n",
             static_cast<unsigned long>(seed), Name(c, conv).c_str(),
             IsaName(static_cast<Isa>(isa)), error == nullptr ? "wrong" : error, worst);
      return false;
    }
    for (int i = 0; i < 5; ++i) {
      std::vector<uint8_t> tile = tiles.bytes, tile_data = tile_values;
      Conv call = conv;
      if (i == 0) tile = CorruptBody(&random, tile, UncheckedTileBegin(tile));
      if (i == 1) tile_data.resize(Uniform(&random, 0, tile_data.size() + 8));
      if (i == 2) tile = Corrupt(&random, tile);
      if (i >= 3) Disturb(&random, &call);
      const Buffers ruined = {Copy(tile), Copy(tile_data), Copy({}), Copy({})};
      ++*(run(ruined, call, Exact<float>(out_size)) == nullptr ? accepted : refused);
    }
  }
  if (!FuzzConvDots(c, conv, out_size, &random, &executor, refused, accepted)) {
    printf("seed %lu\n", static_cast<unsigned long>(seed));
    return false;
  }
  if (!FuzzTiledConv(c, conv, tiles, tile_values, &random, &executor, refused, accepted)) {
    printf("seed %lu\n", static_cast<unsigned long>(seed));
    return false;
  }
  return FuzzTrainingConv(c, conv, &random, seed, refused, accepted);
}

}  // namespace srigl
