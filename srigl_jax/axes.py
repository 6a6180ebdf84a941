"""Which axes of a kernel are neurons: the layouts of the frameworks, for the argument `axes`.

Without `axes` a tree is recognised, see `srigl_jax.plan`; a layout given here is taken at its word.

```python
sx.srigl(..., axes=sx.axes.equinox)
sx.srigl(..., axes=sx.axes.stacked("layers/"))  # nn.scan, nnx.vmap: the first axis is the layers
sx.srigl(..., axes=sx.axes.at({r"qkv/kernel$": sx.Axes(neurons=(1, 2, 3))}))
```
"""

import dataclasses
import re
from collections.abc import Mapping

from srigl_jax.layers import Axes, AxesFn, flax_axes
from srigl_jax.leaves import conventions

__all__ = ["at", "equinox", "flax", "haiku", "keras", "stacked"]

flax = flax_axes


def equinox(path: str, shape: tuple[int, ...]) -> Axes:
  """Axes of Equinox's weights, `(out, in)` and `(out, in, *window)`; PyTorch's are the same.

  Args:
    path: the leaf's path.
    shape: the leaf's shape, at least two axes.
  """
  return conventions.first(len(shape))


def haiku(path: str, shape: tuple[int, ...]) -> Axes:
  """Axes of Haiku's weights: Flax's, but transposed convolutions are `(*window, out, in)`.

  Args:
    path: the leaf's path; a transposed convolution has `conv1_d_transpose` or the like in it.
    shape: the leaf's shape, at least two axes.
  """
  if len(shape) > 2 and re.search(r"conv\d_?d_transpose", path):
    return conventions.transposed(len(shape))
  return conventions.last(len(shape))


def keras(path: str, shape: tuple[int, ...]) -> Axes:
  """Axes of Keras's kernels on JAX, by the names that Keras gives its layers.

  Dense `(in, out)`, Conv `(*window, in, out)`, Conv1DTranspose and the like `(*window, out, in)`,
  depthwise `(*window, in, multiplier)` with a neuron for each pair, attention's query, key and
  value `(in, heads, head size)` and `attention_output` `(heads, head size, out)`. Any other kernel
  of three axes or more whose layer is called `einsum_dense` is what the bias beside it says, and
  without one `(in, *out)`.

  Args:
    path: the variable's `path`.
    shape: the leaf's shape, at least two axes.
  """
  ndim = len(shape)
  if ndim > 2 and re.search(r"depthwise_kernel|depthwise_conv\dd", path):
    return conventions.depthwise(ndim)
  if ndim > 2 and _is_general(path):
    return conventions.heads(ndim)
  if ndim == 3 and re.search(r"attention_output/", path):
    return Axes((2,))
  return flax_axes(path, shape) if re.search(r"query|key|value", path) else haiku(path, shape)


def _is_general(path: str) -> bool:
  return bool(re.search(r"einsum_dense\w*/", path))


keras.yields_to_bias = _is_general  # type: ignore[attr-defined]


def _yields(axes: AxesFn | None, path: str) -> bool:
  yields = getattr(axes, "yields_to_bias", None)
  return bool(yields and yields(path))


@dataclasses.dataclass(frozen=True)
class _Stacked:
  """See `stacked`; a value, so that transformations can be pickled and compared."""

  pattern: str
  axis: int
  base: AxesFn | None

  def __str__(self) -> str:
    return f"stacked({self.pattern!r})"

  @property
  def patterns(self) -> tuple[str, ...]:
    """Regular expressions that each have to fit a leaf."""
    return (self.pattern, *getattr(self.base, "patterns", ()))

  def yields_to_bias(self, path: str) -> bool:
    """Whether the bias beside a leaf is to be believed before this."""
    return not self.stacks(path) and _yields(self.base, path)

  def stacks(self, path: str) -> bool:
    """Whether a leaf is a stack."""
    return bool(re.search(self.pattern, path))

  def __call__(self, path: str, shape: tuple[int, ...]) -> Axes | None:
    if len(shape) < 3 or not self.stacks(path):
      return self.base(path, shape) if self.base else None
    axis = range(len(shape))[self.axis]
    one = (*shape[:axis], *shape[axis + 1 :])
    own = self.base(path, one) if self.base else None
    own = own or conventions.usual_axes(path, one)
    place = lambda group: tuple(a + (a >= axis) for a in (range(len(one))[a] for a in group))
    return Axes(place(own.neurons), place(own.spatial), (axis, *place(own.stack)))


@dataclasses.dataclass(frozen=True)
class _At:
  """See `at`; a value, as `_Stacked`."""

  by_pattern: tuple[tuple[str, Axes], ...]
  base: AxesFn | None

  def __str__(self) -> str:
    return f"at({', '.join(repr(pattern) for pattern, _ in self.by_pattern)})"

  @property
  def patterns(self) -> tuple[str, ...]:
    """Regular expressions that each have to fit a leaf."""
    return (*(pattern for pattern, _ in self.by_pattern), *getattr(self.base, "patterns", ()))

  def yields_to_bias(self, path: str) -> bool:
    """Whether the bias beside a leaf is to be believed before this."""
    ours = any(re.search(pattern, path) for pattern, _ in self.by_pattern)
    return not ours and _yields(self.base, path)

  def __call__(self, path: str, shape: tuple[int, ...]) -> Axes | None:
    for pattern, axes in self.by_pattern:
      if re.search(pattern, path):
        return axes
    return self.base(path, shape) if self.base else None


def stacked(pattern: str, *, axis: int = 0, base: AxesFn | None = None) -> AxesFn:
  """Leaves that are stacks of layers, as `nn.scan`, `nnx.scan` and `nnx.vmap` make them.

  Args:
    pattern: a regular expression searched for in the leaf's path.
    axis: the axis that the layers lie along.
    base: the layout of one layer, and of all other leaves; without it they are recognised.

  Returns:
    A function for `axes`. A leaf of two axes under the pattern is a stack of vectors, and dense.
  """
  return _Stacked(pattern, axis, base)


def at(by_pattern: Mapping[str, Axes], *, base: AxesFn | None = None) -> AxesFn:
  """Axes of single leaves.

  Args:
    by_pattern: `Axes` by a regular expression searched for in the leaf's path; the first that fits.
    base: the layout of all other leaves; without it they are recognised.

  Returns:
    A function for `axes`.
  """
  return _At(tuple(by_pattern.items()), base)
