#include "topology.h"

#include <string.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

namespace srigl {
namespace {

uint32_t KeyOf(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return std::min(bits & 0x7fffffff, kLargestKey - 2) + 1;
}

// Something of a layer that is ranked: largest key first, then the lower input, then the lower
// neuron.
struct Ranked {
  uint32_t key;
  int32_t input, neuron;

  bool IsBefore(const Ranked& other) const {
    if (key != other.key) return key > other.key;
    return input != other.input ? input < other.input : neuron < other.neuron;
  }
};

// The last of the first `count` in that order: all before it, and it, are among them. `count` lies
// within 1..size.
Ranked Last(std::vector<Ranked>* all, int64_t count) {
  const auto last = all->begin() + (count - 1);
  std::nth_element(all->begin(), last, all->end(),
                   [](const Ranked& a, const Ranked& b) { return a.IsBefore(b); });
  return *last;
}

// The key of the number `n` from above, 1..size, by halving: counting takes a few keys at a time and
// foresees every branch, where moving keys about foresees every other one.
uint32_t NthLargest(const std::vector<uint32_t>& keys, int64_t n) {
  uint32_t low = 0, high = kLargestKey;
  while (low < high) {
    const uint32_t middle = low + (high - low + 1) / 2;
    int32_t reach = 0;
    for (const uint32_t key : keys) reach += static_cast<int32_t>(key) >= static_cast<int32_t>(middle);
    if (reach >= n) low = middle;
    else high = middle - 1;
  }
  return low;
}

constexpr int kLowBits = 15;  // of a key; the upper ones tell the bins of a histogram apart
constexpr int64_t kNumBins = 1 << (31 - kLowBits);
constexpr int64_t kMostKeyBytes = 8 << 20;  // of a layer whose keys are formed once, for all passes
constexpr int64_t kMostRanked = 1 << 21;  // ties and near ties that are held at once

// The bin in which the number `count` from above lies, and how many lie above that bin. -1 if there
// are fewer.
std::pair<int64_t, int64_t> FindBin(const std::vector<int64_t>& bins, int64_t count) {
  int64_t above = 0;
  for (int64_t b = static_cast<int64_t>(bins.size()) - 1; b >= 0; --b) {
    if (above + bins[b] >= count) return {b, above};
    above += bins[b];
  }
  return {-1, above};
}

using Found = std::vector<std::vector<Ranked>>;

struct Block {
  int64_t first, count;  // neurons
  uint32_t* keys;        // [count, stride]
  int32_t* places;       // [in_features and 16 more] for the visitor's use
};

class Updater {
 public:
  Updater(const TopologyUpdate& u, Executor* executor)
      : u_(u),
        executor_(executor),
        kernels_(CurrentKernels()),
        num_panels_(std::max<int64_t>(CeilDiv(u.in_features, kPanelInputs), 1)),
        stride_(num_panels_ * kPanelInputs),
        row_of_(u.out_features, -1) {
    for (int64_t a = 0; a < u.num_active; ++a) row_of_[u.active[a]] = static_cast<int32_t>(a);
    // As many neurons at once as leave their keys in the second-level cache.
    const int64_t fit = (1 << 20) / (4 * stride_) / 8 * 8;
    block_ = std::clamp<int64_t>(fit, 8, kGradientNeurons);
    num_entries_ = u.num_active * u.fan_in;
    const int64_t all = num_blocks() * block_ * stride_;
    if (all * static_cast<int64_t>(sizeof(uint32_t)) > kMostKeyBytes) return;
    all_keys_.reset(new uint32_t[all]);
    is_formed_.assign(num_blocks(), 0);
  }

  const char* Run() {
    if (!CheckIndices()) return "an index lies beyond the inputs, or a neuron's do not ascend";
    if (u_.scores == nullptr) PackInputs();
    int64_t nonzero = 0;
    for (int64_t e = 0; e < num_entries_; ++e) nonzero += u_.values[e] != 0;
    const int64_t num_kept = std::min(num_entries_ - u_.num_pruned, nonzero);
    stays_.assign(u_.out_features, 1);
    Keep(num_kept);
    if (u_.required > 0) {
      Ablate(num_entries_ - num_kept);
      int64_t alive = 0;
      bool all = true;
      for (int64_t a = 0; a < u_.num_active; ++a) {
        if (!stays_[u_.active[a]]) {
          all = false;
          continue;
        }
        for (int64_t e = a * u_.fan_in; e < (a + 1) * u_.fan_in; ++e) alive += u_.values[e] != 0;
      }
      if (!all) Keep(std::min(num_kept, alive));
    }
    Grow();
    return nullptr;
  }

