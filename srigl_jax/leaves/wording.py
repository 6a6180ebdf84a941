"""Readings of a leaf in words, for warnings."""

from srigl_jax.layers import Axes, Layer, make_layer


def describe(layer: Layer) -> str:
  """A reading in words: `dense, 64 inputs → 10 neurons`."""
  window = "×".join(str(layer.shape[a]) for a in layer.axes.spatial)
  words = f"{layer.dense_fan_in} inputs → {layer.num_neurons} neurons"
  kind = f"a convolution with a window of {window}" if window else "dense"
  stack = f"a stack of {layer.num_stacked} layers, each " if layer.axes.stack else ""
  return f"{stack}{kind}, {words}"


def doubt_of(path: str, shape: tuple[int, ...], taken: Axes, *others: Axes) -> str:
  """What a leaf is taken for, what else it may be, and which argument decides."""
  words = lambda axes: describe(make_layer(path, shape, lambda *_: axes))
  may_be = " or ".join(f"{words(axes)} (axes={argument(path, axes)})" for axes in others)
  return (
    f"{path!r} of shape {shape} is taken for {words(taken)}, but may as well be {may_be}. "
    f"If the first is right, axes={argument(path, taken)} says so."
  )


def argument(path: str, axes: Axes) -> str:
  """What to give for `axes` to have a leaf read so."""
  if axes.stack:
    return f"sx.axes.stacked({path!r})"
  if axes.neurons == (0,):
    return "sx.axes.equinox"
  if len(axes.neurons) > 1:
    return f"sx.axes.at({{{path!r}: sx.Axes(neurons={axes.neurons})}})"
  return "sx.axes.flax"
