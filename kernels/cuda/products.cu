// The gradient in the values on tensor cores. A block of threads takes one tile of the pattern, 64
// rows by 128 inputs, and makes the dense products g^T x of it, a step of kDepth rows of the batch
// after the other; the next step is on its way meanwhile. Then it picks those that are weights.

#include "kernels.h"

namespace srigl {
namespace {

constexpr int kDepth = 32;
constexpr int kRowWarps = 2, kColumnWarps = 4;
constexpr int kThreads = 32 * kRowWarps * kColumnWarps;
constexpr int kRowMmas = kTileRows / kRowWarps / 16;
constexpr int kColumnMmas = kTileColumns / kColumnWarps / 8;
constexpr int kSumStride = kTileColumns + 8;

// Both operands lie as they come, [batch][row or input]. Rows are longer by what puts the lanes of
// one load in different banks: 8 words where float32 is read word by word, 16 bytes for `ldmatrix`.
template <typename T>
struct Shared {
  static constexpr int kPad = 8;
  static constexpr int kGStride = kTileRows + kPad;
  static constexpr int kXStride = kTileColumns + kPad;
  static constexpr int kStage = kDepth * (kGStride + kXStride);
  static constexpr int kStageBytes = 2 * kStage * static_cast<int>(sizeof(T));
  static constexpr int kSumBytes = kTileRows * kSumStride * static_cast<int>(sizeof(float));
  static constexpr int kBytes = kStageBytes > kSumBytes ? kStageBytes : kSumBytes;
};

// Starts to copy `kDepth` rows of `kColumns` columns; zeros where there are none.
template <int kColumns, int kStride, typename T>
__device__ inline void CopyTile(const T* from, int64_t rows, int64_t columns, int64_t first_row,
                                int64_t first_column, T* to) {
  constexpr int kWord = 16 / sizeof(T);
  constexpr int kWords = kColumns / kWord;
  const bool is_aligned = columns * sizeof(T) % 16 == 0;
  for (int i = threadIdx.x; i < kDepth * kWords; i += kThreads) {
    const int64_t row = first_row + i / kWords;
    const int64_t column = first_column + i % kWords * kWord;
    T* place = to + i / kWords * kStride + i % kWords * kWord;
    if (is_aligned) {
      const bool is_there = row < rows && column < columns;
      CopyAsync16(place, from + (is_there ? row * columns + column : 0), is_there);
    } else {
      Vector8<T> word = {};  // the first kWord of it
#pragma unroll
      for (int e = 0; e < kWord; ++e) {
        if (row < rows && column + e < columns) word.at[e] = from[row * columns + column + e];
      }
      memcpy(place, &word, 16);
    }
  }
}

using Sums = float[kRowMmas][kColumnMmas][4];

// Adds the products of one stage: float32 in steps of 8 rows of the batch, bfloat16 of 16.
template <Mode kMode>
__device__ inline void Multiply(const float* g, const float* x, int lane, Sums& sums) {
  constexpr int kGStride = Shared<float>::kGStride, kXStride = Shared<float>::kXStride;
#pragma unroll
  for (int k = 0; k < kDepth; k += 8) {
    uint32_t b_high[kColumnMmas][2], b_low[kColumnMmas][2];
#pragma unroll
    for (int j = 0; j < kColumnMmas; ++j) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float value = x[(k + lane % 4 + 4 * h) * kXStride + 8 * j + lane / 4];
        if (kMode == Mode::kTf32) b_high[j][h] = RoundToTf32(value);
        if (kMode == Mode::k3xTf32) SplitTf32(__float_as_uint(value), &b_high[j][h], &b_low[j][h]);
      }
    }
#pragma unroll
    for (int i = 0; i < kRowMmas; ++i) {
      uint32_t a_high[4], a_low[4];
#pragma unroll
      for (int h = 0; h < 4; ++h) {
        const float value =
            g[(k + lane % 4 + h / 2 * 4) * kGStride + 16 * i + lane / 4 + h % 2 * 8];
        if (kMode == Mode::kTf32) a_high[h] = RoundToTf32(value);
        if (kMode == Mode::k3xTf32) SplitTf32(__float_as_uint(value), &a_high[h], &a_low[h]);
      }
#pragma unroll
      for (int j = 0; j < kColumnMmas; ++j) {
        if (kMode == Mode::k3xTf32) {
          MultiplyTf32(a_low, b_high[j][0], b_high[j][1], sums[i][j]);
          MultiplyTf32(a_high, b_low[j][0], b_low[j][1], sums[i][j]);
        }
        MultiplyTf32(a_high, b_high[j][0], b_high[j][1], sums[i][j]);
      }
    }
  }
}

