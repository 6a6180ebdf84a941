// The condensed product by gathering. Values and indices are read once for up to 32 rows of x, in
// copies to shared memory that each warp starts three stages ahead, as it is they that bound small
// batches. Products are of float32, sums too.
//
// x lies in shared memory as [I][kBatch], so that what one weight reads is contiguous: 16 bytes of
// it for each lane of a group of kLanes. A row of the pattern is summed by `row_lanes` lanes of a
// warp, whose groups take one vector of eight weights each. Blocks take rows in turns.
//
// The inputs are stored in another order (Place), so that threads which each bring eight inputs of
// eight rows write to different banks. `layout.py` orders the weights of a row so that groups which
// read at once meet different banks as well.

#include "kernels.h"

namespace srigl {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kStages = 4;  // of weights, one of them in use
constexpr int64_t kMultiprocessorBytes = 228 * 1024, kReservedBytes = 1024;  // of shared memory
constexpr int64_t kMultiprocessorThreads = 1024;  // that registers allow for

template <bool kCondition, typename A, typename B>
struct Select {
  using Type = A;
};
template <typename A, typename B>
struct Select<false, A, B> {
  using Type = B;
};

template <typename T, typename Index, int kBatch>
struct Layout {
  // What x is stored as: its own type where a lane's rows of it fill 16 bytes.
  using Input = typename Select<sizeof(T) * kBatch >= 16, T, float>::Type;
  static constexpr int kMost = 16 / static_cast<int>(sizeof(Input));
  static constexpr int kWidth = kBatch < kMost ? kBatch : kMost;  // rows of x of a lane
  static constexpr int kLanes = kBatch / kWidth;
  static constexpr int kGroups = 32 / kLanes;  // of lanes in a warp
  static constexpr int kInputs = 16 / static_cast<int>(sizeof(T));  // that a thread brings at once
  struct alignas(static_cast<int>(sizeof(Input)) * kWidth) Chunk {
    Input at[kWidth];
  };
  // A stage holds a vector of weights for each lane.
  static constexpr int kValueBytes = 32 * 8 * static_cast<int>(sizeof(T));
  static constexpr int kIndexBytes = 32 * 8 * static_cast<int>(sizeof(Index));
  static constexpr int kStageBytes = kValueBytes + kIndexBytes;

  static __host__ __device__ int64_t InputBytes(int64_t num_inputs) {
    return (num_inputs + 7) / 8 * 8 * kLanes * static_cast<int64_t>(sizeof(Chunk));
  }

