"""How to train several runs on one machine: one after another, in processes, or packed.

`python -m experiments.benchmark_packing --config=configs/NAME.py [--runs=4] [--out=FILE]`

Times steps of training, compiling and loading not counted, of `R` runs that differ in their seed:
one after another with all cores each; in R processes at once, each with its share of the cores;
and packed under `jax.vmap` with all cores. The three take turns. On an accelerator there are no
processes, which would share one memory.
"""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from experiments.benchmarks.timing import Row, as_json, format_table, interleave
from experiments.common import cli
from experiments.common.files import write_json
from experiments.sweeps.estimate import trainer
from experiments.sweeps.workers import shares_of_cores


def _train_on_request(connection, cores: list[int], values: dict[str, Any], num_steps: int) -> None:
  """In a process of its own: trains once for each message, and answers."""
  if cores:
    os.sched_setaffinity(0, cores)
  train = trainer(ConfigDict(values), 1, num_steps)
  connection.send("ready")
  while connection.recv():
    train()
    connection.send("done")


class Processes:
  """`num_runs` processes that train at once when called; a context manager."""

  def __init__(self, config: ConfigDict, num_runs: int, num_steps: int):
    context = multiprocessing.get_context("spawn")
    self._connections, self._processes = [], []
    for seed, cores in enumerate(shares_of_cores(num_runs)):
      ours, theirs = context.Pipe()
      values = config.to_dict() | {"seed": config.seed + seed}
      arguments = (theirs, cores, values, num_steps)
      process = context.Process(target=_train_on_request, args=arguments, daemon=True)
      process.start()
      theirs.close()
      self._connections.append(ours)
      self._processes.append(process)
    self._wait()

  def __call__(self) -> None:
    """Lets all train, and waits for them."""
    for connection in self._connections:
      connection.send(True)
    self._wait()

  def __enter__(self) -> "Processes":
    return self

  def __exit__(self, *exception: object) -> None:
    for process in self._processes:
      process.kill()
      process.join()

  def _wait(self) -> None:
    for connection in self._connections:
      connection.recv()


def measure(config: ConfigDict, *, num_runs: int, num_steps: int, rounds: int) -> list[Row]:
  """Times the ways to train several runs.

  Args:
    config: of the runs but for their seeds.
    num_runs: how many there are.
    num_steps: of each run in a round, rounded up to whole calls of the device.
    rounds: of taking turns.

  Returns:
    A row for each way other than one after another, whose time is divided by its own: how many
    times as fast it is.
  """
  single = trainer(config, 1, num_steps)
  alone = "one after another"
  ways: dict[str, Callable[[], Any]] = {
    alone: lambda: [single() for _ in range(num_runs)],
    "packed": trainer(config, num_runs, num_steps),
  }
  with contextlib.ExitStack() as stack:
    if jax.default_backend() == "cpu":
      processes = stack.enter_context(Processes(config, num_runs, num_steps))
      ways[f"{num_runs} processes"] = processes
    times = interleave(config.name, ways, repeats=rounds)
  return [
    Row(
      f"{config.model.name}, {config.method.name}, {num_runs} runs: {way}",
      [a / b for a, b in zip(times[alone], times[way], strict=True)],
      {alone: times[alone], way: times[way]},
    )
    for way in ways
    if way != alone
  ]


def main() -> int:
  """The command."""
  values = flags.FLAGS
  rows = measure(_CONFIG.value, num_runs=values.runs, num_steps=values.steps, rounds=values.rounds)
  print(format_table(rows))
  if values.out:
    command = " ".join(["python -m experiments.benchmark_packing", *sys.argv[1:]])
    write_json(Path(values.out), as_json(rows, command))
  return 0


if __name__ == "__main__":
  _CONFIG = cli.define_config()
  flags.DEFINE_integer("runs", 4, "Runs that train.", lower_bound=2)
  flags.DEFINE_integer("steps", 20, "Steps of each run in a round.", lower_bound=1)
  flags.DEFINE_integer("rounds", 5, "Rounds of taking turns.", lower_bound=1)
  flags.DEFINE_string("out", "", "Results file to write.")
  cli.run(main)
