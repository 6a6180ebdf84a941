// The condensed product by gathering, for small batches: bound by reading values and indices, which
// are read once, in 16-byte loads, the next ones on their way while the last ones are used.
//
// x lies in shared memory as [I][kBatch] float32, so that what one weight reads is contiguous. A
// row of the pattern is summed by `row_lanes` lanes of a warp: groups of kLanes = kBatch / 4 lanes
// take one weight each, four rows of x a lane. Blocks take rows in turns.

#include "kernels.h"

namespace srigl {
namespace {

constexpr int kMaxThreads = 512;

template <typename Index, typename T>
struct Weights {
  Vector8<T> values;
  Vector8<Index> indices;
};

template <typename T, typename Index, int kBatch, bool kShared>
__global__ void __launch_bounds__(kMaxThreads, 1) GatherKernel(GatherArgs<T> args) {
  constexpr int kWidth = kBatch < 4 ? kBatch : 4;  // rows of x of a lane
  constexpr int kLanes = kBatch / kWidth;
  struct alignas(4 * kWidth) Inputs {
    float at[kWidth];
  };
  SRIGL_SHARED_MEMORY(shared);
  Inputs* inputs = reinterpret_cast<Inputs*>(shared);  // [I][kLanes]

  const Output& out = args.out;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int warps = blockDim.x / 32;
  const int rows_per_warp = 32 / args.row_lanes;
  const int part = lane % kLanes;                      // which rows of x
  const int slot = lane % args.row_lanes / kLanes;     // which weights
  const int slots = args.row_lanes / kLanes;
  const int steps = (args.row_vectors + slots - 1) / slots;
  const int64_t first_batch = static_cast<int64_t>(blockIdx.y) * kBatch + part * kWidth;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * warps * rows_per_warp;
  int64_t row = (static_cast<int64_t>(blockIdx.x) * warps + warp) * rows_per_warp;
  const int64_t end = out.num_rows;
  const int row_in_warp = lane / args.row_lanes;

  const auto is_there = [&](int64_t of_row, int step) {
    return of_row + row_in_warp < end && step * slots + slot < args.row_vectors;
  };
  const auto load = [&](int64_t of_row, int step) {
    Weights<Index, T> weights;
    const int64_t vector = (of_row + row_in_warp) * args.row_vectors + step * slots + slot;
    weights.values = LoadVector(args.values + 8 * vector);
    weights.indices = LoadVector(static_cast<const Index*>(args.indices) + 8 * vector);
    return weights;
  };

  // The first weights are on their way while x is brought in.
  Weights<Index, T> next = {};
  if (is_there(row, 0)) next = load(row, 0);
  if (kShared) {
    const int count = static_cast<int>(args.num_inputs) * kLanes;
#pragma unroll 4
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
      const int input = i / kLanes;
      const int64_t batch = static_cast<int64_t>(blockIdx.y) * kBatch + i % kLanes * kWidth;
      Inputs found;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        found.at[j] = batch + j < out.batch
                          ? ToFloat(args.x[(batch + j) * args.num_inputs + input])
                          : 0.0f;
      }
      inputs[i] = found;
    }
    __syncthreads();
  }

