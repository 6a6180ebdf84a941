"""Streams: every batch a function of seed and step; prefetching; one view of all data sets."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import data
from experiments.data.prefetch import Prefetch
from experiments.data.stream import ImageStream, ProcessShard
from experiments.processes.sharding import put_on_devices
from tests.experiments.tiny import devices
from tests.helpers import mostly_slow


@dataclasses.dataclass(frozen=True)
class Numbered:
  """Records of 2 × 2 pixels: the record's number and a random byte drawn for it."""

  length: int
  damaged: int = -1

  def __len__(self):
    return self.length

  def load(self, record, draw):
    if record == self.damaged:
      raise ValueError(f"Record {record} is damaged.")
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0, :2] = divmod(record, 256)
    image[1, 1, 2] = 7 if draw is None else int(draw() * 256)
    return image, record % 10


def stream(num_train=100, num_test=20, *, num_workers=0, damaged=-1):
  return ImageStream(
    name="numbered",
    train=Numbered(num_train, damaged),
    test=Numbered(num_test),
    num_classes=10,
    image_shape=(2, 2, 3),
    preprocess_fn=lambda images: images.astype(jnp.float32),
    augment_fn=lambda key, images, labels: (
      images.astype(jnp.float32) + jax.random.uniform(key),
      jax.nn.one_hot(labels, 10),
    ),
    num_workers=num_workers,
  )


def records(batch):
  """The numbers of the records in a batch."""
  return batch["image"][:, 0, 0, 0].astype(int) * 256 + batch["image"][:, 0, 0, 1]


def join(batches):
  """Shares of a batch put together again."""
  return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def assert_same_batches(got, want):
  for a, b in zip(got, want, strict=True):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])


# ---- the order of training ---------------------------------------------------------------------


@hypothesis.given(
  num_train=st.integers(1, 300),
  per_process=st.integers(1, 40),
  process_count=st.integers(1, 8),
  seed=st.integers(0, 2**32 - 1),
  epoch=st.integers(0, 3),
)
@hypothesis.settings(max_examples=60)
def test_processes_share_each_epoch(num_train, per_process, process_count, seed, epoch):
  """Their parts are disjoint and make whole batches, the ones that a single process has."""
  batch_size = per_process * process_count
  hypothesis.assume(batch_size <= num_train)
  images = stream(num_train)
  steps_per_epoch = num_train // batch_size
  steps = epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch
  kwargs = {"batch_size": batch_size, "seed": seed}
  whole = list(images.train_batches(*steps, **kwargs, shard=ProcessShard(0, 1)))
  parts = [
    list(images.train_batches(*steps, **kwargs, shard=ProcessShard(i, process_count)))
    for i in range(process_count)
  ]
  assert_same_batches([join(part) for part in zip(*parts, strict=True)], whole)
  seen = np.concatenate([records(batch) for batch in whole])
  expected = data.epoch_order(num_train, seed, epoch)[: steps_per_epoch * batch_size]
  np.testing.assert_array_equal(seen, expected)
  assert len(set(seen)) == len(seen) == num_train - num_train % batch_size
  for batch in whole:
    np.testing.assert_array_equal(batch["label"], records(batch) % 10)


@hypothesis.given(start=st.integers(0, 40), count=st.integers(0, 12))
@hypothesis.settings(max_examples=30)
def test_a_run_goes_on_at_any_step(start, count):
  images = stream(100)
  whole = list(images.train_batches(0, 60, batch_size=30, seed=3))
  part = list(images.train_batches(start, start + count, batch_size=30, seed=3))
  assert_same_batches(part, whole[start : start + count])


def test_batches_have_shapes_and_types():
  (batch,) = stream(500).train_batches(0, 1, batch_size=70, seed=0)
  assert batch["image"].shape == (70, 2, 2, 3) and batch["image"].dtype == np.uint8
  assert batch["label"].shape == (70,) and batch["label"].dtype == np.int32


