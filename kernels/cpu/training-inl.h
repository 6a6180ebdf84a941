// Training kernels, for any target: a layer is read in its natural order, neuron by neuron with
// ascending inputs, so nothing is packed but the batch. Included by each target's translation unit;
// the rules of tile-inl.h hold here too.
//
// All inputs of a tile's batch rows are packed [input, lane], which the second-level cache holds.
// Then neurons are taken a few hundred at a time, and their entries block by block of inputs, so
// that a block's inputs are read from the first-level cache: since entries ascend, those of a neuron
// in a block are neighbours.

#include "gradients-inl.h"

namespace srigl {
namespace SRIGL_TARGET {
namespace {

// Entries of a chunk: the active neurons [begin, begin + count).
template <typename Index>
struct Neurons {
  const Index* indices;
  const float* values;
  int64_t fan_in;
  int64_t count;
};

template <typename Index>
Neurons<Index> Take(const Training& call, int64_t begin) {
  const int64_t first = begin * call.fan_in;
  const float* values = call.values == nullptr ? nullptr : call.values + first;
  return {static_cast<const Index*>(call.indices) + first, values, call.fan_in,
          Min(call.num_active - begin, call.cut.chunk)};
}

constexpr int64_t kAhead = 2;  // segments

// Fetches the entries of a segment some time before they are read: processors foresee reading from
// beginning to end, but here each neuron's entries lie elsewhere.
template <typename Index, typename T>
inline void Fetch(const Neurons<Index>& neurons, const Segment& segment, const T* numbers) {
  const int64_t entry = segment.neuron * neurons.fan_in + segment.first;
  __builtin_prefetch(neurons.indices + entry);
  __builtin_prefetch(neurons.indices + entry + 20);
  __builtin_prefetch(numbers + entry);
  __builtin_prefetch(numbers + entry + 16);
}

// ---- cutting ----

inline uint16_t ToUnsigned(uint16_t index) { return index; }
inline uint32_t ToUnsigned(int32_t index) { return static_cast<uint32_t>(index); }

// Whether all indices lie within the inputs: they come from the device, where nobody has checked
// them. Done just before they are used, which also fetches them.
template <typename Index>
bool AreInside(const Neurons<Index>& neurons, int64_t in_features) {
  using Unsigned = decltype(ToUnsigned(Index{}));
  Unsigned largest = 0;  // a negative index counts as large
  const Index* indices = neurons.indices;
  for (int64_t i = 0; i < neurons.count * neurons.fan_in; ++i) {
    const Unsigned index = ToUnsigned(indices[i]);
    largest = index > largest ? index : largest;
  }
  return neurons.count * neurons.fan_in == 0 || int64_t{largest} < in_features;
}

// Where the entries of a neuron begin in each block, and end in the last one.
template <typename Index>
void FindStarts(const Training& call, const Index* indices, int32_t* starts) {
  const Cut& cut = call.cut;
  memset(starts, 0, (cut.num_blocks + 1) * sizeof(int32_t));
  for (int64_t j = 8; j <= call.fan_in; j += 8) {
    starts[cut.block_of[ToUnsigned(indices[j - 1]) / 16] + 1] = static_cast<int32_t>(j);
  }
  for (int64_t b = 1; b < cut.num_blocks; ++b) {  // blocks in which no eight ends
    starts[b] = starts[b] > starts[b - 1] ? starts[b] : starts[b - 1];
  }
  starts[cut.num_blocks] = static_cast<int32_t>(call.fan_in);
  if (!cut.exact) return;
  for (int64_t b = 1; b < cut.num_blocks; ++b) {
    const int64_t left = call.fan_in - starts[b];
    const auto end = static_cast<decltype(ToUnsigned(Index{}))>(b * cut.block);
    const Index* next = indices + starts[b];
    int32_t before = 0;
    if (left >= 8) {
      for (int i = 0; i < 8; ++i) before += ToUnsigned(next[i]) < end;
    } else {
      for (int64_t i = 0; i < left; ++i) before += ToUnsigned(next[i]) < end;
    }
    starts[b] += before;
  }
}

template <typename Index>
bool CutChunk(const Training& call, int64_t begin, Segment* segments, int32_t* starts) {
  const Cut& cut = call.cut;
  const Neurons<Index> neurons = Take<Index>(call, begin);
  if (!AreInside(neurons, call.in_features)) return false;
  const int64_t stride = cut.num_blocks + 1;
  for (int64_t a = 0; a < neurons.count; ++a) {
    FindStarts(call, neurons.indices + a * call.fan_in, starts + a * stride);
  }
  // Four blocks at once: counting goes on only when it knows what was counted before.
  constexpr int64_t kBlocks = 4;
  constexpr int32_t kMost = 63;  // more are sorted no further
  for (int64_t first = 0; first < cut.num_blocks; first += kBlocks) {
    const int64_t blocks = Min(cut.num_blocks - first, kBlocks);
    int32_t places[kBlocks][kMost + 1] = {};
    const auto rank = [](int32_t count) { return count < kMost ? kMost - count : 0; };
    for (int64_t a = 0; a < neurons.count; ++a) {
      const int32_t* start = starts + a * stride + first;
      for (int64_t b = 0; b < blocks; ++b) ++places[b][rank(start[b + 1] - start[b])];
    }
    for (int64_t b = 0; b < blocks; ++b) {
      for (int32_t i = 0, sum = 0; i <= kMost; ++i) {
        sum += places[b][i];
        places[b][i] = sum - places[b][i];
      }
    }
    for (int64_t a = 0; a < neurons.count; ++a) {
      const int32_t* start = starts + a * stride + first;
      for (int64_t b = 0; b < blocks; ++b) {
        const int32_t count = start[b + 1] - start[b];
        segments[(first + b) * cut.chunk + places[b][rank(count)]++] = {static_cast<int32_t>(a),
                                                                        start[b], count};
      }
    }
  }
  return true;
}

bool TrainCut(const Training& call, int64_t chunk, int32_t* starts) {
  const int64_t begin = chunk * call.cut.chunk;
  Segment* segments = call.cut.segments + begin * call.cut.num_blocks;
  return call.wide_indices ? CutChunk<int32_t>(call, begin, segments, starts)
                           : CutChunk<uint16_t>(call, begin, segments, starts);
}

// The segments of a chunk, [num_blocks, chunk], cut now if they are not there; nullptr if an index
// lies beyond the inputs.
template <typename Index>
const Segment* Segments(const Training& call, int64_t begin, float* scratch) {
  const Cut& cut = call.cut;
  if (cut.segments != nullptr) return cut.segments + begin * cut.num_blocks;
  Segment* segments =
      reinterpret_cast<Segment*>(scratch + TrainingScratchFloats(call.in_features));
  int32_t* starts = reinterpret_cast<int32_t*>(segments + cut.num_blocks * cut.chunk);
  return CutChunk<Index>(call, begin, segments, starts) ? segments : nullptr;
}

// Four indices with one load: with registers this wide, loads are what limits the kernels.
struct FourIndices {
  uint64_t low, high;
  explicit FourIndices(const uint16_t* indices) : high(0) { memcpy(&low, indices, sizeof(low)); }
  explicit FourIndices(const int32_t* indices) {
    memcpy(&low, indices, sizeof(low));
    memcpy(&high, indices + 2, sizeof(high));
  }
  template <typename Index>
  int64_t Get(int i) const {
    if (sizeof(Index) == 2) return (low >> (16 * i)) & 0xffff;
    return ((i < 2 ? low : high) >> (32 * (i % 2))) & 0xffffffff;
  }
};

inline Vec Broadcast(float value) { return value - Vec{}; }  // exact, so nothing is subtracted

// ---- forward ----

// sums[neuron, lane] += the entries of a block times their inputs; with the first block `=`. Not
// inlined, for the reason given at MultiplyPanel.
template <int kVecs, typename Index>
__attribute__((noinline)) void AddProducts(const Neurons<Index>& neurons, const Segment* segments,
                                           bool first, const float* tile, float* sums) {
  constexpr int kLanes = kVecs * kWidth;
  constexpr int kChains = kVecs > 4 ? 1 : kVecs == 4 ? 2 : 4 / kVecs;  // hide the latency
  for (int64_t i = 0; i < neurons.count; ++i) {
    const int64_t count = segments[i].count, neuron = segments[i].neuron;
    if (count == 0 && !first) return;
    const int64_t entry = neuron * neurons.fan_in + segments[i].first;
    const Index* indices = neurons.indices + entry;
    const float* values = neurons.values + entry;
    if (i + kAhead < neurons.count) Fetch(neurons, segments[i + kAhead], neurons.values);
    float* sum = sums + neuron * kLanes;
    Vec total[kChains][kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      total[0][v] = first ? Vec{} : Load(sum + v * kWidth);
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total[c][v] = Vec{};
    }
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
      const FourIndices four(indices + j);
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) {
        const float* x = tile + four.Get<Index>(u) * kLanes;
        const Vec value = Broadcast(values[j + u]);
#pragma GCC unroll 8
        for (int v = 0; v < kVecs; ++v) total[u % kChains][v] += Load(x + v * kWidth) * value;
      }
    }
    for (; j < count; ++j) {
      const float* x = tile + int64_t{indices[j]} * kLanes;
      const Vec value = Broadcast(values[j]);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) total[0][v] += Load(x + v * kWidth) * value;
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
#pragma GCC unroll 4
      for (int c = 1; c < kChains; ++c) total[0][v] += total[c][v];
      Store(sum + v * kWidth, total[0][v]);
    }
  }
}

