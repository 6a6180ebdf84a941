// What the kernels with tensor cores share: a step of a product, and writing its result.

#ifndef SRIGL_KERNELS_CUDA_TENSOR_CORES_CUH_
#define SRIGL_KERNELS_CUDA_TENSOR_CORES_CUH_

#include "kernels.h"

namespace srigl {

// sums += a * b, for 16 x 8 sums each: of 8 numbers of float32, or 16 of bfloat16. With kTf32 `a` may
// be rounded already.
template <Mode kMode, int kRowMmas, int kColumnMmas>
__device__ inline void MultiplyStep(const uint32_t (&a)[kRowMmas][4],
                                    const uint32_t (&b)[kColumnMmas][2],
                                    float (&sums)[kRowMmas][kColumnMmas][4]) {
  uint32_t high[kColumnMmas][2], low[kColumnMmas][2];
#pragma unroll
  for (int j = 0; j < kColumnMmas; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (kMode == Mode::kTf32) high[j][h] = RoundToTf32(__uint_as_float(b[j][h]));
      if (kMode == Mode::k3xTf32) SplitTf32(b[j][h], &high[j][h], &low[j][h]);
    }
  }
#pragma unroll
  for (int i = 0; i < kRowMmas; ++i) {
    uint32_t a_high[4], a_low[4];
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      if (kMode == Mode::k3xTf32) SplitTf32(a[i][h], &a_high[h], &a_low[h]);
    }
#pragma unroll
    for (int j = 0; j < kColumnMmas; ++j) {
      if (kMode == Mode::kBFloat16) MultiplyBFloat16(a[i], b[j][0], b[j][1], sums[i][j]);
      if (kMode == Mode::kTf32) MultiplyTf32(a[i], high[j][0], high[j][1], sums[i][j]);
      if (kMode == Mode::k3xTf32) {
        MultiplyTf32(a_low, high[j][0], high[j][1], sums[i][j]);
        MultiplyTf32(a_high, low[j][0], low[j][1], sums[i][j]);
        MultiplyTf32(a_high, high[j][0], high[j][1], sums[i][j]);
      }
    }
  }
}

// Writes the columns of y from those of row `first_row` up to those of `end_row`, ablated ones
// included, for up to kBatch rows of x from `first_batch` on; all threads of the block take part.
// `sums` are [kBatch][stride], in shared memory, of which column 0 is `first_row`.
template <typename T, int kBatch>
__device__ inline void WriteRows(const Output& out, const float* sums, int stride,
                                 int64_t first_row, int64_t end_row, int64_t first_batch) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int64_t first = out.FirstColumn(first_row), end = out.FirstColumn(end_row);
  for (int b = warp; b < kBatch && first_batch + b < out.batch; b += warps) {
    T* y = static_cast<T*>(out.y) + (first_batch + b) * out.num_outputs;
    for (int64_t c = first + lane; c < end; c += 32) {
      const int64_t row = out.rows ? out.rows[c] : c;
      const float sum = row < 0 ? 0.0f : sums[b * stride + (row - first_row)];
      FromFloat(Epilogue(sum, out.bias ? out.bias[c] : 0.0f, out.activation), y + c);
    }
  }
}

}  // namespace srigl

#endif  // SRIGL_KERNELS_CUDA_TENSOR_CORES_CUH_