 private:
  int64_t Input(int64_t entry) const {
    return u_.wide_indices ? static_cast<const int32_t*>(u_.indices)[entry]
                           : static_cast<const uint16_t*>(u_.indices)[entry];
  }

  bool CheckIndices() {
    return u_.wide_indices ? CheckIndices(static_cast<const int32_t*>(u_.indices))
                           : CheckIndices(static_cast<const uint16_t*>(u_.indices));
  }

  template <typename Index>
  bool CheckIndices(const Index* indices) {
    std::atomic<bool> failed{false};
    if (num_entries_ == 0) return true;
    Parallel(num_parts(), [&](int64_t part) {
      bool ascend = true;
      for (int64_t a = first_of(part); a < first_of(part + 1); ++a) {
        const Index* own = indices + a * u_.fan_in;
        ascend &= int64_t{own[0]} >= 0 && int64_t{own[u_.fan_in - 1]} < u_.in_features;
        for (int64_t j = 1; j < u_.fan_in; ++j) ascend &= own[j] > own[j - 1];
      }
      if (!ascend) failed.store(true, std::memory_order_relaxed);
    });
    return !failed.load();
  }

  // The batch in panels [input / kPanelInputs, row, input % kPanelInputs], zeros after the last.
  void PackInputs() {
    panels_.assign(num_panels_ * u_.batch * kPanelInputs, 0);
    for (int64_t b = 0; b < u_.batch; ++b) {
      for (int64_t i = 0; i < u_.in_features; i += kPanelInputs) {
        const int64_t count = std::min(kPanelInputs, u_.in_features - i);
        std::copy_n(u_.x + b * u_.in_features + i, count, &panels_[i * u_.batch + b * kPanelInputs]);
      }
    }
  }

  int64_t num_blocks() const { return CeilDiv(u_.out_features, block_); }

  // The active neurons in parts for all threads, and the first one of a part.
  int64_t num_parts() const { return 4 * std::max<int64_t>(executor_->num_threads(), 1); }
  int64_t first_of(int64_t part) const { return u_.num_active * part / num_parts(); }

  // Calls `run` with 0..count - 1, from several threads.
  void Parallel(int64_t count, const std::function<void(int64_t)>& run) {
    const auto task = [](const void* run, int64_t i) {
      (*static_cast<const std::function<void(int64_t)>*>(run))(i);
    };
    executor_->Run(count, executor_->num_threads(), task, &run);
  }

  // Calls `visit` with every block of neurons, from several threads.
  void ForBlocks(const std::function<void(const Block&)>& visit, int64_t step = 1) {
    Parallel(CeilDiv(num_blocks(), step), [&](int64_t i) { VisitBlock(i * step, visit); });
  }

  void VisitBlock(int64_t number, const std::function<void(const Block&)>& visit) {
    thread_local std::vector<uint32_t> some;
    thread_local std::vector<int32_t> places;
    places.resize(stride_ + 16);
    const int64_t first = number * block_, count = std::min(block_, u_.out_features - first);
    uint32_t* keys;
    if (all_keys_ != nullptr) {
      keys = all_keys_.get() + first * stride_;
    } else {
      some.resize(block_ * stride_);
      keys = some.data();
    }
    if (all_keys_ == nullptr || !is_formed_[number]) {
      if (u_.scores == nullptr) GradientKeys(first, count, keys);
      else ScoreKeys(first, count, keys);
    }
    if (all_keys_ != nullptr) is_formed_[number] = 1;
    visit({first, count, keys, places.data()});
  }

  void GradientKeys(int64_t first, int64_t count, uint32_t* keys) {
    thread_local std::vector<float> g;
    g.resize(u_.batch * kGradientNeurons);
    for (int64_t b = 0; b < u_.batch; ++b) {
      float* row = &g[b * kGradientNeurons];
      std::copy_n(u_.g + b * u_.out_features + first, count, row);
      std::fill(row + count, row + block_, 0.0f);
    }
    kernels_.gradient_keys(panels_.data(), num_panels_, g.data(), u_.batch, block_, keys);
  }

