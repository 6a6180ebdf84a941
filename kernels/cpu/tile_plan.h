// How a product by tiles is cut into tasks. Independent of JAX.

#ifndef SRIGL_KERNELS_CPU_TILE_PLAN_H_
#define SRIGL_KERNELS_CPU_TILE_PLAN_H_

#include <stdint.h>

#include "kernels.h"
#include "layout.h"

namespace srigl {

// Batch rows come in segments, in each of which tiles begin anew, and a segment in pieces of `lanes` rows,
// the last one maybe of fewer. A task is a piece for a range of panels.
struct TilePlan {
  int64_t rows, segment_rows, lanes;
  int64_t panels;
  int64_t range, last_range;  // panels of a task, of a last piece
  int64_t tasks, last_tasks;  // all, and those of last pieces
  int64_t threads;
};

struct TileTask {
  int64_t row_begin, row_end, panel_begin, panel_end;
};

// The cut that ends soonest, for threads that begin at once. `lanes`: of one tile. The order in which
// inputs are summed depends on the width of tiles, so that is the same for any number of threads.
TilePlan PlanTiles(const TileView& view, const MatMul& call, int64_t rows, int64_t segment_rows,
                   int64_t lanes, int64_t threads);

// Tasks are rows first. Each thread's share has an equal part of the last pieces, at its end, for threads
// to end together: see ParallelTask.
TileTask TaskAt(const TilePlan& plan, int64_t task);

}  // namespace srigl

#endif  // SRIGL_KERNELS_CPU_TILE_PLAN_H_
