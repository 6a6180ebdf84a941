"""The benchmark of packs: that it trains what it says, not how fast."""

import contextlib

import pytest

from experiments import benchmark_packing as benchmark
from experiments.sweeps import estimate
from tests.experiments.tiny import quick_compiler, tiny_config

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def compiled_quickly():
  with quick_compiler():
    yield


@pytest.mark.slow
def test_every_way_trains_every_run(monkeypatch):
  calls = []
  real = estimate.make_train_fn

  def make_train_fn(*arguments, seeds, **kwargs):
    train = real(*arguments, seeds=seeds, **kwargs)

    def counted(state, device_data, batches, num_steps):
      calls.append((tuple(seeds), (batches["index"].shape[2], num_steps)))
      return train(state, device_data, batches, num_steps)

    return counted

  @contextlib.contextmanager
  def processes(config, num_runs, num_steps):
    yield lambda: calls.append("processes")

  monkeypatch.setattr(estimate, "make_train_fn", make_train_fn)
  monkeypatch.setattr(benchmark, "Processes", processes)
  config = tiny_config({"train.steps_per_dispatch": 2, "seed": 5})
  rows = benchmark.measure(config, num_runs=2, num_steps=3, rounds=1)
  assert [row.name.split(": ")[1] for row in rows] == ["packed", "2 processes"]
  assert all(len(row.ratios) == 1 and row.ratios[0] > 0 for row in rows)
  one, pack = ((5,), (1, 2)), ((5, 6), (2, 2))
  # Three steps are two calls; compiling, warming up and the round do them once each.
  assert calls.count(one) == 2 * (1 + 2 + 2) and calls.count(pack) == 2 * 3
  assert calls.count("processes") == 2


@pytest.mark.slow
def test_processes_train_at_once(monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "")
  with benchmark.Processes(tiny_config(), 2, 3) as train:
    train()
    train()
