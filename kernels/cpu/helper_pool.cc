#include "helper_pool.h"

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

namespace srigl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kShort = std::chrono::microseconds(80);     // work that is not worth a wake-up
constexpr auto kPatience = std::chrono::microseconds(50);  // between two tasks
constexpr auto kStay = std::chrono::milliseconds(2);       // in all

// Waits a little, the more readily without the core the longer it has gone on.
void Pause(int spins) {
  if (spins > 10000) {
    std::this_thread::yield();
    return;
  }
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

ParallelTask::ParallelTask(int64_t num_tasks, int64_t threads,
                           void (*task)(const void*, int64_t), const void* context)
    : num_tasks_(num_tasks),
      num_shares_(std::max<int64_t>(std::min(threads, kMostShares), 1)),
      task_(task),
      context_(context) {
  for (int64_t share = 0; share < num_shares_; ++share) {
    claimed_[share].store(false, std::memory_order_relaxed);
    next_[share].store(BeginOf(share), std::memory_order_relaxed);
  }
}

// The calling thread's own share, or the first after it that nobody has begun with.
int64_t ParallelTask::ClaimShare() {
  static std::atomic<int64_t> num_threads{0};
  thread_local const int64_t number = num_threads.fetch_add(1, std::memory_order_relaxed);
  for (int64_t i = 0; i < num_shares_; ++i) {
    const int64_t share = (number + i) % num_shares_;
    if (!claimed_[share].exchange(true, std::memory_order_relaxed)) return share;
  }
  return number % num_shares_;
}

void ParallelTask::Work() {
  int64_t share = ClaimShare();
  for (int64_t i = 0; i < num_shares_; ++i, share = (share + 1) % num_shares_) {
    const int64_t end = BeginOf(share + 1);
    for (;;) {
      const int64_t task = next_[share].fetch_add(1, std::memory_order_relaxed);
      if (task >= end) break;
      task_(context_, task);
      done_.fetch_add(1, std::memory_order_release);
    }
  }
}

void ParallelTask::Wait() const {
  for (int spins = 0; done_.load(std::memory_order_acquire) < num_tasks_; ++spins) Pause(spins);
}

HelperPool& HelperPool::Get() {
  static HelperPool* pool = new HelperPool;  // never deleted: helpers may outlive the end of `main`
  return *pool;
}

int64_t HelperPool::Call(const std::shared_ptr<ParallelTask>& work, int64_t wanted) {
  int64_t count = 0;
  while (count < wanted && Leave()) ++count;
  if (count == 0) return 0;
  const std::lock_guard<std::mutex> lock(mutex_);
  called_.insert(called_.end(), static_cast<size_t>(count), work);
  num_called_.store(static_cast<int64_t>(called_.size()), std::memory_order_release);
  return count;
}

// Takes one off the number of helpers that wait. False when there is none.
bool HelperPool::Leave() {
  int64_t waiting = num_waiting_.load(std::memory_order_relaxed);
  while (waiting > 0 && !num_waiting_.compare_exchange_weak(waiting, waiting - 1)) {
  }
  return waiting > 0;
}

std::shared_ptr<ParallelTask> HelperPool::Take() {
  if (num_called_.load(std::memory_order_acquire) == 0) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (called_.empty()) return nullptr;
  std::shared_ptr<ParallelTask> work = std::move(called_.back());
  called_.pop_back();
  num_called_.store(static_cast<int64_t>(called_.size()), std::memory_order_release);
  return work;
}

void HelperPool::RunHelper(std::shared_ptr<ParallelTask> work) {
  auto now = Clock::now();
  for (const auto end = now + kStay;;) {
    const auto start = now;
    work->Work();
    work.reset();
    now = Clock::now();
    if (now >= end || now - start > kShort) return;
    num_waiting_.fetch_add(1);
    // Only the number of called helpers counts, not which ones: as many take work as were called.
    for (int spins = 0; work == nullptr; ++spins) {
      work = Take();
      if (work != nullptr) break;
      // A helper that can no longer leave has been called: its work arrives in an instant.
      if (Clock::now() >= now + kPatience && Leave()) return;
      Pause(spins);
    }
    now = Clock::now();
  }
}

}  // namespace srigl
