"""A sparse Equinox model made ready to run; Equinox is imported when one is given."""

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_jax.condensed.condense import condense
from srigl_jax.layers import check_paths, leaf_path
from srigl_kernels import Condensed, Prepared, condensed_conv, condensed_matmul, prepare


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class CondensedEquinox:
  """Stands for an `equinox.nn.Linear` or `Conv`; called with one example, as these are.

  Attributes:
    layer: the weights, the kernel's axes in the reverse order: `(in, out)`, `(*window, in, out)`.
    settings: arguments of `condensed_conv`; None for a linear layer.
  """

  layer: Prepared
  settings: tuple[tuple[str, Any], ...] | None = dataclasses.field(metadata={"static": True})

  def __call__(self, x: Array, *, key: Array | None = None) -> Array:
    """Maps `[in]` to `[out]`, or `[in, *positions]` to `[out, *positions]`; `key` is ignored."""
    condensed = self.layer.condensed
    parts = [a for a in (condensed.values, condensed.bias) if a is not None]
    x = x.astype(jnp.result_type(x, *parts))
    if self.settings is None:
      return condensed_matmul(x, self.layer)
    y = condensed_conv(jnp.moveaxis(x, 0, -1), self.layer, **dict(self.settings))
    return jnp.moveaxis(y, -1, 0)


def condense_equinox(
  model: Any,
  masks: Mapping[str, Array],
  *,
  backend: str | Sequence[str] = "auto",
  batch: int | Sequence[int] | None = None,
) -> Any:
  """An Equinox model in which every sparse layer is condensed, for inference.

  Layers are swapped and nothing else changes.

  Args:
    model: an `equinox.Module`, in inference mode (`equinox.nn.inference_mode`); it is left as it
      is. Its `equinox.nn.Linear` and `Conv` layers can be condensed. Kernels, `[out, in, *window]`,
      are 0 off their mask.
    masks: bool arrays by path, such as `layers/0/weight`, as `get_masks` gives them.
    backend: what layers are prepared for; see `srigl_jax.prepare`.
    batch: examples of a call under `jax.vmap`, which a layer cannot see: the backend is then chosen
      for so many. By default the call decides: within `srigl_jax.fuse` by all rows that there are,
      else as if each example were a batch of its own.

  Returns:
    A new model, a pytree as before.

  Raises:
    ValueError: if a mask's path is no array's or its owner cannot be condensed, or the active
      neurons of a layer have different fan-ins. Messages name the path.
  """
  eqx = _equinox()
  if not isinstance(model, eqx.Module):
    raise ValueError(
      f"condense_equinox takes an equinox.Module, not {type(model).__name__}: condense_model is "
      "for Flax NNX models, condense_linen for Flax Linen modules."
    )
  layers = _find_layers(eqx, model)
  check_paths(masks, _paths(model), name="masks")
  new = {}
  for path, mask in masks.items():
    owner = path.removesuffix("weight").removesuffix("/")
    layer: Any = layers.get(owner) if path.rpartition("/")[2] == "weight" else None
    reason = _why_not(layer)
    if reason is not None:
      raise ValueError(
        f"{path!r} cannot be condensed: {reason}. Leave it out of `masks` (it then stays dense), "
        "or use a plain layer."
      )
    try:
      bias = None if layer.bias is None else layer.bias.reshape(-1)
      condensed = condense(_turned(layer.weight), _turned(mask), bias)
    except ValueError as error:
      raise ValueError(f"Layer {path!r} cannot be condensed: {error}") from error
    new[owner] = _make(layer, condensed, backend, batch)
  return _swap(model, layers, new)


def is_module(model: Any) -> bool:
  """Whether this is an Equinox module; without importing Equinox."""
  kinds = type(model).__mro__
  return any(kind.__module__.startswith("equinox.") for kind in kinds)


def _equinox() -> Any:
  return importlib.import_module("equinox")


def _turned(kernel: Any) -> np.ndarray:
  """`[out, in, *window]` as `[*window, in, out]`, and as `condensed_conv` orders the window."""
  kernel = np.asarray(kernel)
  return np.moveaxis(kernel, (0, 1), (-1, -2))