def test_an_image_is_augmented_anew_in_each_epoch_and_otherwise_alike():
  def augmented(seed, batch_size):
    """The random byte of each record in the first three epochs."""
    steps_per_epoch = 60 // batch_size
    drawn = np.zeros((3, 60), int)
    batches = stream(60).train_batches(0, 3 * steps_per_epoch, batch_size=batch_size, seed=seed)
    for step, batch in enumerate(batches):
      drawn[step // steps_per_epoch, records(batch)] = batch["image"][:, 1, 1, 2]
    return drawn

  drawn = augmented(0, 20)
  np.testing.assert_array_equal(drawn, augmented(0, 30))  # by record and epoch, not by batch
  for other in (drawn[1], drawn[2], augmented(1, 20)[0]):
    assert np.mean(drawn[0] != other) > 0.9


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"batch_size": 101}, "between 1 and the number of training examples, 100, got 101"),
    ({"start": -1}, "step=-1"),
    ({"start": 5, "stop": 3}, "num_steps=-2"),
    ({"seed": -1}, "seed must lie in"),
    ({"shard": ProcessShard(0, 3)}, "batch size is 10; it must be .* multiple of the number .*, 3"),
    ({"shard": ProcessShard(2, 2)}, r"process_index is 2; with process_count=2 .* 0\.\.1"),
  ],
)
def test_train_batches_rejects(kwargs, message):
  valid = {"start": 0, "stop": 2, "batch_size": 10, "seed": 0}
  with pytest.raises(ValueError, match=message):  # at once, not when the first batch is wanted
    stream().train_batches(**(valid | kwargs))


# ---- testing -----------------------------------------------------------------------------------


