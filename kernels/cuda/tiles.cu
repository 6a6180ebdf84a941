// The condensed product on tensor cores, for batches from about eight rows on. A block of threads
// takes a tile of 64 rows of the pattern by kBatch rows of x. For each chunk of 128 inputs it
// spreads the weights of that tile out in shared memory, where all else is zero, multiplies by the
// chunk of x, and clears the places again. So memory is read in the condensed form, once for each
// kBatch rows of x, and the arithmetic is that of a dense product of the active neurons.
//
// The warps of a block share the chunk's inputs among them (kSplitWarps) and the rows of x
// (kBatchWarps); each has sums of all 64 rows, so that the tile of weights is read once for each
// kBatchWarps. While a chunk is multiplied, the next weights come to registers and the next chunk
// of x to the other half of its buffer.

#include "kernels.h"
#include "tensor_cores.cuh"

namespace srigl {
namespace {

// Bytes of a step of k: 8 TF32 or 16 bfloat16. To `ldmatrix` they are the same.
constexpr int kStepBytes = 32;
constexpr int kPadBytes = 16;  // of a row in shared memory, so that eight rows are in other banks
constexpr int kMmaRows = 16, kMmaColumns = 8;
constexpr int kRowMmas = kTileRows / kMmaRows;

// A layout of warps: the batch rows of one of them in units of eight, and how they divide the work.
template <int kColumnMmas_, int kBatchWarps_, int kSplitWarps_>
struct Cut {
  static constexpr int kColumnMmas = kColumnMmas_;
  static constexpr int kBatchWarps = kBatchWarps_;
  static constexpr int kSplitWarps = kSplitWarps_;
  static constexpr int kBatch = kColumnMmas * kMmaColumns * kBatchWarps;
  static constexpr int kThreads = 32 * kBatchWarps * kSplitWarps;
};

template <typename T, typename Cut>
struct Shared {
  static constexpr int kStride = kTileColumns + kPadBytes / static_cast<int>(sizeof(T));
  static constexpr int kSumStride = kTileRows + 4;  // other banks for lanes of an mma's result
  // One place more for the weights that fill up.
  static constexpr int kWeights = kTileRows * kStride + kPadBytes / static_cast<int>(sizeof(T));
  static constexpr int kInputs = Cut::kBatch * kStride;
  static constexpr int kSumBytes = Cut::kBatch * kSumStride * static_cast<int>(sizeof(float));
  static constexpr int kTileBytes = (kWeights + 2 * kInputs) * static_cast<int>(sizeof(T));
  static constexpr int kBytes = kTileBytes > kSumBytes ? kTileBytes : kSumBytes;
};

// Where a position of the format lies in shared memory, whose rows are longer.
template <int kStride>
__device__ inline int Place(uint32_t position) {
  return static_cast<int>(position + position / kTileColumns * (kStride - kTileColumns));
}

template <Mode kMode>
__device__ inline float Rounded(float value) {
  return kMode == Mode::kTf32 ? __uint_as_float(RoundToTf32(value)) : value;
}
template <Mode kMode>
__device__ inline BFloat16 Rounded(BFloat16 value) {
  return value;
}

// Blocks of a multiprocessor, as registers should allow.
template <Mode kMode, typename Cut>
constexpr int kMinBlocks = kMode == Mode::k3xTf32 || Cut::kColumnMmas > 4 ? 2 : 3;

template <typename T, Mode kMode, typename Cut>
__global__ void __launch_bounds__(Cut::kThreads, (kMinBlocks<kMode, Cut>))
    TilesKernel(TilesArgs<T> args) {
  using Layout = Shared<T, Cut>;
  constexpr int kStride = Layout::kStride;
  constexpr int kBatch = Cut::kBatch;
  constexpr int kColumnMmas = Cut::kColumnMmas;
  constexpr int kSteps = kTileColumns * static_cast<int>(sizeof(T)) / kStepBytes;
  // Vectors of weights that a thread has on their way; more would not fit into the registers.
  constexpr int kPrefetch = kMode == Mode::kTf32 ? 3 : 2;
  SRIGL_SHARED_MEMORY(shared);
  T* weights = reinterpret_cast<T*>(shared);
  T* inputs = weights + Layout::kWeights;  // two buffers

  const Output& out = args.out;
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int split_warp = warp % Cut::kSplitWarps, batch_warp = warp / Cut::kSplitWarps;
  const int row_block = blockIdx.x, split = blockIdx.z;
  const int64_t first_batch = static_cast<int64_t>(blockIdx.y) * kBatch;
  const int first_chunk = static_cast<int>(static_cast<int64_t>(args.num_chunks) * split / args.splits);
  const int end_chunk =
      static_cast<int>(static_cast<int64_t>(args.num_chunks) * (split + 1) / args.splits);
  const int32_t* starts = args.starts + static_cast<int64_t>(row_block) * args.num_chunks;
  // Rows of 16-byte words can be copied as they lie.
  const bool is_aligned = args.num_inputs * sizeof(T) % 16 == 0;

  const auto load_inputs = [&](int chunk, T* to) {
    constexpr int kWord = 16 / sizeof(T);
    constexpr int kWords = kTileColumns / kWord;
    const int64_t first = static_cast<int64_t>(chunk) * kTileColumns;
    for (int i = thread; i < kBatch * kWords; i += Cut::kThreads) {
      const int b = i / kWords, column = i % kWords * kWord;
      const bool is_row = first_batch + b < out.batch;
      const T* from = args.x + (is_row ? first_batch + b : 0) * args.num_inputs;
      T* place = to + b * kStride + column;
      if (is_aligned) {
        const bool is_there = is_row && first + column < args.num_inputs;
        CopyAsync16(place, from + (is_there ? first + column : 0), is_there);
      } else {
        Vector8<T> word = {};  // the first kWord of it
#pragma unroll
        for (int e = 0; e < kWord; ++e) {
          if (is_row && first + column + e < args.num_inputs) word.at[e] = from[first + column + e];
        }
        memcpy(place, &word, 16);
      }
    }
    CommitCopies();
  };

  // Weights on their way: thread t has vectors t, t + kThreads, ... of the tile.
  Vector8<T> values[kPrefetch];
  Vector8<uint16_t> positions[kPrefetch];
  const auto load_weights = [&](int chunk) {
    const int32_t end = starts[chunk + 1];
#pragma unroll
    for (int p = 0; p < kPrefetch; ++p) {
      const int32_t vector = starts[chunk] + thread + p * Cut::kThreads;
      if (vector >= end) continue;
      values[p] = LoadVector(args.values + 8 * static_cast<int64_t>(vector));
      positions[p] = LoadVector(args.positions + 8 * static_cast<int64_t>(vector));
    }
  };
  const auto spread = [&](const Vector8<T>& of, const Vector8<uint16_t>& at) {
#pragma unroll
    for (int e = 0; e < 8; ++e) weights[Place<kStride>(at.at[e])] = Rounded<kMode>(of.at[e]);
  };
  const auto spread_weights = [&](int chunk) {
    const int32_t end = starts[chunk + 1];
#pragma unroll
    for (int p = 0; p < kPrefetch; ++p) {
      if (starts[chunk] + thread + p * Cut::kThreads < end) spread(values[p], positions[p]);
    }
    for (int32_t v = starts[chunk] + thread + kPrefetch * Cut::kThreads; v < end;
         v += Cut::kThreads) {
      spread(LoadVector(args.values + 8 * static_cast<int64_t>(v)),
             LoadVector(args.positions + 8 * static_cast<int64_t>(v)));
    }
  };
  // Writes zeros where the chunk's weights were, once all warps have read them. The positions come
  // from the first-level cache this time.
  const auto clear = [&](const Vector8<uint16_t>& at) {
#pragma unroll
    for (int e = 0; e < 8; ++e) FromFloat(0.0f, weights + Place<kStride>(at.at[e]));
  };
  const auto clear_weights = [&](int chunk) {
    const int32_t first = starts[chunk] + thread, end = starts[chunk + 1];
    Vector8<uint16_t> at[kPrefetch];
#pragma unroll
    for (int p = 0; p < kPrefetch; ++p) {
      const int64_t vector = first + p * Cut::kThreads;
      if (vector < end) at[p] = LoadVector(args.positions + 8 * vector);
    }
    __syncthreads();
#pragma unroll
    for (int p = 0; p < kPrefetch; ++p) {
      if (first + p * Cut::kThreads < end) clear(at[p]);
    }
    for (int64_t v = first + kPrefetch * Cut::kThreads; v < end; v += Cut::kThreads) {
      clear(LoadVector(args.positions + 8 * v));
    }
  };

  float sums[kRowMmas][kColumnMmas][4] = {};
  const auto multiply = [&](const T* x) {
#pragma unroll
    for (int s = 0; s < kSteps / Cut::kSplitWarps; ++s) {
      const int step = s * Cut::kSplitWarps + split_warp;
      const int column = step * kStepBytes / static_cast<int>(sizeof(T));
      constexpr int kHalf = kStepBytes / 2 / static_cast<int>(sizeof(T));
      uint32_t a[kRowMmas][4], b[kColumnMmas][2];
#pragma unroll
      for (int i = 0; i < kRowMmas; ++i) {
        LoadMatrices(weights + (i * kMmaRows + lane % 16) * kStride + column + lane / 16 * kHalf,
                     a[i]);
      }
      const T* rows = x + batch_warp * kColumnMmas * kMmaColumns * kStride + column;
      if (kColumnMmas == 1) {
        LoadMatrices(rows + lane % 8 * kStride + lane / 8 % 2 * kHalf, b[0]);
      } else {
#pragma unroll
        for (int j = 0; j + 1 < kColumnMmas; j += 2) {
          uint32_t pair[4];
          const int row = j * kMmaColumns + lane / 16 * 8 + lane % 8;
          LoadMatrices(rows + row * kStride + lane / 8 % 2 * kHalf, pair);
          b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
        }
      }
      MultiplyStep<kMode>(a, b, sums);
    }
  };

  if (first_chunk < end_chunk) {
    load_inputs(first_chunk, inputs);
    load_weights(first_chunk);
  }
  uint4* words = reinterpret_cast<uint4*>(weights);
  for (int i = thread; i < Layout::kWeights * static_cast<int>(sizeof(T)) / 16; i += Cut::kThreads) {
    words[i] = make_uint4(0, 0, 0, 0);
  }
  for (int chunk = first_chunk; chunk < end_chunk; ++chunk) {
    const int buffer = (chunk - first_chunk) % 2;
    __syncthreads();  // the tile is clear
    spread_weights(chunk);
    WaitForCopies<0>();
    __syncthreads();  // tile and inputs are there, and nobody reads the other inputs any more
    if (chunk + 1 < end_chunk) {
      load_inputs(chunk + 1, inputs + (1 - buffer) * Layout::kInputs);
      load_weights(chunk + 1);
    }
    multiply(inputs + buffer * Layout::kInputs);
    if (chunk + 1 < end_chunk) clear_weights(chunk);
  }

  // The sums of all warps, [kBatch][kTileRows], added up in a fixed order.
  __syncthreads();
  float* total = reinterpret_cast<float*>(shared);
  for (int turn = 0; turn < Cut::kSplitWarps; ++turn) {
    if (split_warp == turn) {
#pragma unroll
      for (int i = 0; i < kRowMmas; ++i) {
#pragma unroll
        for (int j = 0; j < kColumnMmas; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = i * kMmaRows + lane / 4 + e / 2 * 8;
            const int b = (batch_warp * kColumnMmas + j) * kMmaColumns + lane % 4 * 2 + e % 2;
            float* sum = total + b * Layout::kSumStride + row;
            *sum = turn == 0 ? sums[i][j][e] : *sum + sums[i][j][e];
          }
        }
      }
    }
    __syncthreads();
  }

