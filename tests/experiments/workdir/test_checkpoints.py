"""Checkpoints: what is kept, what comes back, and what happens to those that cannot be read."""

import collections
import contextlib
import gc
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from experiments.processes.sharding import replicate
from experiments.workdir.checkpoints import Checkpoints
from tests.experiments.tiny import full_disk

# What the reader leaves behind when it fails complains on being collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module", autouse=True)
def collected():
  yield
  gc.collect()


class State(NamedTuple):
  step: jax.Array
  masks: dict
  nested: tuple


def state_of(step):
  """One array of every type that a run's state has."""
  return State(
    jnp.asarray(step, jnp.int32),
    {"hidden/0/kernel": jnp.arange(12).reshape(3, 4) % (step + 1) == 0},
    (
      {"bias": jnp.full(3, step / 3, jnp.float32), "scale": jnp.full(2, step, jnp.bfloat16)},
      (),
      jnp.asarray([step, 2**32 - 1 - step], jnp.uint32),
    ),
  )


@contextlib.contextmanager
def opened(directory: Path, keep=100, **kwargs):
  checkpoints = Checkpoints(directory, keep=keep, **kwargs)
  try:
    yield checkpoints
  finally:
    checkpoints.close()


def save(directory: Path, accuracies: dict, keep=100, **kwargs):
  """Saves the states of some steps, given the test accuracy of each."""
  with opened(directory, keep, **kwargs) as checkpoints:
    for step, accuracy in accuracies.items():
      checkpoints.save(step, state_of(step), accuracy)


def restore(directory: Path, template=None):
  with opened(directory) as checkpoints:
    return checkpoints.restore(state_of(0) if template is None else template)


def steps_in(directory: Path):
  return sorted(int(path.name) for path in directory.iterdir())


def assert_state(state, step):
  assert jax.tree.structure(state) == jax.tree.structure(state_of(step))
  for actual, expected in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(step)), strict=True):
    assert actual.dtype == expected.dtype
    np.testing.assert_array_equal(actual, expected)


# ---- damage ------------------------------------------------------------------------------------


def data_files(directory: Path):
  is_data = lambda p: p.parent.name == "d" or re.fullmatch(r"\d+(\.\d+)*", p.name)
  files = [p for p in directory.rglob("*") if p.is_file() and is_data(p)]
  assert files
  return files


def truncate_data(directory: Path):
  for path in data_files(directory):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_data(directory: Path):
  for path in data_files(directory):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def remove_data(directory: Path):
  for path in data_files(directory):
    path.unlink()


def truncate_metadata(directory: Path):
  path = directory / "state" / "_METADATA"
  path.write_bytes(path.read_bytes()[:20])


def empty_everything(directory: Path):
  for path in directory.rglob("*"):
    if path.is_file():
      path.write_bytes(b"")


DAMAGES = [truncate_data, change_data, remove_data, truncate_metadata, empty_everything]

# ------------------------------------------------------------------------------------------------


def test_the_latest_comes_back_as_it_was(tmp_path):
  save(tmp_path, {4: None, 7: 0.9, 12: None})
  assert_state(restore(tmp_path), 12)


RESTORE_ON_ONE_DEVICE = """
import sys, pathlib, jax
from experiments.workdir.checkpoints import Checkpoints

assert jax.device_count() == 1
checkpoints = Checkpoints(pathlib.Path(sys.argv[1]), keep=1)
print(checkpoints.restore({"a": jax.numpy.zeros(3)})["a"].tolist())
"""


def test_files_for_each_array_or_few_are_read_alike(tmp_path):
  for step, few_files in enumerate((True, False, True), start=1):
    checkpoints = Checkpoints(tmp_path, keep=100, few_files=few_files)
    if step > 1:
      assert_state(checkpoints.restore(state_of(0)), step - 1)
    checkpoints.save(step, state_of(step), None)
    checkpoints.close()
  assert_state(restore(tmp_path), 3)


