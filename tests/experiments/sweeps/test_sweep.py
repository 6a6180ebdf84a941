"""Sweeps: which runs they have, what is skipped, what happens when one fails."""

import json
import signal

import pytest
from ml_collections import ConfigDict

from experiments.common.files import read_json, write_json
from experiments.processes.signals import Interrupted
from experiments.sweep import run_sweep
from experiments.sweeps import workers
from experiments.sweeps.report import write_sweep_report
from experiments.sweeps.spec import expand
from tests.experiments.tiny import interrupted_at, tiny_config

pytestmark = pytest.mark.usefixtures("one_device")


def tiny_sweep(variants=None, seeds=(0, 1), **changes):
  if variants is None:
    variants = (("dense", {"method": {"name": "dense"}}), ("sparse", {"method": {"sparsity": 0.6}}))
  sweep = {"name": "A sweep", "base": tiny_config(), "variants": variants, "seeds": seeds}
  return ConfigDict(sweep | changes).lock()


class FakeTraining:
  """In place of `loop.train`: writes results down and keeps account; may be told to fail."""

  def __init__(self, failures=None):
    self.trained = []
    self.failures = dict(failures or {})

  def __call__(self, config, workdir, *, show_progress):
    with show_progress(config.name, step=0, total_steps=1) as show:
      show(1, loss=0.5)
    name = "/".join(workdir.parts[-2:])
    self.trained.append(name)
    write_json(workdir / "config.json", config.to_dict())
    error = self.failures.get(name)
    if error:
      raise error
    numbers = (
      "test_accuracy",
      "best_test_accuracy",
      "sparsity",
      "active_neurons",
      "itop_rate",
      "steps",
    )
    results = dict.fromkeys([*numbers, "inference_flops", "training_flops"], 0.5)
    write_json(workdir / "results.json", results)
    test = {"kind": "test", "step": 1, "accuracy": 0.5, "loss": 1.0}
    (workdir / "metrics.jsonl").write_text(json.dumps(test) + "\n")
    (workdir / "report.md").write_text("")
    return results


@pytest.fixture
def training(monkeypatch):
  """A function that puts a `FakeTraining` in place."""

  def put(failures=None):
    fake = FakeTraining(failures)
    monkeypatch.setattr(workers, "train", fake)
    return fake

  return put


ALL = ["dense/seed0", "sparse/seed0", "dense/seed1", "sparse/seed1"]

# ---- expanding ---------------------------------------------------------------------------------


def test_expand_gives_each_run_its_differences():
  runs = expand(tiny_sweep())
  assert list(runs) == ALL
  assert [run.seed for run in runs.values()] == [0, 0, 1, 1]
  assert [run.method.name for run in runs.values()] == ["dense", "srigl", "dense", "srigl"]
  assert [run.method.sparsity for run in runs.values()] == [0.5, 0.6, 0.5, 0.6]
  assert len({run.name for run in runs.values()}) == 4
  base = tiny_config().to_dict()
  for run in runs.values():  # and nothing else
    same = run.copy_and_resolve_references()
    with same.unlocked():
      same.update({"name": "tiny", "seed": 0})
      same.method.update({"name": "srigl", "sparsity": 0.5, "kwargs": base["method"]["kwargs"]})
    assert same.to_dict() == base


def test_a_variant_may_have_seeds_of_its_own():
  variants = (("a", {}), ("b", {}, {"seeds": (5,), "axes": {"sparsity": 0.5}}))
  assert list(expand(tiny_sweep(variants))) == ["a/seed0", "b/seed5", "a/seed1"]


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
    (tiny_sweep(variants=(("a", {}, {"seed": 3}),)), r"Variant 'a' of the sweep has seed; besides"),
    (tiny_sweep(study="gama"), r"sweep\.study is 'gama'; it must be one of methods, sparsity"),
    (tiny_sweep(study="gamma"), r"no variant says where it stands: .*'gamma_sal': number"),
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
  assert fake.trained == ALL and failed == {}
  assert path == tmp_path / "report.md" and table in path.read_text()
  assert (tmp_path / "figures" / "comparison.png").exists()
  record = read_json(tmp_path / "sweep.json")
  assert (record["name"], record["study"], record["command"]) == (
    "A sweep",
    "methods",
    "the command",
  )
  assert list(record["variants"]) == ["dense", "sparse"]
  assert record["variants"]["sparse"]["seeds"] == [0, 1]
  assert record["variants"]["sparse"]["axes"] == {"method": "sparse"}
  assert record["variants"]["sparse"]["config"]["method"]["sparsity"] == 0.6
  out, err = capsys.readouterr()
  assert "sparse/seed0: test accuracy 50.00%  [2 done, 0 failed, 2 left]\n" in out
  assert "sparse, seed 0: step 1/1  loss 0.5" in err


def test_a_sweep_reports_what_it_was_made_to_compare(tmp_path, training):
  training({"sparse/seed1": ValueError("no")})
  path, *_ = run_sweep(tiny_sweep(comparisons=(("sparse", "dense"),)), tmp_path)
  assert "| sparse − dense |     |     1 |               +0.00 |" in path.read_text()
  assert (tmp_path / "figures" / "paired.png").exists()
  with pytest.raises(ValueError, match=r"has \('sparse', 'rigl'\); each must be two of.*dense"):
    expand(tiny_sweep(comparisons=(("sparse", "rigl"),)))


