"""Trains one network: `python -m experiments.train --config=configs/NAME.py --workdir=DIR`.

The same command resumes a run that was interrupted, bit for bit, and does nothing for one that is
finished. Everything that it writes is in the work directory: config.json, metrics.jsonl,
tensorboard/, checkpoints/, sessions.jsonl, memory.json, and at the end results.json, report.md,
model_card.md and figures/.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments import packs, report
from experiments.common import cli
from experiments.common.files import held, read_json, write_json
from experiments.common.progress import Show, progress
from experiments.data import Dataset, ImageStream, Prefetch
from experiments.processes import cluster, local_launch
from experiments.processes.cluster import is_process_0
from experiments.processes.consistency import StopSignal, check_same_masks, decide_on_process_0
from experiments.processes.sharding import Batch, replicate, shard_batches
from experiments.processes.signals import Interrupted, watch_signals
from experiments.reports.model_card import write_model_card
from experiments.training.memory import memory_of
from experiments.training.profiling import NO_WATCH, Trace, Watch, read_window, report_memory
from experiments.training.results import results_of
from experiments.training.run_log import Logbook, averages
from experiments.training.setup import prepare
from experiments.training.steps import Metrics, TrainState, make_eval_fn, make_train_fn
from experiments.workdir.owner import check_owner

Outcome = dict[str, Any] | Exception
ShowProgress = Callable[..., AbstractContextManager[Show]]


def train(config: ConfigDict, workdir: Path, *, watch: Watch = NO_WATCH) -> dict[str, Any]:
  """Trains to the end, from the last checkpoint if there is one.

  Args:
    config: see `configs/base.py`.
    workdir: directory of this run and no other.
    watch: see `watch.Watch`.

  Returns:
    The results, as `results.json` holds them.

  Raises:
    ValueError: if the config is not usable, or `workdir` belongs to another config or is in use.
    FloatingPointError: if the loss is not finite; the last checkpoint stays.
    Interrupted: after SIGINT or SIGTERM, once the state is saved.
  """
  outcome = train_pack({workdir: config}, watch=watch)[workdir]
  if isinstance(outcome, Exception):
    raise outcome
  return outcome


def train_pack(
  configs: Mapping[Path, ConfigDict],
  *,
  show_progress: ShowProgress = progress,
  watch: Watch = NO_WATCH,
) -> dict[Path, Outcome]:
  """Trains several runs together, each as if it were alone.

  Those that are finished are left alone. Those whose checkpoints are of different steps, or whose
  states cannot be stacked, train one group after the other.

  Args:
    configs: by work directory; they may differ in `packs.MAY_DIFFER`.
    show_progress: see `progress.progress`.
    watch: see `watch.Watch`; what is seen is written beside the first run's records.

  Returns:
    The results of each run, or the exception that ended it; the others go on. With several
    processes, only process 0 has results.

  Raises:
    ValueError: if the configs differ in more than that.
    Interrupted: after SIGINT or SIGTERM, once all states are saved.
  """
  packs.check(configs.values())
  outcomes: dict[Path, Outcome] = {}
  with ExitStack() as stack:
    groups: dict[Any, list[Logbook]] = {}
    data: Dataset | ImageStream | None = None
    for workdir, config in configs.items():
      try:
        if decide_on_process_0(lambda: _is_finished(workdir, config, stack)):  # noqa: B023
          outcomes[workdir] = _reported(workdir, read_json(workdir / "results.json"))
          continue
        log = stack.enter_context(closing(Logbook(prepare(config, data), workdir)))
        data = log.run.data
        groups.setdefault((log.step, packs.signature(log.state)), []).append(log)
      except Exception as error:
        outcomes[workdir] = error
    for logs in groups.values():
      try:
        state = _loop(logs, show_progress, watch)
      except Interrupted:
        raise
      except Exception as error:
        outcomes |= {log.workdir: error for log in logs}
        continue
      for i, log in enumerate(logs):
        outcomes[log.workdir] = log.error or _finish(log, state, i, len(logs))
  return {workdir: outcomes[workdir] for workdir in configs}


def _finish(log: Logbook, state: TrainState, index: int, num_runs: int) -> Outcome:
  """Writes the results of a run that has come to its end."""
  try:
    log.wait()  # there are no results without the network that they are of
    if not is_process_0():
      return {}
    own = packs.unstack(state, index, num_runs)
    results = results_of(log.run, own, log.workdir, num_runs=num_runs)
    write_json(log.workdir / "results.json", results)
    report.write_run_report(log.workdir)
    write_model_card(log.workdir)
    return results
  except Exception as error:
    return error


def _is_finished(workdir: Path, config: ConfigDict, stack: ExitStack) -> bool:
  """Whether a run has its results; if not, keeps its directory for this process.

  Raises:
    ValueError: if the directory is another run's, or in use.
  """
  results = workdir / "results.json"
  check_owner(workdir, config)
  if not results.exists():
    stack.enter_context(held(workdir))
    check_owner(workdir, config)  # as whoever held it has left it
  return results.exists()


def _reported(workdir: Path, results: dict[str, Any] | None) -> dict[str, Any]:
  """The results; the report is written last, so it may be all that is missing."""
  if results is None or not is_process_0():  # process 0 has them, on a disk of its own
    return {}
  if not (workdir / "report.md").exists():
    report.write_run_report(workdir)
  if not (workdir / "model_card.md").exists():
    write_model_card(workdir)
  return results


def _loop(logs: Sequence[Logbook], show_progress: ShowProgress, watch: Watch) -> TrainState:
  """Trains runs that are at one step to their end, recording and saving on the way.

  Returns:
    The stacked last state; a run that has diverged has its `error` set.
  """
  run, num_runs, step = logs[0].run, len(logs), logs[0].step
  config = run.config.train
  train_fn = make_train_fn(
    run.apply,
    run.tx,
    run.pipeline,
    label_smoothing=config.label_smoothing,
    seeds=[log.run.config.seed for log in logs],
    max_steps=run.max_steps,
  )
  eval_fn = make_eval_fn(run.apply, run.pipeline, num_runs=num_runs)
  state = replicate(packs.stack([log.take_state() for log in logs]))
  device_data = replicate(run.pipeline.device_data)
  eval_every = run.steps(config.eval_every_epochs)
  save_every = run.steps(config.checkpoint_every_epochs)
  pauses = config.log_every_steps, eval_every, save_every
  window: list[Metrics] = []
  name = run.config.name if num_runs == 1 else f"{run.config.name} and {num_runs - 1} more"
  stop = StopSignal()
  put = lambda call: (call[0], call[1], shard_batches(call[2], run.max_steps))
  with (
    watch_signals() as interrupted,
    show_progress(name, step=step, total_steps=run.total_steps) as show,
    closing(run.pipeline),
    Prefetch(_calls(logs, pauses), put) as calls,
    closing(Trace(watch.profile if is_process_0() else None, logs[0].workdir)) as trace,
  ):
    for log in logs:
      log.start()
    if is_process_0():
      memory = memory_of(state, device_data, is_sparse=run.is_sparse)
      if watch.memory:
        example = shard_batches([log.run.batches(step, step + 1) for log in logs], run.max_steps)
        memory = memory._replace(step=train_fn.temporary_bytes(state, device_data, example))
      report_memory(logs[0].workdir, memory)
    since, waited = time.perf_counter(), 0.0
    for start, step, batches in calls:
      trace.before(start, step)
      asked = interrupted()
      # Nothing in here waits for the devices, nor they for what is not on them by now.
      state, metrics, signal = train_fn(state, device_data, batches, step - start, asked)
      trace.after(step, metrics)
      window.append(metrics)
      finished, stopping = step == run.total_steps, stop.agreed(asked, signal)
      pauses_here = step == run.next_update(start) or any(step % n == 0 for n in pauses)
      if not (finished or stopping or pauses_here):
        continue

      values = _of_each(logs, window)
      seconds, waits = time.perf_counter() - since, calls.waited_seconds - waited
      window, since, waited = [], time.perf_counter(), calls.waited_seconds
      own = lambda i: packs.unstack(state, i, num_runs)  # noqa: B023
      shown = {}
      for i, value in values.items():
        if logs[i].needs_summary(step):
          logs[i].topology(step, own(i))
        shown = logs[i].train(step, value, seconds / num_runs, waits / seconds)
      if shown and is_process_0():
        show(step, **shown)
      tests: dict[int, dict[str, float]] = {}
      if finished or step % eval_every == 0:
        left = -(-run.total_steps // eval_every) - (step - 1) // eval_every
        tests = _of_each(logs, eval_fn(state, device_data, left))
        for i, test in tests.items():
          logs[i].test(step, test)
      if finished or stopping or step % save_every == 0:
        check_same_masks(sx.get_masks(state.opt_state) if run.is_sparse else {})
        for i, log in enumerate(logs):
          if not log.error:
            counts = tests and step >= run.sparse_from
            log.save(step, own(i), test_accuracy=tests[i]["accuracy"] if counts else None)
      since += time.perf_counter() - since if tests else 0.0
      if all(log.error for log in logs):
        break
      if stopping and not finished:
        for log in logs:
          log.wait()
        raise Interrupted(stopping, step)
  return state


def _calls(
  logs: Sequence[Logbook], pauses: Sequence[int]
) -> Iterator[tuple[int, int, list[list[Batch]]]]:
  """First step, last step and batches of each call of the device, none across a pause."""
  run, step = logs[0].run, logs[0].step
  with ExitStack() as stack:
    streams = []
    for log in logs:
      streams.append(log.run.pipeline.train_batches(step, run.total_steps))
      stack.callback(getattr(streams[-1], "close", lambda: None))
    while step < run.total_steps:
      stops = [step - step % every + every for every in pauses]
      end = min(step + run.max_steps, run.next_update(step), *stops)
      yield step, end, [[next(stream) for _ in range(step, end)] for stream in streams]
      step = end


def _of_each(logs: Sequence[Logbook], window: list[Metrics]) -> dict[int, dict[str, float]]:
  """The averages of each run that goes on, by its place; notes the error of one that cannot."""
  values = {}
  for i, log in enumerate(logs):
    try:
      if not log.error:
        values[i] = averages(window, i)
    except FloatingPointError as error:
      log.error = error
  return values


def main() -> int:
  """The command."""
  values = flags.FLAGS.flag_values_dict()
  if values["processes"]:
    return local_launch.launch(
      local_launch.own_arguments(sys.argv),
      num_processes=values["processes"],
      num_devices=values["devices_per_process"],
    )
  cluster.join(values)
  workdir = Path(values["workdir"])
  cli.use_compile_cache(workdir / ".compiled")
  try:
    watch = Watch(read_window(values["profile"]), values["memory"])
    results = train(_CONFIG.value, workdir, watch=watch)
  except Interrupted as stop:
    number, step = stop.args
    if is_process_0():
      print(f"Stopped and saved at step {step}. The same command goes on from there.")
    return 128 + number
  if is_process_0():
    print(results["table"])
    print(
      f"test accuracy {results['test_accuracy']:.2%} (best {results['best_test_accuracy']:.2%}); "
      f"report in {workdir / 'report.md'}"
    )
  return 0


if __name__ == "__main__":
  _CONFIG = cli.define_config()
  flags.DEFINE_string("workdir", None, "Directory of this run.", required=True)
  flags.DEFINE_string("profile", None, "START:STOP: write a trace of these steps to profile/.")
  flags.DEFINE_bool("memory", False, "Also ask the compiler what a step takes: compiles it twice.")
  cluster.define_flags()
  cli.run(main)
