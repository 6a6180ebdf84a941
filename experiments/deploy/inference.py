"""Running a trained network, whole or condensed: logits, sizes, latency."""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmarks.comparison import compare
from experiments.benchmarks.timing import Times, call_seconds, quartiles, take_turns
from experiments.common.markdown import markdown_table
from experiments.common.progress import progress
from experiments.data import Dataset, ImageStream, test_examples

_SECONDS_PER_ROUND = 0.02  # of one network in one round of timing
_NUM_INPUTS = 4
_MAX_CONSTANT_BYTES = 2**24  # a program with constants is compiled longer, and holds them again


def as_function(model: nnx.Module) -> Callable[[jax.Array], jax.Array]:
  """A model in inference as a compiled function of its images, the arrays on the device.

  JAX looks at every array of an argument in every call, 0.7 us each: as long as a small layer
  takes, and a condensed one has more of them. So the arrays of a small model are constants.
  """
  graphdef, state = nnx.split(model)
  if num_bytes(model) <= _MAX_CONSTANT_BYTES:
    return jax.jit(lambda x: nnx.merge(graphdef, state, copy=True)(x))
  run = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
  return lambda x: run(state, x)


def predict(
  models: Mapping[str, nnx.Module], data: Dataset | ImageStream, *, batch_size: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray]:
  """Computes the logits of all test images.

  Args:
    models: by name; each image is loaded once for all of them.
    data: the data set.
    batch_size: images at a time; 0: 1000 small ones, 50 as large as ImageNet's.

  Returns:
    The logits of each model, `[M, classes]` float32, and the labels, `[M]` int.
  """
  batch_size = batch_size or max(1, min(1000, 50 * 224 * 224 * 3 // math.prod(data.image_shape)))
  runs = {name: as_function(model) for name, model in models.items()}
  preprocess = jax.jit(data.preprocess_fn)
  logits: dict[str, list[np.ndarray]] = {name: [] for name in models}
  labels = []
  for images, y in test_examples(data, batch_size=batch_size):
    x = preprocess(jnp.asarray(images))
    labels.append(y)
    for name, run in runs.items():
      logits[name].append(np.asarray(run(x)))
  return {name: np.concatenate(parts) for name, parts in logits.items()}, np.concatenate(labels)


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
  """Share of images whose largest logit is that of their class."""
  return float(np.mean(logits.argmax(-1) == labels))


def largest_difference(logits: np.ndarray, reference: np.ndarray) -> float:
  """Largest difference of a logit, relative to the largest logit of its image."""
  scale = np.abs(reference).max(-1, keepdims=True)
  return float(np.max(np.abs(logits - reference) / np.maximum(scale, np.finfo(np.float32).tiny)))


def num_bytes(model: nnx.Module) -> int:
  """Bytes of all arrays of a model."""
  return sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))


def latencies(
  candidates: Mapping[str, nnx.Module], data: Dataset | ImageStream, *, batch_size: int, rounds: int
) -> Times:
  """Seconds of one call of each model, the models taking turns.

  Args:
    candidates: models by name.
    data: for the images, which rotate from call to call.
    batch_size: images of a call.
    rounds: of timing; each repeats the call for some time.

  Returns:
    The median of each round's calls, by name.
  """
  count = _NUM_INPUTS * batch_size
  images, _ = next(test_examples(data, batch_size=min(count, data.num_test)))
  chosen = np.arange(count).reshape(_NUM_INPUTS, -1) % len(images)
  inputs = [data.preprocess_fn(jnp.asarray(images[index])) for index in chosen]

  def timer(model: nnx.Module) -> Callable[[], float]:
    run = as_function(model)
    call = lambda x: jax.block_until_ready(run(x))
    call(inputs[0])  # compiles
    return functools.partial(
      call_seconds, call, inputs, warm_up=0.0, spend=_SECONDS_PER_ROUND, most=10_000
    )

  timers = {name: timer(model) for name, model in candidates.items()}
  name = f"{batch_size} image{'s' if batch_size > 1 else ''} at a time"
  with progress(name, step=0, total_steps=rounds) as show:
    return take_turns(timers, rounds=rounds, after_round=show)


def format_latencies(times: Mapping[int, Times], *, base: str) -> str:
  """A Markdown table: milliseconds by batch size and model, and how many times faster than one.

  Args:
    times: from `latencies`, by batch size.
    base: name of the model that the others are compared with.
  """
  names = list(next(iter(times.values())))
  others = [name for name in names if name != base]
  header = ["batch", *(f"{name} (ms)" for name in names), *(f"{base} / {n}" for n in others)]
  rows = []
  for batch_size, by_name in times.items():
    cells = [str(batch_size), *(f"{1e3 * quartiles(by_name[name])[1]:.3g}" for name in names)]
    for other in others:
      low, middle, high = quartiles(compare(f"{base} / {other}", by_name, base, other).ratios)
      cells.append(f"{middle:.2f} ({low:.2f}–{high:.2f})")
    rows.append(cells)
  return markdown_table(header, rows, align="r" * len(header))