  // Where an input's chunks begin, in bytes. As `layout.bank_of` has it, for chunks of 16 bytes.
  static __device__ uint32_t Place(uint32_t input) {
    constexpr int kShift = kInputs == 8 ? 3 : 2;
    constexpr uint32_t kMask = sizeof(Chunk) == 16 && kLanes < 8 ? 8 / kLanes - 1 : 0;
    if (kMask > 0) input ^= input >> kShift & kMask;
    return input * static_cast<uint32_t>(kLanes * sizeof(Chunk));
  }
};

// Number e of some 16-byte words. By hand, as the compiler takes two instructions for one.
__device__ inline uint32_t Word(const uint4* words, int i) {
  const uint4& word = words[i / 4];
  return i % 4 == 0 ? word.x : i % 4 == 1 ? word.y : i % 4 == 2 ? word.z : word.w;
}
__device__ inline float LowHalf(uint32_t word) { return __uint_as_float(word << 16); }
__device__ inline float HighHalf(uint32_t word) { return __uint_as_float(word & 0xffff0000u); }
template <typename T>
__device__ inline float Part(const uint4* words, int e) {
  if (sizeof(T) == 4) return __uint_as_float(Word(words, e));
  return e % 2 ? HighHalf(Word(words, e / 2)) : LowHalf(Word(words, e / 2));
}
template <typename Index>
__device__ inline uint32_t IndexPart(const uint4* words, int e) {
  if (sizeof(Index) == 4) return Word(words, e);
  return e % 2 ? Word(words, e / 2) >> 16 : Word(words, e / 2) & 0xffff;
}

template <int kWidth>
__device__ inline void AddProducts(float value, const float (&x)[kWidth], float (&sums)[kWidth]) {
#pragma unroll
  for (int b = 0; b < kWidth; ++b) sums[b] = fmaf(value, x[b], sums[b]);
}
template <int kWidth>
__device__ inline void AddProducts(float value, const BFloat16 (&x)[kWidth],
                                   float (&sums)[kWidth]) {
  uint32_t words[kWidth / 2];
  memcpy(words, x, sizeof(words));
#pragma unroll
  for (int b = 0; b < kWidth / 2; ++b) {
    sums[2 * b] = fmaf(value, LowHalf(words[b]), sums[2 * b]);
    sums[2 * b + 1] = fmaf(value, HighHalf(words[b]), sums[2 * b + 1]);
  }
}

// Brings the block's rows of x to shared memory.
template <typename T, typename Layout>
__device__ void LoadInputs(const GatherArgs<T>& args, int64_t first_batch,
                           char* inputs) {
  constexpr int kWidth = Layout::kWidth, kInputs = Layout::kInputs;
  struct alignas(16) Word {
    T at[kInputs];
  };
  const bool is_aligned = args.num_inputs % kInputs == 0;
  const int count = static_cast<int>((args.num_inputs + kInputs - 1) / kInputs) * Layout::kLanes;
  using Chunk = typename Layout::Chunk;
  for (int i = threadIdx.x; i < count; i += blockDim.x) {
    const int first = i / Layout::kLanes * kInputs, part = i % Layout::kLanes;
    const int64_t batch = first_batch + part * kWidth;
    const T* from = args.x + batch * args.num_inputs + first;
    const auto place = [&](int e) {
      return reinterpret_cast<Chunk*>(inputs + Layout::Place(first + e) + part * sizeof(Chunk));
    };
    if (is_aligned) {
      Word words[kWidth];
#pragma unroll
      for (int j = 0; j < kWidth; ++j) {
        uint4 word = make_uint4(0, 0, 0, 0);
        if (batch + j < args.out.batch) {
          word = __ldg(reinterpret_cast<const uint4*>(from + j * args.num_inputs));
        }
        memcpy(&words[j], &word, sizeof(Word));
      }
#pragma unroll
      for (int e = 0; e < kInputs; ++e) {
        Chunk chunk;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) Convert(words[j].at[e], &chunk.at[j]);
        *place(e) = chunk;
      }
    } else {
      for (int e = 0; e < kInputs && first + e < args.num_inputs; ++e) {
        Chunk chunk;
#pragma unroll
        for (int j = 0; j < kWidth; ++j) {
          FromFloat(0.0f, &chunk.at[j]);
          if (batch + j < args.out.batch) Convert(from[j * args.num_inputs + e], &chunk.at[j]);
        }
        *place(e) = chunk;
      }
    }
  }
}