inline void StoreSome(float* p, Vec v, int64_t count) {
  if (count >= kWidth) return Store(p, v);
  memcpy(p, &v, count * sizeof(float));
}

// As bfloat16, rounded to nearest, ties to even.
inline void StoreSome(uint16_t* p, Vec v, int64_t count) {
  typedef uint16_t Half __attribute__((vector_size(2 * SRIGL_WIDTH)));
  typedef uint32_t Word __attribute__((vector_size(4 * SRIGL_WIDTH)));
  const Word bits = reinterpret_cast<Word>(v);
  const Word rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Word quiet_nan = (bits >> 16) | 0x40;
  const Half half = __builtin_convertvector(v == v ? rounded : quiet_nan, Half);
  memcpy(p, &half, (count < kWidth ? count : kWidth) * sizeof(uint16_t));
}

// Turns kWidth rows of lanes and writes them as columns [column, column + count) of `out`.
template <typename Element>
void WriteColumns(const float* const* sources, const float* bias, int64_t lane, int64_t num_rows,
                  int64_t row_begin, int64_t column, int64_t count, int64_t width, Element* out) {
  Vec rows[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) rows[i] = Load(sources[i] + lane);
  Transpose(rows);
  const Vec add = bias == nullptr ? Vec{} : LoadSome(bias + column, count);
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; ++i) {
    if (lane + i >= num_rows) continue;
    StoreSome(out + (row_begin + lane + i) * width + column, rows[i] + add, count);
  }
}

