"""`nnx.WeightNorm` and `nnx.SpectralNorm` in inference: weights normalised once."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

WRAPPERS = (nnx.WeightNorm, nnx.SpectralNorm)


class NormalizedWeights(nnx.Module):
  """What is left of a wrapper whose layer holds the normalised weights.

  Attributes:
    layer_instance: that layer, under the path that it had.
  """

  def __init__(self, layer_instance: nnx.Module):
    self.layer_instance = layer_instance

  def __call__(self, x: jax.Array, *args: Any, update_stats: bool | None = None, **kwargs: Any):
    """Calls the layer.

    Raises:
      ValueError: if asked for a step of the power iteration.
    """
    if update_stats:
      raise ValueError(
        "The weights of this layer are normalised for good and its spectral norm is no longer "
        "estimated. Call the model in inference mode; to train, use the model before condensing."
      )
    return self.layer_instance(x, *args, **kwargs)


def normalized(wrapper: Any) -> NormalizedWeights:
  """What stands in the place of a wrapper; its layer's weights change, unless they are abstract."""
  layer = wrapper.layer_instance
  leaves = jax.tree.leaves(nnx.state(layer))
  if not any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
    kind: Any = type(layer)
    layer.__class__ = type(kind.__name__, (kind,), {"__call__": lambda self, x, *_, **__: x})
    options = {"update_stats": False} if isinstance(wrapper, nnx.SpectralNorm) else {}
    wrapper(jnp.zeros(()), **options)  # all that is left of the call is that it sets the weights
    layer.__class__ = kind
  return NormalizedWeights(layer)
