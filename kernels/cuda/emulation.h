// CUDA on a CPU, for tests: a block's threads are fibers of one thread, which change at barriers and
// where a warp exchanges data, in a random order of a fixed seed. Blocks run one after the other.
// Asynchronous copies take place when they are waited for, or at once, at random. So a missing
// barrier is likely to show, as is memory that nothing wrote: shared memory starts as NaN.

#ifndef SRIGL_KERNELS_CUDA_EMULATION_H_
#define SRIGL_KERNELS_CUDA_EMULATION_H_

#include <math.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <functional>
#include <mutex>
#include <numeric>
#include <random>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9 };
inline const char* cudaGetErrorString(cudaError_t) { return "the launch is not valid"; }

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct uint4 {
  uint32_t x, y, z, w;
};
struct uint2 {
  uint32_t x, y;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }

namespace srigl::emulation {

constexpr int kMaxThreads = 1024;
constexpr size_t kStackBytes = 256 * 1024;

struct Copy {
  void* to;
  const void* from;  // null for zeros
};

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  std::vector<Copy> copies;    // that it has started
  std::vector<size_t> groups;  // for each that is committed, where its copies end
  bool is_started;
};

struct Warp {
  uint32_t words[32][16];
  const void* pointers[32];
  int arrived, turn;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  jmp_buf scheduler;
  std::vector<int> live;
  std::minstd_rand random;
  int current = 0, arrived = 0, turn = 0;
  dim3 index, size, grid;
  char* shared = nullptr;
  std::function<void()> body;
};

inline Block*& Current() {
  static Block* block = nullptr;
  return block;
}

inline void Yield() {
  Block& block = *Current();
  if (_setjmp(block.fibers[block.current].at) == 0) _longjmp(block.scheduler, 1);
}

// Waits until `count` fibers have come to the barrier given by its counters.
inline void Arrive(int* arrived, int* turn, int count) {
  const int mine = *turn;
  if (++*arrived == count) {
    *arrived = 0;
    ++*turn;
    return;
  }
  while (*turn == mine) Yield();
}

inline int Lane() { return Current()->current % 32; }
inline Warp& MyWarp() { return Current()->warps[Current()->current / 32]; }
inline void WarpBarrier() { Arrive(&MyWarp().arrived, &MyWarp().turn, 32); }

// Starts fiber `current`, or lets it go on; comes back by a jump to the scheduler.
inline void Resume(Block& block, char* stacks) {
  Fiber& fiber = block.fibers[block.current];
  if (fiber.is_started) _longjmp(fiber.at, 1);
  fiber.is_started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = stacks + block.current * kStackBytes;
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, +[] {
    Block& mine = *Current();
    mine.body();
    mine.live.erase(std::find(mine.live.begin(), mine.live.end(), mine.current));
    _longjmp(mine.scheduler, 1);
  }, 0);
  setcontext(&fiber.start);
}

// Runs one block. All that changes lies in `block`: locals would be lost in jumps.
__attribute__((noinline)) inline void RunBlock(Block& block, char* stacks) {
  const int threads = static_cast<int>(block.size.x);
  block.fibers.assign(threads, {});
  block.warps.assign((threads + 31) / 32, {});
  block.arrived = block.turn = 0;
  block.live.resize(threads);
  std::iota(block.live.begin(), block.live.end(), 0);
  _setjmp(block.scheduler);
  if (block.live.empty()) return;
  block.current = block.live[block.random() % block.live.size()];
  Resume(block, stacks);
}

