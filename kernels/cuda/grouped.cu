// The product of a layer in groups. A block of threads takes 32 rows of x and some groups, one or
// more for each warp. For each chunk of inputs, x lies in shared memory as [input][row of x]. Where
// one input's rows start is a lane's choice: so gathering is part of loading what tensor cores read,
// `ldmatrix` with an address for each input where x is bfloat16, word by word where it is float32.
// Inputs of a step are ordered when they are packed so that they lie in different banks.
//
// Weights are read as they lie, once by one warp for these 32 rows: in the order in which lanes hold
// them, [G, steps, S / 16, 32 lanes] of 16 bytes for bfloat16, [G, steps, 2, S / 16, 32 lanes] for
// float32, which tensor cores take 8 inputs at a time.

#include "kernels.h"
#include "tensor_cores.cuh"

namespace srigl {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kBatch = 32;
constexpr int kColumnMmas = kBatch / 8;
constexpr int kStride = kBatch + 8;  // of an input's rows of x, in numbers

template <typename T>
constexpr int kHalves = sizeof(T) / 2;  // parts of a step that tensor cores take at once

// A step's weights and places, in registers.
template <typename T, int kRowMmas>
struct Step {
  uint4 weights[kHalves<T>][kRowMmas];
  uint16_t places[sizeof(T) == 4 ? 4 : 1];
};

template <typename T, int kRowMmas>
__device__ inline Step<T, kRowMmas> LoadStep(const GroupedArgs<T>& args, int64_t step) {
  Step<T, kRowMmas> loaded;
  const int lane = threadIdx.x % 32;
  const uint4* weights = args.fragments + step * kHalves<T> * kRowMmas * 32;
#pragma unroll
  for (int h = 0; h < kHalves<T>; ++h) {
#pragma unroll
    for (int i = 0; i < kRowMmas; ++i) {
      loaded.weights[h][i] = __ldg(weights + (h * kRowMmas + i) * 32 + lane);
    }
  }
  const uint16_t* places = args.places + step * kGroupStep;
  if (sizeof(T) == 2) {
    loaded.places[0] = __ldg(places + lane % 4 * 4 + lane % 16 / 4);
  } else {
    const uint2 four = __ldg(reinterpret_cast<const uint2*>(places) + lane % 4);
    memcpy(loaded.places, &four, sizeof(four));
  }
  return loaded;
}

// The numbers of x that part `half` of a step multiplies, [columns of 8 rows of x][2].
template <int kRowMmas>
__device__ inline void GatherInputs(const Step<BFloat16, kRowMmas>& step, int,
                                    const BFloat16* inputs, uint32_t (&b)[kColumnMmas][2]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int j = 0; j < kColumnMmas; j += 2) {
    uint32_t pair[4];
    LoadMatricesTransposed(inputs + step.places[0] * kStride + 8 * j + lane / 16 * 8, pair);
    b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
  }
}

template <int kRowMmas>
__device__ inline void GatherInputs(const Step<float, kRowMmas>& step, int half,
                                    const float* inputs, uint32_t (&b)[kColumnMmas][2]) {
  const int row = threadIdx.x % 32 / 4;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const float* from = inputs + step.places[2 * half + k] * kStride + row;
#pragma unroll
    for (int j = 0; j < kColumnMmas; ++j) b[j][k] = __float_as_uint(from[8 * j]);
  }
}

// Brings a chunk of x to shared memory, transposed: a lane takes a row of x, in 16-byte words.
template <typename T>
__device__ inline void LoadChunk(const GroupedArgs<T>& args, int chunk, int64_t first_batch,
                                 T* inputs) {
  constexpr int kWord = 16 / sizeof(T);
  const int64_t first = static_cast<int64_t>(chunk) * kGroupChunk;
  const int64_t batch = first_batch + threadIdx.x % kBatch;
  const bool is_row = batch < args.out.batch;
  const T* from = args.x + (is_row ? batch : 0) * args.num_inputs;
  const bool is_aligned = args.num_inputs % kWord == 0;
#pragma unroll 4
  for (int i = threadIdx.x / kBatch; i < kGroupChunk / kWord; i += kThreads / kBatch) {
    const int64_t input = first + i * kWord;
    T word[kWord] = {};
    if (is_row && is_aligned && input < args.num_inputs) {
      const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from + input));
      memcpy(word, &bits, sizeof(bits));
    } else if (is_row) {
#pragma unroll
      for (int e = 0; e < kWord; ++e) {
        if (input + e < args.num_inputs) word[e] = from[input + e];
      }
    }
#pragma unroll
    for (int e = 0; e < kWord; ++e) {
      inputs[(i * kWord + e) * kStride + threadIdx.x % kBatch] = word[e];
    }
  }
}

// Blocks of a multiprocessor, for registers: fewer where a warp holds more.
template <typename T, int kRowMmas, int kGroups>
constexpr int kMinBlocks = kRowMmas * kGroups == 4 && kRowMmas * sizeof(T) >= 8 ? 1 : 2;

