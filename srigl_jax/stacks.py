"""Stacks: leaves that hold the kernels of several layers, as scanned blocks and experts do.

A stack counts as the layers that it holds. What is decided on the host (budgets, places in the
order of random keys) is decided for the network unrolled, `unroll`, in which each layer has a name
of its own: `blocks/mlp/kernel[3]`. What is computed for one layer on the device is mapped over the
stack, `map_stack`, and so compiled once.
"""

import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from srigl_jax.layers import Axes, Layer, check_paths

T = TypeVar("T")


def one_layer(layer: Layer) -> Layer:
  """A single layer of a stack: its shape and axes, under the leaf's path."""
  left = [a for a in range(len(layer.shape)) if a not in layer.axes.stack]
  neurons, spatial = (
    tuple(left.index(a) for a in group) for group in (layer.axes.neurons, layer.axes.spatial)
  )
  return Layer(layer.path, tuple(layer.shape[a] for a in left), Axes(neurons, spatial))


def layer_names(layer: Layer) -> list[str]:
  """The names of the layers that a leaf holds, in order: its path, with an index if a stack."""
  if not layer.axes.stack:
    return [layer.path]
  return [f"{layer.path}[{','.join(map(str, i))}]" for i in np.ndindex(layer.stack_shape)]


def leaf_of(name: str) -> str:
  """The path of the leaf that holds a layer."""
  return re.sub(r"\[[\d,]+\]$", "", name)


def unroll(layers: Mapping[str, Layer]) -> dict[str, Layer]:
  """The network unrolled: every layer by its name, in the order of the unrolled network's paths.

  That order (block after block, and in each the leaves) decides ties, the last bits of sums and
  random keys, which so are those of a network with `blocks_0/...`, `blocks_1/...` in place of
  `blocks/...`.

  Args:
    layers: by path, in natural order.

  Returns:
    Layers without a stack axis, whose `path` is the leaf's.
  """
  names = {path: layer_names(layer) for path, layer in layers.items()}
  return {
    names[path][_flat(index, layers[path])]: one_layer(layers[path])
    for path, index in _unrolled(list(layers.values()), ())
  }


def _unrolled(
  layers: Sequence[Layer], index: tuple[int, ...]
) -> Iterator[tuple[str, tuple[int, ...]]]:
  depth = len(index)

  def stack_of(layer: Layer) -> tuple[str, tuple[int, ...]]:
    root = layer.path.removeprefix("params/").partition("/")[0] if depth == 0 else ""
    return root, layer.stack_shape[depth : depth + 1]

  for (_, size), group in itertools.groupby(layers, key=stack_of):
    if not size:
      yield from ((layer.path, index) for layer in group)
      continue
    members = list(group)
    for i in range(size[0]):
      yield from _unrolled(members, (*index, i))


def _flat(index: tuple[int, ...], layer: Layer) -> int:
  return int(np.ravel_multi_index(index, layer.stack_shape)) if index else 0


def by_name(given: Mapping[str, T], layers: Mapping[str, Layer], *, name: str) -> dict[str, T]:
  """Values by layer from values by path or name; a path of a stack stands for all of its layers.

  Args:
    given: by path or name.
    layers: by path.
    name: the argument that it came in by, for messages.

  Raises:
    ValueError: if one is neither.
  """
  names = {path: layer_names(layer) for path, layer in layers.items()}
  known = {n: path for path, of_leaf in names.items() for n in of_leaf}
  check_paths(given, [*names, *(n for n in known if n not in names)], name=name)
  # A layer's own value comes before its stack's.
  keys = {n: next((k for k in (n, path) if k in given), None) for n, path in known.items()}
  return {n: given[key] for n, key in keys.items() if key is not None}


def by_path(
  values: Mapping[str, Any], layers: Mapping[str, Layer], default: Callable[[Layer], Any]
) -> dict[str, Any]:
  """Values by path from values by name.

  Args:
    values: numbers by name; leaves none of whose layers is here are left out.
    layers: by path.
    default: what the other layers of such a stack get, from one of them.

  Returns:
    The number itself for a leaf that is one layer, an array of the stack's shape for a stack.
  """
  found = {}
  for path, layer in layers.items():
    names = layer_names(layer)
    if not any(n in values for n in names):
      continue
    numbers = [values[n] if n in values else default(one_layer(layer)) for n in names]
    found[path] = np.reshape(numbers, layer.stack_shape) if layer.axes.stack else numbers[0]
  return found