  const int64_t first_row = static_cast<int64_t>(row_block) * kTileRows;
  const int64_t end_row = first_row + kTileRows < out.num_rows ? first_row + kTileRows : out.num_rows;
  if (args.splits > 1) {
    for (int b = warp; b < kBatch && first_batch + b < out.batch; b += Cut::kThreads / 32) {
      float* to = args.sums + (split * out.batch + first_batch + b) * out.num_rows;
      for (int64_t row = first_row + lane; row < end_row; row += 32) {
        to[row] = total[b * Layout::kSumStride + (row - first_row)];
      }
    }
    return;
  }
  WriteRows<T, kBatch>(out, total, Layout::kSumStride, first_row, end_row, first_batch);
}

// Adds up what the blocks of threads that shared a row block left, and writes the result.
template <typename T>
__global__ void __launch_bounds__(256) FinishKernel(TilesArgs<T> args) {
  const Output& out = args.out;
  const int64_t b = blockIdx.y;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x;
  if (c >= out.num_outputs) return;
  const int64_t row = out.rows ? out.rows[c] : c;
  float sum = 0.0f;
  if (row >= 0) {
    for (int s = 0; s < args.splits; ++s) {
      sum += args.sums[(s * out.batch + b) * out.num_rows + row];
    }
  }
  const float y = Epilogue(sum, out.bias ? out.bias[c] : 0.0f, out.activation);
  FromFloat(y, static_cast<T*>(out.y) + b * out.num_outputs + c);
}

template <typename T, Mode kMode, typename Cut>
cudaError_t Start(const TilesArgs<T>& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((args.out.num_rows + kTileRows - 1) / kTileRows),
                  static_cast<unsigned>((args.out.batch + Cut::kBatch - 1) / Cut::kBatch),
                  static_cast<unsigned>(args.splits));
  cudaError_t error = Launch(TilesKernel<T, kMode, Cut>, grid, Cut::kThreads,
                             Shared<T, Cut>::kBytes, stream, args);
  if (error != cudaSuccess || args.splits == 1) return error;
  const dim3 all(static_cast<unsigned>((args.out.num_outputs + 255) / 256),
                 static_cast<unsigned>(args.out.batch));
  return Launch(FinishKernel<T>, all, 256, 0, stream, args);
}

template <typename T, Mode kMode>
cudaError_t Choose(const TilesArgs<T>& args, cudaStream_t stream) {
  switch (args.batch_tile) {
    case 8: return Start<T, kMode, Cut<1, 1, 4>>(args, stream);
    case 16: return Start<T, kMode, Cut<2, 1, 4>>(args, stream);
    case 32: return Start<T, kMode, Cut<4, 1, 4>>(args, stream);
    case 48: return Start<T, kMode, Cut<6, 1, 4>>(args, stream);
    case 64: return Start<T, kMode, Cut<4, 2, 2>>(args, stream);
    default: return cudaErrorInvalidConfiguration;
  }
}

}  // namespace

template <>
cudaError_t TileSums(const TilesArgs<BFloat16>& args, Mode, cudaStream_t stream) {
  return Choose<BFloat16, Mode::kBFloat16>(args, stream);
}

template <>
cudaError_t TileSums(const TilesArgs<float>& args, Mode mode, cudaStream_t stream) {
  return mode == Mode::kTf32 ? Choose<float, Mode::kTf32>(args, stream)
                             : Choose<float, Mode::k3xTf32>(args, stream);
}

}  // namespace srigl
