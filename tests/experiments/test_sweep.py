"""Sweeps: which runs they have, what is skipped, what happens when one fails."""

import json
import signal

import pytest
from ml_collections import ConfigDict

from experiments import sweep as sweep_module
from experiments.files import read_json, write_json
from experiments.interrupt import Interrupted
from experiments.sweep import expand, run_sweep
from tests.experiments.tiny import interrupted_at, tiny_config

pytestmark = pytest.mark.usefixtures("one_device")


def tiny_sweep(variants=None, seeds=(0, 1), **changes):
  if variants is None:
    variants = (("dense", {"method": {"name": "dense"}}), ("sparse", {"method": {"sparsity": 0.6}}))
  sweep = {"name": "A sweep", "base": tiny_config(), "variants": variants, "seeds": seeds}
  return ConfigDict(sweep | changes).lock()


class FakeTraining:
  """In place of `train`: writes results down and keeps account; may be told to fail."""

  def __init__(self, failures=None):
    self.trained = []
    self.failures = dict(failures or {})

  def __call__(self, config, workdir):
    name = "/".join(workdir.parts[-2:])
    if results := read_json(workdir / "results.json"):
      return results
    self.trained.append(name)
    if error := self.failures.get(name):
      raise error
    numbers = ("test_accuracy", "best_test_accuracy", "sparsity", "active_neurons", "itop_rate")
    results = dict.fromkeys([*numbers, "inference_flops", "training_flops"], 0.5)
    write_json(workdir / "results.json", results)
    test = {"kind": "test", "step": 1, "accuracy": 0.5, "loss": 1.0}
    (workdir / "metrics.jsonl").write_text(json.dumps(test) + "\n")
    return results


@pytest.fixture
def training(monkeypatch):
  """A function that puts a `FakeTraining` in place."""

  def put(failures=None):
    fake = FakeTraining(failures)
    monkeypatch.setattr(sweep_module, "train", fake)
    return fake

  return put


ALL = ["dense/seed0", "dense/seed1", "sparse/seed0", "sparse/seed1"]

# ---- expanding ---------------------------------------------------------------------------------


def test_expand_gives_each_run_its_differences():
  runs = expand(tiny_sweep())
  assert list(runs) == ALL
  assert [run.seed for run in runs.values()] == [0, 1, 0, 1]
  assert [run.method.name for run in runs.values()] == ["dense", "dense", "srigl", "srigl"]
  assert [run.method.sparsity for run in runs.values()] == [0.5, 0.5, 0.6, 0.6]
  assert len({run.name for run in runs.values()}) == 4
  base = tiny_config().to_dict()
  for run in runs.values():  # and nothing else
    same = run.copy_and_resolve_references()
    with same.unlocked():
      same.update({"name": "tiny", "seed": 0})
      same.method.update({"name": "srigl", "sparsity": 0.5})
    assert same.to_dict() == base


def test_expanding_leaves_the_base_alone():
  sweep = tiny_sweep()
  expand(sweep)["sparse/seed0"].method.sparsity = 0.1
  assert sweep.base.to_dict() == tiny_config().to_dict()


@pytest.mark.parametrize(
  "sweep, message",
  [
    (tiny_sweep(variants=()), r"'A sweep' has 0 variants and 2 seeds; it needs one"),
    (tiny_sweep(seeds=()), r"'A sweep' has 2 variants and 0 seeds; it needs one"),
    (
      tiny_sweep(variants=(("a", {"method": {"sparsty": 0.5}}),)),
      r"Variant 'a' of the sweep does not fit its base: .*sparsity",
    ),
    (
      tiny_sweep(variants=(("a", {"metod": {"sparsity": 0.5}}),)),
      r"Variant 'a' of the sweep does not fit its base: .*method",
    ),
    (
      tiny_sweep(variants=(("a", {"method": {"sparsity": "high"}}),)),
      r"Variant 'a' of the sweep does not fit its base: .*'sparsity'",
    ),
    (tiny_sweep(variants=(("a", {}), ("a", {}))), r"two runs 'a/seed0': names must differ"),
    (tiny_sweep(seeds=(0, 0)), r"two runs 'dense/seed0': names must differ"),
    (tiny_config(), r"single run's: use python -m experiments\.train"),
  ],
)
def test_expand_rejects(sweep, message):
  with pytest.raises(ValueError, match=message):
    expand(sweep)


# ---- running -----------------------------------------------------------------------------------


