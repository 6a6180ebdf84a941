// What the fuzzers share: random layers, packed layers in buffers of their own, and their ruin.

#ifndef SRIGL_KERNELS_CPU_FUZZ_COMMON_H_
#define SRIGL_KERNELS_CPU_FUZZ_COMMON_H_

#include <math.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "conv.h"
#include "matmul.h"
#include "pack.h"
#include "scratch.h"

namespace srigl {

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

// Splits the work as for so many threads, but runs the tasks one after the other. Between two of them
// the thread may help with another call, which leaves something else in its scratch memory.
class SplitExecutor : public SerialExecutor {
 public:
  explicit SplitExecutor(int64_t num_threads, bool helps = true)
      : num_threads_(num_threads), helps_(helps) {}

  int64_t num_threads() const override { return num_threads_; }

  void Run(int64_t num_tasks, int64_t, void (*task)(const void*, int64_t), const void* context,
           SharedOut) override {
    for (int64_t i = 0; i < num_tasks; ++i) {
      task(context, i);
      if (helps_) std::fill_n(Scratch(), 4096, std::numeric_limits<float>::quiet_NaN());
    }
  }

 private:
  int64_t num_threads_;
  bool helps_;
};

using Random = std::mt19937_64;

inline int64_t Uniform(Random* random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(*random);
}

// Rows in pairs, or one by one.
inline Tiles RandomTiles(Random* random) {
  return Uniform(random, 0, 1) == 0 ? Tiles::kPlain : Tiles::kPaired;
}

// Mostly small sizes, sometimes edges of blocks, panels and registers, sometimes large ones.
inline int64_t Size(Random* random, int64_t low, int64_t max) {
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

inline std::vector<int32_t> Choose(Random* random, int64_t from, int64_t count) {
  std::vector<int32_t> all(from);
  std::iota(all.begin(), all.end(), 0);
  for (int64_t i = 0; i < count; ++i) std::swap(all[i], all[Uniform(random, i, from - 1)]);
  all.resize(count);
  std::sort(all.begin(), all.end());
  return all;
}

inline uint16_t ToBFloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

inline float FromBFloat16(uint16_t value) {
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
  bool has_bias = false, has_residual = false;

  Case(Random* random, int64_t in_features, int64_t out_features) {
    layer.in_features = in_features;
    layer.out_features = out_features;
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
    batch = layer.num_active * layer.fan_in > 5000 ? Uniform(random, 0, 40) : Size(random, 0, 200);
    activation = static_cast<Activation>(Uniform(random, 0, static_cast<int>(Activation::kLast)));
    has_bias = Uniform(random, 0, 1) == 1;
    has_residual = Uniform(random, 0, 2) == 0;
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

struct Window {  // one axis, and the padding behind it
  Axis axis;
  int64_t padding_after;
};

inline Window RandomAxis(Random* random) {
  Window window = {};
  Axis& axis = window.axis;
  axis.size = Uniform(random, 0, 9) == 0 ? Uniform(random, 0, 70) : Uniform(random, 0, 20);
  axis.kernel = Uniform(random, 0, 2) == 0 ? Uniform(random, 1, 6) : Uniform(random, 1, 3);
  axis.stride = Uniform(random, 0, 2) == 0 ? Uniform(random, 1, 5) : 1;
  axis.dilation = Uniform(random, 0, 3) == 0 ? Uniform(random, 1, 4) : 1;
  axis.padding = Uniform(random, -2, 5);
  window.padding_after = Uniform(random, -2, 5);
  const int64_t padded = axis.size + axis.padding + window.padding_after;
  const int64_t reach = (axis.kernel - 1) * axis.dilation + 1;
  axis.out = padded < reach ? 0 : (padded - reach) / axis.stride + 1;
  return window;
}

inline double Activated(double v, Activation activation) {
  if (activation == Activation::kRelu) return v > 0 ? v : 0;
  if (activation == Activation::kGelu) {
    return 0.5 * v * (1 + tanh(sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
  }
  if (activation == Activation::kGeluExact) return 0.5 * v * erfc(-v * M_SQRT1_2);
  if (activation == Activation::kSilu) return v / (1 + exp(-v));
  if (activation == Activation::kRelu6) return std::min(std::max(v, 0.0), 6.0);
  if (activation == Activation::kHardSilu) return v * std::min(std::max(v + 3, 0.0), 6.0) / 6;
  return v;
}

// A packed layer, each buffer its own allocation.
struct Buffers {
  Exact<uint8_t> tile_pattern, tile_values, window_pattern, window_values;

  PackedLayer Layer(ValueType type) const {
    return {tile_pattern.bytes(), tile_values.bytes(), window_pattern.bytes(),
            window_values.bytes(), type};
  }
};

// Rows of numbers in 8 bits, to be read or written.
struct QuantizedRows {
  Exact<uint8_t> integers;
  Exact<float> scales;
  const Steps steps;

  QuantizedRows(Random* random, int64_t rows, int64_t features, const float* range)
      : integers(rows * features), scales(rows), steps(StepsOf(range)) {
    for (size_t i = 0; i < integers.size(); ++i) {
      integers.data()[i] = static_cast<uint8_t>(Uniform(random, 0, 255));
    }
    std::fill_n(scales.data(), scales.size(), steps.scale);
  }

  // What a call reads; what it writes.
  Quantized Read() const {
    return {integers.data(), scales.data(), ZeroOf(steps)};
  }
  QuantizedOutput Write() const { return {integers.data(), scales.data(), steps}; }
};

inline Exact<uint8_t> Copy(const std::vector<uint8_t>& from) { return {from.data(), from.size()}; }

// Changes a pattern: single bits, whole words, runs, its length.
inline std::vector<uint8_t> Corrupt(Random* random, std::vector<uint8_t> bytes) {
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
inline std::vector<uint8_t> CorruptBody(Random* random, const std::vector<uint8_t>& original,
                                        size_t begin) {
  std::vector<uint8_t> bytes = original;
  for (size_t i = begin; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>((*random)());
  return bytes;
}

inline size_t UncheckedTileBegin(const std::vector<uint8_t>& bytes) {
  PatternHeader header;
  TileSections sections;
  memcpy(&header, bytes.data(), sizeof(header));
  return TileLayout(header, &sections) ? sections.rows : bytes.size();
}

inline size_t UncheckedWindowBegin(const std::vector<uint8_t>& bytes) {
  PatternHeader header;
  WindowSections sections;
  memcpy(&header, bytes.data(), sizeof(header));
  return WindowLayout(header, &sections) ? sections.paths : bytes.size();
}

// The gradients of a case; counts layers that were spoilt. False after reporting a finding.
bool FuzzGradients(const Case& c, Random* random, uint64_t seed, int64_t* refused,
                   int64_t* accepted);

// The same layer in training.
bool FuzzTraining(const Case& c, Random* random, uint64_t seed, int64_t* refused,
                  int64_t* accepted);

// A convolution with such a layer in training.
bool FuzzTrainingConv(const Case& c, const Conv& conv, Random* random, uint64_t seed,
                      int64_t* refused, int64_t* accepted);

// Other sizes of a convolution: refused, or at least not read out of bounds.
void Disturb(Random* random, Conv* conv);

// One random convolution on every CPU target; see fuzz.cc. False, and a message, on a finding.
bool RunConvCase(uint64_t seed, int64_t* refused, int64_t* accepted);
bool RunTopologyCase(uint64_t seed, int64_t* refused, int64_t* accepted);
bool RunAttentionCase(uint64_t seed);
bool RunDepthwiseCase(uint64_t seed, int64_t* refused, int64_t* accepted);
bool RunMaxPoolCase(uint64_t seed, int64_t* refused, int64_t* accepted);
bool RunTilePlanCase(uint64_t seed);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_FUZZ_COMMON_H_
