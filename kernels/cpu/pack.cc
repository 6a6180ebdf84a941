#include "pack.h"

#include <string.h>

#include <algorithm>
#include <array>

namespace srigl {
namespace {

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <typename T>
T* Section(std::vector<uint8_t>* bytes, size_t begin) {
  return reinterpret_cast<T*>(bytes->data() + begin);
}

template <typename Layer>
PatternHeader Header(const Layer& layer, uint32_t magic) {
  PatternHeader header = {};
  header.magic = magic;
  header.in_features = static_cast<int32_t>(layer.in_features);
  header.out_features = static_cast<int32_t>(layer.out_features);
  header.num_active = static_cast<int32_t>(layer.num_active);
  return header;
}

// First output that a range of rows beginning with `row` owns: ablated neurons belong to the
// active one before them, and those before the first to the first.
template <typename Layer>
int32_t OutputBegin(const Layer& layer, int64_t row) {
  if (row == 0) return 0;
  return row < layer.num_active ? layer.active[row] : static_cast<int32_t>(layer.out_features);
}

bool Ascends(const int32_t* begin, int64_t size, int64_t end) {
  int64_t last = -1;
  for (int64_t i = 0; i < size; ++i) {
    if (begin[i] <= last) return false;
    last = begin[i];
  }
  return last < end;
}

// Inputs of a block. Its tile (64 batch rows) should stay in the first-level cache; a sparser layer
// gets larger blocks, as every (row, block) costs a load and a store of the row's sums.
int32_t BlockColumns(const SparseRows& layer) {
  const double places = static_cast<double>(layer.num_active) * layer.in_features;
  const double density = layer.begin[layer.num_active] / std::max(places, 1.0);
  return density >= 0.05 ? 96 : 224;
}

// ---- planning of windows ----

constexpr int kBand = 40;  // a packet's windows lie less than this many windows apart

struct Packet {
  int steps;
  int window[2];
  std::array<std::array<int64_t, 4>, kGroupRows> sources;  // [lane][step], -1: padding
  std::array<std::array<uint8_t, 4>, kGroupRows> columns;
};

// Plans the packets of one group of rows, greedily: the pair of windows that fills most lanes
// comes first. A window may occur in several packets, so each row chooses where to spend its
// weights, and rows of equal fan-in run out together.
class GroupPacker {
 public:
  explicit GroupPacker(const Condensed& layer)
      : layer_(layer),
        num_windows_(CeilDiv(layer.in_features, kWindowColumns)),
        left_(num_windows_),
        scores_(num_windows_),
        best_(num_windows_) {}

  std::vector<Packet> Pack(int64_t first_row) {
    Count(first_row);
    std::vector<Packet> packets;
    for (const int steps : {4, 2, 1}) {
      // Of 64 places one may stay empty; beyond that a shorter packet is cheaper than padding.
      const int enough = steps == 4 ? 4 * kGroupRows - 1 : steps == 2 ? 2 * kGroupRows : 1;
      const size_t begin = packets.size();
      Plan(steps, enough, &packets);
      // In order of columns, so that few lines of x are in use at a time.
      std::stable_sort(packets.begin() + begin, packets.end(),
                       [](const Packet& a, const Packet& b) { return a.window[0] < b.window[0]; });
    }
    return packets;
  }

  // The last window starts early enough to be whole.
  int64_t WindowStart(int64_t window) const {
    const int64_t last = std::max<int64_t>(layer_.in_features - kWindowColumns, 0);
    return std::min(window * kWindowColumns, last);
  }

 private:
  using Counts = std::array<uint8_t, kGroupRows>;  // by lane

  struct Score {
    float score;  // 0 when the pair fills too few lanes
    int distance;
  };

  void Count(int64_t first_row) {
    for (Counts& counts : left_) counts.fill(0);
    for (int lane = 0; lane < kGroupRows; ++lane) {
      next_[lane].assign(num_windows_, 0);
      const int64_t row = first_row + lane;
      if (row >= layer_.num_active) continue;
      for (int64_t j = layer_.fan_in; j-- > 0;) {
        const int64_t source = row * layer_.fan_in + j;
        const int64_t window = layer_.indices[source] / kWindowColumns;
        ++left_[window][lane];
        next_[lane][window] = source;
      }
    }
  }

  float PairScore(int64_t window, int distance, int steps, int enough) const {
    const Counts& a = left_[window];
    const Counts& b = left_[window + distance];
    int filled = 0, total = 0;
    for (int lane = 0; lane < kGroupRows; ++lane) {
      const int sum = a[lane] + (distance > 0 ? b[lane] : 0);
      filled += std::min(sum, steps);
      total += sum;
    }
    // Among equally full pairs the one with more left over: what is scarce is hard to place later.
    return filled < enough ? 0.0f : filled + 0.05f * steps * total;
  }

  int NumPartners(int64_t window) const {
    return static_cast<int>(std::min<int64_t>(kBand, num_windows_ - window));
  }

  void Rescore(int64_t window, int steps, int enough) {
    for (int d = 0; d < NumPartners(window); ++d) {
      scores_[window][d] = PairScore(window, d, steps, enough);
    }
    FindBest(window);
  }

  void FindBest(int64_t window) {
    Score best = {0.0f, 0};
    for (int d = 0; d < NumPartners(window); ++d) {
      if (scores_[window][d] > best.score) best = {scores_[window][d], d};
    }
    best_[window] = best;
  }