  // Transposes, a line of keys at a time.
  void ScoreKeys(int64_t first, int64_t count, uint32_t* keys) const {
    constexpr int64_t kLine = 16;
    for (int64_t begin = 0; begin < u_.in_features; begin += kLine) {
      const int64_t end = std::min(begin + kLine, u_.in_features);
      for (int64_t n = 0; n < count; ++n) {
        const float* scores = u_.scores + first + n;
        for (int64_t i = begin; i < end; ++i) {
          keys[n * stride_ + i] = KeyOf(scores[i * u_.out_features]);
        }
      }
    }
  }

  // Marks the largest weights, of neurons that stay.
  void Keep(int64_t count) {
    kept_.assign(num_entries_, 0);
    if (count == 0) return;
    const auto for_entries = [&](int64_t part, const auto& visit) {
      for (int64_t a = first_of(part); a < first_of(part + 1); ++a) {
        if (!stays_[u_.active[a]]) continue;
        for (int64_t e = a * u_.fan_in; e < (a + 1) * u_.fan_in; ++e) {
          if (u_.values[e] != 0) visit(KeyOf(u_.values[e]), e, u_.active[a]);
        }
      }
    };
    std::mutex mutex;
    std::vector<int64_t> bins(kNumBins);
    Parallel(num_parts(), [&](int64_t part) {
      std::vector<int32_t> some(kNumBins);
      for_entries(part, [&](uint32_t key, int64_t, int32_t) { ++some[key >> kLowBits]; });
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t b = 0; b < kNumBins; ++b) bins[b] += some[b];
    });
    const auto [bin, above] = FindBin(bins, count);
    const int64_t at = bin;
    std::vector<Ranked> near;
    Parallel(num_parts(), [&](int64_t part) {
      std::vector<Ranked> some;
      for_entries(part, [&](uint32_t key, int64_t e, int32_t neuron) {
        kept_[e] = (key >> kLowBits) > at;
        if ((key >> kLowBits) == at) some.push_back({key, static_cast<int32_t>(Input(e)), neuron});
      });
      const std::lock_guard<std::mutex> lock(mutex);
      near.insert(near.end(), some.begin(), some.end());
    });
    const Ranked last = Last(&near, count - above);
    Parallel(num_parts(), [&](int64_t part) {
      for_entries(part, [&](uint32_t key, int64_t e, int32_t neuron) {
        if ((key >> kLowBits) != at) return;
        kept_[e] = !last.IsBefore({key, static_cast<int32_t>(Input(e)), neuron});
      });
    });
  }

  // Finds which neurons stay: those with enough weights that are kept or among the largest
  // gradients of the layer.
  void Ablate(int64_t num_grown) {
    std::vector<int32_t> salient(u_.out_features, 0);
    for (int64_t a = 0; a < u_.num_active; ++a) {
      int32_t kept = 0;
      for (int64_t e = a * u_.fan_in; e < (a + 1) * u_.fan_in; ++e) kept += kept_[e];
      salient[u_.active[a]] = kept;
    }
    if (num_grown > 0) {
      Found large;
      const Ranked last = LastGradient(num_grown, &large);
      if (!large.empty()) {
        Parallel(num_blocks(), [&](int64_t b) { AddChosen(large[b], last, &salient); });
      } else {
        ForBlocks([&](const Block& block) {
          std::vector<Ranked> some;
          AppendReaching(block, last.key, &some);
          AddChosen(some, last, &salient);
        });
      }
    }
    std::vector<int32_t> sorted(salient);
    std::sort(sorted.begin(), sorted.end(), std::greater<int32_t>());
    const int64_t floor = sorted[std::min(u_.capacity / u_.in_features, u_.out_features - 1)];
    const int64_t enough = std::min(u_.required, floor);
    for (int64_t n = 0; n < u_.out_features; ++n) stays_[n] = salient[n] >= enough;
  }

  // Gradients of a block of neurons whose keys reach `least`, by neuron and then by input.
  void AppendReaching(const Block& block, uint32_t least, std::vector<Ranked>* some) const {
    for (int64_t n = 0; n < block.count; ++n) {
      const uint32_t* keys = block.keys + n * stride_;
      const int64_t found = kernels_.find_reaching(keys, u_.in_features, least, block.places);
      for (int64_t i = 0; i < found; ++i) {
        const int32_t input = block.places[i];
        some->push_back({keys[input], input, static_cast<int32_t>(block.first + n)});
      }
    }
  }