def _find_layers(eqx: Any, model: Any) -> dict[str, Any]:
  """The layers of the kinds that can be condensed, by path."""
  kinds = (eqx.nn.Linear, eqx.nn.Conv)
  found = jax.tree_util.tree_flatten_with_path(model, is_leaf=lambda x: isinstance(x, kinds))[0]
  return {leaf_path(path): x for path, x in found if isinstance(x, kinds)}


def _paths(model: Any) -> list[str]:
  return [leaf_path(path) for path, _ in jax.tree_util.tree_flatten_with_path(model)[0]]


def _why_not(layer: Any) -> str | None:
  """Why a layer cannot be condensed, or None if it can."""
  nn = _equinox().nn
  if layer is None:
    return "its owner is no equinox.nn.Linear or Conv, but computes with it by itself"
  if type(layer) not in (nn.Linear, nn.Conv, nn.Conv1d, nn.Conv2d, nn.Conv3d):
    return f"{type(layer).__name__} is a subclass, which may compute something else"
  if "scalar" in (getattr(layer, "in_features", 0), getattr(layer, "out_features", 0)):
    return "it maps from or to a scalar"
  if getattr(layer, "padding_mode", "ZEROS") != "ZEROS":
    return f"its padding_mode is {layer.padding_mode!r}"
  rank = getattr(layer, "num_spatial_dims", 0) + 2
  if layer.weight.ndim != rank:
    return f"its weight should have {rank} axes; stacked layers are not handled"
  return None


def _make(layer: Any, condensed: Condensed, backend: Any, batch: Any) -> CondensedEquinox:
  if not hasattr(layer, "num_spatial_dims"):
    return CondensedEquinox(prepare(condensed, backend=backend, batch=batch), None)
  groups = layer.groups
  prepared = prepare(condensed, backend=backend, feature_group_count=groups)
  settings = {
    "strides": tuple(layer.stride),
    "padding": layer.padding
    if isinstance(layer.padding, str)
    else tuple(map(tuple, layer.padding)),
    "kernel_dilation": tuple(layer.dilation),
    "feature_group_count": groups,
  }
  return CondensedEquinox(prepared, tuple(settings.items()))


def _swap(model: Any, layers: Mapping[str, Any], new: Mapping[str, Any]) -> Any:
  by_id = {id(layers[path]): x for path, x in new.items()}
  is_leaf = lambda x: id(x) in by_id
  return jax.tree.map(lambda x: by_id.get(id(x), x), model, is_leaf=is_leaf)


def split(model: Any) -> tuple[dict[str, Condensed], dict[str, Array]]:
  """See `srigl_jax.split_condensed`."""
  is_layer = lambda x: isinstance(x, CondensedEquinox)
  flat = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_layer)[0]
  leaves = {leaf_path(path): x for path, x in flat}
  layers = {_weight(path): x.layer.condensed for path, x in leaves.items() if is_layer(x)}
  is_array = lambda x: isinstance(x, (jax.Array, np.ndarray))
  return layers, {path: jnp.asarray(x) for path, x in leaves.items() if is_array(x)}


def merge(
  model: Any, layers: Mapping[str, Condensed], arrays: Mapping[str, Any], backend: Any
) -> Any:
  """See `srigl_jax.merge_condensed`."""
  found = _find_layers(_equinox(), model)
  check_paths(layers, map(_weight, found), name="layers")
  new = {
    path: _make(found[path], layers[_weight(path)], backend, None)
    for path in found
    if _weight(path) in layers
  }
  model = _swap(model, found, new)
  _, own = split(model)
  check_paths(arrays, own, name="arrays")
  missing = sorted({*own} - {*arrays})
  if missing:
    raise ValueError(f"`arrays` lacks {missing[0]!r}, which the model has.")
  is_layer = lambda x: isinstance(x, CondensedEquinox)

  def fill(path: Any, x: Any) -> Any:
    name = leaf_path(path)
    return x if is_layer(x) or name not in own else jnp.asarray(arrays[name])

  return jax.tree_util.tree_map_with_path(fill, model, is_leaf=is_layer)


def _weight(path: str) -> str:
  return f"{path}/weight" if path else "weight"
