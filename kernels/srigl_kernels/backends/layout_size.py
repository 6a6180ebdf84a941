"""What a layout takes, estimated before it is made.

The sizes of a layer may come from a file, in which they cost nothing: a few hundred bytes can claim
2**31 - 1 inputs.
"""

import math

from srigl_kernels.format import Condensed

FREE_BYTES = 2**28
"""A layout of up to so many bytes is always made."""

_TIMES = 64  # what the layer holds: layouts of layers that have a use take up to ten times that
_TIMES_DENSE = 4096  # where a matrix is asked for, sparse as the layer may be


def check_layout_bytes(name: str, condensed: Condensed) -> None:
  """Refuses a layout out of all proportion to the arrays that the layer holds.

  Args:
    name: of the backend.
    condensed: the layer, which may be traced.

  Raises:
    ValueError: naming the sizes, and what can be done.
  """
  arrays = (condensed.values, condensed.indices, condensed.active, condensed.bias)
  held = sum(math.prod(x.shape) * x.dtype.itemsize for x in arrays if x is not None)
  needed = layout_bytes(name, condensed)
  times = _TIMES_DENSE if name in ("dense", "structured") else _TIMES
  if needed > max(FREE_BYTES, times * held):
    raise ValueError(
      f"A kernel of shape {condensed.kernel_shape} needs {needed / 1e9:.3g} GB laid out for "
      f"backend {name!r}, but the layer holds {held:,} bytes only. If it is from a file, do not "
      "trust that; if it is yours, leave out the inputs and neurons that have no weights."
    )


def layout_bytes(name: str, condensed: Condensed) -> int:
  """Bytes that a layout and making it take, roughly; see `check_layout_bytes`."""
  inputs, neurons = condensed.in_features, condensed.out_features
  active, fan_in = condensed.values.shape
  if name in ("dense", "structured"):
    return 4 * inputs * (neurons if name == "dense" else active)
  # Tables of (block of 96 inputs, panel of 64 neurons), and of each input and neuron by itself.
  tiles = 264 * -(-inputs // 96) * -(-active // 64)
  return tiles + 24 * inputs + 8 * neurons + 16 * active * fan_in