inline void Run(const std::function<void()>& body, dim3 grid, int threads, size_t shared_bytes) {
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  static char* stacks = static_cast<char*>(mmap(nullptr, kMaxThreads * kStackBytes,
                                                PROT_READ | PROT_WRITE,
                                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  Block block;
  Current() = &block;
  block.size = dim3(threads);
  block.grid = grid;
  block.body = body;
  // A page that nobody may touch follows, so that a write beyond the end is seen.
  const size_t page = 4096, bytes = (shared_bytes + 15) / 16 * 16;
  const size_t room = (bytes + page - 1) / page * page;
  char* region = static_cast<char*>(mmap(nullptr, room + page, PROT_READ | PROT_WRITE,
                                         MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  mprotect(region + room, page, PROT_NONE);
  block.shared = region + (room - bytes);
  for (unsigned i = 0; i < grid.x * grid.y * grid.z; ++i) {
    block.index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    memset(block.shared, 0xff, bytes);
    RunBlock(block, stacks);
  }
  munmap(region, room + page);
}

struct Index {
  int which;
  struct Part {
    int which, axis;
    operator int() const {
      const Block& block = *Current();
      if (which == 0) return axis == 0 ? block.current : 0;
      const dim3& of = which == 1 ? block.index : which == 2 ? block.size : block.grid;
      return static_cast<int>(axis == 0 ? of.x : axis == 1 ? of.y : of.z);
    }
  };
  Part x, y, z;
  explicit Index(int which) : which(which), x{which, 0}, y{which, 1}, z{which, 2} {}
};

}  // namespace srigl::emulation

static const srigl::emulation::Index threadIdx(0), blockIdx(1), blockDim(2), gridDim(3);

inline void __syncthreads() {
  auto& block = *srigl::emulation::Current();
  srigl::emulation::Arrive(&block.arrived, &block.turn, static_cast<int>(block.size.x));
}

inline void __syncwarp() { srigl::emulation::WarpBarrier(); }

template <typename T>
T __ldg(const T* from) {
  return *from;
}

inline float __uint_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

struct EmulatedBFloat16 {
  uint16_t bits;
};
inline EmulatedBFloat16 __float2bfloat16_rn(float value) {
  const uint32_t bits = __float_as_uint(value);
  if (value != value) return {0x7fff};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
inline uint16_t __bfloat16_as_ushort(EmulatedBFloat16 value) { return value.bits; }

inline float __shfl_xor_sync(uint32_t, float value, int distance) {
  using namespace srigl::emulation;
  Warp& warp = MyWarp();
  warp.words[Lane()][0] = __float_as_uint(value);
  WarpBarrier();
  const float other = __uint_as_float(warp.words[Lane() ^ distance][0]);
  WarpBarrier();
  return other;
}

namespace srigl {

inline void CopyAsync16(void* to, const void* from, bool is_there) {
  if (reinterpret_cast<uintptr_t>(to) % 16 || reinterpret_cast<uintptr_t>(from) % 16) {
    fprintf(stderr, "an asynchronous copy is not aligned to 16 bytes\n");
    abort();
  }
  emulation::Block& block = *emulation::Current();
  emulation::Copy copy = {to, is_there ? from : nullptr};
  if (block.random() % 2) {
    block.fibers[block.current].copies.push_back(copy);
  } else if (is_there) {
    memcpy(to, from, 16);
  } else {
    memset(to, 0, 16);
  }
}
inline void CommitCopies() {
  emulation::Fiber& fiber = emulation::Current()->fibers[emulation::Current()->current];
  fiber.groups.push_back(fiber.copies.size());
}
template <int kPending>
void WaitForCopies() {
  emulation::Fiber& fiber = emulation::Current()->fibers[emulation::Current()->current];
  if (fiber.groups.size() <= kPending) return;
  const size_t done = fiber.groups[fiber.groups.size() - kPending - 1];
  for (size_t i = 0; i < done; ++i) {
    const emulation::Copy& copy = fiber.copies[i];
    if (copy.from) memcpy(copy.to, copy.from, 16);
    if (!copy.from) memset(copy.to, 0, 16);
  }
  fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + done);
  fiber.groups.erase(fiber.groups.begin(), fiber.groups.end() - kPending);
  for (size_t& end : fiber.groups) end -= done;
}

namespace emulation {

template <int kMatrices>
void LoadMatrices(const void* row, uint32_t* out, bool is_transposed) {
  if (reinterpret_cast<uintptr_t>(row) % 16) {
    fprintf(stderr, "a row of ldmatrix is not aligned to 16 bytes\n");
    abort();
  }
  Warp& warp = MyWarp();
  warp.pointers[Lane()] = row;
  WarpBarrier();
  for (int m = 0; m < kMatrices; ++m) {
    if (!is_transposed) {
      const void* from = warp.pointers[8 * m + Lane() / 4];
      memcpy(&out[m], static_cast<const char*>(from) + Lane() % 4 * 4, 4);
      continue;
    }
    uint16_t pair[2];
    for (int i = 0; i < 2; ++i) {
      const void* from = warp.pointers[8 * m + Lane() % 4 * 2 + i];
      memcpy(&pair[i], static_cast<const char*>(from) + Lane() / 4 * 2, 2);
    }
    memcpy(&out[m], pair, 4);
  }
  WarpBarrier();
}

// The numbers of one 32-bit register: one TF32, whose low bits the device ignores, or two bfloat16.
inline float Number(uint32_t word, int which, int of) {
  if (of == 1) return __uint_as_float(word & 0xffffe000u);
  return __uint_as_float(which == 0 ? word << 16 : word & 0xffff0000u);
}

template <int kPerWord>
void Multiply(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4]) {
  Warp& warp = MyWarp();
  for (int i = 0; i < 4; ++i) warp.words[Lane()][i] = a[i];
  warp.words[Lane()][4] = b0;
  warp.words[Lane()][5] = b1;
  WarpBarrier();
  constexpr int kHalf = 4 * kPerWord;  // of k
  for (int e = 0; e < 4; ++e) {
    const int row = Lane() / 4 + e / 2 * 8, column = Lane() % 4 * 2 + e % 2;
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int quad = k % kHalf / kPerWord, which = k % kPerWord;
      const uint32_t left = warp.words[row % 8 * 4 + quad][row / 8 + k / kHalf * 2];
      const uint32_t right = warp.words[column * 4 + quad][4 + k / kHalf];
      c[e] += Number(left, which, kPerWord) * Number(right, which, kPerWord);
    }
  }
  WarpBarrier();
}

}  // namespace emulation

inline void LoadMatrices(const void* row, uint32_t (&out)[4]) {
  emulation::LoadMatrices<4>(row, out, false);
}
inline void LoadMatrices(const void* row, uint32_t (&out)[2]) {
  emulation::LoadMatrices<2>(row, out, false);
}
inline void LoadMatricesTransposed(const void* row, uint32_t (&out)[4]) {
  emulation::LoadMatrices<4>(row, out, true);
}
inline void MultiplyTf32(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4]) {
  emulation::Multiply<1>(a, b0, b1, c);
}
inline void MultiplyBFloat16(const uint32_t (&a)[4], uint32_t b0, uint32_t b1, float (&c)[4]) {
  emulation::Multiply<2>(a, b0, b1, c);
}
inline uint32_t RoundToTf32(float value) {
  const uint32_t bits = __float_as_uint(value);
  return fabsf(value) < INFINITY ? (bits + 0x1000) & 0xffffe000u : bits;
}

struct Limits {
  int multiprocessors;
  int shared_bytes;
};
inline Limits DeviceLimits() { return {8, 227 * 1024}; }

template <typename Kernel, typename Args>
cudaError_t Launch(Kernel kernel, dim3 grid, int threads, size_t shared_bytes, cudaStream_t,
                   const Args& args) {
  if (grid.x < 1 || grid.y < 1 || grid.y > 65535 || grid.z < 1 || grid.z > 65535 ||
      threads > emulation::kMaxThreads ||
      shared_bytes > static_cast<size_t>(DeviceLimits().shared_bytes)) {
    return cudaErrorInvalidConfiguration;
  }
  emulation::Run([&] { kernel(args); }, grid, threads, shared_bytes);
  return cudaSuccess;
}

#define SRIGL_SHARED_MEMORY(name) char* name = srigl::emulation::Current()->shared

}  // namespace srigl

#endif  // SRIGL_KERNELS_CUDA_EMULATION_H_