// Writes active neurons [begin, end) from sums, and the ablated neurons up to the next active one;
// with the first also those before it.
template <int kVecs, typename Element>
void WriteNeurons(const Training& call, int64_t row_begin, int64_t num_rows, int64_t begin,
                  int64_t end, const float* sums, const float* zeros) {
  constexpr int kLanes = kVecs * kWidth;
  const int64_t last = end == call.num_active ? call.out_features : call.active[end];
  for (int64_t lane = 0; lane < num_rows; lane += kWidth) {
    int64_t a = begin, count;
    for (int64_t o = begin == 0 ? 0 : call.active[begin]; o < last; o += count) {
      count = Min(kWidth - o % kWidth, last - o);  // the next stores are aligned as the outputs are
      const float* sources[kWidth];
      for (int i = 0; i < kWidth; ++i) {
        const bool is_active = i < count && a < end && call.active[a] == o + i;
        sources[i] = is_active ? sums + (a++ - begin) * kLanes : zeros;
      }
      WriteColumns(sources, call.bias, lane, num_rows, row_begin, o, count, call.out_features,
                   static_cast<Element*>(call.y));
    }
  }
}

template <int kVecs, typename Index, typename Element>
bool ForwardTile(const Training& call, int64_t row_begin, int64_t num_rows, int64_t begin,
                 int64_t end, float* scratch) {
  constexpr int kLanes = kVecs * kWidth;
  float* tile = scratch;
  float* zeros = tile + (call.in_features + kWidth) * kLanes;  // packing writes whole registers
  float* sums = zeros + kLanes;
  memset(zeros, 0, kLanes * sizeof(float));
  PackRows<kVecs>(static_cast<const Element*>(call.x), call.in_features, row_begin, num_rows, 0,
                  call.in_features, tile);
  int64_t a = begin;
  do {  // at least once: a layer without active neurons has outputs too
    const Neurons<Index> neurons = Take<Index>(call, a);
    const Segment* segments = Segments<Index>(call, a, scratch);
    if (segments == nullptr) return false;
    for (int64_t block = 0; block < call.cut.num_blocks; ++block) {
      AddProducts<kVecs>(neurons, segments + block * call.cut.chunk, block == 0, tile, sums);
    }
    WriteNeurons<kVecs, Element>(call, row_begin, num_rows, a, a + neurons.count, sums, zeros);
    a += call.cut.chunk;
  } while (a < end);
  return true;
}

