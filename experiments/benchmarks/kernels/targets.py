"""What is held against targets: ratios of methods on one layer and batch, round by round."""

from collections.abc import Callable, Iterator, Sequence

from experiments.benchmarks.comparison import Comparison, compare
from experiments.benchmarks.kernels.layers import SHAPES
from experiments.benchmarks.kernels.measurement import Measurement
from srigl_kernels import cost_model

CSR = ("bcsr", "scipy_csr", "torch_csr")
BACKENDS = ("dense", "structured", "cpu", "xla")

# At 90 % sparsity, by batch size: how many times faster than a baseline the native kernels should
# be on the four cores of an AVX-512 server, and on one of them.
_DENSE = {1: 8.0, 16: 5.0, 64: 6.0, 256: 5.5}
_BEST_CSR = {1: 6.0, 16: 10.0, 64: 15.0, 256: 20.0}
_DENSE_ONE_THREAD = {1: 6.0, 256: 5.0}
_STRUCTURED = {256: 2.5}  # where neurons are ablated
_AVX2_AT_MOST = 2.5
_AUTO_AT_MOST = 1.1
_TOO_SLOW = 1e6  # stands for the loss where the choice was too slow to be timed


def comparisons(measured: Sequence[Measurement]) -> list[Comparison]:
  """The paper's layers at 90 % with their targets, all other layers; then what auto loses."""
  found: list[Comparison] = []
  for one in measured:
    if one.layer not in SHAPES:
      found += [each._replace(at_least=None, at_most=None) for each in _against_cpu(one)]
    elif abs(one.sparsity - 0.9) < 0.005 and one.batch in _DENSE:
      found += _against_cpu(one)
  for threads in dict.fromkeys(one.threads for one in measured):
    same = [one for one in measured if one.threads == threads]
    count = count_threads(threads)
    found += worst(same, f"auto / best backend, {count}", lambda one: one.choice)
    # The other rows of cost_model.SECONDS: what a machine without a compiler gets.
    without = [
      one._replace(seconds={k: t for k, t in one.seconds.items() if k != "cpu"}) for one in same
    ]
    found += worst(without, f"auto / best backend without cpu, {count}", _choice_without_cpu)
  return found


def _against_cpu(one: Measurement) -> Iterator[Comparison]:
  """The baselines over the native kernels, with the targets of the paper's layers."""
  batch = one.batch
  csr = [name for name in CSR if name in one.seconds]
  best_csr = min(csr, key=one.median) if csr else ""
  dense = _DENSE_ONE_THREAD if one.threads == 1 else _DENSE
  # baseline, what it is called, and its target
  rows: list[tuple[str, str, dict[str, float | None]]] = []
  if batch == 1:
    rows.append(("cpu_rounded", "", {}))
  rows.append(("dense", "", {"at_least": dense.get(batch)}))
  if one.threads > 1:
    rows.append((best_csr, f"best CSR ({best_csr})", {"at_least": _BEST_CSR.get(batch)}))
    if one.num_active < one.out_features:
      rows.append(("structured", "", {"at_least": _STRUCTURED.get(batch)}))
    if batch == 256:
      rows.append(("cpu_avx2", "", {"at_most": _AVX2_AT_MOST}))
  for baseline, what, target in rows:
    if baseline in one.seconds and "cpu" in one.seconds:
      name = f"{_name(one)}: {what or baseline} / cpu"
      yield compare(name, one.seconds, baseline, "cpu", **target)


def worst(
  measured: Sequence[Measurement], name: str, choose: Callable[[Measurement], str]
) -> Iterator[Comparison]:
  """The measurement in which a choice loses most against the best backend that was timed."""
  losses: list[Comparison] = []
  for one in measured:
    timed = [backend for backend in BACKENDS if backend in one.seconds]
    choice = choose(one)
    if not timed or (choice not in timed and choice not in one.skipped):
      continue  # this run leaves the backend out
    best = min(timed, key=one.median)
    label = f"{_name(one)}: {choice}"
    if choice in timed:
      losses.append(compare(label, one.seconds, choice, best, at_most=_AUTO_AT_MOST))
    else:
      times = {best: one.seconds[best]}
      losses.append(Comparison(label, [_TOO_SLOW], times, at_most=_AUTO_AT_MOST))
  if losses:
    row = max(losses, key=lambda each: each.ratio)
    yield row._replace(name=f"{name}, worst of {len(losses)} measurements ({row.name})")


def loss(one: Measurement) -> float:
  """Time of auto's choice over that of the best backend; nan if it was not timed."""
  timed = [backend for backend in BACKENDS if backend in one.seconds]
  if one.choice not in timed:
    return float("nan")
  return one.median(one.choice) / min(map(one.median, timed))


def _choice_without_cpu(one: Measurement) -> str:
  sizes = cost_model.Sizes(one.in_features, one.out_features, one.num_active, one.fan_in)
  # As `prepare` does: without ablated neurons structured is dense.
  same = "structured" if one.num_active == one.out_features else "dense"
  names = [name for name in cost_model.PORTABLE if name != same]
  return cost_model.rank(sizes, one.batch, names)[0][0]


def _name(one: Measurement) -> str:
  threads = count_threads(one.threads)
  return f"{one.layer} {100 * one.sparsity:.3g} %, batch {one.batch}, {threads}"


def count_threads(threads: int) -> str:
  """`1 thread`, `4 threads`."""
  return f"{threads} thread{'s' if threads > 1 else ''}"
