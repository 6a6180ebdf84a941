"""What is held against the targets: ratios of methods within a cell, paired round by round."""

from collections.abc import Callable, Iterator, Sequence

from experiments.benchmarks.kernels.layers import SHAPES
from experiments.benchmarks.kernels.measure import Cell
from experiments.benchmarks.timing import Row
from srigl_kernels import cost_model

CSR = ("bcsr", "scipy_csr", "torch_csr")
BACKENDS = ("dense", "structured", "cpu", "xla")

# At 90 % sparsity, by batch size: how many times faster than a peer the native kernels should be on
# the four cores of an AVX-512 server, and on one of them.
_DENSE = {1: 8.0, 16: 5.0, 64: 6.0, 256: 5.5}
_BEST_CSR = {1: 6.0, 16: 10.0, 64: 15.0, 256: 20.0}
_DENSE_ONE_THREAD = {1: 6.0, 256: 5.0}
_STRUCTURED_AT_256 = 2.5  # where neurons are ablated
_AVX2_AT_256 = 2.5
_AUTO = 1.1
_TOO_SLOW = 1e6  # stands for the loss where the choice was too slow to be timed


def rows(cells: Sequence[Cell]) -> list[Row]:
  """Ratios of the paper's layers at 90 % with their targets, of all other layers; then auto's."""
  found: list[Row] = []
  for cell in cells:
    if cell.layer not in SHAPES:
      found += [row._replace(at_least=None, at_most=None) for row in _ratios(cell)]
    elif abs(cell.sparsity - 0.9) < 0.005 and cell.batch in _DENSE:
      found += _ratios(cell)
  for threads in dict.fromkeys(cell.threads for cell in cells):
    same = [cell for cell in cells if cell.threads == threads]
    found += worst(same, f"auto / best backend, {_count(threads)}", lambda cell: cell.choice)
    # The other rows of cost.SECONDS: what a machine without a compiler gets.
    without = [
      cell._replace(seconds={k: v for k, v in cell.seconds.items() if k != "cpu"}) for cell in same
    ]
    found += worst(without, f"auto / best backend without cpu, {_count(threads)}", _without_cpu)
  return found


def _ratios(cell: Cell) -> Iterator[Row]:
  """Peers over the native kernels, with the targets of the paper's layers."""
  batch = cell.batch
  if batch == 1:
    yield from compare(cell, "cpu_rounded")
  if cell.threads == 1:
    yield from compare(cell, "dense", at_least=_DENSE_ONE_THREAD.get(batch))
    return
  yield from compare(cell, "dense", at_least=_DENSE.get(batch))
  csr = [name for name in CSR if name in cell.seconds]
  if csr:
    best = min(csr, key=cell.median)
    yield from compare(cell, best, at_least=_BEST_CSR.get(batch), what=f"best CSR ({best})")
  if cell.num_active < cell.out_features:
    at_least = _STRUCTURED_AT_256 if batch == 256 else None
    yield from compare(cell, "structured", at_least=at_least)
  if batch == 256:
    yield from compare(cell, "cpu_avx2", at_most=_AVX2_AT_256)


def compare(
  cell: Cell,
  peer: str,
  *,
  what: str = "",
  at_least: float | None = None,
  at_most: float | None = None,
) -> Iterator[Row]:
  """The row of a peer's time over the native kernels', if both were timed."""
  if peer in cell.seconds and "cpu" in cell.seconds:
    pairs = zip(cell.seconds[peer], cell.seconds["cpu"], strict=False)  # the first rounds of both
    name = f"{_name(cell)}: {what or peer} / cpu"
    times = {method: cell.seconds[method] for method in (peer, "cpu")}
    yield Row(name, [a / b for a, b in pairs], times, at_least=at_least, at_most=at_most)


def worst(cells: Sequence[Cell], name: str, choose: Callable[[Cell], str]) -> Iterator[Row]:
  """The row of the cell in which a choice loses most against the best backend that was timed."""
  losses: list[tuple[float, Row]] = []
  for cell in cells:
    timed = [backend for backend in BACKENDS if backend in cell.seconds]
    choice = choose(cell)
    if not timed or (choice not in timed and choice not in cell.skipped):
      continue  # this run leaves the backend out
    best = min(timed, key=cell.median)
    ratios = [_TOO_SLOW]
    if choice in timed:
      ratios = [a / b for a, b in zip(*(cell.seconds[k] for k in (choice, best)), strict=False)]
    times = {method: cell.seconds[method] for method in {choice, best} if method in timed}
    row = Row(f"{_name(cell)}: {choice}", ratios, times, at_most=_AUTO)
    losses.append((row.ratio, row))
  if losses:
    _, row = max(losses, key=lambda pair: pair[0])
    yield row._replace(name=f"{name}, worst of {len(losses)} cells ({row.name})")


def loss(cell: Cell) -> float:
  """Time of auto's choice over that of the best backend; nan if it was not timed."""
  timed = [backend for backend in BACKENDS if backend in cell.seconds]
  if cell.choice not in timed:
    return float("nan")
  return cell.median(cell.choice) / min(map(cell.median, timed))


def _without_cpu(cell: Cell) -> str:
  sizes = cost_model.Sizes(cell.in_features, cell.out_features, cell.num_active, cell.fan_in)
  # As `prepare` does: without ablated neurons structured is dense.
  same = "structured" if cell.num_active == cell.out_features else "dense"
  names = [name for name in cost_model.PORTABLE if name != same]
  return cost_model.rank(sizes, cell.batch, names)[0][0]


def _name(cell: Cell) -> str:
  return f"{cell.layer} {100 * cell.sparsity:.3g} %, batch {cell.batch}, {_count(cell.threads)}"


def _count(threads: int) -> str:
  return f"{threads} thread{'s' if threads > 1 else ''}"
