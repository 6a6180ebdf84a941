"""What may be given to a product: checked before any backend is chosen."""

from jax import Array

from srigl_kernels.epilogue import ACTIVATIONS
from srigl_kernels.format import FLOATS, Condensed, check_structure
from srigl_kernels.prepared import Prepared


def check_residual(residual: Array | None, shape: tuple[int, ...]) -> None:
  """Raises a ValueError if a residual is given that has not the shape of the result."""
  if residual is None:
    return
  if not hasattr(residual, "dtype") or residual.dtype not in FLOATS:
    kind = getattr(residual, "dtype", type(residual).__name__)
    raise ValueError(f"`residual` must be a float32 or bfloat16 array or None, not {kind}.")
  if residual.shape != shape:
    raise ValueError(
      f"`residual` must have the shape of the result, {shape}, not {residual.shape}: broadcast it."
    )


def check_call(x: Array, layer: Condensed | Prepared, activation: str | None) -> Condensed:
  """The layer that a call is about; raises a ValueError for what no backend takes.

  Args:
    x: the input, of any shape.
    layer: as it was given.
    activation: a name in `ACTIVATIONS`, or None.
  """
  condensed = layer.condensed if isinstance(layer, Prepared) else layer
  check_structure(condensed)
  if activation not in ACTIVATIONS:
    raise ValueError(f"`activation` must be one of {list(ACTIVATIONS)}, not {activation!r}.")
  if not hasattr(x, "dtype"):
    raise ValueError(f"`x` must be an array, not a {type(x).__name__}.")
  if x.dtype not in FLOATS:
    raise ValueError(f"`x` must be float32 or bfloat16, not {x.dtype}.")
  return condensed