template <Mode kMode>
__device__ inline void Multiply(const BFloat16* g, const BFloat16* x, int lane, Sums& sums) {
  constexpr int kGStride = Shared<BFloat16>::kGStride, kXStride = Shared<BFloat16>::kXStride;
  const int matrix = lane / 8, row = lane % 8;
#pragma unroll
  for (int k = 0; k < kDepth; k += 16) {
    uint32_t b[kColumnMmas][2];
#pragma unroll
    for (int j = 0; j < kColumnMmas; j += 2) {
      uint32_t pair[4];
      LoadMatricesTransposed(x + (k + matrix % 2 * 8 + row) * kXStride + 8 * j + matrix / 2 * 8,
                             pair);
      b[j][0] = pair[0], b[j][1] = pair[1], b[j + 1][0] = pair[2], b[j + 1][1] = pair[3];
    }
#pragma unroll
    for (int i = 0; i < kRowMmas; ++i) {
      uint32_t a[4];
      LoadMatricesTransposed(g + (k + matrix / 2 * 8 + row) * kGStride + 16 * i + matrix % 2 * 8,
                             a);
#pragma unroll
      for (int j = 0; j < kColumnMmas; ++j) MultiplyBFloat16(a, b[j][0], b[j][1], sums[i][j]);
    }
  }
}

template <typename T, Mode kMode>
__global__ void __launch_bounds__(kThreads) ProductsKernel(ProductsArgs<T> args) {
  using Layout = Shared<T>;
  SRIGL_SHARED_MEMORY(shared);
  T* stages = reinterpret_cast<T*>(shared);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int row_warp = warp / kColumnWarps, column_warp = warp % kColumnWarps;
  const int chunk = blockIdx.x, row_block = blockIdx.y;
  const int64_t first_row = static_cast<int64_t>(row_block) * kTileRows;
  const int64_t first_column = static_cast<int64_t>(chunk) * kTileColumns;
  const int64_t tile = static_cast<int64_t>(row_block) * args.num_chunks + chunk;
  const int32_t first = args.starts[tile], end = args.starts[tile + 1];
  if (first == end) return;

  const auto copy_stage = [&](int64_t batch, int buffer) {
    T* g = stages + buffer * Layout::kStage;
    T* x = g + kDepth * Layout::kGStride;
    CopyTile<kTileRows, Layout::kGStride>(args.g, args.batch, args.g_columns, batch, first_row, g);
    CopyTile<kTileColumns, Layout::kXStride>(args.x, args.batch, args.num_inputs, batch,
                                             first_column, x);
    CommitCopies();
  };

  Sums sums = {};
  copy_stage(0, 0);
  int buffer = 0;
  for (int64_t batch = 0; batch < args.batch; batch += kDepth) {
    WaitForCopies<0>();
    __syncthreads();  // this stage is there, and nobody reads the other any more
    if (batch + kDepth < args.batch) copy_stage(batch + kDepth, 1 - buffer);
    const T* g = stages + buffer * Layout::kStage;
    const T* x = g + kDepth * Layout::kGStride;
    Multiply<kMode>(g + row_warp * kRowMmas * 16, x + column_warp * kColumnMmas * 8, lane, sums);
    buffer = 1 - buffer;
  }

  __syncthreads();
  float* dense = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int i = 0; i < kRowMmas; ++i) {
#pragma unroll
    for (int j = 0; j < kColumnMmas; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = (row_warp * kRowMmas + i) * 16 + lane / 4 + e / 2 * 8;
        const int column = (column_warp * kColumnMmas + j) * 8 + lane % 4 * 2 + e % 2;
        dense[row * kSumStride + column] = sums[i][j][e];
      }
    }
  }
  __syncthreads();
  const int64_t end_weight = 8 * static_cast<int64_t>(end);
  for (int64_t w = 8 * static_cast<int64_t>(first) + thread; w < end_weight; w += kThreads) {
    const int position = args.positions[w];
    const int32_t source = args.sources[w];
    if (position >= kTileSize || source >= args.num_values) continue;
    const float sum = dense[position / kTileColumns * kSumStride + position % kTileColumns];
    FromFloat(sum, args.dvalues + source);
  }
}

template <typename T, Mode kMode>
cudaError_t Start(const ProductsArgs<T>& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.num_chunks),
                  static_cast<unsigned>((args.num_rows + kTileRows - 1) / kTileRows));
  return Launch(ProductsKernel<T, kMode>, grid, kThreads, Shared<T>::kBytes, stream, args);
}

}  // namespace

template <>
cudaError_t PatternProducts(const ProductsArgs<BFloat16>& args, Mode, cudaStream_t stream) {
  return Start<BFloat16, Mode::kBFloat16>(args, stream);
}

template <>
cudaError_t PatternProducts(const ProductsArgs<float>& args, Mode mode, cudaStream_t stream) {
  return mode == Mode::kTf32 ? Start<float, Mode::kTf32>(args, stream)
                             : Start<float, Mode::k3xTf32>(args, stream);
}

}  // namespace srigl
