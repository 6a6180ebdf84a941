// What the kernels need of the device, in one place: 16-bit floats, 16-byte loads, asynchronous
// copies, the tensor cores' instructions and launches. `emulation.h` offers the same on a CPU, so
// that every kernel also runs, slowly, where there is no GPU.

#ifndef SRIGL_KERNELS_CUDA_DEVICE_CUH_
#define SRIGL_KERNELS_CUDA_DEVICE_CUH_

#include <stdint.h>
#include <string.h>

#ifdef SRIGL_EMULATION
#include "emulation.h"
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#endif

namespace srigl {

struct BFloat16 {
  uint16_t bits;
};

constexpr uint32_t kAllLanes = 0xffffffffu;

__device__ inline float ToFloat(float value) { return value; }
__device__ inline float ToFloat(BFloat16 value) {
  return __uint_as_float(static_cast<uint32_t>(value.bits) << 16);
}

// Rounds to nearest, ties to even.
__device__ inline void FromFloat(float value, float* out) { *out = value; }
__device__ inline void FromFloat(float value, BFloat16* out) {
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(value));
}

// From the type of x to that of its copy in shared memory.
__device__ inline void Convert(float value, float* out) { *out = value; }
__device__ inline void Convert(BFloat16 value, float* out) { *out = ToFloat(value); }
__device__ inline void Convert(BFloat16 value, BFloat16* out) { *out = value; }

// Eight numbers that lie next to each other, aligned to 16 bytes; read in 16-byte loads.
template <typename T>
struct alignas(16) Vector8 {
  T at[8];
};

// Reads global memory that nothing writes while the kernel runs.
template <typename T>
__device__ inline Vector8<T> LoadVector(const T* from) {
  constexpr int kLoads = sizeof(Vector8<T>) / 16;
  union {
    uint4 words[kLoads];
    Vector8<T> vector;
  } result;
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    result.words[i] = __ldg(reinterpret_cast<const uint4*>(from) + i);
  }
  return result.vector;
}

#ifndef SRIGL_EMULATION

__device__ inline uint32_t SharedAddress(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts to copy 16 bytes to shared memory; zeros where `is_there` is false, and nothing is read.
__device__ inline void CopyAsync16(void* to, const void* from, bool is_there) {
  const int bytes = is_there ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(SharedAddress(to)),
               "l"(from), "r"(bytes)
               : "memory");
}

__device__ inline void CommitCopies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }

// Waits for this thread's copies but for the last `kPending` groups.
template <int kPending>
__device__ inline void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

// Four matrices of 8 rows of 16 bytes each; lane 8 m + r gives the address of row r of matrix m, and
// gets of matrix m the 32-bit word `lane % 4` of row `lane / 4`.
__device__ inline void LoadMatrices(const void* row, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// The same, of two matrices, whose addresses lanes 0 to 15 give.
__device__ inline void LoadMatrices(const void* row, uint32_t (&out)[2]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];\n"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(SharedAddress(row))
               : "memory");
}

// The same as the first, of transposed matrices of 16-bit numbers: a lane gets of matrix m the
// numbers of rows `2 * (lane % 4)` and the next, in column `lane / 4`.
__device__ inline void LoadMatricesTransposed(const void* row, uint32_t (&out)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];\n"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(SharedAddress(row))
               : "memory");
}

// c += a * b of 16 x 8 sums; a is 16 x 8 TF32 or 16 x 16 bfloat16, both as PTX lays them out:
// lane 4 r + q holds of `c` rows r, r, r + 8, r + 8 and columns 2 q, 2 q + 1, 2 q, 2 q + 1.
__device__ inline void MultiplyTf32(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                    float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ inline void MultiplyBFloat16(const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                                        float (&c)[4]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The nearest TF32 number (ten bits of mantissa), ties away from zero; NaN stays NaN.
__device__ inline uint32_t RoundToTf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;\n" : "=r"(bits) : "f"(value));
  return bits;
}

struct Limits {
  int multiprocessors;
  int shared_bytes;  // that a block may have
};

// Of the current device.
inline Limits DeviceLimits() {
  Limits limits = {1, 48 * 1024};
  int device = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaDeviceGetAttribute(&limits.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return limits;
}

// Starts a kernel of one argument. Returns an error of the launch, not of the run.
template <typename Kernel, typename Args>
cudaError_t Launch(Kernel kernel, dim3 grid, int threads, size_t shared_bytes, cudaStream_t stream,
                   const Args& args) {
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  kernel<<<grid, threads, shared_bytes, stream>>>(args);
  return cudaGetLastError();
}

#define SRIGL_SHARED_MEMORY(name) extern __shared__ __align__(16) char name[]

#endif  // SRIGL_EMULATION

// The high and the low part of a float32, TF32 each.
__device__ inline void SplitTf32(uint32_t bits, uint32_t* high, uint32_t* low) {
  const float value = __uint_as_float(bits);
  *high = RoundToTf32(value);
  *low = RoundToTf32(value - __uint_as_float(*high));
}

// Adds the bias and applies the activation: 0 none, 1 relu, 2 gelu in its tanh form.
__device__ inline float Epilogue(float sum, float bias, int activation) {
  const float y = sum + bias;
  if (activation == 1) return y < 0.0f ? 0.0f : y;  // NaN stays
  if (activation == 2) {
    const float inner = 0.7978845608028654f * (y + 0.044715f * y * y * y);
    return 0.5f * y * (1.0f + tanhf(inner));
  }
  return y;
}

}  // namespace srigl

#endif  // SRIGL_KERNELS_CUDA_DEVICE_CUH_