def test_every_run_has_its_directory_and_the_sweep_a_report(tmp_path, training, capsys):
  fake = training()
  path, table, failed = run_sweep(tiny_sweep(), tmp_path, command="the command")
  assert fake.trained == ALL and failed == []
  assert path == tmp_path / "report.md" and table in path.read_text()
  assert (tmp_path / "figures" / "comparison.png").exists()
  assert read_json(tmp_path / "sweep.json") == {
    "name": "A sweep",
    "variants": ["dense", "sparse"],
    "seeds": [0, 1],
    "command": "the command",
  }
  assert "[3/4] sparse/seed0\n" in capsys.readouterr().out


def test_what_is_finished_is_skipped(tmp_path, training, capsys):
  training()
  run_sweep(tiny_sweep(seeds=(0,)), tmp_path)
  fake = training()
  _, table, _ = run_sweep(tiny_sweep(), tmp_path)
  assert fake.trained == ["dense/seed1", "sparse/seed1"]
  assert "[1/4] dense/seed0: already finished" in capsys.readouterr().out
  assert "50.00 ± 0.00" in table


@pytest.mark.parametrize(
  "error",
  [ValueError("no good"), FloatingPointError("no good"), FileNotFoundError("no good")],
  ids=lambda error: type(error).__name__,
)
def test_a_failing_run_does_not_stop_the_others(tmp_path, training, error):
  fake = training({"dense/seed1": error})
  with pytest.warns(UserWarning, match="Run dense/seed1 failed: no good"):
    path, _, failed = run_sweep(tiny_sweep(), tmp_path)
  assert fake.trained == ALL
  assert failed == ["dense/seed1"]
  assert "1 runs are not finished." in path.read_text()
  # The next time it is tried again, alone.
  fake = training()
  assert run_sweep(tiny_sweep(), tmp_path)[2] == []
  assert fake.trained == ["dense/seed1"]


def test_a_directory_of_another_sweep_is_refused(tmp_path, training):
  fake = training()
  for name, config in expand(tiny_sweep()).items():
    write_json(tmp_path / name / "config.json", config.to_dict())
  write_json(tmp_path / "sweep.json", {"name": "theirs"})
  others = (("dense", {"method": {"name": "dense"}}), ("sparse", {"method": {"sparsity": 0.7}}))
  with pytest.raises(
    ValueError, match=r"sparse/seed0 holds a run of another config \(method\.spars"
  ):
    run_sweep(tiny_sweep(others), tmp_path)
  assert fake.trained == [] and read_json(tmp_path / "sweep.json") == {"name": "theirs"}


def test_when_all_fail_there_is_nothing_to_report(tmp_path, training):
  training({name: ValueError("no good") for name in ALL})
  with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"No run in .* is finished"):
    run_sweep(tiny_sweep(), tmp_path)


def test_an_interruption_stops_the_sweep_which_then_goes_on(tmp_path, training):
  fake = training({"dense/seed1": Interrupted(signal.SIGTERM, 5)})
  with pytest.raises(Interrupted):
    run_sweep(tiny_sweep(), tmp_path)
  assert fake.trained == ALL[:2]
  fake = training()
  run_sweep(tiny_sweep(), tmp_path)
  assert fake.trained == ALL[1:]


def test_a_real_sweep_stopped_and_restarted(tmp_path):
  """The second run is stopped amid training; one variant cannot be trained at all."""
  variants = (
    ("sparse", {"method": {"sparsity": 0.5}}),
    ("hopeless", {"data": {"batch_size": 1000}}),
  )
  sweep = tiny_sweep(variants=variants, seeds=(0, 1))
  with interrupted_at(8), pytest.raises(Interrupted):  # the first looks 6 times
    run_sweep(sweep, tmp_path)
  assert (tmp_path / "sparse" / "seed0" / "results.json").exists()
  assert not (tmp_path / "sparse" / "seed1" / "results.json").exists()
  first = (tmp_path / "sparse" / "seed0" / "results.json").stat().st_mtime_ns
  with pytest.warns(UserWarning, match=r"Run hopeless/seed[01] failed: .*batch_size"):
    path, table, failed = run_sweep(sweep, tmp_path)
  assert failed == ["hopeless/seed0", "hopeless/seed1"]
  assert (tmp_path / "sparse" / "seed0" / "results.json").stat().st_mtime_ns == first
  accuracies = [
    read_json(tmp_path / "sparse" / f"seed{seed}" / "results.json")["test_accuracy"]
    for seed in (0, 1)
  ]
  assert f"{50 * sum(accuracies):.2f}" in table
  assert "2 runs are not finished." in path.read_text()
