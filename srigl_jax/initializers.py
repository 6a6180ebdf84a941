"""Weight initialisation that knows how few inputs a neuron has."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_jax.layers import AxesFn, flax_axes, make_layer, map_leaves
from srigl_jax.masks import Masks, check_masks, fan_ins

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
  key: Array, params: Any, masks: Masks, scheme: str = "he_normal", *, axes: AxesFn = flax_axes
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
    axes: which axes of a kernel are neurons.

  Returns:
    The tree with new weights, exactly 0 off the masks.

  Raises:
    ValueError: if the scheme or a mask's path is unknown, or a mask's shape is not its leaf's.

  Source: Evci et al., Gradient Flow in Sparse Neural Networks (arXiv:2010.03533), section 3.1.
  """
  scale, is_uniform = scheme_scale(scheme)
  check_masks(masks, params)
  keys = dict(zip(masks, jax.random.split(key, max(1, len(masks))), strict=False))

  def draw(leaf, mask, path):
    layer = make_layer(path, leaf.shape, axes)
    fan_in = jnp.maximum(fan_ins(mask, layer), 1).astype(jnp.float32)
    width = scale(fan_in).reshape([leaf.shape[a] for a in layer.axes.neurons])
    width = jnp.expand_dims(width, layer.input_axes)
    if is_uniform:
      noise = jax.random.uniform(keys[path], leaf.shape, minval=-1.0)
    else:
      noise = jax.random.normal(keys[path], leaf.shape)
    return jnp.where(mask, (noise * width).astype(leaf.dtype), 0)

  return map_leaves(draw, params, masks, {path: path for path in masks})


def scheme_scale(scheme: str) -> tuple[Callable[[Array], Array], bool]:
  """A scheme's standard deviation or half width as a function of the fan-in; if it is uniform."""
  if scheme not in _SCHEMES:
    raise ValueError(f"scheme is {scheme!r}; it must be one of {SCHEMES}.")
  return _SCHEMES[scheme]
