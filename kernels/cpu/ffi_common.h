// What the FFI handlers share.

#ifndef SRIGL_KERNELS_CPU_FFI_COMMON_H_
#define SRIGL_KERNELS_CPU_FFI_COMMON_H_

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>

#include "layout.h"
#include "matmul.h"
#include "xla/ffi/api/ffi.h"

#define SRIGL_EXPORT extern "C" __attribute__((visibility("default")))

namespace srigl {

namespace ffi = xla::ffi;

// Runs tasks on XLA's own thread pool. Nobody ever waits for a scheduled helper to *start*, only
// for tasks that somebody is working on: the pool may be fully occupied by calls like this one.
class PoolExecutor : public Executor {
 public:
  explicit PoolExecutor(ffi::ThreadPool pool) : pool_(pool) {}

  int64_t num_threads() const override { return pool_.num_threads(); }

  void Run(int64_t num_tasks, int64_t max_threads, void (*task)(const void*, int64_t),
           const void* context) override {
    const int64_t helpers = std::min(num_tasks, max_threads) - 1;
    if (helpers <= 0) {
      for (int64_t i = 0; i < num_tasks; ++i) task(context, i);
      return;
    }
    // A helper may come when the call is over; then it finds no task, and touches nothing else.
    auto job = std::make_shared<Job>();
    job->num_tasks = num_tasks;
    job->task = task;
    job->context = context;
    for (int64_t i = 0; i < helpers; ++i) {
      pool_.Schedule([job] { job->Work(); });
    }
    job->Work();
    for (int spins = 0; job->done.load(std::memory_order_acquire) < num_tasks; ++spins) {
      if (spins > 10000) {
        std::this_thread::yield();
      } else {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    }
  }

 private:
  struct Job {
    int64_t num_tasks;
    void (*task)(const void*, int64_t);
    const void* context;
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};

    void Work() {
      for (;;) {
        const int64_t i = next.fetch_add(1, std::memory_order_relaxed);
        if (i >= num_tasks) return;
        task(context, i);
        done.fetch_add(1, std::memory_order_release);
      }
    }
  };

  ffi::ThreadPool pool_;
};

inline bool AsValueType(ffi::DataType type, ValueType* value_type) {
  if (type == ffi::DataType::F32) *value_type = ValueType::kFloat32;
  if (type == ffi::DataType::BF16) *value_type = ValueType::kBFloat16;
  return type == ffi::DataType::F32 || type == ffi::DataType::BF16;
}

template <typename Buffer>
Bytes AsBytes(const Buffer& buffer) {
  return {buffer.untyped_data(), buffer.size_bytes()};
}

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_FFI_COMMON_H_
