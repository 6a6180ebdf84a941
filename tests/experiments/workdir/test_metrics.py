"""What a run writes down, and how it reads after interruptions."""

import importlib.metadata
import json
import struct
import threading

import optax
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

import srigl_jax as sx
from experiments.common.environment import environment
from experiments.workdir.metrics import MetricsWriter, read_metrics
from tests import helpers
from tests.experiments.tiny import full_disk


def record(workdir, steps, *, start=0, loss=1.0):
  writer = MetricsWriter(workdir, step=start)
  for step in steps:
    writer.write("train", step, loss=loss + step, accuracy=0.5, seconds=1.0)
  writer.close()


def events(workdir):
  """TensorBoard's events: each is 8 bytes of length, 4 of checksum, itself, 4 of checksum."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir(), key=lambda p: p.stat().st_mtime_ns):
    content, position = path.read_bytes(), 0
    while position < len(content):
      (size,) = struct.unpack_from("<Q", content, position)
      found.append(Event.FromString(content[position + 12 : position + 12 + size]))
      position += 16 + size
  return found


def scalars_on_the_board(workdir):
  """`{(name, step): value}` as TensorBoard shows it: a restart hides what came at or after it."""
  shown = {}
  for event in events(workdir):
    if event.session_log.status == SessionLog.START:
      shown = {key: value for key, value in shown.items() if key[1] < event.step}
    for value in event.summary.value:
      shown[value.tag, event.step] = value.simple_value
  return shown


def test_records_come_back_by_kind_and_in_order(tmp_path):
  writer = MetricsWriter(tmp_path / "new", step=0)
  writer.write("train", 2, loss=0.5, accuracy=0.25, seconds=1.5)
  writer.write("test", 2, loss=0.75, accuracy=0.5)
  writer.write("train", 4, loss=0.25, accuracy=0.5, seconds=1)
  writer.close()
  assert read_metrics(tmp_path / "new") == {
    "train": [
      {"kind": "train", "step": 2, "loss": 0.5, "accuracy": 0.25, "seconds": 1.5},
      {"kind": "train", "step": 4, "loss": 0.25, "accuracy": 0.5, "seconds": 1},
    ],
    "test": [{"kind": "test", "step": 2, "loss": 0.75, "accuracy": 0.5}],
    "topology": [],
  }


def test_a_record_is_on_disk_at_once(tmp_path):
  writer = MetricsWriter(tmp_path, step=0)
  writer.write("train", 1, loss=0.5, accuracy=0.5, seconds=1.0)
  assert len(read_metrics(tmp_path)["train"]) == 1
  writer.close()


def test_nothing_recorded(tmp_path):
  assert read_metrics(tmp_path) == {"train": [], "test": [], "topology": []}


def test_what_is_recorded_again_replaces_what_was(tmp_path):
  record(tmp_path, [1, 2, 3], loss=1.0)
  record(tmp_path, [2, 3, 4], start=1, loss=10.0)
  losses = [(r["step"], r["loss"]) for r in read_metrics(tmp_path)["train"]]
  assert losses == [(1, 2.0), (2, 12.0), (3, 13.0), (4, 14.0)]


@pytest.mark.parametrize("cut", [1, 2, 10, 60])
def test_a_line_cut_off_costs_that_line_only(tmp_path, cut):
  record(tmp_path, [1, 2])
  path = tmp_path / "metrics.jsonl"
  whole = path.read_bytes()
  path.write_bytes(whole[:-cut])
  before = 2 if cut == 1 else 1  # of the line's end only
  assert [r["step"] for r in read_metrics(tmp_path)["train"]] == [1, 2][:before]
  record(tmp_path, [3, 4], start=2)
  assert [r["step"] for r in read_metrics(tmp_path)["train"]] == [*[1, 2][:before], 3, 4]
  record(tmp_path, [5], start=4)
  assert path.read_text().count("\n\n") == 0


def test_tensorboard_shows_every_step_once(tmp_path):
  """Of an interrupted run: what was recorded after its last checkpoint is hidden, no more."""
  record(tmp_path, [2, 4, 6], loss=1.0)
  assert scalars_on_the_board(tmp_path)["train/loss", 4] == 5.0
  record(tmp_path, [6, 8], start=4, loss=10.0)
  assert {k[1]: v for k, v in scalars_on_the_board(tmp_path).items() if k[0] == "train/loss"} == {
    2: 3.0,
    4: 5.0,
    6: 16.0,
    8: 18.0,
  }


def test_a_full_disk_neither_stops_nor_costs_records(tmp_path):
  """They wait in memory, TensorBoard's too, and all are there once there is room."""
  writer = MetricsWriter(tmp_path, step=0)
  measured = {"accuracy": 0.5, "seconds": 1.0}
  writer.write("train", 1, loss=1.0, **measured)
  with full_disk(200), pytest.warns(UserWarning) as warned:
    writing = threading.Thread(
      target=lambda: [
        writer.write("train", step, loss=float(step), **measured) for step in range(2, 99)
      ],
      daemon=True,
    )
    writing.start()
    writing.join(20)
    assert not writing.is_alive()
    with pytest.raises(OSError, match=r"jsonl cannot be written \(File too large\); .* MB"):
      writer.settle()
  # One for each file, not one for each record.
  assert sum("cannot be written" in str(warning.message) for warning in warned) == 2
  assert len(read_metrics(tmp_path)["train"]) < 10
  writer.write("train", 99, loss=99.0, **measured)
  writer.settle()
  assert [r["loss"] for r in read_metrics(tmp_path)["train"]] == list(range(1, 100))
  writer.close()
  board = scalars_on_the_board(tmp_path)
  assert [board["train/loss", step] for step in range(1, 100)] == list(range(1, 100))


