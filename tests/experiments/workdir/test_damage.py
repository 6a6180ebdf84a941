"""Work directories with damaged, lost and foreign files: mended or named, never a traceback."""

import json
import os
import shutil

import pytest

from experiments.common.files import Appender, locked, read_json, write_json
from experiments.reports.model_card import write_model_card
from experiments.reports.run_report import write_run_report
from experiments.sweeps.failures import read_failure
from experiments.sweeps.spec import read_record, write_record
from experiments.training import loop
from experiments.training.load_run import load_run
from experiments.training.loop import train
from experiments.workdir.metrics import read_metrics
from experiments.workdir.owner import check_owner
from experiments.workdir.provenance import read_sessions
from tests.experiments.sweeps.test_sweep import tiny_sweep
from tests.experiments.tiny import TOTAL_STEPS, tiny_config

pytestmark = pytest.mark.usefixtures("one_device")

# Lines and files that are no record of any kind.
NOTHING = {
  "no text": b"\xff\xfe{}",
  "cut off": b'{"kind": "train", "st',
  "number": b"5",
  "null": b"null",
  "list": b"[1, 2]",
  "object": b"{}",
  "kind only": b'{"kind": "train"}',
  "no kind": b'{"step": 3}',
  "odd kind": b'{"kind": ["train"], "step": 3, "loss": 1, "accuracy": 1, "seconds": 1}',
  "odd step": b'{"kind": "train", "step": "3", "loss": 1, "accuracy": 1, "seconds": 1}',
  "odd loss": b'{"kind": "train", "step": 3, "loss": "1", "accuracy": 1, "seconds": 1}',
  "flipped key": b'{"kind": "test", "step": 3, "losr": 1, "accuracy": 1}',
  "odd layers": b'{"kind": "topology", "step": 3, "last_update": 2, "density": 1, '
  b'"active_neurons": 1, "itop_rate": 1, "layers": {"a": 5}}',
  "deep": b"[" * 100_000,
  "zeros": b"\0" * 100,
}


@pytest.fixture
def copied_run(finished_run, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "write_run_report", lambda workdir: None)
  workdir = tmp_path / "run"
  shutil.copytree(finished_run[0], workdir, ignore=shutil.ignore_patterns("figures", ".compiled"))
  return workdir


def without_clocks(results):
  return {k: v for k, v in results.items() if k not in ("train_seconds", "environment")}


@pytest.mark.parametrize("damage", NOTHING)
@pytest.mark.parametrize(
  "name, read",
  [
    ("metrics.jsonl", read_metrics),
    ("sessions.jsonl", read_sessions),
  ],
)
def test_a_damaged_line_costs_that_line_and_is_named(finished_run, tmp_path, name, read, damage):
  lines = (finished_run[0] / name).read_bytes().splitlines()
  expected = read(finished_run[0])
  (tmp_path / name).write_bytes(b"\n".join([lines[0], NOTHING[damage], *lines[1:]]) + b"\n")
  with pytest.warns(UserWarning, match=rf"{name} is damaged: passed over are line 2 \("):
    assert read(tmp_path) == expected


def test_a_run_whose_records_are_damaged_comes_to_its_end(copied_run, finished_run):
  """The last test among them, which is made again: an earlier one is not the result."""
  lines = (copied_run / "metrics.jsonl").read_bytes().splitlines()
  last = json.dumps({"kind": "test", "step": TOTAL_STEPS})[:-1].encode()
  (i,) = (i for i, line in enumerate(lines) if line.startswith(last))
  lines[i] = lines[i].replace(b'"', b"\xa2", 1)
  (copied_run / "metrics.jsonl").write_bytes(b"\n".join([*lines, b"5"]))
  (copied_run / "sessions.jsonl").write_bytes(b'\xff\n{"step": 0}\n')
  (copied_run / "results.json").write_text("{}")
  (copied_run / "model_card.md").unlink()
  with pytest.warns(UserWarning) as warned:
    results = train(tiny_config(), copied_run)
  said = " ".join(str(w.message) for w in warned)
  assert f"metrics.jsonl is damaged: passed over are line {i + 1} (" in said
  assert "sessions.jsonl is damaged: passed over are line 1 (" in said
  assert "results.json is damaged (it has no name" in said
  assert (copied_run / "results.json.damaged").read_text() == "{}"
  assert without_clocks(results) == without_clocks(finished_run[1])
  assert (copied_run / "model_card.md").exists()


def test_a_run_whose_records_are_lost_comes_to_its_end(copied_run, finished_run):
  (copied_run / "metrics.jsonl").unlink()
  (copied_run / "results.json").unlink()
  results = train(tiny_config(), copied_run)
  assert results["test_accuracy"] == finished_run[1]["test_accuracy"]
  assert f"{results['test_accuracy']:.2%}" in write_run_report(copied_run).read_text()


@pytest.mark.parametrize("damage", NOTHING)
def test_damaged_files_are_named(finished_run, tmp_path, damage):
  for name in ("config.json", "results.json", "metrics.jsonl"):
    shutil.copy(finished_run[0] / name, tmp_path / name)
  for name, read in {
    "results.json": (write_run_report, write_model_card),
    "config.json": (write_run_report, write_model_card, load_run),
  }.items():
    (tmp_path / name).write_bytes(NOTHING[damage])
    for reader in read:
      with pytest.raises(ValueError, match=rf"{name} is damaged \("):
        reader(tmp_path)


