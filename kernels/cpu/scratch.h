// Memory that a thread keeps for the tasks that it does.

#ifndef SRIGL_KERNELS_CPU_SCRATCH_H_
#define SRIGL_KERNELS_CPU_SCRATCH_H_

#include <stdint.h>

#include <memory>
#include <new>

namespace srigl {

// 344 KB, and 1 MB that only convolutions touch.
class ScratchMemory {
 public:
  // The calling thread's, kept for its life.
  static ScratchMemory& OfThread();

  ScratchMemory();

  float* floats() const { return floats_.get(); }

  // Whether these converted rows of a plan of dots are still in it. Between two tasks of a plan a thread
  // may have helped with another call, whose tasks use the memory, too.
  bool Holds(uint64_t plan, int64_t row) const { return plan_ == plan && row_ == row; }
  void SetHeld(uint64_t plan, int64_t row) { plan_ = plan, row_ = row; }

 private:
  struct Free {
    void operator()(float* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<float, Free> floats_;
  uint64_t plan_ = 0;  // plans are numbered from 1
  int64_t row_ = 0;
};

// The calling thread's, for a task that overwrites it.
float* Scratch();

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_SCRATCH_H_
