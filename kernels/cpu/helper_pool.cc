#include "helper_pool.h"

#include <algorithm>
#include <thread>
#include <utility>

namespace srigl {
namespace {

constexpr auto kShort = std::chrono::microseconds(80);     // work that is not worth a wake-up
constexpr auto kPatience = std::chrono::microseconds(50);  // between two tasks
constexpr auto kStay = std::chrono::milliseconds(2);       // in all
constexpr auto kOthers = std::chrono::microseconds(100);   // for the calls of others, and without helpers because of them
constexpr auto kLately = std::chrono::microseconds(200);   // since there were others
constexpr int kSpins = 2000;  // of a caller that waits for helpers, before it sleeps

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
                           void (*task)(const void*, int64_t), const void* context,
                           bool is_for_all)
    : num_tasks_(num_tasks),
      num_shares_(std::max<int64_t>(std::min(threads, kMostShares), 1)),
      task_(task),
      context_(context),
      is_for_all_(is_for_all) {
  for (int64_t share = 0; share < num_shares_; ++share) {
    claimed_[share].store(false, std::memory_order_relaxed);
    next_[share].store(BeginOf(share), std::memory_order_relaxed);
  }
}

// The share of the core, or the first after it that nobody has begun with.
int64_t ParallelTask::ClaimShare() {
  const int64_t number = CoreNumber();
  for (int64_t i = 0; i < num_shares_; ++i) {
    const int64_t share = (number + i) % num_shares_;
    if (!claimed_[share].exchange(true, std::memory_order_relaxed)) return share;
  }
  return number % num_shares_;
}

// Returns when no task is left to begin, or when `between_tasks` says so.
template <typename BetweenTasks>
void ParallelTask::WorkUntil(BetweenTasks between_tasks) {
  int64_t share = ClaimShare();
  for (int64_t i = 0; i < num_shares_; ++i, share = (share + 1) % num_shares_) {
    const int64_t end = BeginOf(share + 1);
    for (;;) {
      const int64_t task = next_[share].fetch_add(1, std::memory_order_relaxed);
      if (task >= end) break;
      task_(context_, task);
      End();
      if (between_tasks()) return;
    }
  }
}

void ParallelTask::Work(Clock::time_point until) {
  const bool is_limited = until != Clock::time_point::max();
  const auto is_over = [=] { return is_limited && Clock::now() >= until; };
  // Callers that share a core help each other with these, and they are short.
  if (is_for_all_) return WorkUntil(is_over);
  WorkingThread thread;
  WorkUntil([&] {
    thread.Spread();
    return is_over();
  });
}

bool ParallelTask::IsOpen() const {
  for (int64_t share = 0; share < num_shares_; ++share) {
    if (next_[share].load(std::memory_order_relaxed) < BeginOf(share + 1)) return true;
  }
  return false;
}

// Of a task. Only the last one wakes the caller, which may be gone right after that: what is shared
// with it outlives it.
void ParallelTask::End() {
  if (done_.fetch_add(1) + 1 < num_tasks_ || !is_asleep_.load()) return;
  const std::lock_guard<std::mutex> lock(mutex_);
  all_done_.notify_one();
}

// A helper may have lost its core to another caller's thread. One that sleeps here leaves it a core.
void ParallelTask::Wait() {
  const auto is_done = [this] { return done_.load() == num_tasks_; };
  for (int spins = 0; spins < kSpins; ++spins) {
    if (is_done()) return;
    Pause(spins);
  }
  std::unique_lock<std::mutex> lock(mutex_);
  is_asleep_.store(true);
  all_done_.wait(lock, is_done);
}

HelperPool& HelperPool::Get() {
  static HelperPool* pool = new HelperPool;  // never deleted: helpers may outlive the end of `main`
  return *pool;
}

// Hands the work to at most `wanted` helpers that are waiting; returns to how many.
int64_t HelperPool::Call(const std::shared_ptr<ParallelTask>& work, int64_t wanted) {
  int64_t count = 0;
  while (count < wanted && Leave()) ++count;
  if (count == 0) return 0;
  const std::lock_guard<std::mutex> lock(mutex_);
  called_.insert(called_.end(), static_cast<size_t>(count), work);
  num_called_.store(static_cast<int64_t>(called_.size()), std::memory_order_release);
  return count;
}

void HelperPool::RunCall(const std::shared_ptr<ParallelTask>& work, int64_t threads,
                         int64_t all_threads, const std::function<void()>& schedule) {
  int64_t helpers = 0;
  const auto find_helpers = [&](size_t calls) {
    const int64_t share = all_threads / static_cast<int64_t>(calls);
    const int64_t wanted = std::min(threads, std::max<int64_t>(share, 1)) - 1 - helpers;
    for (int64_t i = Call(work, wanted); i < wanted; ++i) schedule();
    helpers += std::max<int64_t>(wanted, 0);
  };
  const size_t calls = Begin(work);
  find_helpers(calls);
  if (calls > 1) {
    HelpOthers(work);
    work->Work(Clock::now() + kOthers);
    if (work->IsOpen()) find_helpers(NumCalls());  // the others may have gone
  }
  work->Work();
  End(work);
  work->Wait();
}

// Announces a call. Returns how many there are, with this one, or were together a moment ago.
size_t HelperPool::Begin(const std::shared_ptr<ParallelTask>& work) {
  const auto now = Clock::now();
  const std::lock_guard<std::mutex> lock(mutex_);
  calls_.push_back(work);
  if (calls_.size() >= most_calls_ || now - most_calls_at_ > kLately) {
    most_calls_ = calls_.size();
    most_calls_at_ = now;
  }
  return most_calls_;
}

void HelperPool::End(const std::shared_ptr<ParallelTask>& work) {
  const std::lock_guard<std::mutex> lock(mutex_);
  calls_.erase(std::find(calls_.begin(), calls_.end(), work));
}

size_t HelperPool::NumCalls() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return calls_.size();
}

void HelperPool::HelpOthers(const std::shared_ptr<ParallelTask>& work) {
  auto other = OpenBefore(work);
  if (other == nullptr) return;
  const auto until = Clock::now() + kOthers;
  do {
    other->Work(until);
    other = OpenBefore(work);
  } while (other != nullptr && Clock::now() < until);
}

// The oldest call before this one that is for all and has tasks left to begin, if there is one.
std::shared_ptr<ParallelTask> HelperPool::OpenBefore(const std::shared_ptr<ParallelTask>& work) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& other : calls_) {
    if (other == work) break;
    if (other->IsForAll() && other->IsOpen()) return other;
  }
  return nullptr;
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