template <typename T, Mode kMode, int kRowMmas, int kGroups>
__global__ void __launch_bounds__(kThreads, (kMinBlocks<T, kRowMmas, kGroups>))
    GroupedKernel(GroupedArgs<T> args) {
  constexpr int kAhead = 2;  // steps on their way
  constexpr int kSize = 16 * kRowMmas;
  constexpr int kBlockRows = kSize * kGroups * kWarps;
  constexpr int kSumStride = kBlockRows + 4;
  SRIGL_SHARED_MEMORY(shared);
  T* inputs = reinterpret_cast<T*>(shared);
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_batch = static_cast<int64_t>(blockIdx.y) * kBatch;
  const int first_group = (static_cast<int>(blockIdx.x) * kWarps + warp) * kGroups;

  float sums[kGroups][kRowMmas][kColumnMmas][4] = {};
  for (int chunk = 0; chunk < args.num_chunks; ++chunk) {
    __syncthreads();  // nobody reads the last chunk any more
    LoadChunk(args, chunk, first_batch, inputs);
    __syncthreads();
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      const int group = first_group + g;
      if (group >= args.num_groups) continue;
      const int32_t* starts = args.starts + static_cast<int64_t>(group) * (args.num_chunks + 1);
      const int64_t base = static_cast<int64_t>(group) * args.num_steps;
      const int first = starts[chunk], end = starts[chunk + 1];
      Step<T, kRowMmas> next[kAhead];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (first + a < end) next[a] = LoadStep<T, kRowMmas>(args, base + first + a);
      }
      for (int s = first; s < end; ++s) {
        const Step<T, kRowMmas> step = next[0];
#pragma unroll
        for (int a = 0; a + 1 < kAhead; ++a) next[a] = next[a + 1];
        if (s + kAhead < end) next[kAhead - 1] = LoadStep<T, kRowMmas>(args, base + s + kAhead);
#pragma unroll
        for (int h = 0; h < kHalves<T>; ++h) {
          uint32_t a[kRowMmas][4], b[kColumnMmas][2];
          GatherInputs(step, h, inputs, b);
#pragma unroll
          for (int i = 0; i < kRowMmas; ++i) {
            memcpy(a[i], &step.weights[h][i], sizeof(uint4));
            if constexpr (kMode == Mode::kTf32) {
#pragma unroll
              for (int e = 0; e < 4; ++e) a[i][e] = RoundToTf32(__uint_as_float(a[i][e]));
            }
          }
          MultiplyStep<kMode>(a, b, sums[g]);
        }
      }
    }
  }

  __syncthreads();
  float* total = reinterpret_cast<float*>(shared);  // [kBatch][kSumStride]
#pragma unroll
  for (int g = 0; g < kGroups; ++g) {
#pragma unroll
    for (int i = 0; i < kRowMmas; ++i) {
#pragma unroll
      for (int j = 0; j < kColumnMmas; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int row = (warp * kGroups + g) * kSize + i * 16 + lane / 4 + e / 2 * 8;
          total[(8 * j + lane % 4 * 2 + e % 2) * kSumStride + row] = sums[g][i][j][e];
        }
      }
    }
  }
  __syncthreads();
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kBlockRows;
  const int64_t end_row = first_row + kBlockRows;
  WriteRows<T, kBatch>(args.out, total, kSumStride, first_row,
                       end_row < args.out.num_rows ? end_row : args.out.num_rows, first_batch);
}

template <typename T, Mode kMode, int kRowMmas, int kGroups>
cudaError_t Start(const GroupedArgs<T>& args, cudaStream_t stream) {
  constexpr int kGroupsOfBlock = kGroups * kWarps;
  constexpr size_t kTileBytes = kGroupChunk * kStride * sizeof(T);
  constexpr size_t kSumBytes = kBatch * (16 * kRowMmas * kGroupsOfBlock + 4) * sizeof(float);
  const dim3 grid(static_cast<unsigned>((args.num_groups + kGroupsOfBlock - 1) / kGroupsOfBlock),
                  static_cast<unsigned>((args.out.batch + kBatch - 1) / kBatch));
  return Launch(GroupedKernel<T, kMode, kRowMmas, kGroups>, grid, kThreads,
                kTileBytes > kSumBytes ? kTileBytes : kSumBytes, stream, args);
}

template <typename T, Mode kMode, int kRowMmas>
cudaError_t ChooseGroups(const GroupedArgs<T>& args, cudaStream_t stream) {
  // As many groups share a chunk of x as leave work for every multiprocessor.
  constexpr int kMost = 4 / kRowMmas;
  const int64_t blocks = (args.num_groups + kMost * kWarps - 1) / (kMost * kWarps) *
                         ((args.out.batch + kBatch - 1) / kBatch);
  if (blocks >= 2 * DeviceLimits().multiprocessors) {
    return Start<T, kMode, kRowMmas, kMost>(args, stream);
  }
  return Start<T, kMode, kRowMmas, 1>(args, stream);
}

template <typename T, Mode kMode>
cudaError_t ChooseSize(const GroupedArgs<T>& args, cudaStream_t stream) {
  switch (args.group_size) {
    case 16: return ChooseGroups<T, kMode, 1>(args, stream);
    case 32: return ChooseGroups<T, kMode, 2>(args, stream);
    case 64: return ChooseGroups<T, kMode, 4>(args, stream);
    default: return cudaErrorInvalidConfiguration;
  }
}

}  // namespace

template <>
cudaError_t GroupedSums(const GroupedArgs<BFloat16>& args, Mode, cudaStream_t stream) {
  return ChooseSize<BFloat16, Mode::kBFloat16>(args, stream);
}

template <>
cudaError_t GroupedSums(const GroupedArgs<float>& args, Mode mode, cudaStream_t stream) {
  return mode == Mode::kTf32 ? ChooseSize<float, Mode::kTf32>(args, stream)
                             : ChooseSize<float, Mode::k3xTf32>(args, stream);
}

}  // namespace srigl
