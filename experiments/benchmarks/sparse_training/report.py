"""Tables of the benchmark of sparse training, and where dense layers are the better choice."""

from collections.abc import Iterable, Mapping, Sequence

from experiments.benchmarks.comparison import duration, quartiles
from experiments.benchmarks.sparse_training.engine import PARTS, STEP, UPDATE_STEP
from experiments.benchmarks.sparse_training.measurement import Measurement
from experiments.benchmarks.sparse_training.worker import ENGINES
from experiments.common.markdown import markdown_table

TITLES = {
  "dense": "dense, JAX",
  "masked": "masks",
  "condensed": "condensed",
  "torch": "dense, PyTorch",
  "sparselab": "sparselab",
}


def steps_table(measured: Sequence[Measurement]) -> str:
  """Time of a step by case and engine, and how many times faster than dense condensed is."""
  names = _engines(measured)
  header = ["time of a step", *(TITLES[name] for name in names), "dense / condensed"]
  rows = [
    [one.case.name, *(_time(one.median(name)) for name in names), _faster(one)]
    for one in measured
    if one.seconds
  ]
  return markdown_table(header, rows)


def parts_table(measured: Sequence[Measurement]) -> str:
  """What a step consists of."""
  calls = [STEP, *PARTS, UPDATE_STEP]
  rows = [
    [one.case.name, TITLES[name], *(_time(one.median(name, call)) for call in calls)]
    for one in measured
    for name in one.seconds
    if len(one.seconds[name]) > 1
  ]
  return markdown_table(["", "", *calls], rows, align="ll" + "r" * len(calls))


def memory_table(measured: Sequence[Measurement]) -> str:
  """Bytes of the state, and the peak of the process."""
  names = _engines(measured)
  cell = lambda one, name: (
    f"{_megabytes(one.state_bytes[name])} / {_megabytes(one.peak_bytes[name])}"
    if name in one.peak_bytes
    else ""
  )
  rows = [[one.case.name, *(cell(one, name) for name in names)] for one in measured]
  header = ["MB of state / peak of the process", *(TITLES[name] for name in names)]
  return markdown_table(header, rows)


def dense_is_better(measured: Iterable[Measurement]) -> str:
  """A sentence on the cases in which dense layers were the faster ones."""
  ratios = {
    one.case.name: one.median("dense") / one.median("condensed")  # type: ignore[operator]
    for one in measured
    if one.median("dense") and one.median("condensed")
  }
  found = sorted((ratio, name) for name, ratio in ratios.items() if ratio < 1)
  if not found:
    least = min(ratios, key=ratios.__getitem__) if ratios else ""
    return f"Dense was never faster; the closest: {least} ({ratios[least]:.2f})." if least else ""
  listed = "; ".join(f"{name} ({ratio:.2f})" for ratio, name in found)
  return f"Dense is the better choice where dense / condensed is below 1: {listed}."


def skipped(measured: Iterable[Measurement]) -> str:
  """What was left out and why, a line for each reason."""
  reasons: dict[tuple[str, str], list[str]] = {}
  for one in measured:
    for name, reason in one.skipped.items():
      reasons.setdefault((name, reason), []).append(one.case.name)
  return "\n".join(
    f"{TITLES[name]} left out, {reason}: {'; '.join(cases)}."
    for (name, reason), cases in reasons.items()
  )


def as_json(one: Measurement) -> Mapping[str, object]:
  """For the results file: medians."""
  seconds = {
    name: {call: quartiles(times)[1] for call, times in calls.items()}
    for name, calls in one.seconds.items()
  }
  return one._replace(seconds=seconds)._asdict() | {"case": one.case._asdict()}  # type: ignore[arg-type]


def _engines(measured: Sequence[Measurement]) -> list[str]:
  return [name for name in ENGINES if any(name in one.peak_bytes for one in measured)]


def _faster(one: Measurement) -> str:
  dense, condensed = one.median("dense"), one.median("condensed")
  return f"{dense / condensed:.2f}" if dense and condensed else ""


def _time(seconds: float | None) -> str:
  return "" if seconds is None else duration(seconds)


def _megabytes(num_bytes: int) -> str:
  return f"{num_bytes / 1e6:,.0f}"
