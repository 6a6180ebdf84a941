// Shares a call's tasks among threads that belong to another owner, XLA's thread pool, and among the
// threads of callers that come at the same time.
//
// Waking a sleeping thread takes about as long as a small layer computes, and longer the deeper its
// core sleeps. So a thread that has helped with one call waits a moment for the next one, as the
// layers of a network and the calls of a loop follow each other at once. The moment is shorter than
// the wake-up it saves, and in all a thread stays only so long, because its owner has other work.

#ifndef SRIGL_KERNELS_CPU_HELPER_POOL_H_
#define SRIGL_KERNELS_CPU_HELPER_POOL_H_

#include <stdint.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cores.h"

namespace srigl {

// The tasks of one call. No thread waits for a helper to *start*, only for tasks that are being
// worked on: all threads may be occupied by calls like this one. A helper that arrives after the
// call has ended finds no task, and touches nothing else.
//
// Each thread begins with the share of the core that it is on, as far as others have not begun with it,
// and helps with the others' when that is done. Tasks are rows first, so that a core finds in its caches
// the rows that it wrote in the layer before, or the weights that it read in the call before: where what
// one core wrote costs the other much, ViT-B/16 took half as long again when threads took the next task,
// whichever it was.
class ParallelTask {
 public:
  // threads: that may work on it, the calling one included.
  // is_for_all: whether other calls at the same time are to help with it.
  ParallelTask(int64_t num_tasks, int64_t threads, void (*task)(const void*, int64_t),
               const void* context, bool is_for_all);

  // Does tasks until none is left to begin, or some time has passed.
  void Work(Clock::time_point until = Clock::time_point::max());

  // Whether a task is left to begin.
  bool IsOpen() const;
  bool IsForAll() const { return is_for_all_; }

  // Returns when all tasks are done.
  void Wait();

 private:
  int64_t ClaimShare();
  template <typename BetweenTasks>
  void WorkUntil(BetweenTasks between_tasks);
  void End();

  static constexpr int64_t kMostShares = 16;

  int64_t BeginOf(int64_t share) const { return num_tasks_ * share / num_shares_; }

  const int64_t num_tasks_, num_shares_;
  void (*const task_)(const void*, int64_t);
  const void* const context_;
  const bool is_for_all_;
  std::atomic<bool> claimed_[kMostShares];  // whether a thread has begun with a share
  std::atomic<int64_t> next_[kMostShares];  // of each share
  std::atomic<int64_t> done_{0};
  std::atomic<bool> is_asleep_{false};  // the caller, until all are done
  std::mutex mutex_;
  std::condition_variable all_done_;
};

// The helpers of this process, whichever call each was first scheduled for, and its calls.
//
// Callers at the same time do what they can on a core of their own: helpers would be threads more than
// cores, and the system takes away from one what the others wait for. Where a call's weights are shared
// out they help each other instead, in the order in which they came: all cores work on one call, each with
// the part of the weights that its caches have seen before. Two callers of three layers of 4096 in 8 bits
// had four fifths of the throughput of one when each read all weights. Where rows are shared out each core
// reads all weights in any case, and would pass on what it wrote: it cost a GPT's prompts a twentieth.
class HelperPool {
 public:
  static HelperPool& Get();

  // Runs a call, with its part of the helpers when other calls are running or did a moment ago.
  //
  // threads: of `all_threads` that may work on it, with the calling one.
  // schedule: has another thread run RunHelper with this work.
  void RunCall(const std::shared_ptr<ParallelTask>& work, int64_t threads, int64_t all_threads,
               const std::function<void()>& schedule);

  // What a thread does as a helper: this work, and whatever it is called to afterwards.
  void RunHelper(std::shared_ptr<ParallelTask> work);

 private:
  size_t Begin(const std::shared_ptr<ParallelTask>& work);
  size_t NumCalls();
  void HelpOthers(const std::shared_ptr<ParallelTask>& work);
  void End(const std::shared_ptr<ParallelTask>& work);
  int64_t Call(const std::shared_ptr<ParallelTask>& work, int64_t wanted);
  bool Leave();
  std::shared_ptr<ParallelTask> Take();
  std::shared_ptr<ParallelTask> OpenBefore(const std::shared_ptr<ParallelTask>& work);

  std::atomic<int64_t> num_waiting_{0};  // helpers that wait and are not called yet
  std::atomic<int64_t> num_called_{0};   // size of `called_`
  std::mutex mutex_;
  std::vector<std::shared_ptr<ParallelTask>> called_;  // one entry for each called helper
  std::vector<std::shared_ptr<ParallelTask>> calls_;   // that are running, the oldest first
  size_t most_calls_ = 0;                              // together, lately
  Clock::time_point most_calls_at_;
};

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_HELPER_POOL_H_