template <typename T, typename Index, int kBatch, bool kShared>
__global__ void __launch_bounds__(kMaxThreads, kMultiprocessorThreads / kMaxThreads)
    GatherKernel(GatherArgs<T> args) {
  using Layout = Layout<T, Index, kBatch>;
  constexpr int kWidth = Layout::kWidth, kLanes = Layout::kLanes, kGroups = Layout::kGroups;
  using Chunk = typename Layout::Chunk;
  SRIGL_SHARED_MEMORY(shared);

  const Output& out = args.out;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  char* ring = shared + (kShared ? Layout::InputBytes(args.num_inputs) : 0) +
               warp * kStages * Layout::kStageBytes;
  const int slots = args.row_lanes / kLanes;  // vectors of a row that are taken at once
  const int rows_per_warp = 32 / args.row_lanes;
  const int steps = (args.row_vectors + slots - 1) / slots;
  const int stages = (steps + kLanes - 1) / kLanes;  // of a row
  const int part = lane % kLanes, group = lane / kLanes;
  const int row_in_warp = group / slots, slot = group % slots;
  const int64_t first_batch = static_cast<int64_t>(blockIdx.y) * kBatch;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * warps * rows_per_warp;
  int64_t row = (static_cast<int64_t>(blockIdx.x) * warps + warp) * rows_per_warp;
  const int64_t end = out.num_rows;

  // The next stage to be asked for. This lane copies one vector of each.
  const int my_row = lane % kGroups / slots;
  const int my_first = lane / kGroups * slots + lane % kGroups % slots;
  int64_t next_row = row;
  int64_t next_from = 8 * ((row + my_row) * args.row_vectors + my_first);
  const int64_t row_step = 8 * stride * args.row_vectors;
  int next_stage = 0, next_vector = my_first, next_buffer = 0;
  const auto ask = [&] {
    if (next_row < end) {
      const bool is_there = next_row + my_row < end && next_vector < args.row_vectors;
      const int64_t from = is_there ? next_from + 8 * (next_vector - my_first) : 0;
      char* to = ring + next_buffer * Layout::kStageBytes;
      const T* values = args.values + from;
      const Index* indices = static_cast<const Index*>(args.indices) + from;
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(T)) / 2; ++i) {
        CopyAsync16(to + (lane * sizeof(T) / 2 + i) * 16, values + 16 / sizeof(T) * i, is_there);
      }
#pragma unroll
      for (int i = 0; i < static_cast<int>(sizeof(Index)) / 2; ++i) {
        CopyAsync16(to + Layout::kValueBytes + (lane * sizeof(Index) / 2 + i) * 16,
                    indices + 16 / sizeof(Index) * i, is_there);
      }
      next_buffer = (next_buffer + 1) & (kStages - 1);
      next_vector += kLanes * slots;
      if (++next_stage == stages) {
        next_stage = 0;
        next_vector = my_first;
        next_row += stride;
        next_from += row_step;
      }
    }
    CommitCopies();
  };

#pragma unroll
  for (int i = 0; i + 1 < kStages; ++i) ask();
  if (kShared) {
    LoadInputs<T, Layout>(args, first_batch, shared);
    __syncthreads();
  }
  const char* inputs = shared + part * sizeof(Chunk);
  const T* x = args.x + first_batch * args.num_inputs;  // where it is not shared

  int buffer = 0;
  for (; row < end; row += stride) {
    float sums[kWidth] = {};
    int vector = slot;
    for (int stage = 0; stage < stages; ++stage) {
      WaitForCopies<kStages - 2>();
      __syncwarp();  // the copies of all lanes are there, and nobody reads the buffer before
      ask();
      const char* held = ring + buffer * Layout::kStageBytes;
      buffer = (buffer + 1) & (kStages - 1);
#pragma unroll 1
      for (int j = 0; j < kLanes; ++j, vector += slots) {
        if (vector >= args.row_vectors) break;
        const int which = j * kGroups + group;
        // Not by memcpy, which takes a byte at a time where the compiler sees no alignment.
        constexpr int kValueWords = sizeof(T) / 2, kIndexWords = sizeof(Index) / 2;
        uint4 values[kValueWords], indices[kIndexWords];
        const auto* words = reinterpret_cast<const uint4*>(held);
#pragma unroll
        for (int i = 0; i < kValueWords; ++i) values[i] = words[which * kValueWords + i];
        words = reinterpret_cast<const uint4*>(held + Layout::kValueBytes);
#pragma unroll
        for (int i = 0; i < kIndexWords; ++i) indices[i] = words[which * kIndexWords + i];
#pragma unroll
        for (int e = 0; e < 8; ++e) {
          const float value = Part<T>(values, e);
          const uint32_t input = IndexPart<Index>(indices, e);
          if (kShared) {
            const Chunk chunk = *reinterpret_cast<const Chunk*>(inputs + Layout::Place(input));
            AddProducts(value, chunk.at, sums);
          } else {  // kBatch is 1
            sums[0] = fmaf(value, ToFloat(x[input]), sums[0]);
          }
        }
      }
    }
    for (int distance = kLanes; distance < args.row_lanes; distance *= 2) {
#pragma unroll
      for (int b = 0; b < kWidth; ++b) sums[b] += __shfl_xor_sync(kAllLanes, sums[b], distance);
    }
    const int64_t mine = row + row_in_warp;
    if (mine >= end) continue;
    const int64_t column = out.active ? out.active[mine] : mine;
    const int64_t last = out.FirstColumn(mine + 1);
    for (int64_t c = out.FirstColumn(mine) + slot; c < last; c += slots) {
      const float bias = out.bias ? out.bias[c] : 0.0f;
#pragma unroll
      for (int b = 0; b < kWidth; ++b) {
        const int64_t batch = first_batch + part * kWidth + b;
        if (batch >= out.batch) continue;
        const float y = Epilogue(c == column ? sums[b] : 0.0f, bias, out.activation);
        FromFloat(y, static_cast<T*>(out.y) + batch * out.num_outputs + c);
      }
    }
  }
}