def test_fewer_devices_can_read_what_more_have_saved(tmp_path):
  with opened(tmp_path) as checkpoints:
    checkpoints.save(1, replicate({"a": jnp.arange(3.0)}), None)
  process = subprocess.run(
    [sys.executable, "-W", "error::UserWarning", "-c", RESTORE_ON_ONE_DEVICE, str(tmp_path)],
    cwd=Path(__file__).parents[3],
    env=os.environ | {"XLA_FLAGS": ""},
    capture_output=True,
    text=True,
  )
  assert process.stdout == "[0.0, 1.0, 2.0]\n", process.stderr


def test_nothing_to_restore(tmp_path):
  assert restore(tmp_path) is None


def test_the_latest_and_the_best_are_kept(tmp_path):
  save(tmp_path, {1: 0.2, 2: 0.8, 3: 0.4, 4: None, 5: 0.6, 6: None, 7: 0.1}, keep=2)
  assert steps_in(tmp_path) == [2, 6, 7]
  # Also after the directory was opened anew.
  save(tmp_path, {8: 0.7, 9: None, 10: 0.5}, keep=2)
  assert steps_in(tmp_path) == [2, 9, 10]
  save(tmp_path, {11: 0.9, 12: 0.3, 13: 0.3}, keep=2)
  assert steps_in(tmp_path) == [11, 12, 13]


def test_without_accuracies_the_latest_are_kept(tmp_path):
  save(tmp_path, dict.fromkeys(range(1, 6)), keep=2)
  assert steps_in(tmp_path) == [4, 5]


def test_saving_a_step_again_changes_nothing(tmp_path):
  save(tmp_path, {3: None})
  with opened(tmp_path) as checkpoints:
    checkpoints.save(3, state_of(4), None)
  assert_state(restore(tmp_path), 3)


def test_an_earlier_step_is_refused(tmp_path):
  save(tmp_path, {3: None})
  with opened(tmp_path) as checkpoints, pytest.raises(RuntimeError, match=r"step 2 was not saved"):
    checkpoints.save(2, state_of(2), None)


def test_saving_takes_a_copy(tmp_path):
  """The training step donates the state's memory while it is still being written."""
  advance = jax.jit(lambda x: x + 1, donate_argnums=0)
  state = {"a": jnp.zeros((1000, 1000))}
  with opened(tmp_path) as checkpoints:
    for step in range(1, 4):
      checkpoints.save(step, state, None)
      for _ in range(20):
        state = {"a": advance(state["a"])}
    checkpoints.wait()
  assert np.unique(restore(tmp_path, {"a": jnp.zeros((1000, 1000))})["a"]) == [40]


@pytest.mark.parametrize(
  ("damage", "few_files"),
  [*((damage, True) for damage in DAMAGES), (change_data, False), (remove_data, False)],
)
def test_an_unreadable_checkpoint_gives_way_to_the_one_before(tmp_path, damage, few_files):
  save(tmp_path, {1: None, 2: None, 3: None}, few_files=few_files)
  damage(tmp_path / "3")
  with pytest.warns(UserWarning, match=r"step 3 in .* cannot be read .*; trying the one before"):
    state = restore(tmp_path)
  assert_state(state, 2)


def test_what_cannot_be_read_is_kept_beside(tmp_path, monkeypatch):
  """A file system that fails for a moment has damaged nothing; twice, as new ones take the step."""
  directory = tmp_path / "checkpoints"
  save(directory, {1: None, 2: None})
  read = Checkpoints._read

  def fail(self, step, template):
    if step > 1:
      raise OSError("Stale file handle")
    return read(self, step, template)

  for name in ("2", "2.1"):
    with monkeypatch.context() as patch:
      patch.setattr(Checkpoints, "_read", fail)
      with pytest.warns(UserWarning) as warned, opened(directory) as checkpoints:
        assert_state(checkpoints.restore(state_of(0)), 1)
        assert steps_in(directory) == [1]
        checkpoints.save(2, state_of(2), None)
    beside = tmp_path / "checkpoints-unreadable" / name
    assert [str(beside) in str(warning.message) for warning in warned] == [False, True]
    assert_state(restore(directory), 2)
    shutil.copytree(beside, tmp_path / name / "2")
    assert_state(restore(tmp_path / name), 2)


def noise(step):
  """A state too random to be compressed, 400 kB."""
  bits = np.random.default_rng(step).integers(0, 2**32, 100_000, np.uint32)
  return {"w": bits.view(np.float32), "mask": bits[:1000] % 2 == 0}


