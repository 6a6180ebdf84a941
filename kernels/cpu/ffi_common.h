// What the FFI handlers share.

#ifndef SRIGL_KERNELS_CPU_FFI_COMMON_H_
#define SRIGL_KERNELS_CPU_FFI_COMMON_H_

#include <algorithm>
#include <memory>

#include "helper_pool.h"
#include "layout.h"
#include "matmul.h"
#include "xla/ffi/api/ffi.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#define SRIGL_EXPORT extern "C" __attribute__((visibility("default")))

namespace srigl {

namespace ffi = xla::ffi;

// Runs tasks on XLA's own thread pool, and on threads of it that still wait from an earlier call.
class PoolExecutor : public Executor {
 public:
  explicit PoolExecutor(ffi::ThreadPool pool) : pool_(pool) {}

  int64_t num_threads() const override { return pool_.num_threads(); }

  void Run(int64_t num_tasks, int64_t max_threads, void (*task)(const void*, int64_t),
           const void* context, SharedOut shared_out) override {
    const int64_t threads = std::min({num_tasks, max_threads, num_threads()});
    if (threads <= 1) {
      for (int64_t i = 0; i < num_tasks; ++i) task(context, i);
      return;
    }
    const auto work = std::make_shared<ParallelTask>(num_tasks, threads, task, context,
                                                     shared_out == SharedOut::kWeights);
    HelperPool::Get().RunCall(work, threads, num_threads(), [this, &work] {
      pool_.Schedule([work] { HelperPool::Get().RunHelper(work); });
    });
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

// What a call reads row by row: floats or, in 8 bits, integers with a scale for each row and the range
// that they are steps of. False where these do not fit.
inline bool AsRows(const ffi::AnyBuffer& buffer, const ffi::Buffer<ffi::F32>& scales,
                   const ffi::Buffer<ffi::F32>& range, const float** floats, Quantized* integers) {
  if (buffer.element_type() == ffi::DataType::F32) {
    *floats = buffer.typed_data<float>();
    return true;
  }
  size_t rows = 1;
  const auto dims = buffer.dimensions();
  for (size_t i = 0; i + 1 < dims.size(); ++i) rows *= static_cast<size_t>(dims[i]);
  if (buffer.element_type() != ffi::DataType::U8 || scales.element_count() != rows ||
      range.element_count() != 2) {
    return false;
  }
  integers->integers = buffer.typed_data<uint8_t>();
  integers->scales = scales.typed_data();
  integers->zero = ZeroOf(StepsOf(range.typed_data()));
  return true;
}

// What a call adds to its sums, if it is given one: an array of the result's shape, or [0] for none.
inline bool AsResidual(const ffi::AnyBuffer& residual, const ffi::Buffer<ffi::F32>& scales,
                       const ffi::Buffer<ffi::F32>& range, ffi::Result<ffi::AnyBuffer>& y,
                       const float** floats, Quantized* integers) {
  const auto dims = residual.dimensions(), expected = y->dimensions();
  if (dims.size() == 1 && dims[0] == 0) return true;
  return dims.size() == expected.size() &&
         std::equal(dims.begin(), dims.end(), expected.begin()) &&
         AsRows(residual, scales, range, floats, integers);
}

// Where a call's result goes, as `AsRows` reads it.
inline bool AsResult(ffi::Result<ffi::AnyBuffer>& y, ffi::Result<ffi::Buffer<ffi::F32>>& scales,
                     const ffi::Buffer<ffi::F32>& range, float** floats,
                     QuantizedOutput* integers) {
  const float* rows = nullptr;
  Quantized written;
  if (!AsRows(*y, *scales, range, &rows, &written)) return false;
  *floats = const_cast<float*>(rows);
  if (written.integers != nullptr) {
    *integers = {y->typed_data<uint8_t>(), scales->typed_data(), StepsOf(range.typed_data())};
  }
  return true;
}

// Asks for huge pages below a large result that is about to be written, to their bounds. XLA maps the
// memory of a program's temporary arrays anew in each call: a training step would take a fault for
// every 4 KB of them, which costs a sixth of its time. What lies around a result within these bounds
// is mostly another array of the same program.
template <typename Buffer>
void AdviseHugePages(const Buffer& buffer) {
#if defined(__linux__)
  constexpr uintptr_t kHugePage = 2 << 20;
  if (buffer.size_bytes() < kHugePage / 4) return;
  const uintptr_t data = reinterpret_cast<uintptr_t>(buffer.untyped_data());
  const uintptr_t begin = data / kHugePage * kHugePage;
  const uintptr_t end = (data + buffer.size_bytes() + kHugePage - 1) / kHugePage * kHugePage;
  // Advice only: it says nothing about what is not mapped there, and pages are small where it fails.
  (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)buffer;
#endif
}

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_FFI_COMMON_H_