template <typename T, typename Index, int kBatch, bool kShared>
cudaError_t Start(GatherArgs<T> args, cudaStream_t stream) {
  using Layout = Layout<T, Index, kBatch>;
  int slots = 1;  // as many as there are vectors in a row, but within a warp
  while (slots < args.row_vectors && 2 * slots * Layout::kLanes <= 32) slots *= 2;
  args.row_lanes = slots * Layout::kLanes;
  const Limits limits = DeviceLimits();
  const int64_t batches = (args.out.batch + kBatch - 1) / kBatch;
  const int64_t rows_per_warp = 32 / args.row_lanes;
  const auto bytes_of = [&](int threads) {
    return (kShared ? Layout::InputBytes(args.num_inputs) : 0) +
           threads / 32 * kStages * Layout::kStageBytes;
  };
  const auto blocks_of = [&](int threads) {
    const int64_t rows_per_block = threads / 32 * rows_per_warp;
    return (args.out.num_rows + rows_per_block - 1) / rows_per_block;
  };
  // Fewer threads where they do not fit, or multiprocessors would be idle; but where x is large, it
  // takes few threads longer to bring it than it takes others to do their rows.
  const int64_t input_bytes = bytes_of(0);
  const int least = input_bytes > 64 * 1024 ? kMaxThreads : input_bytes > 16 * 1024 ? 256 : 128;
  int threads = kMaxThreads;
  while (threads > 32 && (bytes_of(threads) > limits.shared_bytes ||
                          (threads > least && blocks_of(threads) * batches < limits.multiprocessors))) {
    threads /= 2;
  }
  const int64_t bytes = bytes_of(threads);
  if (bytes > limits.shared_bytes) return cudaErrorInvalidConfiguration;
  // As many blocks as fit on the device at once, each with as many rounds as the others.
  int64_t per_multiprocessor = kMultiprocessorBytes / (bytes + kReservedBytes);
  if (per_multiprocessor > kMultiprocessorThreads / threads) {
    per_multiprocessor = kMultiprocessorThreads / threads;
  }
  if (per_multiprocessor < 1) per_multiprocessor = 1;
  int64_t at_once = limits.multiprocessors * per_multiprocessor / batches;
  if (at_once < 1) at_once = 1;
  const int64_t blocks = blocks_of(threads);
  const int64_t rounds = (blocks + at_once - 1) / at_once;
  const dim3 grid(static_cast<unsigned>((blocks + rounds - 1) / rounds),
                  static_cast<unsigned>(batches));
  return Launch(GatherKernel<T, Index, kBatch, kShared>, grid, threads, bytes, stream, args);
}

template <typename T, typename Index>
cudaError_t Choose(const GatherArgs<T>& args, cudaStream_t stream) {
  // The most rows of x that fit beside the weights of eight warps, but not more than there are.
  const int64_t shared_bytes = DeviceLimits().shared_bytes;
  const int64_t weights = 8 * kStages * Layout<T, Index, 1>::kStageBytes;
  const auto fits = [&](int64_t rows, int64_t bytes) {
    return rows < 2 * args.out.batch && bytes + weights <= shared_bytes;
  };
#define SRIGL_TRY(rows)                                                      \
  if (fits(rows, Layout<T, Index, rows>::InputBytes(args.num_inputs))) {     \
    return Start<T, Index, rows, true>(args, stream);                        \
  }
  SRIGL_TRY(32)
  SRIGL_TRY(16)
  SRIGL_TRY(8)
  SRIGL_TRY(4)
  SRIGL_TRY(2)
  SRIGL_TRY(1)
#undef SRIGL_TRY
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
