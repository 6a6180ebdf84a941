#include "scratch.h"

#include "kernels.h"

namespace srigl {

ScratchMemory& ScratchMemory::OfThread() {
  thread_local ScratchMemory memory;
  return memory;
}

ScratchMemory::ScratchMemory()
    : floats_(static_cast<float*>(::operator new((kScratchFloats + kStageFloats) * sizeof(float),
                                                 std::align_val_t{64}))) {}

float* Scratch() {
  ScratchMemory& memory = ScratchMemory::OfThread();
  memory.SetHeld(0, 0);
  return memory.floats();
}

}  // namespace srigl
