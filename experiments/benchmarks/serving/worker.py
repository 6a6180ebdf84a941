"""The process in which one engine serves one network."""

import importlib
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.benchmarks.processes import Process, requests
from experiments.benchmarks.serving.cases import ENGINES, ENVIRONMENT, NETWORKS, OURS
from experiments.benchmarks.serving.engine import Call, Engine, Task
from experiments.benchmarks.serving.preparation import expected_path, for_rivals
from experiments.benchmarks.timing import call_seconds, concurrent_calls, elapsed

_FOLDER = "experiments.benchmarks.serving"
_SPEND_SECONDS, _MOST_CALLS = 0.2, 4000
# Threads that have slept are often woken on one core, and parted some tens of milliseconds later.
_WARM_UP_SECONDS = 0.2
_CALLS_OF_A_CALLER = 5  # at least, where there are several
_TOLERANCE = 1e-4  # of engines that compute in float32


class Server(Process):
  """An engine in a process of its own; the first answer has its `error`."""

  def __init__(self, task: Task, cores: list[int]):
    """Starts the process."""
    arguments = [task.network, task.engine, f"{task.sparsity:g}", str(task.folder)]
    module = f"{_FOLDER}.worker"
    super().__init__(task.engine, module, arguments, cores=cores, env=ENVIRONMENT)

  def seconds(self, batch: int) -> float:
    """Seconds of a call."""
    return self.ask({"batch": batch})["seconds"]


class Service:
  """An engine, with the calls that were made of it."""

  def __init__(self, task: Task):
    self.task, self.network = task, NETWORKS[task.network]
    self.is_rival = task.engine not in OURS and task.engine != "jax"
    module = importlib.import_module(f"{_FOLDER}.{ENGINES[task.engine].module}")
    self.engine: Engine = module.make(task)
    self.calls: dict[int, list[Call]] = {}  # by batch, one for each caller
    self.last: dict[int, float] = {}

  def prepared(self, batch: int, callers: int = 1) -> list[Call]:
    """A call for each caller, compiled."""
    calls = self.calls.setdefault(batch, [])
    while len(calls) < callers:
      make = for_rivals if self.is_rival else lambda network, batch: network.inputs(batch)
      calls.append(self.engine.prepare(make(self.network, batch)))
      calls[-1]()
    return calls[:callers]

  def error(self) -> float:
    """Of the outputs of one example, over the largest.

    Raises:
      RuntimeError: if an engine that computes in float32 computes something else.
    """
    got = [np.asarray(y, np.float64) for y in jax.tree.leaves(self.prepared(1)[0]())]
    want = np.load(expected_path(self.task.folder, self.task.sparsity))
    errors = [
      np.abs(y - want[name]).max() / np.abs(want[name]).max()
      for name, y in zip(want.files, got, strict=True)
    ]
    error = float(max(errors))
    if ENGINES[self.task.engine].bits == 32 and not error <= _TOLERANCE:
      raise RuntimeError(
        f"{self.task.network}: {self.task.engine} is off by {error:.2g} of the largest output."
      )
    return error

  def seconds(self, batch: int) -> float:
    """The median call of a moment, after a moment of others, or one that is longer."""
    [call] = self.prepared(batch)
    if self.last.get(batch, 0) > _SPEND_SECONDS:
      self.last[batch] = elapsed(call)
    else:
      self.last[batch] = call_seconds(
        lambda _: call(), [None], warm_up=_WARM_UP_SECONDS, spend=_SPEND_SECONDS, most=_MOST_CALLS
      )
    return self.last[batch]

  def serve(self, batch: int, callers: int, spend: float) -> dict[str, Any]:
    """Seconds of the median call and of one in a hundred, and calls per second.

    Args:
      batch: of each call.
      callers: at once.
      spend: seconds, at least.
    """
    calls = self.prepared(batch, callers)
    # Callers share the cores: each of them is to end some calls.
    spend = max(spend, _CALLS_OF_A_CALLER * callers * elapsed(calls[0]))
    latencies, rate = concurrent_calls(calls, spend=spend)
    p50, p99 = np.percentile(latencies, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "rate": rate}


def main() -> None:
  """What the process does."""
  (network, engine, sparsity, folder), threads, asked, answer = requests()
  service = Service(Task(network, engine, float(sparsity), Path(folder), threads))
  answer({"error": service.error()})
  for request in asked:
    if "callers" in request:
      answer(service.serve(**request))
    else:
      answer({"seconds": service.seconds(request["batch"])})


if __name__ == "__main__":
  main()