// ---- gradient in the inputs ----

// dx[input, lane] += value * g[neuron, lane] for the entries of a block.
template <int kVecs, typename Index>
__attribute__((noinline)) void Scatter(const Neurons<Index>& neurons, const Segment* segments,
                                       const float* g, float* dx) {
  constexpr int kLanes = kVecs * kWidth;
  for (int64_t i = 0; i < neurons.count; ++i) {
    const int64_t count = segments[i].count, neuron = segments[i].neuron;
    if (count == 0) return;
    const int64_t entry = neuron * neurons.fan_in + segments[i].first;
    const Index* indices = neurons.indices + entry;
    const float* values = neurons.values + entry;
    if (i + kAhead < neurons.count) Fetch(neurons, segments[i + kAhead], neurons.values);
    Vec lanes[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) lanes[v] = Load(g + neuron * kLanes + v * kWidth);
    const auto add = [&](int64_t index, float weight) __attribute__((always_inline)) {
      float* to = dx + index * kLanes;
      const Vec value = Broadcast(weight);
#pragma GCC unroll 8
      for (int v = 0; v < kVecs; ++v) {
        Store(to + v * kWidth, Load(to + v * kWidth) + lanes[v] * value);
      }
    };
    int64_t j = 0;
    for (; j + 4 <= count; j += 4) {
      const FourIndices four(indices + j);
#pragma GCC unroll 4
      for (int u = 0; u < 4; ++u) add(four.Get<Index>(u), values[j + u]);
    }
    for (; j < count; ++j) add(indices[j], values[j]);
  }
}

// Writes the gradients of inputs [begin, end); after them `dx` can be read for kWidth more.
template <int kVecs, typename Element>
void WriteInputs(const Training& call, int64_t row_begin, int64_t num_rows, int64_t begin,
                 int64_t end, const float* dx) {
  constexpr int kLanes = kVecs * kWidth;
  for (int64_t lane = 0; lane < num_rows; lane += kWidth) {
    for (int64_t input = begin; input < end; input += kWidth) {
      const float* sources[kWidth];
      for (int i = 0; i < kWidth; ++i) sources[i] = dx + (input - begin + i) * kLanes;
      WriteColumns(sources, nullptr, lane, num_rows, row_begin, input, Min(end - input, kWidth),
                   call.in_features, static_cast<Element*>(call.dx));
    }
  }
}