@pytest.mark.parametrize("damage", NOTHING)
def test_damaged_files_of_a_sweep(tmp_path, damage):
  (tmp_path / "sweep.json").write_bytes(NOTHING[damage])
  with pytest.raises(ValueError, match=r"sweep\.json is damaged \("):
    read_record(tmp_path)
  with pytest.warns(UserWarning, match=r"sweep\.json is damaged .*now .*sweep\.json\.damaged"):
    write_record(tiny_sweep(), tmp_path, "command")
  assert read_record(tmp_path)["name"] == "A sweep"
  (tmp_path / "failed.json").write_bytes(NOTHING[damage])
  failure = read_failure(tmp_path)
  assert failure.killed and "failed.json is damaged" in failure.error


@pytest.mark.parametrize("what", ["lost", "damaged", "another's", "empty"])
@pytest.mark.parametrize("is_finished", [False, True])
def test_a_run_belongs_to_the_config_of_its_checkpoint(copied_run, what, is_finished):
  path, other = copied_run / "config.json", tiny_config({"seed": 7, "method.sparsity": 0.75})
  if not is_finished:
    (copied_run / "results.json").unlink()
  if what == "lost":
    path.unlink()
  elif what == "another's":
    write_json(path, other.to_dict())
  else:
    path.write_text("{}" if what == "empty" else '{"name"')
  said = r"another config \(method\.sparsity: 0\.5 there, 0\.75 here; seed: .*checkpoint of step 12"
  with pytest.raises(ValueError, match=said):
    check_owner(copied_run, other)
  with pytest.raises(ValueError, match=said):
    train(other, copied_run)
  if what == "lost":
    train(tiny_config(), copied_run)
    assert read_json(path)["method"]["sparsity"] == 0.5


def test_checkpoints_that_do_not_say_whose_they_are(copied_run):
  """Of an earlier version: the config is taken from its file, and has to be there."""
  for path in (copied_run / "checkpoints").glob("*/config"):
    shutil.rmtree(path)
  check_owner(copied_run, tiny_config())
  (copied_run / "config.json").unlink()
  with pytest.raises(ValueError, match=r"but no config\.json"):
    check_owner(copied_run, tiny_config())


def test_the_config_of_a_checkpoint_that_is_damaged(copied_run):
  """Those before it are asked then."""
  newest = copied_run / "checkpoints" / str(TOTAL_STEPS) / "config" / "config.json"
  newest.write_text("{}")
  (copied_run / "config.json").unlink()
  with (
    pytest.warns(UserWarning, match=r"config\.json is damaged"),
    pytest.raises(ValueError, match=r"another config \(seed: "),
  ):
    check_owner(copied_run, tiny_config({"seed": 7}))


# ---- links and pipes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "sessions.jsonl"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe"])
def test_files_to_write_to_are_the_runs_own(tmp_path, name, kind):
  theirs, path = tmp_path / "theirs", tmp_path / "run" / name
  path.parent.mkdir()
  if kind == "pipe":
    os.mkfifo(path)
  else:
    path.symlink_to(theirs)
  if kind == "link":
    theirs.write_text("precious")

  def use():
    if name == ".lock":
      with locked(path.parent):
        pass
    else:
      Appender(path, lines=True).close()

  with pytest.raises(ValueError, match=rf"{name} is (a symbolic link|no regular file).*move it"):
    use()
  assert not theirs.exists() or theirs.read_text() == "precious"


def test_a_lock_that_holds_something_else_is_left_as_it_is(tmp_path):
  theirs = tmp_path / "theirs"
  theirs.write_text("precious")
  (tmp_path / "run").mkdir()
  os.link(theirs, tmp_path / "run" / ".lock")
  with locked(tmp_path / "run"):
    pass
  assert theirs.read_text() == "precious"


def test_a_holder_with_a_shorter_name_replaces_a_longer_one(tmp_path):
  (tmp_path / ".lock").write_text(f"process {10**15} on {'x' * 60}\n")
  with locked(tmp_path):
    assert (tmp_path / ".lock").read_text().split()[:2] == ["process", str(os.getpid())]


def test_a_file_beside_another_is_no_way_out(tmp_path):
  theirs = tmp_path / "theirs"
  theirs.write_text("precious")
  (tmp_path / f".value.json.{os.getpid()}.tmp").symlink_to(theirs)
  write_json(tmp_path / "value.json", 1)
  assert theirs.read_text() == "precious" and read_json(tmp_path / "value.json") == 1


def test_a_pipe_is_not_waited_for(tmp_path):
  os.mkfifo(tmp_path / "metrics.jsonl")
  os.mkfifo(tmp_path / "config.json")
  with pytest.raises(ValueError, match=r"metrics\.jsonl is no regular file"):
    read_metrics(tmp_path)
  with pytest.raises(ValueError, match=r"config\.json is .*no regular file"):
    read_json(tmp_path / "config.json")


def test_of_a_large_file_the_last_byte_is_read(tmp_path, monkeypatch):
  path = tmp_path / "metrics.jsonl"
  with path.open("wb") as file:
    file.truncate(2**40)  # sparse: reading it would end the machine
  appender = Appender(path, lines=True)
  appender.write(b"5\n")
  appender.close()
  with path.open("rb") as file:
    file.seek(2**40)
    assert file.read() == b"\n5\n"
