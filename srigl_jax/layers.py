"""Sparse-able leaves of a parameter tree: their paths, and which axes are neurons.

Everything else in the library speaks of leaves by path (`"layer1/conv/kernel"`), in flat
dicts from which dense leaves are simply absent, so that Linen dicts, `nnx.State` and any other
pytree look alike. Which leaves may be sparse is decided in `layer_filters`.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

PyTree = Any
T = TypeVar("T")
# int32, with room for the zeros that selections add at the end
_MOST_WEIGHTS = 2**31 - 2**10
AxesFn = Callable[[str, tuple[int, ...]], "Axes | None"]


class Axes(NamedTuple):
  """What the axes of a kernel mean; the axes that no field names are inputs.

  Attributes:
    neurons: axes that together index the neurons (output units); negative counts from the end.
    spatial: window axes of a convolution. They are part of the fan-in, and Erdős–Rényi-Kernel
      allocation counts each of them as a dimension of its own, while several input axes (an
      attention output projection's heads and head size) count as one.
    stack: axes that index the layers of which one leaf is a stack, as `nn.scan`, `nnx.scan` and
      `nnx.vmap` make them, or the experts of a mixture: `Axes(neurons=(-1,), stack=(0,))` for
      `[layers, in, out]`. Everything is each layer's own, as in the network unrolled.
  """

  neurons: tuple[int, ...]
  spatial: tuple[int, ...] = ()
  stack: tuple[int, ...] = ()


class LayerPath(str):
  """A path that knows the axes of its kernel; in all else the plain string.

  Masks and budgets have such keys, so that whoever is handed the masks (`summarize`,
  `init_sparse_weights`) need not be told the layout again. They survive `jit`, pickling and
  whatever rebuilds a tree from its structure.

  Attributes:
    axes: of the kernel.
  """

  axes: "Axes"

  def __new__(cls, path: str, axes: "Axes") -> "LayerPath":
    """The path, and the axes of its kernel."""
    self = super().__new__(cls, path)
    self.axes = axes
    return self

  def __getnewargs__(self) -> tuple[str, "Axes"]:  # type: ignore[override]
    """What a copy is made of, for pickling."""
    return str(self), self.axes


class Layer(NamedTuple):
  """One sparse-able kernel: `N = num_neurons` neurons with `I = dense_fan_in` inputs each.

  Of a stack of layers these numbers, and all others but `shape` and `num_stacked`, are one layer's.

  Attributes:
    path: the leaf's path, components joined by `/`.
    shape: the leaf's shape.
    axes: which of its axes are neurons, spatial and a stack, as non-negative tuples; sorted, but
      the stack's, whose order is that of the layers.
  """

  path: str
  shape: tuple[int, ...]
  axes: Axes

  @property
  def input_axes(self) -> tuple[int, ...]:
    """Axes that a neuron's fan-in runs over, spatial ones included."""
    return tuple(
      a for a in range(len(self.shape)) if a not in self.axes.neurons and a not in self.axes.stack
    )

  @property
  def stack_shape(self) -> tuple[int, ...]:
    """Sizes of the stack's axes; `()` for a kernel that is one layer's."""
    return tuple(self.shape[a] for a in self.axes.stack)

  @property
  def num_stacked(self) -> int:
    """Number of layers of which the leaf is a stack; 1 for a kernel that is one layer's."""
    return math.prod(self.stack_shape)

  @property
  def num_neurons(self) -> int:
    """Number of neurons `N`."""
    return math.prod(self.shape[a] for a in self.axes.neurons)

  @property
  def dense_fan_in(self) -> int:
    """Number of inputs `I` of each neuron when dense."""
    return math.prod(self.shape[a] for a in self.input_axes)

  @property
  def size(self) -> int:
    """Number of weights when dense, `I * N`."""
    return self.dense_fan_in * self.num_neurons

  @property
  def dims(self) -> tuple[int, ...]:
    """`(N, input channels, *window)`: the dimensions that Erdős–Rényi-Kernel sums."""
    window = tuple(self.shape[a] for a in self.axes.spatial)
    return (self.num_neurons, self.dense_fan_in // math.prod(window), *window)


def leaf_path(key_path: Sequence[Any]) -> str:
  """Path of a leaf: key components joined by `/`, without the `.value` of an `nnx.Variable`."""
  if key_path and key_path[-1] == jax.tree_util.GetAttrKey("value"):
    key_path = key_path[:-1]
  return jax.tree_util.keystr(tuple(key_path), simple=True, separator="/")


def leaf_dict(tree: PyTree) -> dict[str, Any]:
  """The leaves of a tree as a flat dict keyed by path, in natural order of the paths.

  Natural order puts `layer2` before `layer10`; a list's items keep their order.

  Raises:
    ValueError: if two leaves have the same path.
  """
  flat = [(leaf_path(k), x) for k, x in jax.tree_util.tree_flatten_with_path(tree)[0]]
  leaves = dict(sorted(flat, key=lambda item: natural_key(item[0])))
  if len(leaves) != len(flat):
    paths = [path for path, _ in flat]
    twice = sorted({path for path in paths if paths.count(path) > 1})
    raise ValueError(
      f"Two leaves of the tree have the same path: {twice}. Paths name the masks, so they must "
      "be unique: rename one of the keys (a key that contains '/' is the usual reason)."
    )
  return leaves


def map_leaves(fn: Callable[..., Any], tree: PyTree, *by_path: Mapping[str, Any]) -> PyTree:
  """Applies `fn(leaf, *values)` to the leaves named in every mapping; the others stay."""

  def visit(key_path, leaf):
    path = leaf_path(key_path)
    named = all(path in values for values in by_path)
    return fn(leaf, *(values[path] for values in by_path)) if named else leaf

  return jax.tree_util.tree_map_with_path(visit, tree)


def kernel_path(module_path: str) -> str:
  """The path of the kernel of the module at a path; the model itself is at `""`."""
  return f"{module_path}/kernel" if module_path else "kernel"


def natural_key(path: str) -> tuple[tuple[int, int, str], ...]:
  """Sort key under which runs of digits compare as numbers."""
  parts = re.split(r"(\d+)", path)
  return tuple((0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p)


# Flax's layouts. Attention projections are DenseGeneral kernels: (in, heads, head size) for
# query, key and value, one (head, dim) pair being one neuron; (heads, head size, out) after.
_ATTENTION_IN = re.compile(r"(^|/)(query|key|value)/kernel$")
_ATTENTION_OUT = re.compile(r"(^|/)\w*[aA]tt(n|ention)\w*/out/kernel$")


def flax_axes(path: str, shape: tuple[int, ...]) -> Axes:
  """Axes of Flax kernels: neurons last; Conv windows first; attention projections 3-D.

  Args:
    path: the leaf's path, as `leaf_path` forms it.
    shape: the leaf's shape, at least two axes.

  Returns:
    The `Axes` of Dense `(in, out)`, Conv `(*window, in, out)` (depthwise: `in` is 1), and of
    `MultiHeadAttention` projections: query, key, value `(in, heads, head size)`, out
    `(heads, head size, out)`. Any other leaf with more than two axes is taken for a Conv
    kernel: give other layouts to `axes=` as a function of `(path, shape)` that calls this one
    for the rest.
  """
  if len(shape) == 3 and _ATTENTION_IN.search(path):
    return Axes(neurons=(1, 2))
  if len(shape) == 3 and _ATTENTION_OUT.search(path):
    return Axes(neurons=(2,))
  return Axes(neurons=(len(shape) - 1,), spatial=tuple(range(len(shape) - 2)))


def make_layer(path: str, shape: Sequence[int], axes: AxesFn = flax_axes) -> Layer:
  """Describes one kernel; see `Layer`.

  Raises:
    ValueError: if the axes are out of range, overlap, or leave no input axis.
  """
  shape = tuple(int(n) for n in shape)
  given = axes(path, shape) or flax_axes(path, shape)
  ndim = len(shape)
  try:
    neurons, spatial, stack = (tuple(range(ndim)[a] for a in group) for group in given)
  except IndexError:
    neurons, spatial, stack = (), (), ()
  named = [*neurons, *spatial, *stack]
  if not neurons or len(set(named)) != len(named):
    raise ValueError(
      f"Axes {given} do not fit layer {path!r} of shape {shape}: neuron, spatial and stack axes "
      f"must be distinct and lie in 0..{ndim - 1} (or -{ndim}..-1), and there must be a neuron "
      "axis. Correct the function given as `axes`."
    )
  if len(neurons) + len(stack) == ndim:
    raise ValueError(
      f"Axes {given} leave layer {path!r} of shape {shape} no input axis: name fewer neuron "
      "axes in the function given as `axes`, or leave the layer out with `sparse`."
    )
  return Layer(path, shape, Axes(tuple(sorted(neurons)), tuple(sorted(spatial)), stack))


def to_matrix(x: Array, layer: Layer) -> Array:
  """The `[I, N]` view of a kernel: free for Flax layouts, whose neuron axes come last.

  Of a stack, the views of its layers, `[*stack, I, N]`.
  """
  x = jnp.transpose(x, layer.axes.stack + layer.input_axes + layer.axes.neurons)
  return x.reshape(*layer.stack_shape, layer.dense_fan_in, layer.num_neurons)


def from_matrix(x: Array, layer: Layer) -> Array:
  """Back from the `[I, N]` view (of a stack, `[*stack, I, N]`) to the kernel's own layout."""
  order = layer.axes.stack + layer.input_axes + layer.axes.neurons
  x = x.reshape([layer.shape[a] for a in order])
  return jnp.transpose(x, [order.index(a) for a in range(len(order))])


def check_paths(given: Iterable[str], known: Iterable[str], *, name: str) -> None:
  """Raises a ValueError if `given` holds a path that is not `known`; `name`: the argument's."""
  if not isinstance(given, Iterable) or not all(isinstance(path, str) for path in given):
    raise ValueError(
      f"{name} is a {type(given).__name__}; it must have a path such as 'layers/0/kernel' for each "
      "entry. Masks come as such a dict from get_masks(opt_state)."
    )
  known = list(known)
  unknown = sorted(set(given) - set(known))
  if unknown:
    near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"{name} names {unknown[0]!r}, which is no layer here.{hint} There are: {', '.join(known)}."
    )


def check_countable(*layers: Layer) -> None:
  """Raises a ValueError unless the weights of the layers together can be counted in int32."""
  size = sum(layer.size for layer in layers)
  if size >= _MOST_WEIGHTS:
    largest = max(layers, key=lambda layer: layer.size)
    which = "has" if len(layers) == 1 else f"of shape {largest.shape} and the others together have"
    raise ValueError(
      f"Layer {largest.path!r} {which} {size:,} weights, but sparse layers may have fewer than "
      f"{_MOST_WEIGHTS:,} (each; for methods that rank layers together, in all), which are counted "
      "on the device in 32 bits. Keep the largest dense with sparse=all_but(...), or split the "
      "kernel in several."
    )
