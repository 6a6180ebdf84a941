"""What the GPU benchmark does, as tasks: a check or a timing each, which may fail alone."""

import functools
import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.kernels import gpu_timing as timing
from experiments.benchmarks.kernels.gpu_baselines import METHODS, TRAINING, Method, torch_calls
from experiments.benchmarks.kernels.gpu_cases import Case, cases, error, expected_rows, make_layer
from srigl_kernels import condensed_matmul, make_condensed, prepare
from srigl_kernels.backends.pallas.device import is_interpreted
from srigl_kernels.backends.pallas.gpu_weighted_sums import (
  MULTIPROCESSORS,
  SMALL_BATCH,
  Blocks,
  choose_blocks,
  weighted_sums,
)
from srigl_kernels.backends.registry import BACKENDS
from srigl_kernels.problems import PROBLEMS, make_problem

_TORCH = ("torch_dense", "torch_tf32", "torch_bf16", "torch_csr")
_CHECKED = (
  "odd_sizes", "many_rows", "odd_all_active", "fan_in_one", "one_active", "none_active",
  "empty_batch", "wide_indices", "vit_ffn_up", "vit_ffn_down",
)  # fmt: skip
_CHECKED_TINY = ("odd_sizes", "none_active")
_TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
_TRAINED = (("vit_ffn_up", 256), ("vit_ffn_down", 2048))


class Task(NamedTuple):
  """Something to measure.

  Attributes:
    id: unique.
    prepare: compiles; may run beside others. What it returns goes to `finish`.
    finish: runs alone; the row.
  """

  id: str
  prepare: Callable[[], Any]
  finish: Callable[[Any], dict[str, Any]]


def groups(tiny: bool, only_checks: bool = False) -> list[list[Task]]:
  """All tasks, in groups that are prepared together, the most telling first."""
  found = [[Task("ceilings", lambda: None, lambda _: timing.ceilings(tiny=tiny))]]
  found += _checks(tiny)
  if only_checks:
    return found[1:]
  todo = cases(tiny)
  for i, case in enumerate(todo):
    found.append([_timed(case, name, METHODS[name], tiny) for name in _methods(case, tiny)])
    if case.in_features * case.out_features < 10**8:
      found.append([_timed_torch(case, name) for name in _TORCH])
    if i == 1:  # what a training step of such layers takes, before the rest
      found += [
        [_timed(each, name, TRAINING[name], tiny) for name in _wanted(TRAINING, tiny)]
        for each in todo
        if (tiny and each == case) or (each.layer, each.batch) in _TRAINED
      ]
  return found + [_tile_configs(case, tiny) for case in todo if case.layer != "classes"]


def _wanted(names: Iterable[str], tiny: bool) -> list[str]:
  """The names, but those of CUDA kernels where the program is only tried, without them."""
  if not tiny or BACKENDS["cuda"].is_available():
    return list(names)
  return [name for name in names if not name.startswith("cuda")]


def _methods(case: Case, tiny: bool) -> list[str]:
  all_active = case.num_active == case.out_features
  skipped = {"structured", "structured_tf32", "structured_bf16"} if all_active else set()
  if case.out_features * case.in_features > 10**7:
    skipped |= {"xla"}  # minutes
  return [name for name in _wanted(METHODS, tiny) if name not in skipped]


# ---- checks ----


def _checks(tiny: bool) -> list[list[Task]]:
  names = _CHECKED_TINY if tiny else _CHECKED
  found = []
  for backend in _wanted(("cuda", "pallas", "grouped"), tiny):
    tasks = []
    for name in names:
      for dtype in ("float32",) if tiny else ("float32", "bfloat16"):
        make = functools.partial(_check_problem, backend, name, dtype)
        tasks.append(Task(f"check {backend} {name} {dtype}", make, _compare))
    found.append(tasks)
  return found


