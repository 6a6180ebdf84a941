// Plans the packets of the window pattern.

#include <string.h>

#include <algorithm>
#include <array>
#include <cmath>

#include "pack.h"
#include "pack_common.h"

namespace srigl {
namespace {

// A packet begins with a pair of windows that lie less than this many windows apart, and lies within
// as many to the right of the left one of them and half as many to its left. So few lines of x are
// in use at a time.
constexpr int kBand = 40;
static_assert(kBand / 2 + kBand <= kPathReach);

struct Step {
  int window[2];
  std::array<int64_t, kGroupRows> sources;  // by lane, -1: padding
  std::array<uint8_t, kGroupRows> columns;
};

// Four steps, each of which begins at the window where the one before it ends.
struct Packet {
  std::array<Step, kPacketSteps> steps;

  int window(int i) const { return i == 0 ? steps[0].window[0] : steps[i - 1].window[1]; }
};

// Plans the packets of one group of rows, greedily: it begins with the pair of windows that fills
// most lanes, and makes the path longer where most lanes find a weight. A window may occur in
// several packets, so each row chooses where to spend its weights, and rows of equal fan-in run out
// together.
class GroupPacker {
 public:
  explicit GroupPacker(const Condensed& layer)
      : layer_(layer),
        num_windows_(static_cast<int>(CeilDiv(layer.in_features, kWindowColumns))),
        weights_(num_windows_),
        scores_(num_windows_),
        best_(num_windows_) {}

  std::vector<Packet> Pack(int64_t group) {
    const int64_t first_row = group * kGroupRows;
    Count(first_row);
    for (int w = 0; w < num_windows_; ++w) Rescore(w);
    std::vector<Packet> packets;
    while (num_left_ > 0) packets.push_back(NextPacket());
    // In order of columns, so that few lines of x are in use at a time; every other group the other
    // way round, so that it begins with those which the group before it has used last.
    std::stable_sort(packets.begin(), packets.end(), [group](const Packet& a, const Packet& b) {
      return group % 2 == 0 ? a.window(0) < b.window(0) : a.window(0) > b.window(0);
    });
    return packets;
  }

 private:
  using Counts = std::array<uint8_t, kGroupRows>;  // by lane

  struct Choice {
    float score;
    int window;
  };

  void Count(int64_t first_row) {
    for (Counts& counts : weights_) counts.fill(0);
    num_left_ = 0;
    for (int lane = 0; lane < kGroupRows; ++lane) {
      next_[lane].assign(num_windows_, 0);
      const int64_t row = first_row + lane;
      if (row >= layer_.num_active) continue;
      num_left_ += layer_.fan_in;
      for (int64_t j = layer_.fan_in; j-- > 0;) {
        const int64_t source = row * layer_.fan_in + j;
        const int64_t window = layer_.indices[source] / kWindowColumns;
        ++weights_[window][lane];
        next_[lane][window] = source;
      }
    }
  }

  // How good a step from one window to another would be, 0 if it would be empty.
  float Score(int from, int to) const {
    const Counts& a = weights_[from];
    const Counts& b = weights_[to];
    int filled = 0, total = 0;
    for (int lane = 0; lane < kGroupRows; ++lane) {
      const int sum = a[lane] + (to == from ? 0 : b[lane]);
      filled += sum > 0;
      total += sum;
    }
    // Among equally full pairs the one with more left over: what is scarce is hard to place later.
    return filled == 0 ? 0.0f : filled + 0.05f * total;
  }

  int NumPartners(int window) const { return std::min(kBand, num_windows_ - window); }

  void Rescore(int window) {
    for (int d = 0; d < NumPartners(window); ++d) scores_[window][d] = Score(window, window + d);
    FindBest(window);
  }

  void FindBest(int window) {
    Choice best = {0.0f, window};
    for (int d = 0; d < NumPartners(window); ++d) {
      if (scores_[window][d] > best.score) best = {scores_[window][d], window + d};
    }
    best_[window] = best;
  }

  // After weights of this window were placed.
  void Update(int window) {
    Rescore(window);
    for (int w = std::max(window - kBand + 1, 0); w < window; ++w) {
      scores_[w][window - w] = Score(w, window);
      if (scores_[w][window - w] > best_[w].score) {
        best_[w] = {scores_[w][window - w], window};
      } else if (best_[w].window == window) {
        FindBest(w);
      }
    }
  }

  Choice BestNext(int from, int begin, int end) const {
    Choice best = {0.0f, from};
    for (int w = begin; w < end; ++w) {
      const float score = Score(from, w);
      if (score > best.score) best = {score, w};
    }
    return best;
  }

  Packet NextPacket() {
    int first = 0;
    for (int w = 1; w < num_windows_; ++w) {
      if (best_[w].score > best_[first].score) first = w;
    }
    const int begin = std::max(first - kBand / 2, 0), end = std::min(first + kBand, num_windows_);
    Packet packet;
    int size = 0;
    packet.steps[size++] = Take(first, best_[first].window);
    while (size < kPacketSteps) {
      const int head = packet.steps[0].window[0], tail = packet.steps[size - 1].window[1];
      const Choice before = BestNext(head, begin, end), after = BestNext(tail, begin, end);
      if (before.score > after.score) {
        std::copy_backward(packet.steps.begin(), packet.steps.begin() + size,
                           packet.steps.begin() + size + 1);
        packet.steps[0] = Take(before.window, head);
      } else {
        packet.steps[size] = Take(tail, after.window);
      }
      ++size;
    }
    for (int i = 0; i <= kPacketSteps; ++i) Update(packet.window(i));
    return packet;
  }