template <int kVecs, typename Index, typename Element>
bool InputGradientTile(const Training& call, int64_t row_begin, int64_t num_rows, int64_t begin,
                       int64_t end, float* scratch) {
  constexpr int kLanes = kVecs * kWidth;
  float* dx = scratch;  // of all inputs: only those of the range are used if indices ascend
  float* g = dx + (call.in_features + kWidth) * kLanes;
  memset(dx + begin * kLanes, 0, (end - begin + kWidth) * kLanes * sizeof(float));
  const Cut& cut = call.cut;
  for (int64_t a = 0; a < call.num_active; a += cut.chunk) {
    const Neurons<Index> neurons = Take<Index>(call, a);
    const Segment* segments = Segments<Index>(call, a, scratch);
    if (segments == nullptr) return false;
    PackColumns<kVecs>(static_cast<const Element*>(call.g), call.out_features, call.active + a,
                       neurons.count, row_begin, num_rows, g);
    for (int64_t input = begin; input < end; input += cut.block) {
      Scatter<kVecs>(neurons, segments + input / cut.block * cut.chunk, g, dx);
    }
  }
  WriteInputs<kVecs, Element>(call, row_begin, num_rows, begin, end, dx + begin * kLanes);
  return true;
}

// ---- gradient in the values ----

// The scalar products of `g` with the inputs of kDots entries.
template <int kVecs, typename Index>
inline Dots MultiplyEntries(const Vec (&g)[kVecs], const float* tile, const Index* indices) {
  constexpr int kLanes = kVecs * kWidth;
  const auto product = [&](int i) __attribute__((always_inline)) {
    const float* x = tile + int64_t{indices[i]} * kLanes;
    Vec sum = g[0] * Load(x);
#pragma GCC unroll 8
    for (int v = 1; v < kVecs; ++v) sum += g[v] * Load(x + v * kWidth);
    return sum;
  };
  const auto four = [&](int i) __attribute__((always_inline)) {
    return SumPair(SumPair(product(i), product(i + 2)), SumPair(product(i + 1), product(i + 3)));
  };
  const Vec low = four(0);
  return SumParts(low, kDots == 4 ? Vec{} : four(kDots - 4));
}

// dvalues += the products of one tile's rows, or `=`, for the entries of a block.
template <int kVecs, typename Index>
__attribute__((noinline)) void AddDots(const Neurons<Index>& neurons, const Segment* segments,
                                       bool overwrite, const float* tile, const float* g,
                                       float* dvalues) {
  constexpr int kLanes = kVecs * kWidth;
  for (int64_t i = 0; i < neurons.count; ++i) {
    const int64_t count = segments[i].count, neuron = segments[i].neuron;
    if (count == 0) return;
    const int64_t entry = neuron * neurons.fan_in + segments[i].first;
    const Index* indices = neurons.indices + entry;
    float* out = dvalues + entry;
    if (i + kAhead < neurons.count) Fetch(neurons, segments[i + kAhead], dvalues);
    Vec lanes[kVecs];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) lanes[v] = Load(g + neuron * kLanes + v * kWidth);
    int64_t j = 0;
    for (; j + kDots <= count; j += kDots) {
      Dots dots = MultiplyEntries<kVecs>(lanes, tile, indices + j);
      DotsU* to = reinterpret_cast<DotsU*>(out + j);
      if (!overwrite) dots += *to;
      *to = dots;
    }
    if (j < count) {
      Index some[kDots] = {};  // input 0 stands for those that are not there
      for (int64_t k = j; k < count; ++k) some[k - j] = indices[k];
      const Dots dots = MultiplyEntries<kVecs>(lanes, tile, some);
      for (int64_t k = j; k < count; ++k) out[k] = dots[k - j] + (overwrite ? 0 : out[k]);
    }
  }
}

template <int kVecs, typename Index, typename Element>
bool ValuesGradientTile(const Training& call, int64_t row_begin, int64_t num_rows, int64_t begin,
                        int64_t end, float* scratch) {
  constexpr int kLanes = kVecs * kWidth;
  float* tile = scratch;
  float* g = tile + (call.in_features + kWidth) * kLanes;
  PackRows<kVecs>(static_cast<const Element*>(call.x), call.in_features, row_begin, num_rows, 0,
                  call.in_features, tile);
  for (int64_t a = begin; a < end; a += call.cut.chunk) {
    const Neurons<Index> neurons = Take<Index>(call, a);
    const Segment* segments = Segments<Index>(call, a, scratch);
    if (segments == nullptr) return false;
    PackColumns<kVecs>(static_cast<const Element*>(call.g), call.out_features, call.active + a,
                       neurons.count, row_begin, num_rows, g);
    for (int64_t block = 0; block < call.cut.num_blocks; ++block) {
      AddDots<kVecs>(neurons, segments + block * call.cut.chunk, row_begin == 0, tile, g,
                     call.dvalues + a * call.fan_in);
    }
  }
  return true;
}

