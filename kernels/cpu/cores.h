// The cores of the process, and on which of them its threads are working.

#ifndef SRIGL_KERNELS_CPU_CORES_H_
#define SRIGL_KERNELS_CPU_CORES_H_

#include <stdint.h>

#include <chrono>

namespace srigl {

using Clock = std::chrono::steady_clock;

// The calling thread's core, counted among those that the process may use; where that cannot be known,
// the number of the thread.
int64_t CoreNumber();

// The calling thread while it works on a call's tasks.
//
// A thread that is woken while all cores are busy is put beside another one on its last core. When a core
// becomes free an instant later Linux may leave both where they are for milliseconds: with two callers of
// a GPT's prompts a core was idle for a twelfth of the time.
class WorkingThread {
 public:
  WorkingThread();
  ~WorkingThread();
  WorkingThread(const WorkingThread&) = delete;
  WorkingThread& operator=(const WorkingThread&) = delete;

  // To be called between tasks: moves the thread to a core on which none works, if there is one and the
  // thread has shared its core with another one for long.
  void Spread();

 private:
  void Arrive();
  void Leave();

  int64_t core_;
  bool is_sharing_ = false;
  Clock::time_point sharing_since_;
};

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_CORES_H_
