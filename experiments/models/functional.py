"""Flax NNX models as pure functions of flat dicts.

A training step passes its state through `jax.jit` once per step. There a plain dict of arrays
costs a fraction of what an `nnx.State` costs, and its keys, "layer1/0/conv1/kernel", are those
by which masks, metrics and configs name a layer.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx

Arrays = dict[str, jax.Array]


class Apply(Protocol):
  """The pure form of a model's `__call__`."""

  def __call__(
    self,
    params: Mapping[str, jax.Array],
    model_state: Mapping[str, jax.Array],
    x: jax.Array,
    *,
    train: bool,
    rngs: jax.Array | nnx.Rngs | None = None,
  ) -> tuple[jax.Array, Arrays]:
    """Computes logits and the next batch statistics.

    Args:
      params: the parameters by path.
      model_state: the batch statistics by path.
      x: `[B, H, W, C]` float images.
      train: whether to train, a Python bool; the statistics change only then.
      rngs: source of dropout masks. A random key is right everywhere; an `nnx.Rngs` must come
        from the same trace level, so not from outside of `jax.grad` or `jax.lax.scan`.

    Returns:
      Logits `[B, classes]` float32, and the statistics with the keys of `model_state`. Under
      `jax.pmap` these are each device's own: average them.
    """


class FunctionalModel(NamedTuple):
  """A model split into a pure function and the arrays it starts from."""

  apply: Apply
  params: Arrays
  model_state: Arrays


def functional(model: nnx.Module) -> FunctionalModel:
  """Splits a model into a pure function, its parameters and its batch statistics.

  Args:
    model: any NNX module called as `model(x, train=..., rngs=...)`. It is left as it is.

  Returns:
    `(apply, params, model_state)`: see `Apply`; both dicts are flat, with keys like "head/kernel".

  Raises:
    ValueError: if the model holds state that is neither `nnx.Param` nor `nnx.BatchStat`.
  """
  parts: tuple[Any, ...] = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
  return _functional(*parts)


def with_arrays(model: nnx.Module, arrays: Mapping[str, jax.Array]) -> nnx.Module:
  """A model with other parameters and statistics.

  Args:
    model: it is left as it is.
    arrays: every array of the model by path, as `functional` names them.

  Raises:
    ValueError: if paths or shapes are not the model's.
  """
  graphdef, state = nnx.split(model)
  flat = {"/".join(map(str, path)): (path, value) for path, value in nnx.to_flat_state(state)}
  if flat.keys() != arrays.keys():
    raise ValueError(
      f"The model has {', '.join(sorted(flat))}; given are {', '.join(sorted(arrays))}."
    )
  for key, (_, value) in flat.items():
    if value[...].shape != arrays[key].shape:
      raise ValueError(
        f"{key} has shape {value[...].shape}; the one given has {arrays[key].shape}."
      )
  paths = [(path, jnp.asarray(arrays[key])) for key, (path, _) in flat.items()]
  return nnx.merge(graphdef, nnx.from_flat_state(paths))


def init_functional(
  build_fn: Callable[[nnx.Rngs], nnx.Module], key: jax.Array, *, abstract: bool = False
) -> FunctionalModel:
  """Builds a model under `jax.jit` and splits it.

  Compiling the whole initialisation at once takes half the time of running it layer by layer,
  and gives the same bits.

  Args:
    build_fn: from `nnx.Rngs` to a model.
    key: `[]` random key of the initial parameters.
    abstract: whether to compute nothing: of the arrays there are shapes and types only.

  Returns:
    As `functional`.

  Raises:
    ValueError: as `functional`.
  """

  def split(key):
    return nnx.split(build_fn(nnx.Rngs(key)), nnx.Param, nnx.BatchStat, ...)

  return _functional(*(jax.eval_shape(split, key) if abstract else jax.jit(split)(key)))


def _functional(
  graphdef: nnx.GraphDef, params: nnx.State, model_state: nnx.State, other: nnx.State
) -> FunctionalModel:
  """Closes over what does not change: the graph and where each array belongs in it."""
  if unknown := flatten(other):
    raise ValueError(
      "a functional model may hold only nnx.Param and nnx.BatchStat, but these are neither: "
      f"{', '.join(unknown)}. Dropout, for one, has to be built without rngs."
    )
  module = module_fn(graphdef, params, model_state)

  def apply(params, model_state, x, *, train, rngs=None):
    model = module(params, model_state)
    if rngs is not None and not isinstance(rngs, nnx.Rngs):
      rngs = nnx.Rngs(rngs)
    logits = model(x, train=train, rngs=rngs)
    return logits, flatten(nnx.state(model, nnx.BatchStat))

  return FunctionalModel(apply, flatten(params), flatten(model_state))


def module_fn(graphdef: nnx.GraphDef, *states: nnx.State) -> Callable[..., nnx.Module]:
  """A function of flat dicts, one for each part of a model's state, that makes the model."""
  paths = [_paths(state) for state in states]

  def module(*parts):
    pairs = zip(paths, parts, strict=True)
    arrays = [(path, part[key]) for of_part, part in pairs for key, path in of_part.items()]
    return nnx.merge(graphdef, nnx.from_flat_state(arrays))

  return module


def flatten(state: nnx.State) -> Arrays:
  """The array (or pytree of arrays) of every variable by its key."""
  values = nnx.to_flat_state(state)
  return {"/".join(map(str, path)): value.get_value() for path, value in values}


def _paths(state: nnx.State) -> dict[str, tuple]:
  """The path of every variable by its key; list positions are integers in a path."""
  return {"/".join(map(str, path)): path for path, _ in nnx.to_flat_state(state)}
