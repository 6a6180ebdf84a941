// Fuzzes the plain C++ layer, to be compiled with AddressSanitizer and UBSan: random layers and
// batches on every CPU target against a double-precision reference, then the same layers with
// corrupted, truncated and exchanged packed buffers, which may give wrong numbers or an error but
// must not touch memory out of bounds.
//
//   srigl_fuzz [cases] [seed]

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "matmul.h"
#include "pack.h"

namespace srigl {
namespace {

// A copy on the heap of exactly this size, so that the first byte beyond it is poisoned.
template <typename T>
class Exact {
 public:
  explicit Exact(size_t size) : size_(size), data_(new T[size]()) {}
  Exact(const void* from, size_t size) : Exact(size) {
    if (size > 0) memcpy(data_.get(), from, size * sizeof(T));
  }
  T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  Bytes bytes() const { return {data_.get(), size_ * sizeof(T)}; }

 private:
  size_t size_;
  std::unique_ptr<T[]> data_;
};

// Splits the work as for so many threads, but runs the tasks one after the other.
class SplitExecutor : public SerialExecutor {
 public:
  explicit SplitExecutor(int64_t num_threads) : num_threads_(num_threads) {}
  int64_t num_threads() const override { return num_threads_; }

 private:
  int64_t num_threads_;
};

using Random = std::mt19937_64;

int64_t Uniform(Random* random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(*random);
}

// Mostly small sizes, sometimes edges of blocks, panels and registers, sometimes large ones.
int64_t Size(Random* random, int64_t low, int64_t max) {
  static constexpr int64_t kEdges[] = {1, 15, 16, 17, 31, 32, 33, 63, 64, 65, 95, 96, 97, 128,
                                       223, 224, 225, 255, 256, 257, 1024, 1025};
  int64_t size;
  switch (Uniform(random, 0, 3)) {
    case 0:
      size = kEdges[Uniform(random, 0, sizeof(kEdges) / sizeof(kEdges[0]) - 1)];
      break;
    case 1:
      size = Uniform(random, low, max);
      break;
    default:
      size = Uniform(random, low, 70);
  }
  return std::clamp(size, low, max);
}

std::vector<int32_t> Choose(Random* random, int64_t from, int64_t count) {
  std::vector<int32_t> all(from);
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < count; ++i) std::swap(all[i], all[Uniform(random, i, from - 1)]);
  all.resize(count);
  std::sort(all.begin(), all.end());
  return all;
}

uint16_t ToBFloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

float FromBFloat16(uint16_t value) {
  const uint32_t bits = uint32_t{value} << 16;
  float result;
  memcpy(&result, &bits, sizeof(result));
  return result;
}

struct Case {
  Condensed layer = {};
  std::vector<float> values;
  std::vector<uint16_t> values16;
  std::vector<int32_t> indices, active;
  int64_t batch = 0;
  Activation activation = Activation::kNone;
  bool has_bias = false;

  explicit Case(Random* random) {
    layer.in_features = Size(random, 0, 1500);
    layer.out_features = Size(random, 0, 1300);
    switch (Uniform(random, 0, 4)) {
      case 0:
        layer.num_active = layer.out_features;
        break;
      case 1:
        layer.num_active = std::min<int64_t>(Uniform(random, 0, 1), layer.out_features);
        break;
      default:
        layer.num_active = Uniform(random, 0, layer.out_features);
    }
    switch (Uniform(random, 0, 4)) {
      case 0:
        layer.fan_in = layer.in_features;
        break;
      case 1:
        layer.fan_in = std::min<int64_t>(1, layer.in_features);
        break;
      default:
        layer.fan_in = Uniform(random, 0, std::min<int64_t>(layer.in_features, 200));
    }
    // Large products are slow under the sanitizers and find nothing that small ones do not.
    while (layer.num_active * layer.fan_in > 60000) layer.fan_in = layer.fan_in / 2;
    batch = layer.num_active * layer.fan_in > 5000 ? Uniform(random, 0, 40) : Size(random, 0, 150);
    activation = static_cast<Activation>(Uniform(random, 0, 2));
    has_bias = Uniform(random, 0, 1) == 1;
    layer.value_type = Uniform(random, 0, 2) == 0 ? ValueType::kBFloat16 : ValueType::kFloat32;

    active = Choose(random, layer.out_features, layer.num_active);
    std::normal_distribution<float> normal;
    for (int64_t a = 0; a < layer.num_active; ++a) {
      const std::vector<int32_t> row = Choose(random, layer.in_features, layer.fan_in);
      indices.insert(indices.end(), row.begin(), row.end());
    }
    for (size_t i = 0; i < indices.size(); ++i) {
      values.push_back(normal(*random));
      values16.push_back(ToBFloat16(values.back()));
      if (layer.value_type == ValueType::kBFloat16) values.back() = FromBFloat16(values16.back());
    }
    layer.active = active.data();
    layer.indices = indices.data();
    layer.values = layer.value_type == ValueType::kFloat32
                       ? static_cast<const void*>(values.data())
                       : static_cast<const void*>(values16.data());
  }