  // Counts, for each neuron of a block, those up to the last one that are not kept already.
  void AddChosen(const std::vector<Ranked>& some, const Ranked& last,
                 std::vector<int32_t>* salient) const {
    int64_t e = 0, end = 0;
    int32_t neuron = -1;
    for (const Ranked& one : some) {
      if (one.neuron != neuron) {
        neuron = one.neuron;
        const int64_t row = row_of_[neuron];
        e = row < 0 ? 0 : row * u_.fan_in;
        end = row < 0 ? 0 : e + u_.fan_in;
      }
      if (last.IsBefore(one)) continue;
      while (e < end && Input(e) < one.input) ++e;
      const bool is_kept = e < end && Input(e) == one.input && kept_[e];
      (*salient)[neuron] += !is_kept;
    }
  }

  // The last of the `count` largest gradients of the layer. In `large` all that may be among them, by
  // blocks of neurons, or nothing if they are too many to be held.
  Ranked LastGradient(int64_t count, Found* large) {
    // Most gradients are far too small: those of some neurons tell from where on to count.
    std::mutex mutex;
    const int64_t step = std::max<int64_t>(u_.out_features / block_ / 16, 1);
    std::vector<uint32_t> sample;
    ForBlocks([&](const Block& block) {
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t n = 0; n < block.count; n += 2) {
        for (int64_t i = n % 7; i < u_.in_features; i += 7) {
          sample.push_back(block.keys[n * stride_ + i]);
        }
      }
    }, step);
    const double share = static_cast<double>(count) /
                         (static_cast<double>(u_.in_features) * static_cast<double>(u_.out_features));
    const int64_t rank = static_cast<int64_t>(2 * share * static_cast<double>(sample.size())) + 64;
    uint32_t least = 0;
    if (rank < static_cast<int64_t>(sample.size())) {
      std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), std::greater<uint32_t>());
      least = sample[rank];
    }
    if (Collect(least, count, large)) return LastOf(*large, count);
    const std::vector<int64_t> bins = Histogram(0, kLowBits, 0);
    const auto [bin, above] = FindBin(bins, count);
    const uint32_t low = static_cast<uint32_t>(bin) << kLowBits;
    if (bins[bin] <= kMostRanked) {
      return LastBetween(low, low + ((1u << kLowBits) - 1), count - above);
    }
    // Very many are equal, zeros above all.
    const int64_t left = count - above;
    const auto [key_bin, key_above] = FindBin(Histogram(low, 0, low), left);
    const uint32_t key = low + static_cast<uint32_t>(key_bin);
    std::vector<int64_t> ties(u_.in_features);
    ForBlocks([&](const Block& block) {
      std::vector<int32_t> found(u_.in_features);
      for (int64_t n = 0; n < block.count; ++n) {
        for (int64_t i = 0; i < u_.in_features; ++i) found[i] += block.keys[n * stride_ + i] == key;
      }
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t i = 0; i < u_.in_features; ++i) ties[i] += found[i];
    });
    int64_t row = 0, before = key_above;
    while (before + ties[row] < left) before += ties[row++];
    std::vector<int32_t> tied;
    ForBlocks([&](const Block& block) {
      const std::lock_guard<std::mutex> lock(mutex);
      for (int64_t n = 0; n < block.count; ++n) {
        if (block.keys[n * stride_ + row] == key) {
          tied.push_back(static_cast<int32_t>(block.first + n));
        }
      }
    });
    std::sort(tied.begin(), tied.end());
    return {key, static_cast<int32_t>(row), tied[left - before - 1]};
  }

  // Finds the gradients whose keys reach `least`, in one pass. False, and nothing, if these are fewer
  // than `count`, or so many more that it is not worth their memory.
  bool Collect(uint32_t least, int64_t count, Found* large) {
    const int64_t most = 4 * count + 256;
    std::atomic<int64_t> total{0};
    large->resize(num_blocks());
    ForBlocks([&](const Block& block) {
      if (total.load() > most) return;
      std::vector<Ranked>& some = (*large)[block.first / block_];
      AppendReaching(block, least, &some);
      total.fetch_add(static_cast<int64_t>(some.size()));
    });
    const bool fits = total.load() >= count && total.load() <= most;
    if (!fits) large->clear();
    return fits;
  }

  // The last of the `count` first of them.
  Ranked LastOf(const Found& large, int64_t count) {
    std::vector<int64_t> bins(kNumBins);
    for (const auto& some : large) {
      for (const Ranked& one : some) ++bins[one.key >> kLowBits];
    }
    const auto [bin, above] = FindBin(bins, count);
    std::vector<Ranked> near;
    near.reserve(bins[bin]);
    for (const auto& some : large) {
      for (const Ranked& one : some) {
        if ((one.key >> kLowBits) == bin) near.push_back(one);
      }
    }
    return Last(&near, count - above);
  }

  // How many gradients' keys, of those that reach `least`, lie in each bin of 2^shift from `first` on.
  std::vector<int64_t> Histogram(uint32_t least, int shift, uint32_t first) {
    std::vector<int64_t> total(shift == 0 ? 1 << kLowBits : kNumBins);
    const uint32_t size = static_cast<uint32_t>(total.size());
    std::mutex mutex;
    ForBlocks([&](const Block& block) {
      thread_local std::vector<int32_t> bins;
      bins.assign(total.size(), 0);
      for (int64_t n = 0; n < block.count; ++n) {
        const uint32_t* keys = block.keys + n * stride_;
        const int64_t found = kernels_.find_reaching(keys, u_.in_features, least, block.places);
        for (int64_t i = 0; i < found; ++i) {
          const uint32_t bin = (keys[block.places[i]] - first) >> shift;
          if (bin < size) ++bins[bin];
        }
      }
      const std::lock_guard<std::mutex> lock(mutex);
      for (size_t b = 0; b < total.size(); ++b) total[b] += bins[b];
    });
    return total;
  }

  // The last of the `count` first gradients with keys from `low` to `high`.
  Ranked LastBetween(uint32_t low, uint32_t high, int64_t count) {
    std::vector<Ranked> all;
    std::mutex mutex;
    ForBlocks([&](const Block& block) {
      std::vector<Ranked> some;
      AppendReaching(block, low, &some);
      const std::lock_guard<std::mutex> lock(mutex);
      for (const Ranked& one : some) if (one.key <= high) all.push_back(one);
    });
    return Last(&all, count);
  }

  // Fills each neuron that stays: the kept first, then by gradient; trims those with too many.
  void Grow() {
    std::vector<int32_t> rows(u_.out_features, -1);
    int32_t num_active = 0;
    for (int64_t n = 0; n < u_.out_features; ++n) {
      if (!stays_[n]) continue;
      u_.new_active[num_active] = static_cast<int32_t>(n);
      rows[n] = num_active++;
    }
    std::fill(u_.new_active + num_active, u_.new_active + u_.out_features,
              static_cast<int32_t>(u_.out_features));
    const int64_t fan_in = u_.capacity / num_active, used = num_active * fan_in;
    u_.new_sizes[0] = num_active;
    u_.new_sizes[1] = static_cast<int32_t>(fan_in);
    std::fill(u_.source + used, u_.source + u_.capacity, -1);
    const size_t size = u_.wide_indices ? sizeof(int32_t) : sizeof(uint16_t);
    memset(static_cast<char*>(u_.new_indices) + used * size, 0, (u_.capacity - used) * size);
    ForBlocks([&](const Block& block) {
      for (int64_t n = 0; n < block.count; ++n) {
        const int64_t neuron = block.first + n;
        if (rows[neuron] >= 0) {
          GrowNeuron(neuron, rows[neuron] * fan_in, fan_in, block.keys + n * stride_, block.places);
        }
      }
    });
  }

  void GrowNeuron(int64_t neuron, int64_t to, int64_t fan_in, uint32_t* keys, int32_t* places) {
    if (fan_in == 0) return;
    const int64_t begin = row_of_[neuron] < 0 ? 0 : row_of_[neuron] * u_.fan_in;
    const int64_t end = row_of_[neuron] < 0 ? 0 : begin + u_.fan_in;
    int64_t num_kept = 0;
    for (int64_t e = begin; e < end; ++e) num_kept += kept_[e];
    const auto put = [&](int64_t input, int64_t entry) {
      if (u_.wide_indices) static_cast<int32_t*>(u_.new_indices)[to] = static_cast<int32_t>(input);
      else static_cast<uint16_t*>(u_.new_indices)[to] = static_cast<uint16_t>(input);
      u_.source[to++] = static_cast<int32_t>(entry);
    };
    if (num_kept > fan_in) {
      std::vector<Ranked> all;
      const auto ranked = [&](int64_t e) {
        return Ranked{KeyOf(u_.values[e]), static_cast<int32_t>(Input(e)), 0};
      };
      for (int64_t e = begin; e < end; ++e) if (kept_[e]) all.push_back(ranked(e));
      const Ranked last = Last(&all, fan_in);
      for (int64_t e = begin; e < end; ++e) {
        if (kept_[e] && !last.IsBefore(ranked(e))) put(Input(e), e);
      }
      return;
    }
    for (int64_t e = begin; e < end; ++e) if (kept_[e]) keys[Input(e)] = 0;
    const int64_t num_grown = fan_in - num_kept;
    int64_t found = 0, ties = 0;
    uint32_t least = 0;
    if (num_grown > 0) {
      least = Threshold(keys, num_grown, places, &ties);
      found = kernels_.find_reaching(keys, u_.in_features, least, places);
    }
    int64_t e = begin;
    for (int64_t i = 0; i < found; ++i) {
      const int64_t input = places[i];
      if (keys[input] == least && ties-- <= 0) continue;
      for (; e < end && Input(e) < input; ++e) if (kept_[e]) put(Input(e), e);
      const bool was_there = e < end && Input(e) == input;
      put(input, was_there ? e++ : -1);
    }
    for (; e < end; ++e) if (kept_[e]) put(Input(e), e);
  }

  // The key of the number `count` from above of a neuron's, and how many with just this key are
  // among these.
  uint32_t Threshold(const uint32_t* keys, int64_t count, int32_t* places, int64_t* ties) const {
    thread_local std::vector<uint32_t> some;
    some.clear();
    for (int64_t i = 0; i < u_.in_features; i += 16) some.push_back(keys[i]);
    const int64_t rank = count * 3 / 2 / 16 + 8;
    uint32_t least = 0;
    if (rank < static_cast<int64_t>(some.size())) {
      least = NthLargest(some, rank + 1);
    }
    int64_t found = kernels_.find_reaching(keys, u_.in_features, least, places);
    if (found < count) found = kernels_.find_reaching(keys, u_.in_features, 0, places);
    some.resize(found);
    for (int64_t i = 0; i < found; ++i) some[i] = keys[places[i]];
    const uint32_t key = NthLargest(some, count);
    *ties = count;
    for (int64_t i = 0; i < found; ++i) *ties -= some[i] > key;
    return key;
  }

  const TopologyUpdate& u_;
  Executor* executor_;
  const Kernels& kernels_;
  const int64_t num_panels_, stride_;
  int64_t block_, num_entries_;
  std::vector<int32_t> row_of_;  // of each neuron among the active ones, or -1
  std::vector<float> panels_;
  std::vector<uint8_t> kept_, stays_;
  std::unique_ptr<uint32_t[]> all_keys_;  // [blocks, block_, stride_], if so many are held
  std::vector<uint8_t> is_formed_;        // by block
};