def test_what_is_finished_is_skipped(tmp_path, training, capsys):
  training()
  run_sweep(tiny_sweep(seeds=(0,)), tmp_path)
  fake = training()
  _, table, _ = run_sweep(tiny_sweep(), tmp_path)
  assert fake.trained == ["dense/seed1", "sparse/seed1"]
  assert "[1/4] dense/seed0: already finished" in capsys.readouterr().out
  assert "50.00 ± 0.00" in table


def test_a_report_of_a_run_does_not_make_it_finished(tmp_path, training):
  """One may look at a run before it is."""
  (tmp_path / "dense" / "seed0").mkdir(parents=True)
  (tmp_path / "dense" / "seed0" / "report.md").write_text("Not finished")
  fake = training()
  run_sweep(tiny_sweep(), tmp_path)
  assert fake.trained == ALL


def test_a_failing_run_does_not_stop_the_others(tmp_path, training, capsys):
  """It is written down, left alone the next time, and tried again when asked for."""
  fake = training({"dense/seed1": KeyError("no good")})
  path, _, failed = run_sweep(tiny_sweep(), tmp_path)
  assert fake.trained == ALL
  assert failed == {"dense/seed1": "KeyError: 'no good'"}
  assert "1 runs are not finished." in path.read_text()
  assert "dense/seed1 failed: KeyError" in path.read_text()
  assert "dense/seed1: FAILED: KeyError: 'no good'" in capsys.readouterr().out
  written = read_json(tmp_path / "dense" / "seed1" / "failed.json")
  assert written["error"] == "KeyError: 'no good'" and not written["killed"]
  assert written["config"]["seed"] == 1 and "UTC" in written["time"]

  fake = training()
  assert run_sweep(tiny_sweep(), tmp_path)[2] == failed
  assert fake.trained == []
  assert "dense/seed1: failed before (KeyError" in capsys.readouterr().out
  before = read_json(tmp_path / "dense" / "seed1" / "failed.json")
  before["config"]["optimizer"]["learning_rate"] = 1e9  # has been corrected since
  write_json(tmp_path / "dense" / "seed1" / "failed.json", before)
  assert run_sweep(tiny_sweep(), tmp_path)[2] == {}
  assert fake.trained == ["dense/seed1"]


def test_what_failed_is_tried_again_on_request(tmp_path, training):
  training({"dense/seed1": KeyError("no good")})
  run_sweep(tiny_sweep(), tmp_path)
  fake = training()
  assert run_sweep(tiny_sweep(), tmp_path, retry=True)[2] == {}
  assert fake.trained == ["dense/seed1"]
  assert not (tmp_path / "dense" / "seed1" / "failed.json").exists()


def test_a_failure_has_its_traceback(tmp_path):
  sweep = tiny_sweep(variants=(("hopeless", {"data": {"batch_size": 1000}}),), seeds=(0,))
  with pytest.raises(ValueError, match=r"No run in .* hopeless/seed0: ValueError: .*batch_size"):
    run_sweep(sweep, tmp_path)
  written = read_json(tmp_path / "hopeless" / "seed0" / "failed.json")
  assert "setup.py" in written["traceback"] and "batch_size" in written["traceback"]


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


def test_a_smaller_sweep_keeps_the_record_of_the_larger_one(tmp_path, training):
  training()
  run_sweep(tiny_sweep(), tmp_path)
  larger = read_json(tmp_path / "sweep.json")
  run_sweep(tiny_sweep(seeds=(0,)), tmp_path)
  assert read_json(tmp_path / "sweep.1.json") == larger
  assert read_json(tmp_path / "sweep.json")["variants"]["dense"]["seeds"] == [0]
  run_sweep(tiny_sweep(seeds=(0, 1, 2)), tmp_path)  # that has all of it
  assert not (tmp_path / "sweep.2.json").exists()


def test_results_of_another_config_do_not_enter_the_table(tmp_path, training):
  """A directory that was there when the sweep was another one."""
  training()
  run_sweep(tiny_sweep(), tmp_path)
  directory = tmp_path / "sparse" / "seed0"
  config = read_json(directory / "config.json")
  config["method"]["sparsity"] = 0.7
  write_json(directory / "config.json", config)
  path, table = write_sweep_report(tmp_path)
  (row,) = (line for line in table.splitlines() if "sparse " in line and "variant" not in line)
  assert row.split("|")[2].strip() == "1"
  assert "1 runs are not finished." in path.read_text()


def test_when_all_fail_there_is_nothing_to_report(tmp_path, training):
  training({name: ValueError("no good") for name in ALL})
  with pytest.raises(ValueError, match=r"No run in .* is finished.*sparse/seed1: ValueError: no g"):
    run_sweep(tiny_sweep(), tmp_path)


def test_an_interruption_stops_the_sweep_which_then_goes_on(tmp_path, training):
  fake = training({"sparse/seed0": Interrupted(signal.SIGTERM, 5)})
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
  path, table, failed = run_sweep(sweep, tmp_path)
  assert list(failed) == ["hopeless/seed0", "hopeless/seed1"]
  assert (tmp_path / "sparse" / "seed0" / "results.json").stat().st_mtime_ns == first
  accuracies = [
    read_json(tmp_path / "sparse" / f"seed{seed}" / "results.json")["test_accuracy"]
    for seed in (0, 1)
  ]
  assert f"{50 * sum(accuracies):.2f}" in table
  assert "2 runs are not finished." in path.read_text()
