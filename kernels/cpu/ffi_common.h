// What the FFI handlers share.

#ifndef SRIGL_KERNELS_CPU_FFI_COMMON_H_
#define SRIGL_KERNELS_CPU_FFI_COMMON_H_

#include <algorithm>
#include <memory>

#include "helper_pool.h"
#include "layout.h"
#include "matmul.h"
#include "xla/ffi/api/ffi.h"

#define SRIGL_EXPORT extern "C" __attribute__((visibility("default")))

namespace srigl {

namespace ffi = xla::ffi;

// Runs tasks on XLA's own thread pool, and on threads of it that still wait from an earlier call.
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
    const auto work = std::make_shared<ParallelTask>(num_tasks, task, context);
    for (int64_t i = HelperPool::Get().Call(work, helpers); i < helpers; ++i) {
      pool_.Schedule([work] { HelperPool::Get().RunHelper(work); });
    }
    work->Work();
    work->Wait();
  }

 private:
  ffi::ThreadPool pool_;
};

inline bool AsValueType(ffi::DataType type, ValueType* value_type) {
  if (type == ffi::DataType::F32) *value_type = ValueType::kFloat32;
  if (type == ffi::DataType::BF16) *value_type = ValueType::kBFloat16;
  return type == ffi::DataType::F32 || type == ffi::DataType::BF16;
}

// Of packed weights, which may also be int8.
inline bool AsWeightType(ffi::DataType type, ValueType* value_type) {
  if (type == ffi::DataType::S8) *value_type = ValueType::kInt8;
  return type == ffi::DataType::S8 || AsValueType(type, value_type);
}

template <typename Buffer>
Bytes AsBytes(const Buffer& buffer) {
  return {buffer.untyped_data(), buffer.size_bytes()};
}

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_FFI_COMMON_H_
