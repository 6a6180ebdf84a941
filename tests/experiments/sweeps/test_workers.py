"""Runs in processes of their own: shared cores, killed, asked to stop."""

import multiprocessing
import os
import signal

import jax
import pytest

from experiments.processes.signals import Interrupted
from experiments.sweep import run_sweep
from experiments.sweeps.failures import Failure
from experiments.sweeps.workers import choose_jobs, shares_of_cores, train_in_processes
from tests.experiments.sweeps.test_sweep import tiny_sweep
from tests.experiments.tiny import checkpoint_steps, tiny_config

LONG = {
  "train.total_epochs": 5000.0,
  "train.eval_every_epochs": 5000.0,
  "train.checkpoint_every_epochs": 5000.0,
  "train.log_every_steps": 1,
}


@pytest.fixture(autouse=True)
def one_device_each(monkeypatch):
  jax.devices()  # those of this process are settled
  monkeypatch.setenv("XLA_FLAGS", "")
  monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


class Watcher:
  """Keeps account, and does something at each step."""

  def __init__(self, at_step):
    self.outcomes, self.warnings, self.at_step = {}, [], at_step

  def started(self, worker, config):
    pass

  def at(self, worker, step, total_steps, values):
    self.at_step(worker, step)

  def warned(self, text):
    self.warnings.append(text)

  def ended(self, worker, workdir, outcome):
    self.outcomes[workdir.name] = outcome


@pytest.mark.slow
def test_a_killed_worker_is_a_failed_run_and_the_others_go_on(tmp_path):
  """One run's process is killed, one run cannot be trained, one comes after them."""

  def kill_the_first(worker, step):
    if worker == 0 and step and "killed" not in watcher.outcomes:
      for process in multiprocessing.active_children():
        if process.name == "worker 0":
          os.kill(process.pid, signal.SIGKILL)

  watcher = Watcher(kill_the_first)
  runs = {
    tmp_path / "killed": tiny_config(LONG),
    tmp_path / "hopeless": tiny_config({"data.batch_size": 1000}),
    tmp_path / "fine": tiny_config({"seed": 1, "method.sparsity": 0.7}),
  }
  train_in_processes(runs, watcher, jobs=2, cache_dir=tmp_path / "cache")
  killed, hopeless = watcher.outcomes["killed"], watcher.outcomes["hopeless"]
  assert isinstance(killed, Failure) and killed.killed and "exit code -9" in killed.error
  assert not hopeless.killed and hopeless.error.startswith("ValueError: config.data.batch_size")
  assert "setup.py" in hopeless.traceback
  assert watcher.outcomes["fine"]["steps"] == 12
  assert any("has lost" in text for text in watcher.warnings)  # of neurons, too many
  assert not multiprocessing.active_children()


@pytest.mark.slow  # test_sweep.py stops a sweep in one process
def test_workers_save_when_the_sweep_is_asked_to_stop(tmp_path):
  """What waits is not begun."""
  training = set()

  def stop_when_all_train(worker, step):
    if step and worker not in training:
      training.add(worker)
      if len(training) == 2:
        os.kill(os.getpid(), signal.SIGTERM)

  watcher = Watcher(stop_when_all_train)
  runs = {tmp_path / name: tiny_config(LONG) for name in "abc"}
  with pytest.raises(Interrupted) as stop:
    train_in_processes(runs, watcher, jobs=2, cache_dir=tmp_path / "cache")
  assert stop.value.args[0] == signal.SIGTERM
  assert watcher.outcomes == {}
  for name in "ab":
    (step,) = checkpoint_steps(tmp_path / name)
    assert 0 < step < 20000
  assert not (tmp_path / "c").exists()
  assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_sweep_in_two_processes(tmp_path):
  path, table, failed = run_sweep(tiny_sweep(), tmp_path, jobs=2)
  assert failed == {} and table in path.read_text()
  assert "not finished" not in path.read_text()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinity")
@pytest.mark.parametrize(
  "jobs, shares",
  [
    (1, [[2, 3, 5, 7, 8]]),
    (2, [[2, 3], [5, 7, 8]]),
    (5, [[2], [3], [5], [7], [8]]),
    (7, [[2], [3], [5], [7], [8], [2], [3]]),
  ],
)
def test_shares_of_cores(monkeypatch, jobs, shares):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {8, 2, 3, 5, 7})
  assert shares_of_cores(jobs) == shares


def test_how_many_processes(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)
  assert [choose_jobs(0, n) for n in (1, 2, 9)] == [1, 2, 3]  # on CPU
  assert [choose_jobs(2, n) for n in (1, 9)] == [1, 2]
  with pytest.raises(ValueError, match="--jobs is -1; it must be 0"):
    choose_jobs(-1, 3)
