"""How the GPU benchmark times: programs that loop over copies of inputs and weights.

A call from Python costs more than most of these kernels, so that many of them run within one
compiled program: a loop of a fixed number of rounds, each of which runs the method once on each of
its copies of x and weights. The copies together are larger than the second-level cache where
`_MOST_COPIES` of them are (a row says if not), so that weights come from memory as in a network.
Several programs are started, and waited for once. Nothing is subtracted; what a program adds is the
start of a kernel, as in any program.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

_MOST_COPIES = 64
_ROTATION_BYTES = 80e6  # an H100's second-level cache holds 50 MB, an H200's too
_ROUNDS = 10


def num_bytes(tree: Any) -> int:
  """Bytes of all arrays."""
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def num_copies(each: int) -> int:
  """How many copies of so many bytes to rotate through."""
  return int(np.clip(np.ceil(_ROTATION_BYTES / each), 1, _MOST_COPIES))


def copies(x: np.ndarray, dtype: str, weights: Any, *, tiny: bool) -> list[tuple[Array, Any]]:
  """Inputs and weights to rotate through; different x, equal weights, all arrays of their own."""
  count = 2 if tiny else num_copies(num_bytes(weights) + x.nbytes)
  copy = lambda leaf: jnp.array(leaf, copy=True)
  return [
    (jnp.asarray(np.roll(x, i, axis=1), dtype), jax.tree.map(copy, weights) if i else weights)
    for i in range(count)
  ]


def compile_loop(apply: Callable[..., Array], pairs: Sequence[tuple[Array, Any]]) -> Any:
  """A compiled program `(pairs) -> scalar` that runs the method `_ROUNDS` times on each pair."""
  apply = jax.jit(apply)  # traced and lowered once, however many pairs there are

  def program(pairs: Sequence[tuple[Array, Any]]) -> Array:
    def round_(_: Any, carry: Array) -> Array:
      found = []
      for x, weights in pairs:
        # Depends on what came before: XLA may neither move it out of the loop nor reorder it.
        x, carry = lax.optimization_barrier((x, carry))
        y = apply(x, weights)
        y, carry = lax.optimization_barrier((y, carry))
        found.append(y[:1, :1])
      return carry + sum(f.astype(jnp.float32).sum() for f in found)

    return lax.fori_loop(0, _ROUNDS, round_, jnp.float32(0))

  return jax.jit(program).lower(pairs).compile()


def time_loop(
  program: Any, pairs: Sequence[tuple[Array, Any]], *, spend: float, rounds: int = 5
) -> list[float]:
  """Seconds of one run of the method, from each of some rounds.

  Args:
    program: from `compile_loop`.
    pairs: what it was compiled for.
    spend: seconds of a round, about.
    rounds: how many.
  """
  calls = _ROUNDS * len(pairs)
  program(pairs).block_until_ready()
  start = time.perf_counter()
  program(pairs).block_until_ready()
  once = time.perf_counter() - start
  repeats = int(np.clip(spend / max(once, 1e-9), 1, 200))
  times = []
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(repeats):
      last = program(pairs)
    last.block_until_ready()
    times.append((time.perf_counter() - start) / (repeats * calls))
  return times


def time_torch(
  call: Callable[[], Any], torch: Any, *, calls: int, graph: bool, rounds: int = 5
) -> list[float]:
  """Seconds of one call of PyTorch, by its events.

  Args:
    call: uses another copy of its inputs each time.
    torch: the module.
    calls: in a row, that go through all copies.
    graph: whether they are replayed as a CUDA graph. Otherwise Python starts each.
    rounds: how many times.
  """
  side = torch.cuda.Stream()
  with torch.cuda.stream(side):  # libraries set themselves up, which no graph can hold
    for _ in range(calls):
      call()
  side.synchronize()
  if graph:
    captured = torch.cuda.CUDAGraph()
    with torch.cuda.graph(captured):
      kept = [call() for _ in range(calls)]
    run = captured.replay
  else:
    kept = []
    run = lambda: [call() for _ in range(calls)]
  repeats = max(1, 100 // calls)
  times = []
  for _ in range(rounds + 1):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
      run()
    end.record()
    torch.cuda.synchronize()
    times.append(start.elapsed_time(end) / 1e3 / (repeats * calls))
  del kept
  return times[1:]


def ceilings(*, tiny: bool) -> dict[str, float]:
  """What the card reaches: bytes a second of a copy, and products a second of matrices by type."""
  found = {}
  size = 2**16 if tiny else 2**28
  x = jnp.ones(size, jnp.float32)
  found["bytes"] = 2 * x.nbytes / _best(jax.jit(lambda x: x + 1), x)
  side = 128 if tiny else 8192
  for name, dtype, precision in (
    ("bfloat16", jnp.bfloat16, None),
    ("tf32", jnp.float32, None),
    ("float32", jnp.float32, lax.Precision.HIGHEST),
  ):
    a = jax.random.normal(jax.random.key(0), (side, side), jnp.float32).astype(dtype)
    run = jax.jit(lambda a, precision=precision: jnp.dot(a, a, precision=precision))
    found[name] = side**3 / _best(run, a)
  return found


def _best(run: Callable[[Array], Array], x: Array) -> float:
  """Least mean seconds of ten calls started one after the other, out of five times."""
  run(x).block_until_ready()
  times = []
  for _ in range(5):
    start = time.perf_counter()
    for _ in range(10):
      y = run(x)
    y.block_until_ready()
    times.append((time.perf_counter() - start) / 10)
  return min(times)
