// Sharing a call's tasks among threads that somebody else owns.
//
// To wake a sleeping thread takes about as long as a small layer computes, the longer the deeper its
// core sleeps. So a thread that has helped with one call waits a moment for the next one, as the
// layers of a network and the calls of a loop follow each other at once. The moment is shorter than
// the wake-up it saves, and in all a thread stays only so long, because its owner has other work.

#ifndef SRIGL_KERNELS_CPU_CREW_H_
#define SRIGL_KERNELS_CPU_CREW_H_

#include <stdint.h>

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

namespace srigl {

// The tasks of one call. Nobody waits for a helper to *start*, only for tasks that somebody is
// working on: the threads may all be occupied by calls like this one. A helper that comes when the
// call is over finds no task, and touches nothing else.
class Job {
 public:
  Job(int64_t num_tasks, void (*task)(const void*, int64_t), const void* context)
      : num_tasks_(num_tasks), task_(task), context_(context) {}

  // Does tasks until none is left to begin.
  void Work();

  // Returns when all tasks are done.
  void Wait() const;

 private:
  const int64_t num_tasks_;
  void (*const task_)(const void*, int64_t);
  const void* const context_;
  std::atomic<int64_t> next_{0};
  std::atomic<int64_t> done_{0};
};

// The helpers of this process, whichever calls they come from.
class Crew {
 public:
  static Crew& Get();

  // Hands the job to helpers that are waiting, at most `wanted`; returns to how many.
  int64_t Call(const std::shared_ptr<Job>& job, int64_t wanted);

  // What a thread that was fetched as a helper does: this job, and those that it is called to.
  void Help(std::shared_ptr<Job> job);

 private:
  bool Leave();
  std::shared_ptr<Job> Take();

  std::atomic<int64_t> num_waiting_{0};  // helpers that wait and are not called yet
  std::atomic<int64_t> num_called_{0};   // size of `called_`
  std::mutex mutex_;
  std::vector<std::shared_ptr<Job>> called_;  // an entry for each helper called to a job
};

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_CREW_H_
