"""The training loop of one run, from its first step or its last checkpoint to its results."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from experiments.common.files import locked, read_json, set_aside, write_json, write_text
from experiments.common.memory import give_back_memory
from experiments.common.progress import Show, progress
from experiments.data import Prefetch
from experiments.processes.cluster import is_process_0
from experiments.processes.consistency import StopSignal, decide_on_process_0
from experiments.processes.sharding import Batch, replicate, shard_batches
from experiments.processes.signals import Interrupted, watch_signals
from experiments.reports.model_card import write_model_card
from experiments.reports.run_report import write_run_report
from experiments.training.engines import TrainState
from experiments.training.profiling import (
  NO_PROFILING,
  Profiling,
  Trace,
  memory_by_part,
  report_memory,
)
from experiments.training.results import results_of
from experiments.training.run_log import RunLog
from experiments.training.setup import Run, prepare
from experiments.training.speed_hint import why_slower
from experiments.training.steps import make_eval_fn, make_train_fn
from experiments.workdir.owner import check_owner
from experiments.workdir.patterns import RESULTS

ShowProgress = Callable[..., AbstractContextManager[Show]]


class Dispatch(NamedTuple):
  """One call of `train_fn`, from step `start` to step `stop`.

  Attributes:
    start: steps done before it.
    stop: steps done after it.
    batches: of its steps; stacked on the devices once `shard_batches` has had them.
  """

  start: int
  stop: int
  batches: list[Batch] | Batch


def train(
  config: ConfigDict,
  workdir: Path,
  *,
  show_progress: ShowProgress = progress,
  profiling: Profiling = NO_PROFILING,
) -> dict[str, Any]:
  """Trains to the end, from the last checkpoint if there is one; leaves a finished run alone.

  Args:
    config: see `configs/base.py`.
    workdir: directory of this run and no other.
    show_progress: see `progress.progress`.
    profiling: see `profiling.Profiling`.

  Returns:
    The results, as `results.json` holds them; with several processes, only in process 0.

  Raises:
    ValueError: if the config is not usable, or `workdir` belongs to another config or is in use.
    FloatingPointError: if the loss is not finite; the last checkpoint stays.
    Interrupted: after SIGINT or SIGTERM, once the state is saved.
  """
  with ExitStack() as stack:
    if not decide_on_process_0(lambda: _finished_or_locked(workdir, config, stack)):
      log = stack.enter_context(closing(RunLog(*prepare(config), workdir)))
      state = _train(log, show_progress, profiling)
      log.wait()  # there are no results without the network that they are of
      if is_process_0():
        (workdir / "report.md").unlink(missing_ok=True)  # of the run as it was before its end
        write_json(workdir / "results.json", results_of(log.run, state, workdir))
    # With several processes only process 0 has results, on a disk of its own.
    return _report(workdir, config) if is_process_0() else {}


def _train(log: RunLog, show_progress: ShowProgress, profiling: Profiling) -> TrainState:
  """Trains from the state of the log to the last step; records, evaluates and saves on the way."""
  run, step = log.run, log.step
  train_fn = make_train_fn(
    run.engine,
    run.pipeline,
    run.task,
    seed=run.config.seed,
    max_steps=run.max_steps,
  )
  eval_fn = make_eval_fn(run.model.apply, run.pipeline, run.task, run.plan.method.for_test)
  state, device_data = replicate((log.take_state(), run.pipeline.device_data))
  stop_signal = StopSignal()
  to_devices = lambda x: x._replace(batches=shard_batches(x.batches, run.max_steps))
  with (
    watch_signals() as interrupted,
    show_progress(run.config.name, step=step, total_steps=run.total_steps) as show,
    closing(run.pipeline),
    Prefetch(_dispatches(run, step), to_devices) as dispatches,
    closing(Trace(profiling.trace_steps if is_process_0() else None, log.workdir)) as trace,
  ):
    if is_process_0():
      _report_plan(log)
      _report_speed(run, state)
    log.start()
    for start, step, batches in dispatches:
      is_first = start == log.step
      if is_first:
        temporary = train_fn.compile(state, device_data, batches)
        if is_process_0():
          parts = memory_by_part(state, device_data, is_sparse=run.is_sparse)
          report_memory(log.workdir, parts, temporary)
        give_back_memory()  # the compiler's
      trace.before(start, step)
      at_boundary, stop_requested = step == run.next_boundary(start), interrupted()
      # Nothing in here waits for the devices, nor they for what is not on them by now.
      with jax.transfer_guard("disallow"):
        state, metrics, signal = train_fn(
          state, device_data, batches, step - start, stop_requested, with_norms=at_boundary
        )
      if is_first:
        jax.block_until_ready(state)
        give_back_memory()  # the state's that it started from
      trace.after(step, metrics)
      log.add(metrics)
      finished, stopping = step == run.total_steps, stop_signal.agreed(stop_requested, signal)
      if not (at_boundary or finished or stopping):
        continue

      shown = log.record_train(step, state, waited=dispatches.waited_seconds)
      if is_process_0():
        show(step, **shown)
      score = None
      if finished or step % run.eval_every == 0:
        score = log.record_eval(step, eval_fn(state, device_data, run.tests_left(step)))
        give_back_memory()
      if finished or stopping or step % run.save_every == 0:
        log.save(step, state, score=score)
      if score is not None:
        log.restart_clock()
      if stopping and not finished:
        log.wait()
        raise Interrupted(stopping, step)
    if not log.is_tested(step):  # resumed from its last step, of which the record is lost
      log.record_eval(step, eval_fn(state, device_data, 1))
  return state


def _dispatches(run: Run, step: int) -> Iterator[Dispatch]:
  """The calls of `train_fn` from a step to the last, none across a boundary."""
  stream = run.pipeline.train_batches(step, run.total_steps)
  with ExitStack() as stack:
    stack.callback(getattr(stream, "close", lambda: None))
    while step < run.total_steps:
      end = min(step + run.max_steps, run.next_boundary(step))
      yield Dispatch(step, end, [next(stream) for _ in range(step, end)])
      step = end


def _report_speed(run: Run, state: TrainState) -> None:
  """Says so if a run in condensed form is likely to be slower than with masks."""
  if run.is_condensed and (reason := why_slower(run.topology(state), run.model.macs)):
    print(
      f"slower than with masks, by a rule of thumb: {reason}. config.method.engine=masked trains "
      "the same network.",
      file=sys.stderr,
      flush=True,
    )


def _report_plan(log: RunLog) -> None:
  """Says what sparse training does to each parameter; `plan.txt` has it at length."""
  if log.run.leaves:
    print(log.run.leaves.table(compact=True), file=sys.stderr, flush=True)
    write_text(log.workdir / "plan.txt", f"{log.run.leaves}\n")


def _finished_or_locked(workdir: Path, config: ConfigDict, stack: ExitStack) -> bool:
  """Whether a run has its results; if not, locks its directory until `stack` is closed.

  Results that are damaged are moved aside: a finished run makes them again in a moment.

  Raises:
    ValueError: if the directory is another run's, or in use.
  """
  results = workdir / "results.json"
  check_owner(workdir, config)
  if _problem_of(results) is None:
    return True
  stack.enter_context(locked(workdir))
  check_owner(workdir, config)  # as whoever had the lock has left it
  if (problem := _problem_of(results)) and results.exists():
    place = set_aside(results)
    warnings.warn(f"{problem} It is now {place}, and is made again.", stacklevel=2)
  return problem is None


def _problem_of(results: Path) -> str | None:
  """Why there are no results; None if there are."""
  try:
    return "There are none." if read_json(results, RESULTS) is None else None
  except ValueError as error:
    return str(error)


def _report(workdir: Path, config: ConfigDict) -> dict[str, Any]:
  """Writes what is missing of the report, which is written last; returns the results."""
  if not (workdir / "config.json").exists():
    write_json(workdir / "config.json", config.to_dict())
  if not (workdir / "report.md").exists():
    write_run_report(workdir)
  if not (workdir / "model_card.md").exists():
    write_model_card(workdir)
  return read_json(workdir / "results.json")
