#include "pack.h"

#include <string.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <utility>

#include "pack_common.h"

namespace srigl {
namespace {

bool Ascends(const int32_t* begin, int64_t size, int64_t end) {
  int64_t last = -1;
  for (int64_t i = 0; i < size; ++i) {
    if (begin[i] <= last) return false;
    last = begin[i];
  }
  return last < end;
}

// Inputs of a block. Its tile (64 batch rows) should stay in the first-level cache; a sparser layer
// gets larger blocks, as every (row, block) costs a load and a store of the row's sums, and so does a
// layer whose tiles are of float16 and half as large.
int32_t BlockColumns(const SparseRows& layer, Tiles tiles) {
  const double places = static_cast<double>(layer.num_active) * layer.in_features;
  const double density = layer.begin[layer.num_active] / std::max(places, 1.0);
  return tiles == Tiles::kHalf || density < 0.05 ? 224 : 96;
}

// A row's weights in a block.
struct Run {
  int64_t begin;  // in the flat indices
  uint16_t row, count;
  uint64_t columns[kMaxBlockColumns / 64];  // a bit for each
};

int64_t Shared(const Run& a, const Run& b) {
  int64_t shared = 0;
  for (int i = 0; i < kMaxBlockColumns / 64; ++i) {
    shared += __builtin_popcountll(a.columns[i] & b.columns[i]);
  }
  return shared;
}

// Columns that two rows of a pair share, of which a kernel takes two at a time.
int64_t SharedInPairs(const Run& a, const Run& b) { return Shared(a, b) / 2 * 2; }

// Makes neighbours of rows that share many columns and are about as long, of runs that come by their
// count; the pairs come by what the kernel's loops take.
void PairRuns(std::array<Run, kPanelRows>* runs) {
  constexpr int kCandidates = 16;
  std::vector<Run> left(runs->begin(), runs->end()), paired;
  while (!left.empty()) {
    const Run first = left[0];
    const int end = std::min<int>(kCandidates + 1, static_cast<int>(left.size()));
    int best = 1;
    int64_t best_gain = INT64_MIN;
    for (int i = 1; i < end; ++i) {
      const int64_t gain = 2 * Shared(first, left[i]) - 3 * (first.count - left[i].count);
      if (gain > best_gain) best = i, best_gain = gain;
    }
    paired.push_back(first);
    paired.push_back(left[best]);
    left.erase(left.begin() + best);
    left.erase(left.begin());
  }
  std::array<int, kPanelRows / 2> order;
  std::iota(order.begin(), order.end(), 0);
  const auto key = [&paired](int pair) {
    const Run &a = paired[2 * pair], &b = paired[2 * pair + 1];
    return std::make_pair(SharedInPairs(a, b), int64_t{a.count});
  };
  std::stable_sort(order.begin(), order.end(), [&key](int a, int b) { return key(a) > key(b); });
  for (int i = 0; i < kPanelRows; ++i) (*runs)[i] = paired[2 * order[i / 2] + i % 2];
}

// Calls `place` for the weights of a pair in the pattern's order, and returns how many columns it shares.
template <typename Place>
int64_t PlacePair(const int32_t* indices, const Run& a, const Run& b, const Place& place) {
  const int64_t shared = SharedInPairs(a, b);
  std::vector<int64_t> own, other;
  const int64_t end = a.begin + a.count, other_end = b.begin + b.count;
  int64_t s = a.begin, t = b.begin;
  for (int64_t placed = 0; placed < shared;) {
    if (indices[s] < indices[t]) {
      own.push_back(s++);
    } else if (indices[t] < indices[s]) {
      other.push_back(t++);
    } else {
      place(s++);
      place(t++);
      ++placed;
    }
  }
  while (s < end) own.push_back(s++);
  while (t < other_end) other.push_back(t++);
  const size_t both = std::min(own.size(), other.size());
  for (size_t i = 0; i < both; ++i) {
    place(own[i]);
    place(other[i]);
  }
  std::for_each(own.begin() + both, own.end(), place);
  std::for_each(other.begin() + both, other.end(), place);
  return shared;
}

}  // namespace

std::string CheckCondensed(const Condensed& layer) {
  constexpr int64_t kMax = 0x7fffffff;
  if (layer.in_features < 0 || layer.in_features > kMax || layer.out_features < 0 ||
      layer.out_features > kMax) {
    return "in_features and out_features must lie in 0..2**31 - 1";
  }
  if (layer.num_active < 0 || layer.num_active > layer.out_features) {
    return "there are more active neurons than neurons";
  }
  if (layer.fan_in < 0 || layer.fan_in > layer.in_features) {
    return "the fan-in is larger than in_features";
  }
  if (!Ascends(layer.active, layer.num_active, layer.out_features)) {
    return "`active` must ascend within 0..out_features - 1";
  }
  for (int64_t row = 0; row < layer.num_active; ++row) {
    if (!Ascends(layer.indices + row * layer.fan_in, layer.fan_in, layer.in_features)) {
      return "`indices` of neuron " + std::to_string(layer.active[row]) +
             " must ascend within 0..in_features - 1";
    }
  }
  return "";
}

bool PairsPay(const Condensed& layer, int64_t width) {
  return width >= 16 && layer.fan_in >= 0.08 * static_cast<double>(layer.in_features);
}

Pattern PackTiles(const Condensed& layer, Tiles tiles) {
  std::vector<int64_t> begin(layer.num_active + 1);
  for (int64_t a = 0; a <= layer.num_active; ++a) begin[a] = a * layer.fan_in;
  return PackTiles(SparseRows{begin.data(), layer.indices, layer.active, layer.num_active,
                              layer.in_features, layer.out_features},
                   tiles);
}

Pattern PackTiles(const SparseRows& layer, Tiles tiles) {
  const bool is_paired = tiles == Tiles::kPaired;
  PatternHeader header = Header(layer, is_paired ? kPairedTileMagic : kTileMagic);
  header.block_columns = BlockColumns(layer, tiles);
  header.num_values = layer.begin[layer.num_active];
  const int64_t num_blocks = CeilDiv(layer.in_features, header.block_columns);
  const int64_t num_panels = CeilDiv(layer.num_active, kPanelRows);
  TileSections sections;
  if (!TileLayout(header, &sections)) return {};
  Pattern pattern;
  pattern.bytes.resize(sections.total);
  pattern.sources.reserve(header.num_values);
  memcpy(pattern.bytes.data(), &header, sizeof(header));
  int64_t* starts = Section<int64_t>(&pattern.bytes, sections.starts);
  int32_t* panel_outputs = Section<int32_t>(&pattern.bytes, sections.panel_outputs);
  TileRow* rows = Section<TileRow>(&pattern.bytes, sections.rows);
  int32_t* output_rows = Section<int32_t>(&pattern.bytes, sections.output_rows);
  uint8_t* columns = Section<uint8_t>(&pattern.bytes, sections.columns);

  std::fill_n(output_rows, layer.out_features, -1);
  for (int64_t a = 0; a < layer.num_active; ++a) {
    output_rows[layer.active[a]] = static_cast<int32_t>(a);
  }
  for (int64_t p = 0; p <= num_panels && num_panels > 0; ++p) {
    panel_outputs[p] = OutputBegin(layer, p * kPanelRows);
  }

  // First weight of each row not yet placed.
  std::vector<int64_t> next(layer.begin, layer.begin + layer.num_active);
  for (int64_t block = 0; block < num_blocks; ++block) {
    const int64_t column_begin = block * header.block_columns;
    for (int64_t panel = 0; panel < num_panels; ++panel) {
      const int64_t table = block * num_panels + panel;
      starts[table] = static_cast<int64_t>(pattern.sources.size());
      std::array<Run, kPanelRows> runs;
      for (int i = 0; i < kPanelRows; ++i) {
        const int64_t a = panel * kPanelRows + i;
        runs[i] = {0, static_cast<uint16_t>(i), 0, {}};
        if (a >= layer.num_active) continue;
        runs[i].begin = next[a];
        const int64_t end = layer.begin[a + 1];
        for (; next[a] < end; ++next[a]) {
          const int64_t column = layer.indices[next[a]] - column_begin;
          if (column >= header.block_columns) break;
          runs[i].columns[column / 64] |= uint64_t{1} << column % 64;
        }
        runs[i].count = static_cast<uint16_t>(next[a] - runs[i].begin);
      }
      std::stable_sort(runs.begin(), runs.end(),
                       [](const Run& a, const Run& b) { return a.count > b.count; });
      if (is_paired) PairRuns(&runs);
      TileRow* const row = rows + table * kPanelRows;
      for (int i = 0; i < kPanelRows; ++i) row[i] = {runs[i].row, runs[i].count};
      const auto place = [&](int64_t source) {
        columns[pattern.sources.size()] =
            static_cast<uint8_t>(layer.indices[source] - column_begin);
        pattern.sources.push_back(source);
      };
      for (int i = 0; !is_paired && i < kPanelRows; ++i) {
        for (int64_t s = runs[i].begin; s < runs[i].begin + runs[i].count; ++s) place(s);
      }
      for (int i = 0; is_paired && i < kPanelRows; i += 2) {
        const int64_t shared = PlacePair(layer.indices, runs[i], runs[i + 1], place);
        row[i].row = static_cast<uint16_t>(row[i].row + shared * kPanelRows);
      }
    }
  }
  starts[num_blocks * num_panels] = static_cast<int64_t>(pattern.sources.size());
  return pattern;
}

std::vector<uint8_t> GatherValues(const Condensed& layer, const Pattern& pattern) {
  const size_t size = ValueBytes(layer.value_type);
  std::vector<uint8_t> values(pattern.sources.size() * size);
  for (size_t i = 0; i < pattern.sources.size(); ++i) {
    if (pattern.sources[i] < 0) continue;
    memcpy(values.data() + i * size,
           static_cast<const uint8_t*>(layer.values) + pattern.sources[i] * size, size);
  }
  for (size_t i = 0; i < pattern.embedded.size(); ++i) {
    float value;
    memcpy(&value, values.data() + i * size, sizeof(value));
    value = Embed(value, pattern.embedded[i]);
    memcpy(values.data() + i * size, &value, sizeof(value));
  }
  return values;
}

}  // namespace srigl
