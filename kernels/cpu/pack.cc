#include "pack.h"

#include <string.h>

#include <algorithm>
#include <array>

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
int32_t BlockColumns(const SparseRows& layer, bool half) {
  const double places = static_cast<double>(layer.num_active) * layer.in_features;
  const double density = layer.begin[layer.num_active] / std::max(places, 1.0);
  return half || density < 0.05 ? 224 : 96;
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

Pattern PackTiles(const Condensed& layer, bool half) {
  std::vector<int64_t> begin(layer.num_active + 1);
  for (int64_t a = 0; a <= layer.num_active; ++a) begin[a] = a * layer.fan_in;
  return PackTiles(SparseRows{begin.data(), layer.indices, layer.active, layer.num_active,
                              layer.in_features, layer.out_features},
                   half);
}

Pattern PackTiles(const SparseRows& layer, bool half) {
  PatternHeader header = Header(layer, kTileMagic);
  header.block_columns = BlockColumns(layer, half);
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

  struct Run {
    int64_t begin;  // in the flat indices
    uint16_t row, count;
  };
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
        runs[i] = {0, static_cast<uint16_t>(i), 0};
        if (a >= layer.num_active) continue;
        runs[i].begin = next[a];
        const int64_t end = layer.begin[a + 1];
        while (next[a] < end && layer.indices[next[a]] < column_begin + header.block_columns) {
          ++next[a];
        }
        runs[i].count = static_cast<uint16_t>(next[a] - runs[i].begin);
      }
      std::stable_sort(runs.begin(), runs.end(),
                       [](const Run& a, const Run& b) { return a.count > b.count; });
      for (int i = 0; i < kPanelRows; ++i) {
        rows[table * kPanelRows + i] = {runs[i].row, runs[i].count};
        for (int64_t s = runs[i].begin; s < runs[i].begin + runs[i].count; ++s) {
          columns[pattern.sources.size()] =
              static_cast<uint8_t>(layer.indices[s] - column_begin);
          pattern.sources.push_back(s);
        }
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
