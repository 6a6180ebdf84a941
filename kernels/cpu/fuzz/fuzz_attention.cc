// Fuzzes attention: see fuzz.cc. Arrays have their axes in any order.

#include <math.h>
#include <stdio.h>

#include <algorithm>
#include <random>
#include <vector>

#include "attention.h"
#include "fuzz_common.h"

namespace srigl {
namespace {

// A random order of the axes of an array [batch, rows, columns], columns last: sets the strides, and
// returns the size. An axis may be missing, for all of it to be the same.
int64_t Lay(Random* random, const int64_t* batch, int64_t rows, int64_t columns, bool may_lack,
            AttentionStrides* strides) {
  std::vector<int> order(kAttentionAxes + 1);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), *random);
  int64_t size = columns;
  for (const int axis : order) {
    int64_t* stride = axis == kAttentionAxes ? &strides->row : &strides->batch[axis];
    const int64_t places = axis == kAttentionAxes ? rows : batch[axis];
    if (may_lack && Uniform(random, 0, 3) == 0) {
      *stride = 0;
      continue;
    }
    *stride = size;
    size *= places;
  }
  return size;
}

int64_t OffsetIn(const AttentionStrides& strides, const int64_t* place, int64_t row) {
  int64_t offset = row * strides.row;
  for (int axis = 0; axis < kAttentionAxes; ++axis) offset += place[axis] * strides.batch[axis];
  return offset;
}

Exact<float> Normal(Random* random, int64_t size) {
  std::normal_distribution<float> normal;
  Exact<float> numbers(size);
  for (int64_t i = 0; i < size; ++i) numbers.data()[i] = normal(*random);
  return numbers;
}

// A key, or a value.
const float* Row(const float* first, const AttentionStrides& strides, const float* tail,
                 const AttentionStrides& tail_strides, const Attention& call,
                 const int64_t* place, int64_t j) {
  const int64_t count = call.keys - call.tail;
  return j < count ? first + OffsetIn(strides, place, j)
                   : tail + OffsetIn(tail_strides, place, j - count);
}

// The largest error of any output.
double Worst(const Attention& call) {
  double worst = 0;
  int64_t parts = 1;
  for (const int64_t size : call.batch) parts *= size;
  for (int64_t part = 0; part < parts; ++part) {
    int64_t place[kAttentionAxes], rest = part;
    for (int axis = kAttentionAxes - 1; axis >= 0; --axis) {
      place[axis] = rest % call.batch[axis];
      rest /= call.batch[axis];
    }
    for (int64_t i = 0; i < call.queries; ++i) {
      std::vector<double> powers(call.keys), sums(call.width);
      double most = -HUGE_VAL, total = 0;
      for (int64_t j = 0; j < call.keys; ++j) {
        for (int64_t d = 0; d < call.depth; ++d) {
          powers[j] += double{call.q[OffsetIn(call.q_strides, place, i) + d]} *
                       Row(call.k, call.k_strides, call.k_tail, call.k_tail_strides, call, place,
                           j)[d];
        }
        powers[j] *= call.scale;
        if (call.mask != nullptr && !call.mask[OffsetIn(call.mask_strides, place, i) + j]) {
          powers[j] = call.fill;
        }
        most = std::max(most, powers[j]);
      }
      for (int64_t j = 0; j < call.keys; ++j) {
        powers[j] = exp(powers[j] - most);
        total += powers[j];
        for (int64_t d = 0; d < call.width; ++d) {
          sums[d] += powers[j] * Row(call.v, call.v_strides, call.v_tail, call.v_tail_strides,
                                     call, place, j)[d];
        }
      }
      for (int64_t d = 0; d < call.width; ++d) {
        const double got = call.out[OffsetIn(call.out_strides, place, i) + d];
        const double error = fabs(got - sums[d] / total);
        if (std::isnan(error)) return error;
        worst = std::max(worst, error);
      }
    }
  }
  return worst;
}

}  // namespace

bool RunAttentionCase(uint64_t seed) {
  Random generator(seed);
  Random* random = &generator;
  Attention call = {};
  for (int64_t& size : call.batch) size = Uniform(random, 0, 4) == 0 ? Uniform(random, 0, 3) : 1;
  call.queries = Size(random, 0, 300);
  call.keys = Size(random, 1, Uniform(random, 0, 5) == 0 ? 1100 : 100);
  call.depth = Size(random, 1, 256);
  call.width = Size(random, 1, 256);
  // Large products are slow under the sanitizers and find nothing that small ones do not.
  while (call.queries * call.keys * (call.depth + call.width) > 500000) call.queries /= 2;
  call.scale = static_cast<float>(1 / sqrt(static_cast<double>(call.depth)));
  call.fill = Uniform(random, 0, 1) == 0 ? -1e30f : -3.0f;
  const Exact<float> q =
      Normal(random, Lay(random, call.batch, call.queries, call.depth, false, &call.q_strides));
  // The last keys may lie elsewhere.
  if (Uniform(random, 0, 1) == 0) call.tail = Uniform(random, 0, call.keys);
  const int64_t first = call.keys - call.tail;
  const Exact<float> k_first = Normal(
      random, Lay(random, call.batch, first, call.depth, false, &call.k_strides));
  const Exact<float> v_first = Normal(
      random, Lay(random, call.batch, first, call.width, false, &call.v_strides));
  const Exact<float> k_tail = Normal(
      random, Lay(random, call.batch, call.tail, call.depth, false, &call.k_tail_strides));
  const Exact<float> v_tail = Normal(
      random, Lay(random, call.batch, call.tail, call.width, false, &call.v_tail_strides));
  const Exact<uint8_t> mask(
      Lay(random, call.batch, call.queries, call.keys, true, &call.mask_strides));
  for (size_t i = 0; i < mask.size(); ++i) mask.data()[i] = Uniform(random, 0, 3) > 0;
  const Exact<float> out(
      Lay(random, call.batch, call.queries, call.width, false, &call.out_strides));
  call.q = q.data();
  call.k = k_first.data();
  call.v = v_first.data();
  call.k_tail = k_tail.data();
  call.v_tail = v_tail.data();
  call.mask = Uniform(random, 0, 1) == 0 ? mask.data() : nullptr;
  call.out = out.data();
  SplitExecutor executor(Uniform(random, 1, 8));
  for (int isa = 0; isa < kNumIsas; ++isa) {
    if (!SetIsa(static_cast<Isa>(isa))) continue;
    std::fill_n(out.data(), out.size(), 0.0f);
    const char* error = RunAttention(call, &executor);
    const double worst = error == nullptr ? Worst(call) : 0;
    if (error == nullptr && worst < 1e-4) continue;
    printf("seed %lu: attention of %ld queries, %ld keys, %ld and %ld numbers on %s: %s %g\n",
           static_cast<unsigned long>(seed), static_cast<long>(call.queries),
           static_cast<long>(call.keys), static_cast<long>(call.depth),
           static_cast<long>(call.width), IsaName(static_cast<Isa>(isa)),
           error == nullptr ? "off by" : error, worst);
    return false;
  }
  return true;
}

}  // namespace srigl