  void Plan(int steps, int enough, std::vector<Packet>* packets) {
    for (int64_t w = 0; w < num_windows_; ++w) Rescore(w, steps, enough);
    for (;;) {
      int64_t window = 0;
      for (int64_t w = 1; w < num_windows_; ++w) {
        if (best_[w].score > best_[window].score) window = w;
      }
      if (num_windows_ == 0 || best_[window].score <= 0.0f) return;
      const int64_t other = window + best_[window].distance;
      packets->push_back(Take(steps, window, other));
      for (const int64_t changed : {window, other}) {
        Rescore(changed, steps, enough);
        for (int64_t w = std::max<int64_t>(changed - kBand + 1, 0); w < changed; ++w) {
          const int d = static_cast<int>(changed - w);
          scores_[w][d] = PairScore(w, d, steps, enough);
          if (scores_[w][d] > best_[w].score) {
            best_[w] = {scores_[w][d], d};
          } else if (best_[w].distance == d) {
            FindBest(w);
          }
        }
      }
    }
  }

  // Takes up to `steps` weights of every row out of two windows.
  Packet Take(int steps, int64_t window, int64_t other) {
    Packet packet = {};
    packet.steps = steps;
    packet.window[0] = static_cast<int>(window);
    packet.window[1] = static_cast<int>(other);
    for (int lane = 0; lane < kGroupRows; ++lane) {
      for (int s = 0; s < steps; ++s) {
        const bool second = left_[other][lane] > left_[window][lane];
        const int64_t from = second ? other : window;
        packet.sources[lane][s] = -1;
        if (left_[from][lane] == 0) continue;
        --left_[from][lane];
        const int64_t source = next_[lane][from]++;
        packet.sources[lane][s] = source;
        packet.columns[lane][s] = static_cast<uint8_t>(
            layer_.indices[source] - WindowStart(from) + (second ? kWindowColumns : 0));
      }
    }
    return packet;
  }

  const Condensed& layer_;
  const int64_t num_windows_;
  std::vector<Counts> left_;                              // weights not yet placed
  std::array<std::vector<int64_t>, kGroupRows> next_;     // the first of them
  std::vector<std::array<float, kBand>> scores_;          // of (window, window + distance)
  std::vector<Score> best_;                               // over distances
};

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

Pattern PackTiles(const Condensed& layer) {
  std::vector<int64_t> begin(layer.num_active + 1);
  for (int64_t a = 0; a <= layer.num_active; ++a) begin[a] = a * layer.fan_in;
  return PackTiles(SparseRows{begin.data(), layer.indices, layer.active, layer.num_active,
                              layer.in_features, layer.out_features});
}

Pattern PackTiles(const SparseRows& layer) {
  PatternHeader header = Header(layer, kTileMagic);
  header.block_columns = BlockColumns(layer);
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

Pattern PackWindows(const Condensed& layer) {
  const int64_t num_groups = CeilDiv(layer.num_active, kGroupRows);
  std::vector<WindowGroup> groups(num_groups + 1);
  std::vector<WindowHeader> headers;
  std::vector<uint16_t> masks;
  std::vector<uint8_t> columns;
  Pattern pattern;
  GroupPacker packer(layer);
  for (int64_t g = 0; g <= num_groups; ++g) {
    WindowGroup& group = groups[g];
    group.packet_begin = static_cast<int64_t>(headers.size());
    group.step_begin = static_cast<int64_t>(columns.size()) / kGroupRows;
    group.mask_begin = static_cast<int64_t>(masks.size());
    group.output_begin = num_groups > 0 ? OutputBegin(layer, g * kGroupRows) : 0;
    if (g == num_groups) break;
    for (const Packet& packet : packer.Pack(g * kGroupRows)) {
      if (packet.steps == 4) ++group.num_packets4;
      if (packet.steps == 2) ++group.num_packets2;
      headers.push_back({{static_cast<uint32_t>(packer.WindowStart(packet.window[0])),
                          static_cast<uint32_t>(packer.WindowStart(packet.window[1]))}});
      for (const auto& lane : packet.columns) {
        columns.insert(columns.end(), lane.begin(), lane.begin() + packet.steps);
      }
      for (int s = 0; s < packet.steps; ++s) {
        for (const auto& lane : packet.sources) pattern.sources.push_back(lane[s]);
      }
    }
    int64_t a = g * kGroupRows;
    const int64_t end = OutputBegin(layer, (g + 1) * kGroupRows);
    for (int64_t o = group.output_begin; o < end; o += kGroupRows) {
      uint16_t mask = 0;
      const int64_t stop = std::min(o + kGroupRows, end);
      for (; a < layer.num_active && layer.active[a] < stop; ++a) {
        mask |= static_cast<uint16_t>(1u << (layer.active[a] - o));
      }
      masks.push_back(mask);
    }
  }

  PatternHeader header = Header(layer, kWindowMagic);
  header.num_values = static_cast<int64_t>(columns.size());
  header.num_packets = static_cast<int64_t>(headers.size());
  header.num_masks = static_cast<int64_t>(masks.size());
  WindowSections sections;
  if (!WindowLayout(header, &sections)) return {};
  pattern.bytes.resize(sections.total);
  memcpy(pattern.bytes.data(), &header, sizeof(header));
  const auto copy = [&pattern](size_t begin, const auto& items) {
    if (!items.empty()) {
      memcpy(pattern.bytes.data() + begin, items.data(), items.size() * sizeof(items[0]));
    }
  };
  copy(sections.groups, groups);
  copy(sections.headers, headers);
  copy(sections.masks, masks);
  copy(sections.columns, columns);
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
  return values;
}

}  // namespace srigl