def sparse_names(budgets: Mapping[str, Any], layers: Mapping[str, Layer]) -> list[str]:
  """The layers that are sparse, by name, in the order of the network unrolled.

  In a stack of which only some layers are sparse, those with a full budget are dense.

  Args:
    budgets: by path, as in an `Allocation`.
    layers: by path.
  """
  flat = {
    n: budget
    for path, of_leaf in budgets.items()
    for n, budget in zip(layer_names(layers[path]), np.ravel(of_leaf), strict=True)
  }
  sparse = unroll({path: layers[path] for path in budgets})
  return [n for n, one in sparse.items() if n == one.path or flat[n] < one.size]


def layer_keys(
  key: Array, budgets: Mapping[str, Any], layers: Mapping[str, Layer]
) -> dict[str, Array]:
  """A random key for each sparse layer: those of the network unrolled.

  Args:
    key: that they are made from.
    budgets: by path, as in an `Allocation`.
    layers: by path.

  Returns:
    A key by path; of a stack, keys of the stack's shape.
  """
  places = {n: i for i, n in enumerate(sparse_names(budgets, layers))}
  leaves = {path: layers[path] for path in budgets}
  fold_in = functools.partial(jax.random.fold_in, key)
  return {
    path: jax.vmap(fold_in)(place.ravel()).reshape(place.shape)
    if isinstance(place, np.ndarray)
    else fold_in(place)
    for path, place in by_path(places, leaves, default=lambda _: 0).items()
  }


def num_weights(mask: Any, layer: Layer) -> Any:
  """Active weights of a layer, counted on the host; of a stack, `[*stack]` int64."""
  counts = host_stack(mask, layer).reshape(layer.num_stacked, -1).sum(-1)
  return counts.reshape(layer.stack_shape) if layer.axes.stack else int(counts[0])


def to_stack(x: Array, layer: Layer) -> Array:
  """The kernels of a stack's layers along one leading axis, `[num_stacked, *shape of one]`."""
  x = jnp.moveaxis(x, layer.axes.stack, range(len(layer.axes.stack)))
  return x.reshape(layer.num_stacked, *one_layer(layer).shape)


def host_stack(x: Any, layer: Layer) -> np.ndarray:
  """`to_stack` on the host; a kernel that is one layer's is a stack of one."""
  x = np.moveaxis(np.asarray(x), layer.axes.stack, range(len(layer.axes.stack)))
  return x.reshape(layer.num_stacked, *one_layer(layer).shape)


def from_stack(x: Array, layer: Layer) -> Array:
  """Back from the leading axis to the leaf's own layout."""
  x = x.reshape(*layer.stack_shape, *one_layer(layer).shape)
  return jnp.moveaxis(x, range(len(layer.axes.stack)), layer.axes.stack)


def map_stack(
  fn: Callable[..., Array], layer: Layer, kernels: Sequence[Array], others: Sequence[Any] = ()
) -> Array:
  """A kernel from `fn(*kernels, *others)`; of a stack, one layer after the other.

  Args:
    fn: of one layer's arrays, to an array of one kernel's shape.
    layer: the leaf.
    kernels: arrays of the leaf's shape.
    others: what else there is one of for each layer, `[*stack, ...]`.

  Returns:
    An array of the leaf's shape.
  """
  if not layer.axes.stack:
    return fn(*kernels, *others)
  depth = len(layer.axes.stack)
  rows = lambda x: jnp.asarray(x).reshape(layer.num_stacked, *jnp.shape(x)[depth:])
  stacked = [*(to_stack(x, layer) for x in kernels), *map(rows, others)]
  # Not `vmap`: temporaries are one layer's, and results are bit by bit those of the layer alone.
  return from_stack(lax.map(lambda arrays: fn(*arrays), stacked), layer)