  std::string Name() const {
    char name[200];
    snprintf(name, sizeof(name), "%ld -> %ld, %ld active, fan-in %ld, batch %ld, %s, %s",
             static_cast<long>(layer.in_features), static_cast<long>(layer.out_features),
             static_cast<long>(layer.num_active), static_cast<long>(layer.fan_in),
             static_cast<long>(batch),
             layer.value_type == ValueType::kFloat32 ? "float32" : "bfloat16",
             has_bias ? "bias" : "no bias");
    return name;
  }
};

double Activated(double v, Activation activation) {
  if (activation == Activation::kRelu) return v > 0 ? v : 0;
  if (activation == Activation::kGelu) {
    return 0.5 * v * (1 + tanh(sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
  }
  return v;
}

// The largest error over what the rounding of so many products allows.
double Error(const Case& c, const float* x, const float* bias, const float* y) {
  const int64_t out = c.layer.out_features;
  double worst = 0;
  std::vector<double> sums(out), sizes(out);
  for (int64_t b = 0; b < c.batch; ++b) {
    for (int64_t o = 0; o < out; ++o) sums[o] = sizes[o] = c.has_bias ? bias[o] : 0.0;
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
      worst = std::max(worst, error / (1e-6 * (1 + fabs(sizes[o]))));
      if (std::isnan(error)) return error;
    }
  }
  return worst;
}

// A packed layer, each buffer its own allocation.
struct Buffers {
  Exact<uint8_t> tile_pattern, tile_values, window_pattern, window_values;

  PackedLayer Layer(ValueType type) const {
    return {tile_pattern.bytes(), tile_values.bytes(), window_pattern.bytes(),
            window_values.bytes(), type};
  }
};

Exact<uint8_t> Copy(const std::vector<uint8_t>& from) { return {from.data(), from.size()}; }

// Changes a pattern: single bits, whole words, runs, its length.
std::vector<uint8_t> Corrupt(Random* random, std::vector<uint8_t> bytes) {
  if (bytes.empty()) return bytes;
  const int64_t size = static_cast<int64_t>(bytes.size());
  static constexpr int64_t kWords[] = {0, 1, -1, 0x7fffffff, INT64_MAX, INT64_MIN, 64, 65536};
  for (int64_t i = Uniform(random, 1, 8); i > 0; --i) {
    // The header and the tables are at the beginning: half of the changes go there.
    const int64_t end = Uniform(random, 0, 1) ? size : std::min<int64_t>(size, 256);
    const int64_t at = Uniform(random, 0, end - 1);
    switch (Uniform(random, 0, 3)) {
      case 0:
        bytes[at] ^= static_cast<uint8_t>(1 << Uniform(random, 0, 7));
        break;
      case 1: {
        const int64_t word = kWords[Uniform(random, 0, 7)];
        const int64_t begin = at / 4 * 4;
        memcpy(&bytes[begin], &word, std::min<int64_t>(Uniform(random, 0, 1) ? 4 : 8,
                                                       size - begin));
        break;
      }
      case 2:
        for (int64_t j = at; j < std::min(at + 64, size); ++j) {
          bytes[j] = static_cast<uint8_t>((*random)());
        }
        break;
      default:
        bytes[at] = static_cast<uint8_t>((*random)());
    }
  }
  if (Uniform(random, 0, 9) == 0) bytes.resize(Uniform(random, 0, size + 64));
  return bytes;
}

// Noise in everything but the header and what `Parse` checks gets past it and into the kernels.
std::vector<uint8_t> CorruptBody(Random* random, const std::vector<uint8_t>& original,
                                 size_t begin) {
  std::vector<uint8_t> bytes = original;
  for (size_t i = begin; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>((*random)());
  return bytes;
}

size_t UncheckedTileBegin(const std::vector<uint8_t>& bytes) {
  PatternHeader header;
  TileSections sections;
  memcpy(&header, bytes.data(), sizeof(header));
  return TileLayout(header, &sections) ? sections.rows : bytes.size();
}

size_t UncheckedWindowBegin(const std::vector<uint8_t>& bytes) {
  PatternHeader header;
  WindowSections sections;
  memcpy(&header, bytes.data(), sizeof(header));
  return WindowLayout(header, &sections) ? sections.headers : bytes.size();
}

bool RunCase(uint64_t seed, int64_t* refused, int64_t* accepted) {
  Random random(seed);
  const Case c(&random);
  const std::string invalid = CheckCondensed(c.layer);
  if (!invalid.empty()) {
    printf("seed %lu: %s: refused: %s\n", static_cast<unsigned long>(seed), c.Name().c_str(),
           invalid.c_str());
    return false;
  }
  const Pattern tiles = PackTiles(c.layer), windows = PackWindows(c.layer);
  const std::vector<uint8_t> tile_values = GatherValues(c.layer, tiles);
  const std::vector<uint8_t> window_values = GatherValues(c.layer, windows);
  const Exact<float> x(c.batch * c.layer.in_features), bias(c.layer.out_features);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < x.size(); ++i) x.data()[i] = normal(random);
  for (size_t i = 0; i < bias.size(); ++i) bias.data()[i] = normal(random);

  SplitExecutor executor(Uniform(&random, 1, 9));
  const auto multiply = [&](const Buffers& buffers, const Exact<float>& y) {
    const MatMul call = {x.data(),     c.has_bias ? bias.data() : nullptr,
                         y.data(),     c.batch,
                         c.layer.in_features, c.layer.out_features,
                         c.activation};
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
          error == nullptr ? Error(c, x.data(), bias.data(), y.data()) : 0.0;
      if (error != nullptr || !(worst <= 1.0)) {
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
  return true;
}

}  // namespace
}  // namespace srigl

int main(int argc, char** argv) {
  const int64_t cases = argc > 1 ? atoll(argv[1]) : 1000;
  const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : 1;
  int64_t refused = 0, accepted = 0;
  for (int64_t i = 0; i < cases; ++i) {
    if (!srigl::RunCase(seed + i, &refused, &accepted)) return 1;
  }
  printf("%ld cases without a finding; of the corrupted layers %ld were refused, %ld run.\n",
         static_cast<long>(cases), static_cast<long>(refused), static_cast<long>(accepted));
  return 0;
}
