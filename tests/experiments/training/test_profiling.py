"""What is written down about a run besides its numbers: sessions, memory, traces, a model card."""

import gc
import json
import re
import shutil
import sys
import types

import jax
import pytest

from experiments import report
from experiments.common import environment
from experiments.common.files import read_json
from experiments.processes.signals import Interrupted
from experiments.reports.model_card import write_model_card
from experiments.training.loop import train
from experiments.training.profiling import Profiling, parse_steps
from experiments.training.steps import TrainFn
from experiments.workdir import provenance
from experiments.workdir.provenance import read_sessions
from tests.experiments.tiny import TOTAL_STEPS, interrupted_at, tiny_config

pytestmark = pytest.mark.usefixtures("one_device")


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
  monkeypatch.setattr(report, "write_run_report", lambda workdir: None)


# ---- sessions ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_start_is_written_down(tmp_path):
  with interrupted_at(2), pytest.raises(Interrupted):
    train(tiny_config(), tmp_path)
  train(tiny_config(), tmp_path)
  first, second = read_sessions(tmp_path)
  assert (first["step"], second["step"]) == (0, 4)
  assert first["devices"] == 1 and first["processes"] == 1 and first["platform"] == "cpu"
  assert {"git_commit", "git_dirty", "host", "jax", "python", "started"} <= first.keys()


def test_the_commit_is_known_in_a_checkout_and_only_there(monkeypatch, tmp_path):
  monkeypatch.setattr(environment, "_ROOT", tmp_path)
  monkeypatch.delenv("SRIGL_COMMIT", raising=False)
  about = provenance.describe()
  assert about["git_commit"] is None and about["git_dirty"] is None
  monkeypatch.setenv("SRIGL_COMMIT", "0123abc")  # a copy that was told
  assert provenance.describe()["git_commit"] == "0123abc"


def test_the_code_is_told_by_what_is_in_its_files(monkeypatch, tmp_path):
  """Also by the names of files, and whatever folder a package is in."""
  made = []
  for i, (name, text) in enumerate([("a.py", "x = 1"), ("a.py", "x = 2"), ("b.py", "x = 1")]):
    folder = tmp_path / str(i)
    folder.mkdir()
    (folder / name).write_text(text)
    (folder / "notes.txt").write_text(str(i))
    made.append(types.SimpleNamespace(__path__=[str(folder)]))
  shutil.copytree(tmp_path / "0", tmp_path / "copy")
  made.append(types.SimpleNamespace(__path__=[str(tmp_path / "copy")]))
  digests = []
  for module in made:
    with monkeypatch.context() as patch:
      patch.setattr(provenance.importlib, "import_module", lambda name, module=module: module)
      digests.append(provenance.code())
  assert digests[0] == digests[3] and len(set(digests)) == 3


def test_a_session_cut_off_by_a_kill_is_passed_over(tmp_path):
  provenance.write_session(tmp_path, step=3)
  path = tmp_path / "sessions.jsonl"
  path.write_text(path.read_text() + '{"ste')
  with pytest.warns(UserWarning, match="sessions.jsonl is damaged: passed over are line 2"):
    assert [session["step"] for session in read_sessions(tmp_path)] == [3]
  provenance.write_session(tmp_path, step=4)
  with pytest.warns(UserWarning, match="passed over are line 2"):
    assert [session["step"] for session in read_sessions(tmp_path)] == [3, 4]
  assert read_sessions(tmp_path / "elsewhere") == []


# ---- memory ------------------------------------------------------------------------------------


def test_memory_of_each_part(tmp_path, capsys):
  train(tiny_config({"method.grad_accumulation_steps": 2}), tmp_path)
  found = read_json(tmp_path / "memory.json")
  weights, biases = 16 * 8 + 8 * 4, 8 + 4
  arrays = found["arrays"]
  assert arrays["parameters"] == 4 * (weights + biases)
  assert arrays["masks"] == arrays["explored"] == weights  # a byte each
  assert arrays["mean gradients"] == 4 * weights
  # Momentum, two counters of optax, and the method's step, key and budgets.
  assert 0 <= arrays["optimizer"] - 4 * (weights + biases) < 100
  assert arrays["data"] == (64 + 26) * (16 + 4)
  assert found["arrays_total"] == sum(arrays.values())
  assert found["step"] > 0
  assert "memory of a device: parameters 0.0 MB" in capsys.readouterr().err


@pytest.mark.slow
def test_a_resumed_run_holds_one_network(tmp_path, monkeypatch):
  """On the first device, too, where it made another one to see what a checkpoint should have."""
  config = tiny_config()
  with config.unlocked():
    config.model.kwargs.hidden = (700, 700)
  with interrupted_at(2), pytest.raises(Interrupted):
    train(config, tmp_path)
  real, on_device = TrainFn.__call__, []

  def counting(*arguments, **kwargs):
    results = jax.block_until_ready(real(*arguments, **kwargs))
    gc.collect()
    alive = [x for x in jax.live_arrays() if not x.is_deleted()]
    on_device.append(sum(x.nbytes for x in alive) - before)
    return results

  monkeypatch.setattr(TrainFn, "__call__", counting)
  gc.collect()
  before = sum(x.nbytes for x in jax.live_arrays() if not x.is_deleted())
  train(config, tmp_path)
  arrays = read_json(tmp_path / "memory.json")["arrays_total"]
  assert arrays > 4_000_000
  assert all(0.9 * arrays < number < 1.1 * arrays for number in on_device)


