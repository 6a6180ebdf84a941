"""The process in which one engine trains one case, and what starts and asks it.

Each engine has a process of its own, so that neither its threads nor its memory are another's. All
processes of a case live at the same time and take turns. They talk in lines of JSON.
"""

import importlib
import importlib.util
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from experiments.benchmarks.processes import Process, requests
from experiments.benchmarks.sparse_training.cases import Case
from experiments.benchmarks.sparse_training.engine import STEP, Engine
from experiments.benchmarks.timing import call_seconds, elapsed

_FOLDER = "experiments.benchmarks.sparse_training"
_SPEND_SECONDS = 0.2
_WARM_UP_SECONDS = 0.2  # of a step: in training they follow each other, on memory that is there


class Maker(NamedTuple):
  """What must be known of an engine before it is made.

  Attributes:
    kinds: of cases that it can train.
    copies: numbers of 4 bytes that it holds for each weight of a dense layer, or for each
      connection if `is_sparse`; from above, to see what fits.
    needs: packages, which may be missing.
    is_sparse: see `copies`.
  """

  kinds: tuple[str, ...]
  copies: float
  needs: tuple[str, ...] = ()
  is_sparse: bool = False


ENGINES = {
  "dense": Maker(("mlp", "vit", "resnet18", "head"), 6),
  "masked": Maker(("mlp",), 8),
  "condensed": Maker(("mlp", "vit", "resnet18", "head"), 10, is_sparse=True),
  "torch": Maker(("mlp", "vit"), 6, ("torch",)),
  "sparselab": Maker(("mlp", "vit"), 10, ("torch", "sparselab"), is_sparse=True),
}
"""What is compared, by name: dense JAX, masks, this project's condensed training, and rivals."""


def why_missing(engine: str) -> str:
  """Why an engine cannot be used, empty if it can."""
  missing = [name for name in ENGINES[engine].needs if importlib.util.find_spec(name) is None]
  return f"{missing[0]} is not installed" if missing else ""


class Worker(Process):
  """An engine in a process of its own.

  The first answer has `losses` of the first steps, `state_bytes`, `peak_bytes` and `calls`.
  """

  def __init__(self, engine: str, case: Case, cores: list[int]):
    """Starts the process."""
    threads = case.threads or len(cores)
    env = {}
    if case.xla_flags:
      env["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {case.xla_flags}".strip()
    arguments = [engine, json.dumps(case._asdict())]
    super().__init__(engine, f"{_FOLDER}.worker", arguments, cores=cores[-threads:], env=env)

  def seconds(self, call: str) -> float:
    """Lets it time a call."""
    return self.ask(call)["seconds"]


def peak_bytes() -> int:
  """The most memory that this process has had."""
  status = Path("/proc/self/status")
  if status.exists():  # `ru_maxrss` would count the process from which this one was forked
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
    return 1024 * int(lines["VmHWM"].split()[0])
  return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def first_steps(engine: Engine) -> list[float]:
  """The losses of two steps, of one that updates the topology, and of the one after."""
  losses = [engine.calls[STEP](), engine.calls[STEP]()]
  if engine.before_update is not None:
    engine.before_update()
  return [*map(float, losses), *(float(engine.calls[STEP]()) for _ in range(2))]


def time_call(engine: Engine, name: str) -> float:
  """Seconds of a call: the median of those that fit into a moment, or one that needs preparing."""
  call: Callable[[Any], Any] = lambda _: engine.calls[name]()
  if name not in engine.prepare:
    warm_up = _WARM_UP_SECONDS if name == "step" else 0.0
    return call_seconds(call, [None], warm_up=warm_up, spend=_SPEND_SECONDS, most=50)
  engine.prepare[name]()
  return elapsed(engine.calls[name])


def _make(name: str, case: Case) -> Engine:
  """The engine; imports no framework but its own."""
  if name in ("torch", "sparselab"):
    module, function = "torch_engines", "torch_dense" if name == "torch" else name
  else:
    module = {"resnet18": "resnets", "head": "heads"}.get(case.kind, "jax_engines")
    function = name
  return getattr(importlib.import_module(f"{_FOLDER}.{module}"), function)(case)


def main() -> None:
  """What the process does."""
  (name, case_json), _, calls, answer = requests()
  fields: dict[str, Any] = json.loads(case_json)
  case = Case(**fields | {"sizes": tuple(fields["sizes"])})
  engine = _make(name, case)
  losses = first_steps(engine)
  about = {"losses": losses, "state_bytes": engine.state_bytes, "peak_bytes": peak_bytes()}
  answer(about | {"calls": list(engine.calls)})
  for call in calls:
    answer({"seconds": time_call(engine, call)})


if __name__ == "__main__":
  main()