  // Takes a weight of every row out of one of two windows, where it has more left.
  Step Take(int from, int to) {
    Step step = {{from, to}, {}, {}};
    for (int lane = 0; lane < kGroupRows; ++lane) {
      const bool second = weights_[to][lane] > weights_[from][lane];
      const int window = second ? to : from;
      step.sources[lane] = -1;
      if (weights_[window][lane] == 0) continue;
      --weights_[window][lane];
      --num_left_;
      const int64_t source = next_[lane][window]++;
      step.sources[lane] = source;
      step.columns[lane] = static_cast<uint8_t>(layer_.indices[source] - Start(window) +
                                                (second ? kWindowColumns : 0));
    }
    return step;
  }

  // First column of a window. The last one starts early enough to be whole.
  int64_t Start(int window) const {
    const int64_t last = std::max<int64_t>(layer_.in_features - kWindowColumns, 0);
    return std::min(int64_t{window} * kWindowColumns, last);
  }

  const Condensed& layer_;
  const int num_windows_;
  int64_t num_left_ = 0;                               // weights not yet placed
  std::vector<Counts> weights_;                        // of these, by window
  std::array<std::vector<int64_t>, kGroupRows> next_;  // the first of them
  std::vector<std::array<float, kBand>> scores_;       // of (window, window + distance)
  std::vector<Choice> best_;                           // over distances
};

WindowPath Path(const Packet& packet) {
  int left = packet.window(0);
  for (int i = 1; i <= kPacketSteps; ++i) left = std::min(left, packet.window(i));
  WindowPath path = static_cast<uint32_t>(left) * uint32_t{kWindowColumns};
  for (int i = 0; i <= kPacketSteps; ++i) {
    path |= static_cast<WindowPath>(packet.window(i) - left) << (32 + 6 * i);
  }
  return path;
}

}  // namespace

float Embed(float value, uint8_t column) {
  constexpr int32_t kStep = 2 * kWindowColumns, kInfinity = 0x7f800000;
  if (value == 0) return 0;
  int32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  const int32_t size = bits & 0x7fffffff, sign = bits & ~0x7fffffff;
  int32_t nearest = size / kStep * kStep + column % kStep;
  if (nearest - size > kStep / 2) nearest -= kStep;
  if (size - nearest > kStep / 2) nearest += kStep;
  if (nearest < 0) nearest += kStep;
  if (nearest >= kInfinity) nearest -= kStep;
  nearest |= sign;
  memcpy(&value, &nearest, sizeof(value));
  return value;
}

bool CanEmbed(const Condensed& layer) {
  if (layer.value_type != ValueType::kFloat32) return false;
  const float* values = static_cast<const float*>(layer.values);
  return std::all_of(values, values + layer.num_active * layer.fan_in,
                     [](float value) { return std::isfinite(value); });
}

Pattern PackWindows(const Condensed& layer, bool embed) {
  const int64_t num_groups = CeilDiv(layer.num_active, kGroupRows);
  std::vector<WindowGroup> groups(num_groups + 1);
  std::vector<WindowPath> paths;
  std::vector<uint16_t> masks;
  std::vector<uint8_t> columns;
  Pattern pattern;
  GroupPacker packer(layer);
  for (int64_t g = 0; g <= num_groups; ++g) {
    WindowGroup& group = groups[g];
    group.packet_begin = static_cast<int64_t>(paths.size());
    BeginGroup(layer, g, num_groups, &group, &masks);
    if (g == num_groups) break;
    for (const Packet& packet : packer.Pack(g)) {
      paths.push_back(Path(packet));
      for (int lane = 0; lane < kGroupRows && !embed; ++lane) {
        for (const Step& step : packet.steps) columns.push_back(step.columns[lane]);
      }
      for (const Step& step : packet.steps) {
        pattern.sources.insert(pattern.sources.end(), step.sources.begin(), step.sources.end());
        if (!embed) continue;
        pattern.embedded.insert(pattern.embedded.end(), step.columns.begin(), step.columns.end());
      }
    }
  }

  PatternHeader header = Header(layer, kWindowMagic);
  header.is_embedded = embed ? 1 : 0;
  header.num_values = static_cast<int64_t>(pattern.sources.size());
  header.num_masks = static_cast<int64_t>(masks.size());
  WindowSections sections;
  if (!WindowLayout(header, &sections)) return {};
  pattern.bytes.resize(sections.total);
  memcpy(pattern.bytes.data(), &header, sizeof(header));
  CopySection(groups, sections.groups, &pattern.bytes);
  CopySection(paths, sections.paths, &pattern.bytes);
  CopySection(masks, sections.masks, &pattern.bytes);
  CopySection(columns, sections.columns, &pattern.bytes);
  return pattern;
}

}  // namespace srigl