def test_a_dense_run_has_no_masks_in_memory(tmp_path):
  train(tiny_config({"method.name": "dense"}), tmp_path)
  found = read_json(tmp_path / "memory.json")
  assert set(found["arrays"]) == {"parameters", "optimizer", "data"}


# ---- traces ------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [(4, 5), (11, 99)])
def test_a_trace_of_some_steps(tmp_path, window):
  train(tiny_config(), tmp_path, profiling=Profiling(trace_steps=window))
  assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_no_trace_of_steps_that_are_not_done(tmp_path):
  train(tiny_config(), tmp_path, profiling=Profiling(trace_steps=(TOTAL_STEPS, TOTAL_STEPS + 1)))
  assert not (tmp_path / "profile").exists()


def test_windows():
  assert parse_steps("3:17") == (3, 17)
  assert parse_steps(None) is None
  for text in ("3", "7:3", "a:b", "3:3"):
    with pytest.raises(ValueError, match=r"--profile is .* START:STOP"):
      parse_steps(text)


# ---- model card --------------------------------------------------------------------------------


def test_model_card(tmp_path):
  results = train(tiny_config(), tmp_path)
  written = (tmp_path / "model_card.md").read_text()
  text = re.sub(" +", " ", written)
  assert "# tiny\n" in text
  assert f"mlp, {results['sparsity']:.1%} sparse by srigl, trained on synthetic." in text
  assert f"| test accuracy | {results['test_accuracy']:.2%} (best" in text
  assert "12 of 16 images" in text and "experiments.export" in text
  assert "| started | once |" in text
  names = {}
  exec(re.search(r"```python\n(.*?)```", written, re.DOTALL)[1], names)
  assert names["logits"].shape == (1, names["data"].num_classes)
  (tmp_path / "model_card.md").unlink()  # killed before it was written
  train(tiny_config(), tmp_path)
  assert (tmp_path / "model_card.md").read_text() == written


def test_the_card_of_a_dense_run_that_was_resumed(tmp_path):
  config = tiny_config({"method.name": "dense", "optimizer.accumulation_steps": 3})
  with interrupted_at(1), pytest.raises(Interrupted):
    train(config, tmp_path)
  train(config, tmp_path)
  lines = (tmp_path / "sessions.jsonl").read_text().splitlines()
  dirty = [json.dumps(json.loads(line) | {"git_dirty": True}) for line in lines]
  (tmp_path / "sessions.jsonl").write_text("\n".join(dirty))
  write_model_card(tmp_path)
  text = re.sub(" +", " ", (tmp_path / "model_card.md").read_text())
  assert "mlp, dense, trained on" in text and "experiments.export" not in text
  assert "3 of which make an optimizer step" in text
  assert "| started | 2 times |" in text and "not committed" in text


# ---- Weights & Biases --------------------------------------------------------------------------


@pytest.fixture
def wandb(monkeypatch):
  """A module in place of wandb that notes what it is told."""
  module = types.ModuleType("wandb")
  module.pages = []

  class Page:
    def __init__(self, **about):
      self.about, self.logged, self.finished = about, [], False
      module.pages.append(self)

    def log(self, values, step):
      assert not self.finished
      self.logged.append((step, values))

    def finish(self):
      self.finished = True

  module.init = Page
  monkeypatch.setitem(sys.modules, "wandb", module)
  return module


def test_wandb_is_told_what_the_files_are(tmp_path, wandb):
  config = tiny_config({"train.wandb_project": "p"})
  with interrupted_at(2), pytest.raises(Interrupted):
    train(config, tmp_path)
  train(config, tmp_path)
  first, second = wandb.pages
  assert first.about["id"] == second.about["id"]
  assert first.about["project"] == "p" and first.about["resume"] == "allow"
  assert first.about["config"]["method"]["sparsity"] == 0.5
  assert first.finished and second.finished
  steps = [step for page in wandb.pages for step, _ in page.logged]
  assert steps == sorted(steps) and steps[-1] == TOTAL_STEPS
  names = {name for page in wandb.pages for _, values in page.logged for name in values}
  expected = {"train/loss", "test/accuracy", "topology/density", "fan_in/hidden/0/kernel"}
  assert expected <= names


def test_wandb_is_not_touched_unless_asked_for(tmp_path, wandb):
  train(tiny_config(), tmp_path)
  assert not wandb.pages and not (tmp_path / "wandb.json").exists()


def test_wandb_that_is_not_installed(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(ValueError, match=r"wandb_project is 'p', but wandb is not installed: pip"):
    train(tiny_config({"train.wandb_project": "p"}), tmp_path)