def _check_problem(backend: str, name: str, dtype: str) -> Any:
  """A compiled function of a layer's result and gradients, its arguments and what to expect."""
  x, condensed = make_problem(PROBLEMS[name], dtype=jnp.dtype(dtype))
  if backend == "grouped":
    rows = np.asarray(condensed.indices)
    rows = rows[np.arange(len(rows)) // 16 * 16]
    condensed = make_condensed(
      condensed.values, rows, condensed.active, condensed.bias, kernel_shape=condensed.kernel_shape
    )
  x = x.astype(dtype).reshape(-1, condensed.in_features)
  shape = (len(x), condensed.out_features)
  g = jnp.asarray(np.random.default_rng(1).standard_normal(shape), dtype)
  layer = prepare(condensed, backend=backend, gradients=True)

  def run(x: Any, layer: Any, g: Any) -> Any:
    def product(x: Any, weights: Any) -> Any:
      return condensed_matmul(x, layer.with_weights(weights))

    with jax.default_matmul_precision("highest"):
      y, pull = jax.vjp(product, x, layer.weights)
      dx, weights = pull(g)
    return y, dx, weights["values"]

  args = (x, layer, g)
  rows, factors = np.asarray(x, np.float64), np.asarray(g, np.float64)
  kernel = np.zeros((condensed.in_features, condensed.out_features))
  active = np.asarray(condensed.active)[:, None]
  kernel[np.asarray(condensed.indices), active] = np.asarray(condensed.values, np.float64)
  want = (
    rows @ kernel + np.asarray(condensed.bias, np.float64),
    factors @ kernel.T,
    (rows.T @ factors)[np.asarray(condensed.indices), active],
  )
  return jax.jit(run).lower(*args).compile(), args, want, _TOLERANCE[dtype]


def _compare(prepared: Any) -> dict[str, Any]:
  run, args, want, tolerance = prepared
  found = run(*args)
  errors = {
    name: error(got, expected)
    for name, got, expected in zip(("y", "dx", "dvalues"), found, want, strict=True)
  }
  return {"errors": errors, "ok": all(e <= tolerance for e in errors.values())}


# ---- timings ----


def _inputs(case: Case) -> np.ndarray:
  shape = (case.batch, case.in_features)
  return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


def _about(case: Case, method: str) -> dict[str, Any]:
  return case._replace(targets=())._asdict() | {"method": method, "case": case.name}


def _timed(case: Case, name: str, method: Method, tiny: bool) -> Task:
  def make() -> Any:
    condensed = method.layer(case)
    weights = method.weights(condensed)
    if timing.num_bytes(weights) > method.most:
      raise ValueError(f"its weights take {timing.num_bytes(weights) / 1e9:.1f} GB")
    pairs = timing.copies(_inputs(case), method.dtype, weights, tiny=tiny)
    once = None if method.gradients else jax.jit(method.apply).lower(*pairs[0]).compile()
    return condensed, pairs, timing.compile_loop(method.apply, pairs), once

  def finish(prepared: Any) -> dict[str, Any]:
    condensed, pairs, program, once = prepared
    row = _about(case, name)
    x, weights = pairs[0]
    if once is not None:
      rows = sorted({0, case.batch // 2, case.batch - 1})
      got = np.asarray(once(x, weights)[jnp.asarray(rows)], np.float64)
      want = expected_rows(np.asarray(x[jnp.asarray(rows)], np.float64), condensed)
      row |= {"error": error(got, want)}
      if not row["error"] <= method.tolerance:
        return row | {"failed": f"errs by {row['error']:.2g}, above {method.tolerance:g}"}
    seconds = timing.time_loop(program, pairs, spend=0.001 if tiny else 0.03)
    weight_bytes = _read_bytes(method, condensed, weights)
    itemsize = jnp.dtype(method.dtype).itemsize
    moved = weight_bytes + itemsize * case.batch * (case.in_features + case.out_features)
    rotation = sum(timing.num_bytes(pair) for pair in pairs)
    return row | {
      "seconds": seconds,
      "bytes": moved,
      "products": method.products(case) * case.batch,
      "rate": method.rate,
      "dtype": method.dtype,
      "group": method.group,
      "key": method.key,
      "gradients": method.gradients,
      "copies": len(pairs),
      "rotation_bytes": rotation,
    }

  return Task(f"{case.name} {name}", make, finish)


def _read_bytes(method: Method, condensed: Any, weights: Any) -> int:
  """Bytes of weights that a product must read: each value, and indices in their type, once."""
  if method.key and method.key.startswith(("cuda", "pallas", "xla")):
    return timing.num_bytes((condensed.values, condensed.indices))
  if method.group > 1:
    return timing.num_bytes((condensed.values, condensed.indices[:: method.group]))
  if method.gradients and not isinstance(weights, tuple):
    return timing.num_bytes((condensed.values, condensed.indices))
  return timing.num_bytes(weights)


def _timed_torch(case: Case, name: str) -> Task:
  def make() -> Any:
    importlib.import_module("torch")
    return None

  def finish(_: Any) -> dict[str, Any]:
    condensed = make_layer(case._replace(batch=0, targets=()))
    call, calls = torch_calls(condensed, _inputs(case), name)
    rows = [0, case.batch - 1]
    got = call()[rows].float().cpu().numpy()
    inputs = _inputs(case)[rows]
    err = error(got, expected_rows(inputs, condensed))
    row = _about(case, name) | {"error": err}
    if not err <= 1e-2:
      return row | {"failed": f"errs by {err:.2g}"}
    graph = name != "torch_csr"  # what cuSPARSE allocates cannot be captured
    torch = importlib.import_module("torch")
    seconds = timing.time_torch(call, torch, calls=calls, graph=graph)
    return row | {"seconds": seconds, "copies": calls, "graph": graph}

  return Task(f"{case.name} {name}", make, finish)


# ---- other tile configs, to choose among ----


def _tile_configs(case: Case, tiny: bool) -> list[Task]:
  usual = choose_blocks(case.batch, case.num_active, case.fan_in, case.in_features, 4)
  return [
    _timed(case, f"pallas {tuple(blocks)}", _with_tiles(blocks), tiny)
    for blocks in _similar_tiles(usual, case)[: 2 if tiny else None]
  ]


def _similar_tiles(blocks: Blocks, case: Case) -> list[Blocks]:
  """The blocks of choice with one thing changed."""

  def tiled(rows: int, entries: int, lanes: int, warps: int, programs: int = 1) -> Blocks:
    rows, entries, lanes = max(1, rows), max(1, entries), max(1, lanes)
    splits = num_blocks = -(-case.num_active // rows)
    if case.batch > SMALL_BATCH:
      num_tiles = -(-case.batch // lanes)
      splits = max(1, min(programs * MULTIPROCESSORS // num_tiles, num_blocks))
    return Blocks(rows, entries, lanes, splits, warps)

  rows, entries, lanes, _, warps = blocks
  found = [
    tiled(2 * rows, entries, lanes, warps),
    tiled(rows // 2, entries, lanes, warps),
    tiled(rows // 2, 2 * entries, lanes, warps),
    tiled(2 * rows, entries // 2, lanes, warps),
    tiled(rows, entries // 2, lanes, warps),
    tiled(rows // 2, entries, lanes, warps // 2, 2),
  ]
  if case.batch > SMALL_BATCH:
    found += [
      tiled(rows // 4, 4 * entries, lanes, warps),
      tiled(rows, entries // 2, 2 * lanes, warps),
      tiled(rows, 2 * entries, lanes // 2, warps),
    ]
  return [each for each in dict.fromkeys(found) if each != blocks]


def _with_tiles(blocks: Blocks) -> Method:
  def apply(x: Any, layer: Any) -> Any:
    layout, bias = layer.layouts["pallas"], layer.condensed.bias
    return weighted_sums(
      x,
      layout.values.reshape(-1),
      layout.pattern.indices.reshape(-1),
      num_rows=layer.condensed.num_active,
      columns=layout.pattern.columns,
      num_columns=layer.condensed.out_features,
      bias=bias,
      interpret=is_interpreted(),
      blocks=blocks,
    )

  return Method(functools.partial(prepare, backend="pallas"), apply)
