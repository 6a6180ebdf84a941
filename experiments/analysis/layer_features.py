"""Looking at the features of trained networks: what layers return for the test images."""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.analysis.feature_measures import (
  add_hsic,
  add_moments,
  centred_gram,
  cka,
  effective_rank,
  neuron_scales,
  scaled_moments,
  zero_moments,
)
from experiments.common.progress import progress
from experiments.data import Dataset, ImageStream, test_examples

Run = tuple[str, int]  # variant and seed


class Measured(NamedTuple):
  """What the features of several networks are like.

  Attributes:
    runs: the networks, by variant and seed.
    layers: paths of the modules whose outputs were looked at.
    num_features: of each layer.
    effective_ranks: `[runs, layers]`.
    cka: `[runs, layers, runs, layers]`, nan where a layer's features are constant.
    num_examples: that were seen.
  """

  runs: list[Run]
  layers: list[str]
  num_features: list[int]
  effective_ranks: np.ndarray
  cka: np.ndarray
  num_examples: int


def layers_with_kernel(model: nnx.Module) -> list[str]:
  """Paths of the modules that have a kernel, without the classifier, which all models call head."""
  found = (("/".join(map(str, p)), m) for p, m in nnx.iter_modules(model))
  return [path for path, module in found if hasattr(module, "kernel") and path != "head"]


@functools.partial(jax.jit, static_argnums=0, static_argnames=("layers", "preprocess"))
def _features(graphdef, state, images, *, layers, preprocess):
  """Outputs of some modules, `[B, ..., C]` each."""
  forward = nnx.capture(
    lambda model, x: model(x), nnx.Intermediate, method_outputs=nnx.Intermediate
  )
  _, found = forward(nnx.merge(graphdef, state), preprocess(images))
  by_path = {
    "/".join(map(str, path[:-1])): value for path, value in nnx.to_flat_state(found)
  }  # the last part of a path is the method's name
  _check_layers(layers, by_path)
  return [by_path[layer][0].astype(jnp.float32) for layer in layers]


def _check_layers(layers: Sequence[str], known: Mapping[str, Any]) -> None:
  if missing := [layer for layer in layers if layer not in known]:
    names = ", ".join(sorted(filter(None, known)))
    raise ValueError(f"The network has no layer {missing[0]!r}. There are: {names}.")


_add_moments = jax.jit(lambda moments, features: list(map(add_moments, moments, features)))
_scaled = jax.jit(
  lambda features, scales: [
    x * scale.astype(x.dtype).reshape(*[1] * (x.ndim - 1), -1)
    for x, scale in zip(features, scales, strict=True)
  ]
)
_grams = jax.jit(lambda features: jnp.stack([centred_gram(x) for x in features]))
_add_hsic = jax.jit(add_hsic)


def measure(
  models: Mapping[Run, nnx.Module],
  data: Dataset | ImageStream,
  *,
  layers: Sequence[str] = (),
  batch_size: int = 200,
  num_examples: int | None = None,
  normalize: bool = False,
) -> Measured:
  """Looks at the features of networks on the test set.

  Args:
    models: with the same layers, in inference mode.
    data: for its test images.
    layers: paths of modules, each returning one array with its features last; default: all with a
      kernel but the classifier, so what they return before norm and activation.
    batch_size: images at a time, at least 4. A last batch that is not full is left out.
    num_examples: test images to use, from the first; None: all.
    normalize: whether every neuron is scaled to variance 1 over these images, as a norm behind it
      would: without, a few neurons with large weights decide both measures. The images are then
      passed through the networks twice.

  Returns:
    `Measured`. Sums are kept in float64.

  Raises:
    ValueError: if a layer is not there, or there are too few images for one batch of 4.
  """
  runs = list(models)
  layers = tuple(layers or layers_with_kernel(models[runs[0]]))
  num_images = min(data.num_test, num_examples or data.num_test)
  batch_size = min(batch_size, num_images)
  parts = {run: nnx.split(model) for run, model in models.items()}
  look = functools.partial(_features, layers=layers, preprocess=data.preprocess_fn)
  moments: dict[Run, list] = {}
  total = np.zeros((len(runs) * len(layers),) * 2)
  num_batches = num_images // batch_size

  def passing(show, done: int) -> Iterator[dict[Run, list[jax.Array]]]:
    """The features of all networks, batch by batch."""
    batches = itertools.islice(test_examples(data, batch_size=batch_size), num_batches)
    for i, (images, _) in enumerate(batches):
      batch = jnp.asarray(images)
      yield {run: look(graphdef, state, batch) for run, (graphdef, state) in parts.items()}
      show(done + i + 1)

  def add_to_moments(of_runs: dict[Run, list[jax.Array]]) -> None:
    with jax.enable_x64(True):
      for run, features in of_runs.items():
        if run not in moments:
          moments[run] = [zero_moments(x.shape[-1], jnp.float64) for x in features]
        moments[run] = _add_moments(moments[run], features)

  with progress("features", step=0, total_steps=num_batches * (1 + normalize)) as show:
    scales: dict[Run, list[jax.Array]] = {}
    if normalize:
      for of_runs in passing(show, 0):
        add_to_moments(of_runs)
      with jax.enable_x64(True):
        scales = {run: [neuron_scales(m) for m in layers] for run, layers in moments.items()}
        for run, of_run in moments.items():
          moments[run] = list(map(scaled_moments, of_run, scales[run]))
    for of_runs in passing(show, num_batches * normalize):
      if normalize:
        of_runs = {run: _scaled(features, scales[run]) for run, features in of_runs.items()}
      else:
        add_to_moments(of_runs)
      grams = [_grams(features) for features in of_runs.values()]
      with jax.enable_x64(True):
        total = _add_hsic(jnp.asarray(total), jnp.concatenate(grams))
  with jax.enable_x64(True):
    ranks = [[float(effective_rank(m)) for m in moments[run]] for run in runs]
    similarity = np.asarray(cka(jnp.asarray(total)))
  shape = (len(runs), len(layers))
  return Measured(
    runs=runs,
    layers=list(layers),
    num_features=[len(m.mean) for m in moments[runs[0]]],
    effective_ranks=np.array(ranks),
    cka=similarity.reshape(*shape, *shape),
    num_examples=num_batches * batch_size,
  )
