"""Weight initialisation that knows how few inputs a neuron has."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_jax.layer_filters import find_layers
from srigl_jax.layers import AxesFn, map_leaves
from srigl_jax.masks import Masks, check_masks, fan_ins
from srigl_jax.stacks import layer_names, map_stack, one_layer, unroll

# name -> (std or half width as a function of the fan-in, uniform or normal)
_SCHEMES: dict[str, tuple[Callable[[Array], Array], bool]] = {
  "he_normal": (lambda k: jnp.sqrt(2 / k), False),
  "he_uniform": (lambda k: jnp.sqrt(6 / k), True),
  "lecun_normal": (lambda k: jnp.sqrt(1 / k), False),
  "lecun_uniform": (lambda k: jnp.sqrt(3 / k), True),
  "torch_uniform": (lambda k: jnp.sqrt(1 / k), True),
  "srigl_reference": (lambda k: 2 / k, False),
}
SCHEMES = tuple(_SCHEMES)


def init_sparse_weights(
  key: Array, params: Any, masks: Masks, scheme: str = "he_normal", *, axes: AxesFn | None = None
) -> Any:
  """Draws the sparse layers' weights anew, scaled by each neuron's own fan-in k.

  A dense layer's initialisation is too small by a factor sqrt(I / k) once masked, and signals
  fade with depth where no normalisation restores them.

  Args:
    key: jax random key.
    params: parameter tree; leaves without a mask stay as they are.
    masks: bool arrays by path.
    scheme: `"he_normal"`, `"he_uniform"` (variance 2 / k), `"lecun_normal"`, `"lecun_uniform"`
      (variance 1 / k), `"torch_uniform"` (uniform on ±1/sqrt(k), PyTorch's default with the sparse
      fan-in) or `"srigl_reference"` (normal with standard deviation 2 / k: what the authors' runs
      used, where the source they cite has variance 2 / k; docs/algorithm.md, row 7).
    axes: the layout of kernels, as for `srigl`.

  Returns:
    The tree with new weights, exactly 0 off the masks.

  Raises:
    ValueError: if the scheme or a mask's path is unknown, or a mask's shape is not its leaf's.

  Source: Evci et al., Gradient Flow in Sparse Neural Networks (arXiv:2010.03533), section 3.1.
  """
  scale, is_uniform = scheme_scale(scheme)
  check_masks(masks, params)
  found = find_layers(params, axes=axes, masks=masks) if masks else {}
  layers = {path: found[path] for path in masks}
  places = {name: i for i, name in enumerate(unroll(layers))}
  keys = jax.random.split(key, max(1, len(places)))

  def draw(layer, leaf, mask, key):
    fan_in = jnp.maximum(fan_ins(mask, layer), 1).astype(jnp.float32)
    width = scale(fan_in).reshape([leaf.shape[a] for a in layer.axes.neurons])
    width = jnp.expand_dims(width, layer.input_axes)
    if is_uniform:
      noise = jax.random.uniform(key, leaf.shape, minval=-1.0)
    else:
      noise = jax.random.normal(key, leaf.shape)
    return jnp.where(mask, (noise * width).astype(leaf.dtype), 0)

  def draw_sparse(layer, leaf, mask, key):  # a dense layer among sparse ones keeps its weights
    return jnp.where(mask.all(), leaf, draw(layer, leaf, mask, key))

  def draw_leaf(leaf, mask, layer):
    draw_one = functools.partial(draw_sparse if layer.axes.stack else draw, one_layer(layer))
    place = np.reshape([places[name] for name in layer_names(layer)], layer.stack_shape)
    key = keys[place]
    return map_stack(draw_one, layer, (leaf, mask), (key,))

  return map_leaves(draw_leaf, params, masks, layers)


def scheme_scale(scheme: str) -> tuple[Callable[[Array], Array], bool]:
  """A scheme's standard deviation or half width as a function of the fan-in; if it is uniform."""
  if scheme not in _SCHEMES:
    raise ValueError(f"scheme is {scheme!r}; it must be one of {SCHEMES}.")
  return _SCHEMES[scheme]
