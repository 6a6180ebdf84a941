"""Inference beside what people serve with: `python -m experiments.benchmark_serving [--quick]`.

Networks under masks of constant fan-in, exported by `condense_model`, against their dense twins in
JAX, ONNX Runtime, OpenVINO and PyTorch, in float32 and in fewer bits, as far as these are installed
(`pip install onnx onnxruntime openvino torch`). Each engine has a process of its own on the same
cores, and all take turns; what an engine takes is the median call of a fifth of a second in each
round. Outputs are compared with dense JAX before anything is timed: to 1e-4 of the largest in
float32, and in fewer bits the error is reported. Weights and inputs are random; whether a network
of fewer bits is still accurate they cannot say.

    python -m experiments.benchmark_serving --quick --check     most rows with targets
    python -m experiments.benchmark_serving                     all, and the file
    python -m experiments.benchmark_serving --only=ResNet-50    again; rows of the others stay

LiteRT is not among the rivals: its converter needs TensorFlow or PyTorch's exporter of its own.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.benchmarks.comparison import comparison_table, results
from experiments.benchmarks.serving import report
from experiments.benchmarks.serving.cases import ENGINES, ENVIRONMENT, NETWORKS, TWIN_SPARSITY
from experiments.benchmarks.serving.measurement import Measurement, as_json, from_json, measure
from experiments.common import cli
from experiments.common.environment import (
  available_cores,
  command_line,
  cpu_features,
  environment,
  package_versions,
)
from experiments.common.files import RESULTS, read_json, write_json

_OUT = RESULTS / "serving.json"
_WITH_CALLERS = ("feed-forward pair", "CIFAR ResNet-18")


def main() -> int:
  """The command."""
  options = flags.FLAGS
  path = Path(options.out) if options.out else None if options.quick else _OUT
  names = options.only or [
    n for n, network in NETWORKS.items() if network.quick or not options.quick
  ]
  measured = _earlier(path) if options.only and path else {}
  with tempfile.TemporaryDirectory() as temporary:
    for name in names:
      measured[name] = _measure(name, Path(options.folder or temporary))
      _report(_in_order(measured), path, is_mixed=len(measured) > len(names))
  result = _report(_in_order(measured), path, is_mixed=len(measured) > len(names))
  shown = ("table", "times", "errors", "callers", "skipped")
  print("\n\n".join(result[name] for name in shown if result[name].count("\n") != 1))
  missed = [row for row in report.comparisons(_in_order(measured)) if row.is_met is False]
  if options.check and missed:
    print(f"\nMissed targets:\n\n{comparison_table(missed)}")
    return 1
  return 0


def _measure(name: str, folder: Path) -> Measurement:
  options, network = flags.FLAGS, NETWORKS[name]
  engines: list[str] = options.engine or list(ENGINES)
  batches, sparsities, rounds = network.batches, network.sparsities, 5
  if options.quick:
    # PyTorch compiles for minutes, and its rows are seldom the best.
    engines = [engine for engine in engines if engine != "torch"]
    batches, sparsities, rounds = network.quick or (1,), (TWIN_SPARSITY,), 3
  callers = options.callers
  if callers is None:
    callers = name in _WITH_CALLERS and not options.quick
  return measure(
    name,
    engines,
    available_cores(),
    folder=folder,
    batches=[int(n) for n in options.batch] or batches,
    sparsities=sparsities,
    rounds=options.rounds or rounds,
    caller_rounds=5 if callers else 0,
  )


def _report(
  measured: Sequence[Measurement], path: Path | None, *, is_mixed: bool
) -> dict[str, Any]:
  """The results file; writes it if it has a path."""
  command = command_line("experiments.benchmark_serving")
  if is_mixed:
    command += "  # the other rows by earlier runs"
  result = results(list(report.comparisons(measured)), command, every_round=False)
  result["environment"] = _environment()
  result |= {
    "times": report.times_table(measured),
    "errors": report.errors_table(measured),
    "callers": report.callers_table(measured),
    "skipped": report.skipped(measured),
    "measured": [as_json(one) for one in measured],
  }
  if path:
    write_json(path, result)
  return result


def _environment() -> dict[str, Any]:
  packages = dict.fromkeys(package for engine in ENGINES.values() for package in engine.needs)
  features = {"cpu_features": " ".join(cpu_features())}
  return environment() | package_versions(packages) | features | ENVIRONMENT


def _earlier(path: Path) -> dict[str, Measurement]:
  """What earlier runs measured on this machine with these versions, by network."""
  result = read_json(path)
  if result is None or result.get("environment") != _environment():
    return {}
  return {one["network"]: from_json(one) for one in result["measured"]}


def _in_order(measured: dict[str, Measurement]) -> list[Measurement]:
  return [measured[name] for name in NETWORKS if name in measured]


if __name__ == "__main__":
  flags.DEFINE_string("out", None, f"JSON file of the results; {_OUT} but for --quick.")
  flags.DEFINE_bool("quick", False, "Few networks and batches; without torch.compile.")
  flags.DEFINE_bool("check", False, "Exit with status 1 and the rows if a target is missed.")
  flags.DEFINE_integer("rounds", None, "Rounds; 5 by default, 3 with --quick.", lower_bound=1)
  flags.DEFINE_bool("callers", None, "Whether to measure several callers at once, at batch 1.")
  flags.DEFINE_multi_integer("batch", [], "Batches in place of those of the table.", lower_bound=1)
  flags.DEFINE_multi_enum(
    "only", None, list(NETWORKS), "Networks; the file's others stay. All by default."
  )
  flags.DEFINE_multi_enum("engine", None, list(ENGINES), "Engines; all that can be imported.")
  flags.DEFINE_string("folder", None, "Keeps the files of the dense twins for further runs.")
  cli.run(main)