def test_records_that_a_full_disk_has_cost_are_spoken_of(tmp_path):
  writer = MetricsWriter(tmp_path, step=0)
  with full_disk(10), pytest.warns(UserWarning) as warned:
    writer.write("train", 1, loss=1.0)
    writer.close()
  assert "metrics.jsonl cannot be written" in str(warned[-2].message)
  assert "bytes are lost" in str(warned[-2].message)


def test_topology_by_layer(tmp_path):
  params = helpers.params()
  tx = sx.static_sparse(optax.sgd(0.1), sparsity=0.5)
  state = tx.init(params)
  masks = state.masks
  summary = sx.summarize(sx.apply_masks(params, masks), masks, explored=state.explored)
  writer = MetricsWriter(tmp_path, step=0)
  writer.write_topology(3, summary, last_update=2)
  writer.close()
  (found,) = read_metrics(tmp_path)["topology"]
  assert found["step"] == 3
  assert found["density"] == pytest.approx(summary.density)
  assert found["layers"].keys() == masks.keys()
  board = scalars_on_the_board(tmp_path)
  assert board["topology/density", 3] == pytest.approx(summary.density)
  for path, mask in masks.items():
    fan_in = helpers.neuron_fan_ins(mask, path).max()
    assert found["layers"][path]["density"] == pytest.approx(float(mask.mean()))
    assert board[f"fan_in/{path}", 3] == found["layers"][path]["fan_in"] == fan_in


def test_the_runs_events_are_those_of_its_records(finished_run):
  workdir, _ = finished_run
  board = scalars_on_the_board(workdir)
  for kind in ("train", "test"):
    for line in read_metrics(workdir)[kind]:
      assert board[f"{kind}/loss", line["step"]] == pytest.approx(line["loss"])
      assert board[f"{kind}/accuracy", line["step"]] == pytest.approx(line["accuracy"])
  for line in read_metrics(workdir)["topology"]:
    assert board["topology/itop_rate", line["step"]] == pytest.approx(line["itop_rate"])


def test_environment_names_versions_and_machine():
  found = environment()
  assert json.loads(json.dumps(found)) == found
  assert {"python", "jax", "flax", "optax", "device", "processor", "cpu_cores"} <= found.keys()
  assert found["device"].startswith("8 ×")


def test_environment_names_what_was_set_that_changes_speed(monkeypatch):
  environment()  # JAX has read its flags, of which it may not know the next one
  monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
  monkeypatch.setenv("NPROC", "")
  assert environment()["XLA_FLAGS"] == "--xla_a=1" and "NPROC" not in environment()


def test_environment_of_a_checkout_goes_by_what_is_imported(monkeypatch):
  monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.0")
  found = environment()
  assert found["srigl-jax"] == sx.__version__ != found["jax"] == "1.0"
