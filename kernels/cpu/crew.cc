#include "crew.h"

#include <chrono>
#include <thread>
#include <utility>

namespace srigl {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kShort = std::chrono::microseconds(80);     // a job that is not worth a wake-up
constexpr auto kPatience = std::chrono::microseconds(50);  // between two jobs
constexpr auto kStay = std::chrono::milliseconds(2);       // with all jobs

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

void Job::Work() {
  for (;;) {
    const int64_t i = next_.fetch_add(1, std::memory_order_relaxed);
    if (i >= num_tasks_) return;
    task_(context_, i);
    done_.fetch_add(1, std::memory_order_release);
  }
}

void Job::Wait() const {
  for (int spins = 0; done_.load(std::memory_order_acquire) < num_tasks_; ++spins) Pause(spins);
}

Crew& Crew::Get() {
  static Crew* crew = new Crew;  // never deleted: helpers may outlive the end of `main`
  return *crew;
}

int64_t Crew::Call(const std::shared_ptr<Job>& job, int64_t wanted) {
  int64_t count = 0;
  while (count < wanted && Leave()) ++count;
  if (count == 0) return 0;
  const std::lock_guard<std::mutex> lock(mutex_);
  called_.insert(called_.end(), static_cast<size_t>(count), job);
  num_called_.store(static_cast<int64_t>(called_.size()), std::memory_order_release);
  return count;
}

// Takes one off the number of helpers that wait. False when there is none.
bool Crew::Leave() {
  int64_t waiting = num_waiting_.load(std::memory_order_relaxed);
  while (waiting > 0 && !num_waiting_.compare_exchange_weak(waiting, waiting - 1)) {
  }
  return waiting > 0;
}

std::shared_ptr<Job> Crew::Take() {
  if (num_called_.load(std::memory_order_acquire) == 0) return nullptr;
  const std::lock_guard<std::mutex> lock(mutex_);
  if (called_.empty()) return nullptr;
  std::shared_ptr<Job> job = std::move(called_.back());
  called_.pop_back();
  num_called_.store(static_cast<int64_t>(called_.size()), std::memory_order_release);
  return job;
}

void Crew::Help(std::shared_ptr<Job> job) {
  auto now = Clock::now();
  for (const auto end = now + kStay;;) {
    const auto start = now;
    job->Work();
    job.reset();
    now = Clock::now();
    if (now >= end || now - start > kShort) return;
    num_waiting_.fetch_add(1);
    // Called or not is a matter of numbers, not of who: as many helpers take a job as were called.
    for (int spins = 0; job == nullptr; ++spins) {
      job = Take();
      if (job != nullptr) break;
      // Who cannot leave any more is called: the job is there in an instant.
      if (Clock::now() >= now + kPatience && Leave()) return;
      Pause(spins);
    }
    now = Clock::now();
  }
}

}  // namespace srigl
