"""A run of a second or two, and a look at what it leaves behind."""

import contextlib
import resource
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

from configs import base
from experiments import models
from experiments.models import FunctionalModel

STEPS_PER_EPOCH = 4
TOTAL_STEPS = 12


def tiny_config(changes: Mapping[str, Any] | None = None) -> ConfigDict:
  """SRigL on 64 images of 4 classes: 12 steps, topology updates after 2, 4, 6 and 8 of them.

  Args:
    changes: other values by dotted name, such as `{"method.name": "rigl"}` (or a preset's name).
  """
  changes = dict(changes or {})
  method = changes.pop("method.name", "srigl")
  is_known = method in base.preset_names()
  config = base.get_config(method if is_known else "srigl")
  config.name = "tiny"
  config.data.name = "synthetic"
  config.data.batch_size = 16
  config.data.kwargs = ConfigDict(
    {"image_shape": (4, 4, 1), "num_classes": 4, "num_train": 64, "num_test": 26}
  )
  config.model.kwargs = ConfigDict({"hidden": (8,)})
  config.method.sparsity = 0.5
  config.method.update_every_steps = 2
  config.method.drop_fraction = 0.6
  base.set_gamma_sal(config, 0.9)  # so that neurons are ablated
  config.train.total_epochs = TOTAL_STEPS / STEPS_PER_EPOCH
  config.train.log_every_steps = 3
  config.train.eval_batch_size = 7
  if not is_known:
    config.method.name = method
  config.lock()
  config.update_from_flattened_dict(changes)
  return config


def abstract_model(name: str, **kwargs: Any) -> FunctionalModel:
  """A model as `models.init` gives it, with the shapes of its arrays in their place."""
  kept = []

  def build(key):
    kept.append(models.init(name, key=key, **kwargs))
    return kept[0].params, kept[0].model_state

  params, model_state = jax.eval_shape(build, jax.random.key(0))
  return FunctionalModel(kept[0].apply, params, model_state)


@contextlib.contextmanager
def devices(count: int) -> Iterator[None]:
  """Lets the harness see only the first of the virtual devices."""
  these = jax.devices()[:count]
  assert len(these) == count
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(jax, "local_devices", lambda: these)
    patch.setattr(jax, "local_device_count", lambda: count)
    yield


@contextlib.contextmanager
def quick_compiler() -> Iterator[None]:
  """Programs that run a few times only, where compiling them well would take most of the time."""
  name = "jax_disable_most_optimizations"
  before = jax.config.read(name)
  jax.config.update(name, True)
  try:
    yield
  finally:
    jax.config.update(name, before)


@contextlib.contextmanager
def interrupted_at(poll: int) -> Iterator[None]:
  """Lets runs find that SIGTERM has come when they look for the `poll`-th time, from 1."""
  times = 0

  @contextlib.contextmanager
  def watch():
    def look():
      nonlocal times
      times += 1
      return signal.SIGTERM.value if times >= poll else 0

    yield look

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr("experiments.training.loop.watch_signals", watch)
    yield


@contextlib.contextmanager
def full_disk(num_bytes: int = 100_000) -> Iterator[None]:
  """Writes past this size of a file fail, as they do for want of room; needs no rights."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checkpoint_steps(workdir: Path) -> list[int]:
  """The steps of the checkpoints of a run."""
  return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def read_checkpoint(workdir: Path, step: int | None = None) -> dict[str, np.ndarray]:
  """The arrays of a checkpoint, the latest by default, by path; the harness takes no part."""
  step = checkpoint_steps(workdir)[-1] if step is None else step
  path = (workdir / "checkpoints" / str(step) / "state").absolute()
  with ocp.StandardCheckpointer() as checkpointer:
    state = checkpointer.restore(path)
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def part(checkpoint: Mapping[str, np.ndarray], field: str) -> dict[str, np.ndarray]:
  """The dict of arrays that is the only field of this name in a state, by its own keys.

  Args:
    checkpoint: from `read_checkpoint`.
    field: such as `"masks"` or `"params"`.
  """
  start = f"['{field}']['"
  return {
    path.split(start, 1)[1].removesuffix("']"): leaf
    for path, leaf in checkpoint.items()
    if start in path
  }


def assert_same(actual: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
  """Holds two checkpoints to the same paths, types and bits."""
  assert actual.keys() == expected.keys()
  for path, array in expected.items():
    assert actual[path].dtype == array.dtype, path
    np.testing.assert_array_equal(actual[path], array, err_msg=path)