def save_noise(directory: Path, steps):
  with opened(directory) as checkpoints:
    for step in steps:
      checkpoints.save(step, noise(step), None)


def test_one_flipped_bit_is_noticed(tmp_path):
  """In the middle of the largest file: the reader itself would return other weights."""
  save_noise(tmp_path, (1, 2))
  largest = max(data_files(tmp_path / "2"), key=lambda path: path.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  largest.write_bytes(content)
  with pytest.warns(UserWarning, match=r"step 2 .* damaged, .*checksums: w\); trying the one be"):
    state = restore(tmp_path, noise(0))
  assert state["w"].tobytes() == noise(1)["w"].tobytes()  # also those that are not numbers
  assert steps_in(tmp_path) == [1]


def test_no_byte_can_change_unnoticed(tmp_path):
  """Wherever one is flipped: what comes back is a state that was saved, to the bit."""
  save(tmp_path, {1: None, 2: None})
  rng = np.random.default_rng(0)
  files = sorted(path for path in (tmp_path / "2").rglob("*") if path.is_file())
  for path in files:
    whole = path.read_bytes()
    for _ in range(2 if whole else 0):
      content = bytearray(whole)
      content[rng.integers(len(content))] ^= 1 << rng.integers(8)
      path.write_bytes(content)
      checkpoints = Checkpoints(tmp_path, keep=100, read_only=True)
      with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        state = checkpoints.restore(state_of(0))
      checkpoints.close()
      assert_state(state, int(state.step))
    path.write_bytes(whole)
  assert_state(restore(tmp_path), 2)


FULL = r"step {} could not be written to {} \(.*\). It takes up to 0\.4 MB; .* MB are free there"


@pytest.mark.parametrize("num_bytes", [100_000, 0])
def test_a_full_disk_is_an_error_that_leaves_the_last_good_checkpoint(tmp_path, num_bytes):
  """Whether there is room for the small files or for none, when several of them fail at once."""
  with opened(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, noise(1), None)
    checkpoints.wait()
    with full_disk(num_bytes):
      checkpoints.save(2, noise(2), None)
      with pytest.raises(OSError, match=FULL.format(2, tmp_path)):
        checkpoints.wait()
    assert steps_in(tmp_path) == [1]  # and nothing half written takes up the room
    checkpoints.save(2, noise(2), None)
  np.testing.assert_array_equal(restore(tmp_path, noise(0))["w"], noise(2)["w"])
  assert steps_in(tmp_path) == [2]


@pytest.mark.parametrize("num_bytes", [100_000, 0])
def test_a_failed_save_is_tried_again_once_with_the_next_state(tmp_path, num_bytes):
  with opened(tmp_path) as checkpoints:
    checkpoints.save(1, noise(1), None)
    checkpoints.wait()
    with full_disk(num_bytes):
      checkpoints.save(2, noise(2), None)
      with (
        pytest.warns(UserWarning, match=FULL.format(2, tmp_path) + ".* the state of step 3"),
        pytest.raises(OSError, match=FULL.format(3, tmp_path)),
      ):
        checkpoints.save(3, noise(3), None)
    checkpoints.save(4, noise(4), None)
  assert steps_in(tmp_path) == [1, 4]  # there was room again


def test_checkpoints_without_checksums_can_be_read(tmp_path):
  """Those of earlier versions."""
  save(tmp_path, {1: None})
  shutil.rmtree(tmp_path / "1" / "checksums")
  assert_state(restore(tmp_path), 1)


def test_a_run_can_save_over_and_before_unreadable_checkpoints(tmp_path):
  save(tmp_path, {1: None, 4: None, 6: None})
  truncate_data(tmp_path / "4")
  truncate_metadata(tmp_path / "6")
  with opened(tmp_path) as checkpoints, pytest.warns(UserWarning, match="cannot be read") as seen:
    assert_state(checkpoints.restore(state_of(0)), 1)
    assert len(seen) == 4  # each is named when it is read and when it is moved
    for step in (2, 4, 5):
      checkpoints.save(step, state_of(step), None)
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    assert_state(restore(tmp_path), 5)
  assert steps_in(tmp_path) == [1, 2, 4, 5]


def test_no_readable_checkpoint_is_an_error_and_nothing_is_lost(tmp_path):
  save(tmp_path, {1: None, 2: None})
  for step in "12":
    truncate_metadata(tmp_path / step)
  with (
    pytest.warns(UserWarning, match="cannot be read"),
    pytest.raises(ValueError, match=r"None of the checkpoints \[2, 1\] .* Use another --workdir"),
  ):
    restore(tmp_path)
  assert steps_in(tmp_path) == [1, 2]


@pytest.mark.parametrize(
  "template",
  [
    state_of(0)._replace(step=jnp.zeros((), jnp.float32)),
    state_of(0)._replace(masks={"hidden/0/kernel": jnp.zeros((3, 4))}),
    state_of(0)._replace(masks={"hidden/0/kernel": jnp.zeros((3, 5), bool)}),
    state_of(0)._replace(masks={"hidden/1/kernel": jnp.zeros((3, 4), bool)}),
    state_of(0)._replace(masks={}),
    state_of(0)._replace(masks=state_of(0).masks | {"head/kernel": jnp.zeros((2, 2), bool)}),
  ],
  ids=["dtype", "mask dtype", "shape", "name", "fewer", "more"],
)
def test_a_state_of_another_kind_is_refused(tmp_path, template):
  save(tmp_path, {1: None})
  with pytest.warns(UserWarning), pytest.raises(ValueError, match="can be read by this"):
    restore(tmp_path, template)


def test_a_save_cut_short_is_passed_over_and_cleaned_up(tmp_path):
  save(tmp_path, {1: None, 2: None})
  (tmp_path / "2").rename(tmp_path / "2.orbax-checkpoint-tmp")
  assert_state(restore(tmp_path), 1)
  save(tmp_path, {2: None})
  assert_state(restore(tmp_path), 2)
  assert steps_in(tmp_path) == [1, 2]


@pytest.mark.parametrize("former_names", [{"extra": "memory", "noticed": None}, {"noticed": None}])
@pytest.mark.parametrize("method", ["sr_ste", "rigl"])
def test_a_state_saved_before_fields_were_renamed_and_added(method, former_names, tmp_path):
  """`SparseState.extra` was `memory` once, and `noticed` was not there."""
  tx = {
    "sr_ste": sx.sr_ste(optax.adam(0.1)),
    "rigl": sx.rigl(optax.adam(0.1), sparsity=0.5, update_until=9),
  }[method]
  fields = [name for name in sx.SparseState._fields if former_names.get(name, name)]
  former = collections.namedtuple("SparseState", [former_names.get(name, name) for name in fields])
  plain = lambda x: dict(x) if isinstance(x, dict) else x  # dicts by path once had no type
  state = tx.init({"w": jnp.arange(32.0).reshape(8, 4)})
  with opened(tmp_path) as checkpoints:
    stored = former(*(plain(getattr(state, name)) for name in fields))
    checkpoints.save(1, (stored, {"b": jnp.ones(3)}), None)
    checkpoints.wait()
    restored = checkpoints.restore((jax.tree.map(jnp.zeros_like, state), {"b": jnp.zeros(3)}))
  assert isinstance(restored[0], sx.SparseState)
  for path, want in jax.tree_util.tree_leaves_with_path((state, {"b": jnp.ones(3)})):
    got = dict(jax.tree_util.tree_leaves_with_path(restored))[path]
    np.testing.assert_array_equal(got, want)


def test_a_state_saved_before_networks_acted(tmp_path):
  """A run's state had no `experience`, which is empty of all others."""
  former = collections.namedtuple("TrainState", ["step", "params"])
  state = collections.namedtuple("TrainState", ["step", "params", "experience"])
  with opened(tmp_path) as checkpoints:
    checkpoints.save(1, former(jnp.ones(()), {"w": jnp.ones(3)}), None)
    checkpoints.wait()
    restored = checkpoints.restore(state(jnp.zeros(()), {"w": jnp.zeros(3)}, ()))
  assert restored.experience == () and restored.step == 1
  np.testing.assert_array_equal(restored.params["w"], np.ones(3))
