// Calls of several threads at once and their helpers, to be compiled with ThreadSanitizer: each task of
// each call must be done once, by the end of its call, and every thread may use the cores that it could.
//
//   srigl_fuzz_helpers [cases] [seed]

#include <stdio.h>
#include <stdlib.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <random>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include "helper_pool.h"

namespace srigl {
namespace {

using Random = std::mt19937_64;

int64_t Uniform(Random* random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(*random);
}

// Whether the calling thread may use all cores that the process could at first.
bool MayUseAllCores() {
#if defined(__linux__)
  const auto usable = [] {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    (void)sched_getaffinity(0, sizeof(cores), &cores);
    return cores;
  };
  static const cpu_set_t at_first = usable();
  const cpu_set_t now = usable();
  return CPU_EQUAL(&at_first, &now);
#else
  return true;
#endif
}

// Stands for XLA's threads: each does what is scheduled, one after the other.
class Threads {
 public:
  explicit Threads(int64_t count) {
    for (int64_t i = 0; i < count; ++i) threads_.emplace_back([this] { Run(); });
  }

  ~Threads() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      is_ended_ = true;
    }
    changed_.notify_all();
    for (std::thread& thread : threads_) thread.join();
  }

  void Schedule(std::function<void()> work) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      scheduled_.push_back(std::move(work));
    }
    changed_.notify_one();
  }

 private:
  void Run() {
    for (;;) {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return is_ended_ || !scheduled_.empty(); });
      if (!MayUseAllCores()) abort();
      if (scheduled_.empty()) return;
      const auto work = std::move(scheduled_.front());
      scheduled_.pop_front();
      lock.unlock();
      work();
    }
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> scheduled_;
  bool is_ended_ = false;
  std::vector<std::thread> threads_;
};

// What a call computes: not atomic, so that a task done twice or too late is a race.
struct Sums {
  std::vector<int64_t> of_task;
  std::chrono::microseconds pause;
};

void RunTask(const void* context, int64_t task) {
  Sums& sums = **static_cast<Sums* const*>(context);
  const auto end = Clock::now() + sums.pause;
  if (task % 2 == 0) std::this_thread::sleep_for(sums.pause);
  while (Clock::now() < end) {
  }
  sums.of_task[static_cast<size_t>(task)] += task + 1;
}

// Calls one after the other; false if the tasks of one were not done once.
bool RunCaller(uint64_t seed, int64_t all_threads, Threads* threads) {
  Random random(seed);
  for (int64_t calls = Uniform(&random, 1, 40); calls > 0; --calls) {
    const int64_t tasks = Uniform(&random, 1, 40);
    const bool is_slow = Uniform(&random, 0, 9) == 0;
    Sums sums = {std::vector<int64_t>(static_cast<size_t>(tasks)),
                 std::chrono::microseconds(is_slow ? Uniform(&random, 1, 100) : 0)};
    Sums* const context = &sums;
    const int64_t most = Uniform(&random, 1, all_threads);
    const auto work = std::make_shared<ParallelTask>(tasks, most, RunTask, &context,
                                                     Uniform(&random, 0, 3) > 0);
    HelperPool::Get().RunCall(work, most, all_threads, [&] {
      threads->Schedule([work] { HelperPool::Get().RunHelper(work); });
    });
    for (int64_t i = 0; i < tasks; ++i) {
      if (sums.of_task[static_cast<size_t>(i)] != i + 1) return false;
    }
    if (!MayUseAllCores()) return false;
    if (Uniform(&random, 0, 3) == 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(Uniform(&random, 1, 300)));
    }
  }
  return true;
}

bool RunCase(uint64_t seed) {
  Random random(seed);
  const int64_t all_threads = Uniform(&random, 1, 20), callers = Uniform(&random, 1, 8);
  Threads threads(Uniform(&random, 1, all_threads));
  std::vector<std::thread> running;
  std::atomic<bool> ok{true};
  for (int64_t c = 0; c < callers; ++c) {
    running.emplace_back([&, own = random()] {
      if (!RunCaller(own, all_threads, &threads)) ok = false;
    });
  }
  for (std::thread& thread : running) thread.join();
  return ok;
}

}  // namespace
}  // namespace srigl

int main(int argc, char** argv) {
  (void)srigl::MayUseAllCores();
  const int64_t cases = argc > 1 ? atoll(argv[1]) : 100;
  const uint64_t seed = argc > 2 ? strtoull(argv[2], nullptr, 10) : std::random_device()();
  printf("%ld cases of callers from seed %lu\n", static_cast<long>(cases),
         static_cast<unsigned long>(seed));
  fflush(stdout);
  for (uint64_t at = seed; at < seed + static_cast<uint64_t>(cases); ++at) {
    if (!srigl::RunCase(at)) {
      printf("A task was not done once, or a thread lost a core; again: srigl_fuzz_helpers 1 %lu\n",
             static_cast<unsigned long>(at));
      return 1;
    }
  }
  printf("%ld cases of callers without a finding.\n", static_cast<long>(cases));
  return 0;
}
