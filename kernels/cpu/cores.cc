#include "cores.h"

#include <algorithm>
#include <atomic>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace srigl {
namespace {

constexpr int64_t kMostCores = 256;                     // that threads are counted on
constexpr auto kLong = std::chrono::microseconds(100);  // to share a core: longer than a small call

// The numbers of the process's cores by the system's numbers. Empty where they cannot be known.
const std::vector<int64_t>& CoreNumbers() {
  static const std::vector<int64_t> numbers = [] {
    std::vector<int64_t> result;
#if defined(__linux__)
    cpu_set_t usable;
    if (sched_getaffinity(0, sizeof(usable), &usable) != 0) return result;
    for (int cpu = 0, number = 0; cpu < CPU_SETSIZE; ++cpu) {
      result.push_back(CPU_ISSET(cpu, &usable) ? number++ : -1);
    }
#endif
    return result;
  }();
  return numbers;
}

// The number of the calling thread's core, or -1.
int64_t ThisCore() {
#if defined(__linux__)
  const auto& numbers = CoreNumbers();
  const auto cpu = static_cast<size_t>(sched_getcpu());
  if (cpu < numbers.size()) return numbers[cpu];
#endif
  return -1;
}

// How many threads work on a core, on a cache line of its own: only threads that share it ask others.
struct alignas(64) Core {
  std::atomic<int64_t> working{0};
};

Core cores[kMostCores];

bool IsCounted(int64_t core) { return core >= 0 && core < kMostCores; }

int64_t WorkingOn(int64_t core) {
  return cores[core].working.load(std::memory_order_relaxed);
}

// Moves the calling thread to a core on which no thread works, the first after its own, if it may use
// one. Which cores it may use is afterwards as before.
void MoveToFreeCore(int64_t core) {
#if defined(__linux__)
  cpu_set_t usable, chosen;
  if (sched_getaffinity(0, sizeof(usable), &usable) != 0) return;
  const auto& numbers = CoreNumbers();
  const int64_t count = *std::max_element(numbers.begin(), numbers.end()) + 1;
  int64_t nearest = count;
  for (size_t cpu = 0; cpu < numbers.size(); ++cpu) {
    const int64_t other = numbers[cpu];
    if (!IsCounted(other) || !CPU_ISSET(cpu, &usable) || WorkingOn(other) > 0) continue;
    const int64_t distance = (other - core + count) % count;
    if (distance >= nearest) continue;
    nearest = distance;
    CPU_ZERO(&chosen);
    CPU_SET(cpu, &chosen);
  }
  if (nearest == count || sched_setaffinity(0, sizeof(chosen), &chosen) != 0) return;
  (void)sched_setaffinity(0, sizeof(usable), &usable);
#else
  (void)core;
#endif
}

}  // namespace

int64_t CoreNumber() {
  const int64_t core = ThisCore();
  if (core >= 0) return core;
  static std::atomic<int64_t> num_threads{0};
  thread_local const int64_t number = num_threads.fetch_add(1, std::memory_order_relaxed);
  return number;
}

WorkingThread::WorkingThread() { Arrive(); }

WorkingThread::~WorkingThread() { Leave(); }

void WorkingThread::Arrive() {
  core_ = ThisCore();
  if (IsCounted(core_)) cores[core_].working.fetch_add(1, std::memory_order_relaxed);
}

void WorkingThread::Leave() {
  if (IsCounted(core_)) cores[core_].working.fetch_sub(1, std::memory_order_relaxed);
}

void WorkingThread::Spread() {
  if (ThisCore() != core_) {
    Leave();
    Arrive();
  }
  if (!IsCounted(core_) || WorkingOn(core_) < 2) {
    is_sharing_ = false;
    return;
  }
  const auto now = Clock::now();
  if (!is_sharing_) sharing_since_ = now;
  is_sharing_ = true;
  if (now - sharing_since_ < kLong) return;
  is_sharing_ = false;
  Leave();
  MoveToFreeCore(core_);
  Arrive();
}

}  // namespace srigl