@hypothesis.given(
  num_test=st.integers(1, 300), per_process=st.integers(1, 40), process_count=st.integers(1, 8)
)
@hypothesis.settings(max_examples=60)
def test_every_test_image_counts_once(num_test, per_process, process_count):
  batch_size = per_process * process_count
  parts = [
    list(
      stream(1, num_test).test_batches(batch_size=batch_size, shard=ProcessShard(i, process_count))
    )
    for i in range(process_count)
  ]
  assert {len(part) for part in parts} == {-(-num_test // batch_size)}  # nobody waits for others
  batches = [join(part) for part in zip(*parts, strict=True)]
  assert all(batch["image"].shape == (batch_size, 2, 2, 3) for batch in batches)
  seen = np.concatenate([records(batch)[batch["valid"]] for batch in batches])
  np.testing.assert_array_equal(seen, np.arange(num_test))
  assert all((batch["image"][batch["valid"]][:, 1, 1, 2] == 7).all() for batch in batches)
  assert not any(batch["image"][~batch["valid"]].any() for batch in batches)


def test_test_batches_rejects():
  with pytest.raises(ValueError, match="batch size is 0"):
    stream().test_batches(batch_size=0)


# ---- worker processes --------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", mostly_slow((1, 2), {2}))
def test_workers_change_nothing(num_workers):
  """Batches of three pieces, the last one smaller, so that workers take turns within them."""
  steps, kwargs = (7, 13), {"batch_size": 80, "seed": 5}
  want = list(stream(300).train_batches(*steps, **kwargs))
  got = list(stream(300, num_workers=num_workers).train_batches(*steps, **kwargs))
  assert_same_batches(got, want)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_steps_have_no_batches(num_workers):
  images = stream(num_workers=num_workers)
  assert list(images.train_batches(7, 7, batch_size=10, seed=0)) == []


def test_workers_stop_with_the_iterator_and_pass_errors_on():
  images = stream(64, num_workers=2, damaged=37)
  batches = images.train_batches(0, 10**6, batch_size=16, seed=0)
  with contextlib.closing(batches), pytest.raises(ValueError, match=r"^Record 37 is damaged"):
    for _ in range(5):
      next(batches)
  assert not [p for p in multiprocessing.active_children() if "grain" in p.name]


@pytest.mark.slow
def test_workers_do_not_hear_the_signals_that_stop_training():
  """A terminal or scheduler sends them to everybody; training wants to finish its step first."""
  steps, kwargs = (0, 60), {"batch_size": 64, "seed": 0}
  want = list(stream(300).train_batches(*steps, **kwargs))
  batches = stream(300, num_workers=2).train_batches(*steps, **kwargs)
  got = [next(batches)]
  workers = [p for p in multiprocessing.active_children() if "grain" in p.name]
  assert workers
  for worker, number in itertools.product(workers, (signal.SIGINT, signal.SIGTERM)):
    os.kill(worker.pid, number)
  assert_same_batches(got + list(batches), want)
  # In this process they are heard.
  assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}


def test_a_worker_that_dies_is_reported():
  """As the kernel ends one when memory runs out; nobody waits for it for ever."""
  batches = stream(300, num_workers=2).train_batches(0, 10**6, batch_size=64, seed=0)
  next(batches)
  workers = [p for p in multiprocessing.active_children() if "grain" in p.name]
  os.kill(workers[0].pid, signal.SIGKILL)
  with pytest.raises(RuntimeError, match=r"has died: .* exit code -9.* --shm-size") as error:
    for _ in range(100):
      next(batches)
  assert "num_workers" in str(error.value)


_KILLED = """
import multiprocessing, os, signal
from tests.experiments.data.test_stream import stream
if __name__ == "__main__":
  batches = stream(300, num_workers=2).train_batches(0, 10**6, batch_size=64, seed=0)
  next(batches), next(batches)
  print(*(p.pid for p in multiprocessing.active_children() if "grain" in p.name), flush=True)
  os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_workers_end_with_a_process_that_is_killed(tmp_path):
  script = tmp_path / "killed.py"
  script.write_text(_KILLED)
  done = subprocess.run(
    [sys.executable, str(script)],
    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    stdout=subprocess.PIPE,
    text=True,
    check=False,
  )
  assert done.returncode == -signal.SIGKILL
  workers = [int(pid) for pid in done.stdout.split()]
  assert len(workers) == 2
  deadline = time.monotonic() + 60
  while any(is_running(pid) for pid in workers):
    assert time.monotonic() < deadline
    time.sleep(0.1)


def is_running(pid):
  try:
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
  except OSError:
    return False
  return state != "Z"


# ---- prefetching -------------------------------------------------------------------------------


def prefetch_threads():
  return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


class Source:
  """Counts to a number, and knows how far it got and whether it was closed."""

  def __init__(self, stop, error=None):
    self.taken, self.closed, self._stop, self._error = 0, False, stop, error

  def __iter__(self):
    return self

  def __next__(self):
    if self.taken == self._stop:
      raise self._error or StopIteration
    self.taken += 1
    return self.taken

  def close(self):
    self.closed = True


def test_items_come_in_order_and_transferred():
  source = Source(20)
  with Prefetch(source, lambda x: x * x) as items:
    assert list(items) == [x * x for x in range(1, 21)]
    assert list(items) == []
    assert items.waited_seconds > 0
  assert source.closed and not prefetch_threads()


def test_it_is_ahead_by_no_more_than_its_size():
  source = Source(100)
  with Prefetch(source, size=3) as items:
    assert next(items) == 1
    deadline = time.monotonic() + 20
    while source.taken < 5 and time.monotonic() < deadline:
      time.sleep(0.01)
    time.sleep(0.05)  # would it go on, it would by now
    assert source.taken == 5  # one used, three waiting, one in hand
  assert source.closed


@pytest.mark.parametrize("where", ["items", "transfer"])
def test_errors_are_raised_where_the_item_would_have_come(where):
  def transfer(x):
    if where == "transfer" and x == 3:
      raise OSError("in the thread")
    return x

  source = Source(2 if where == "items" else 9, OSError("in the thread"))
  with Prefetch(source, transfer) as items:
    assert [next(items), next(items)] == [1, 2]
    for _ in range(2):  # and again, should anybody ask
      with pytest.raises(OSError, match="in the thread"):
        next(items)
  assert source.closed and not prefetch_threads()


def test_leaving_early_stops_the_thread():
  """By Ctrl-C, say, while the thread waits for room."""
  source = Source(10**9)
  with pytest.raises(KeyboardInterrupt), Prefetch(source) as items:
    next(items)
    raise KeyboardInterrupt
  assert source.closed and not prefetch_threads()
  with pytest.raises(StopIteration):
    next(items)
  items.close()  # a second time does no harm


def test_prefetch_needs_room():
  with pytest.raises(ValueError, match="size is 0"):
    Prefetch(iter(()), size=0)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_devices_get_their_parts_in_order(count):
  batch = {"image": np.arange(48, dtype=np.uint8).reshape(16, 3), "label": np.arange(16)}
  with devices(count):
    placed = put_on_devices(batch)
    for name, array in placed.items():
      assert array.shape == (count, 16 // count, *batch[name].shape[1:])
      np.testing.assert_array_equal(np.asarray(array).reshape(batch[name].shape), batch[name])
      for i, shard in enumerate(array.addressable_shards):
        assert shard.device == jax.local_devices()[i]
        np.testing.assert_array_equal(np.asarray(shard.data)[0], np.asarray(array)[i])


def test_parallel_map_takes_the_parts_as_they_lie():
  """Nothing moves between devices, or by way of the host."""
  run = jax.pmap(lambda batch: jax.lax.psum(batch["x"].sum(), "d"), axis_name="d", out_axes=None)
  placed = put_on_devices({"x": np.arange(16, dtype=np.float32)})
  run(placed)
  with jax.transfer_guard("disallow"):
    total = run(placed)
  assert float(total) == 120


def test_uneven_parts_are_refused():
  with devices(8), pytest.raises(ValueError, match=r"'x' has 12 .* 8 devices cannot"):
    put_on_devices({"x": np.zeros(12)})


# ---- one view of all data sets -----------------------------------------------------------------


def pipelines(shard=None, seed=1):
  """Of images in memory and of a stream of images."""
  kwargs = {"batch_size": 12, "eval_batch_size": 8, "seed": seed, "shard": shard}
  synthetic = data.load("synthetic", image_shape=(2, 2, 3), num_train=100, num_test=20)
  return data.make_input_pipeline(synthetic, **kwargs), data.make_input_pipeline(stream(), **kwargs)


def test_both_kinds_train_on_the_same_examples():
  memory, streamed = pipelines()
  assert (memory.is_stream, streamed.is_stream) == (False, True)
  for indices, images in zip(
    memory.train_batches(5, 14), streamed.train_batches(5, 14), strict=True
  ):
    np.testing.assert_array_equal(indices["index"], records(images))
    assert indices["index"].dtype == np.int32


def test_both_kinds_test_every_image_once():
  for pipeline in pipelines():
    batches = list(pipeline.test_batches())
    labels, valid = zip(
      *(pipeline.test_inputs(pipeline.device_data, batch)[1:] for batch in batches), strict=True
    )
    assert [len(x) for x in labels] == [8, 8, 8]
    assert sum(int(x.sum()) for x in valid) == 20


def test_every_pass_over_the_test_images_is_whole():
  """Also after one that was broken off."""
  for pipeline in pipelines():
    whole = list(pipeline.test_batches())
    broken_off = pipeline.test_batches()
    assert_same_batches([next(broken_off)], whole[:1])
    broken_off.close()
    assert_same_batches(pipeline.test_batches(3), whole)
    assert_same_batches(pipeline.test_batches(2), whole)
    pipeline.close()
    assert_same_batches(pipeline.test_batches(), whole)


@pytest.mark.slow
def test_processes_stay_between_the_passes_over_the_test_images():
  alive = lambda: {p.pid for p in multiprocessing.active_children() if "grain" in p.name}
  pipeline = data.make_input_pipeline(
    stream(num_workers=1), batch_size=12, eval_batch_size=8, seed=0
  )
  first = list(pipeline.test_batches(3))
  workers = alive()
  assert workers
  assert_same_batches(pipeline.test_batches(2), first)
  assert alive() == workers
  assert_same_batches(pipeline.test_batches(1), first)
  assert not alive()
  list(pipeline.test_batches(2))
  assert alive()
  pipeline.close()
  assert not alive()


@pytest.mark.parametrize("process_count", [2, 4])
def test_processes_have_parts_of_both_kinds(process_count):
  parts = [pipelines(ProcessShard(i, process_count)) for i in range(process_count)]
  for kind, whole in enumerate(pipelines(ProcessShard(0, 1))):
    for name, arguments in (("train_batches", (0, 9)), ("test_batches", ())):
      shares = [getattr(part[kind], name)(*arguments) for part in parts]
      joined = [join(batch) for batch in zip(*shares, strict=True)]
      assert_same_batches(joined, list(getattr(whole, name)(*arguments)))


@pytest.mark.parametrize("kind", [0, 1])
def test_inputs_and_targets(kind):
  pipeline = pipelines()[kind]
  key, places = jax.random.key(0), jnp.arange(12)
  batch = next(iter(pipeline.train_batches(0, 1)))
  inputs, targets = jax.jit(pipeline.train_inputs)(key, places, pipeline.device_data, batch)
  assert inputs.shape == (12, 2, 2, 3) and inputs.dtype == jnp.float32
  assert targets.shape == (12, 10) and targets.dtype == jnp.float32
  np.testing.assert_array_equal(targets.sum(-1), 1)
  # What is done to an example depends on its place in the whole batch, not on the device.
  second = jax.tree.map(lambda x: x[6:], batch)
  other, _ = pipeline.train_inputs(key, places[6:], pipeline.device_data, second)
  np.testing.assert_allclose(inputs[6:], other, rtol=1e-6)
  test_batch = next(iter(pipeline.test_batches()))
  inputs, labels, valid = jax.jit(pipeline.test_inputs)(pipeline.device_data, test_batch)
  assert inputs.shape == (8, 2, 2, 3) and labels.dtype == jnp.int32 and valid.dtype == bool


def test_memory_targets_are_the_labels():
  pipeline, _ = pipelines()
  batch = next(iter(pipeline.train_batches(3, 4)))
  key = jax.random.key(0)
  inputs, targets = pipeline.train_inputs(key, jnp.arange(12), pipeline.device_data, batch)
  images, labels = pipeline.device_data["train"]
  np.testing.assert_array_equal(np.argmax(targets, -1), labels[batch["index"]])
  np.testing.assert_allclose(inputs, images[batch["index"]] / 255, rtol=1e-6)


def test_pipelines_refuse_batches_that_processes_cannot_share():
  with pytest.raises(ValueError, match=r"batch size is 12; .* number of processes, 8"):
    pipelines(ProcessShard(0, 8))