// ---- choice of the tile and of the types ----

struct Forward {
  template <int kVecs, typename Index, typename Element>
  static bool Run(const Training& call, int64_t row, int64_t num_rows, int64_t begin, int64_t end,
                  float* scratch) {
    return ForwardTile<kVecs, Index, Element>(call, row, num_rows, begin, end, scratch);
  }
};

struct InputGradientOf {
  template <int kVecs, typename Index, typename Element>
  static bool Run(const Training& call, int64_t row, int64_t num_rows, int64_t begin, int64_t end,
                  float* scratch) {
    return InputGradientTile<kVecs, Index, Element>(call, row, num_rows, begin, end, scratch);
  }
};

struct ValuesGradientOf {
  template <int kVecs, typename Index, typename Element>
  static bool Run(const Training& call, int64_t row, int64_t num_rows, int64_t begin, int64_t end,
                  float* scratch) {
    return ValuesGradientTile<kVecs, Index, Element>(call, row, num_rows, begin, end, scratch);
  }
};

// Tiles as wide as registers and cache allow, the last one no wider than its rows need.
template <typename Kernel, typename Index, typename Element>
bool RunTiles(const Training& call, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end,
              float* scratch) {
  constexpr int64_t kWidest = kWidth < 16 ? 8 * kWidth : 4 * kWidth;
  const int64_t step = Min(kWidest, TrainingLanes(call.in_features));
  bool ok = true;
  for (int64_t row = row_begin; ok && row < row_end; row += step) {
    const int64_t rows = Min(step, row_end - row);
    if (rows <= kWidth) {
      ok = Kernel::template Run<1, Index, Element>(call, row, rows, begin, end, scratch);
    } else if (rows <= 2 * kWidth) {
      ok = Kernel::template Run<2, Index, Element>(call, row, rows, begin, end, scratch);
    } else if (kWidth == 16 || rows <= 4 * kWidth) {
      ok = Kernel::template Run<4, Index, Element>(call, row, rows, begin, end, scratch);
    } else {
      ok = Kernel::template Run<kWidth == 16 ? 4 : 8, Index, Element>(call, row, rows, begin, end,
                                                                       scratch);
    }
  }
  return ok;
}

template <typename Kernel>
bool RunTypes(const Training& call, int64_t row_begin, int64_t row_end, int64_t begin, int64_t end,
              float* scratch) {
  if (call.wide_indices) {
    return call.bfloat16
               ? RunTiles<Kernel, int32_t, uint16_t>(call, row_begin, row_end, begin, end, scratch)
               : RunTiles<Kernel, int32_t, float>(call, row_begin, row_end, begin, end, scratch);
  }
  return call.bfloat16
             ? RunTiles<Kernel, uint16_t, uint16_t>(call, row_begin, row_end, begin, end, scratch)
             : RunTiles<Kernel, uint16_t, float>(call, row_begin, row_end, begin, end, scratch);
}

bool TrainForward(const Training& call, int64_t row_begin, int64_t row_end, int64_t begin,
                  int64_t end, float* scratch) {
  return RunTypes<Forward>(call, row_begin, row_end, begin, end, scratch);
}

bool TrainInputGradient(const Training& call, int64_t row_begin, int64_t row_end, int64_t begin,
                        int64_t end, float* scratch) {
  return RunTypes<InputGradientOf>(call, row_begin, row_end, begin, end, scratch);
}

bool TrainValuesGradient(const Training& call, int64_t begin, int64_t end, float* scratch) {
  return RunTypes<ValuesGradientOf>(call, 0, call.batch, begin, end, scratch);
}

}  // namespace
}  // namespace SRIGL_TARGET
}  // namespace srigl
