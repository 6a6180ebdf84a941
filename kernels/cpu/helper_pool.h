// Shares a call's tasks among threads that belong to another owner, XLA's thread pool.
//
// Waking a sleeping thread takes about as long as a small layer computes, and longer the deeper its
// core sleeps. So a thread that has helped with one call waits a moment for the next one, as the
// layers of a network and the calls of a loop follow each other at once. The moment is shorter than
// the wake-up it saves, and in all a thread stays only so long, because its owner has other work.

#ifndef SRIGL_KERNELS_CPU_HELPER_POOL_H_
#define SRIGL_KERNELS_CPU_HELPER_POOL_H_

#include <stdint.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

namespace srigl {

// The tasks of one call. No thread waits for a helper to *start*, only for tasks that are being
// worked on: all threads may be occupied by calls like this one. A helper that arrives after the
// call has ended finds no task, and touches nothing else.
//
// Each thread begins with a share, the same in every call as far as others have not begun with it, and
// helps with the others' when that is done. Tasks are rows first, so that a thread finds in its caches
// the rows that it wrote in the layer before: where what one core wrote costs the other much, ViT-B/16
// took half as long again when threads took the next task, whichever it was.
class ParallelTask {
 public:
  // `threads` may work on it, the calling one included.
  ParallelTask(int64_t num_tasks, int64_t threads, void (*task)(const void*, int64_t),
               const void* context);

  // Does tasks until none is left to begin.
  void Work();

  // Returns when all tasks are done.
  void Wait() const;

 private:
  int64_t ClaimShare();

  static constexpr int64_t kMostShares = 16;

  int64_t BeginOf(int64_t share) const { return num_tasks_ * share / num_shares_; }

  const int64_t num_tasks_, num_shares_;
  void (*const task_)(const void*, int64_t);
  const void* const context_;
  std::atomic<bool> claimed_[kMostShares];  // whether a thread has begun with a share
  std::atomic<int64_t> next_[kMostShares];  // of each share
  std::atomic<int64_t> done_{0};
};

// The helpers of this process, whichever call each was first scheduled for.
class HelperPool {
 public:
  static HelperPool& Get();

  // Hands the work to at most `wanted` helpers that are waiting; returns to how many.
  int64_t Call(const std::shared_ptr<ParallelTask>& work, int64_t wanted);

  // What a thread does as a helper: this work, and whatever it is called to afterwards.
  void RunHelper(std::shared_ptr<ParallelTask> work);

 private:
  bool Leave();
  std::shared_ptr<ParallelTask> Take();

  std::atomic<int64_t> num_waiting_{0};  // helpers that wait and are not called yet
  std::atomic<int64_t> num_called_{0};   // size of `called_`
  std::mutex mutex_;
  std::vector<std::shared_ptr<ParallelTask>> called_;  // one entry for each called helper
};

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_HELPER_POOL_H_