const char* Check(const TopologyUpdate& u) {
  if (u.batch < 0 || u.in_features < 1 || u.out_features < 1 || u.num_active < 0 || u.fan_in < 0 ||
      u.capacity < 0 || u.num_pruned < 0 || u.required < 0) {
    return "a size is out of range";
  }
  if (u.fan_in > u.in_features) return "the fan-in is larger than the number of inputs";
  if (u.in_features > 0x7fffffff || u.capacity > 0x7fffffff || u.out_features > 0x7fffffff) {
    return "there are more than 2^31 - 1 of something";
  }
  if (!u.wide_indices && u.in_features > 0x10000) return "uint16 indices cannot reach all inputs";
  if (u.capacity > u.in_features * u.out_features) {
    return "the capacity is larger than the dense layer";
  }
  if (u.num_active > u.out_features || u.num_active * u.fan_in > u.capacity ||
      u.num_pruned > u.num_active * u.fan_in) {
    return "sizes exceed the capacity";
  }
  int64_t before = -1;
  bool ascend = true;
  for (int64_t a = 0; a < u.num_active; ++a) {
    ascend &= u.active[a] > before;
    before = u.active[a];
  }
  if (!ascend || before >= u.out_features) {
    return "the active neurons do not ascend within the neurons";
  }
  return nullptr;
}

}  // namespace

const char* UpdateTopology(const TopologyUpdate& update, Executor* executor) {
  const char* error = Check(update);
  return error != nullptr ? error : Updater(update, executor).Run();
}

}  // namespace srigl