  for (; row < end; row += stride) {
    float sums[kWidth] = {};
    for (int step = 0; step < steps; ++step) {
      const Weights<Index, T> weights = next;
      const bool is_last = step + 1 == steps;
      const int64_t next_row = is_last ? row + stride : row;
      const int next_step = is_last ? 0 : step + 1;
      if (is_there(next_row, next_step)) next = load(next_row, next_step);
      if (!is_there(row, step)) continue;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        const float value = ToFloat(weights.values.at[e]);
        if (kShared) {
          const Inputs picked = inputs[static_cast<int>(weights.indices.at[e]) * kLanes + part];
#pragma unroll
          for (int j = 0; j < kWidth; ++j) sums[j] = fmaf(value, picked.at[j], sums[j]);
        } else {  // kBatch is 1
          const T* x = args.x + first_batch * args.num_inputs;
          sums[0] = fmaf(value, ToFloat(x[weights.indices.at[e]]), sums[0]);
        }
      }
    }
    for (int distance = kLanes; distance < args.row_lanes; distance *= 2) {
#pragma unroll
      for (int j = 0; j < kWidth; ++j) sums[j] += __shfl_xor_sync(kAllLanes, sums[j], distance);
    }
    const int64_t mine = row + row_in_warp;
    if (mine >= end) continue;
    const int64_t column = out.active ? out.active[mine] : mine;
    const int64_t last = out.FirstColumn(mine + 1);
    for (int64_t c = out.FirstColumn(mine) + slot; c < last; c += slots) {
      const float bias = out.bias ? out.bias[c] : 0.0f;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        if (first_batch + j >= out.batch) continue;
        const float y = Epilogue(c == column ? sums[j] : 0.0f, bias, out.activation);
        FromFloat(y, static_cast<T*>(out.y) + (first_batch + j) * out.num_outputs + c);
      }
    }
  }
}

template <typename T, typename Index, int kBatch, bool kShared>
cudaError_t Start(GatherArgs<T> args, cudaStream_t stream) {
  constexpr int kLanes = kBatch < 4 ? 1 : kBatch / 4;
  int slots = 1;  // as many as there are vectors in a row, but within a warp
  while (slots < args.row_vectors && 2 * slots * kLanes <= 32) slots *= 2;
  args.row_lanes = slots * kLanes;
  const size_t bytes = kShared ? static_cast<size_t>(args.num_inputs) * kBatch * sizeof(float) : 0;
  const int threads = bytes > 64 * 1024 ? kMaxThreads : 256;
  const int64_t rows_per_block = threads / args.row_lanes;
  const int64_t blocks = (args.out.num_rows + rows_per_block - 1) / rows_per_block;
  const int64_t batches = (args.out.batch + kBatch - 1) / kBatch;
  // As many blocks as fit on the device at once, each with as many rounds as the others.
  const int64_t per_multiprocessor = bytes > 100 * 1024 ? 1 : 1024 / threads;
  int64_t at_once = DeviceLimits().multiprocessors * per_multiprocessor / batches;
  if (at_once < 1) at_once = 1;
  const int64_t rounds = (blocks + at_once - 1) / at_once;
  const dim3 grid(static_cast<unsigned>((blocks + rounds - 1) / rounds),
                  static_cast<unsigned>(batches));
  return Launch(GatherKernel<T, Index, kBatch, kShared>, grid, threads, bytes, stream, args);
}

template <typename T, typename Index>
cudaError_t Choose(const GatherArgs<T>& args, cudaStream_t stream) {
  // The most rows of x that fit, but not more than there are.
  const int64_t shared_bytes = DeviceLimits().shared_bytes;
  const auto fits = [&](int64_t rows) {
    return rows < 2 * args.out.batch &&
           args.num_inputs * rows * static_cast<int64_t>(sizeof(float)) <= shared_bytes;
  };
  if (fits(32)) return Start<T, Index, 32, true>(args, stream);
  if (fits(16)) return Start<T, Index, 16, true>(args, stream);
  if (fits(8)) return Start<T, Index, 8, true>(args, stream);
  if (fits(4)) return Start<T, Index, 4, true>(args, stream);
  if (fits(2)) return Start<T, Index, 2, true>(args, stream);
  if (fits(1)) return Start<T, Index, 1, true>(args, stream);
  return Start<T, Index, 1, false>(args, stream);
}

}  // namespace

template <typename T>
cudaError_t GatherSums(GatherArgs<T> args, cudaStream_t stream) {
  return args.wide ? Choose<T, int32_t>(args, stream) : Choose<T, uint16_t>(args, stream);
}

template cudaError_t GatherSums(GatherArgs<float>, cudaStream_t);
template cudaError_t GatherSums(GatherArgs<BFloat16>, cudaStream_t);

}  // namespace srigl
