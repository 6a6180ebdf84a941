// The kernels by what they compute. Shape letters as in `srigl_kernels.format`: B rows of the
// batch, I inputs, N neurons, A active neurons, K fan-in. All pointers are to device memory,
// matrices lie row by row, sums are float32. T is float or BFloat16 for x, values and result alike.

#ifndef SRIGL_KERNELS_CUDA_KERNELS_H_
#define SRIGL_KERNELS_CUDA_KERNELS_H_

#include <stdint.h>

#include "device.cuh"

namespace srigl {

// Rows of the pattern and columns of the input that one tile of weights covers. A position in a tile
// is row * kTileColumns + column; that of a weight which is only there to fill up is kTileSize.
constexpr int kTileRows = 64;
constexpr int kTileColumns = 128;
constexpr int kTileSize = kTileRows * kTileColumns;

// What tensor cores multiply: bfloat16; float32 rounded to TF32; or float32 as a sum of two TF32,
// three products each, which is about as exact as float32.
enum class Mode { kBFloat16, kTf32, k3xTf32 };

// Where the rows of a pattern go, and what follows their sums.
struct Output {
  const int32_t* active;  // [A], ascending: the column of y of each row; null if row r is column r
  const int32_t* rows;    // [N]: the row of each column of y, or -1; null with `active`
  const float* bias;      // [N], or null
  void* y;                // [B, N] of T
  int64_t num_rows;       // A
  int64_t num_outputs;    // N
  int64_t batch;          // B
  int activation;

  // Row `row` writes the columns from here on up to the next row's, ablated ones included.
  __device__ int64_t FirstColumn(int64_t row) const {
    if (row == 0) return 0;
    if (row >= num_rows) return num_outputs;
    return active ? active[row] : row;
  }
};

// y[b, active[a]] = activation(sum_k values[a, k] * x[b, indices[a, k]] + bias[active[a]]); other
// columns of y are the activation of their bias.

// By gathering, with products in float32, values and indices read once for up to 32 rows of x.
template <typename T>
struct GatherArgs {
  const T* x;           // [B, I]
  const T* values;      // [A, 8 V], rows filled up with zeros
  const void* indices;  // [A, 8 V] uint16, or int32 if `wide`; in any order
  bool wide;
  int64_t num_inputs;   // I
  int row_vectors;      // V
  int row_lanes;        // set by the launch: lanes of a warp that share a row, a power of two
  Output out;
};

// By spreading tiles of weights out in shared memory, and dense products on tensor cores.
template <typename T>
struct TilesArgs {
  const T* x;                 // [B, I]
  const T* values;            // [8 vectors], in the order of the positions
  const uint16_t* positions;  // [8 vectors], in their tile
  const int32_t* starts;      // [tiles + 1], the first vector of each tile, row blocks first
  float* sums;                // [splits, B, A], unless splits is 1
  int64_t num_inputs;         // I
  int num_chunks;             // tiles of a row block
  int splits;                 // blocks of threads that share a row block's tiles
  int batch_tile;             // rows of x of a block: 8, 16, 32, 48 or 64
  Output out;
};

// For layers in groups of S rows that share their inputs: those are gathered from a chunk of x in
// shared memory, and the group is a dense product on tensor cores. A group's weights come in steps of
// kGroupStep inputs, each of one chunk.
constexpr int kGroupChunk = 512;  // inputs
constexpr int kGroupStep = 16;

template <typename T>
struct GroupedArgs {
  const T* x;              // [B, I]
  const uint4* fragments;  // values as lanes hold them: see grouped.cu
  const uint16_t* places;  // [G, steps, 16], of inputs in their chunk; input q at q % 4 * 4 + q / 4
  const int32_t* starts;   // [G, chunks + 1], a group's first step of each chunk
  int64_t num_inputs;      // I
  int num_groups;          // G
  int group_size;          // S: 16, 32 or 64
  int num_chunks;
  int num_steps;
  Output out;
};

// dvalues[a, k] = sum_b g[b, a] * x[b, indices[a, k]].
template <typename T>
struct ProductsArgs {
  const T* g;                 // [B, G], of which columns 0 to A - 1 are read
  const T* x;                 // [B, I]
  const uint16_t* positions;  // as in TilesArgs
  const int32_t* starts;
  const int32_t* sources;  // [8 vectors], places in dvalues; at least A * K where there is none
  T* dvalues;              // [A, K]
  int64_t g_columns;       // G
  int64_t num_rows;        // A
  int64_t num_inputs;      // I
  int64_t num_values;      // A * K
  int64_t batch;           // B
  int num_chunks;
};

// Each starts its kernels on the stream; B, A and K are at least 1. The mode is kBFloat16 if T is.
template <typename T>
cudaError_t GatherSums(GatherArgs<T> args, cudaStream_t stream);
template <typename T>
cudaError_t TileSums(const TilesArgs<T>& args, Mode mode, cudaStream_t stream);
template <typename T>
cudaError_t GroupedSums(const GroupedArgs<T>& args, Mode mode, cudaStream_t stream);
template <typename T>
cudaError_t PatternProducts(const ProductsArgs<T>& args, Mode mode, cudaStream_t stream);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CUDA_KERNELS_H_
