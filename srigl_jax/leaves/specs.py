"""What is known of a leaf without its values: shape, type, and the module that holds it."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, GetAttrKey, SequenceKey

from srigl_jax.layers import leaf_dict, leaf_path

T = TypeVar("T")

# Equinox's own modules: the axes of their weights, neurons first; of a general `Conv`, unknown.
_RANKS = {
  "Linear": 2, "GRUCell": 2, "LSTMCell": 2,
  "Conv1d": 3, "Conv2d": 4, "Conv3d": 5,
  "ConvTranspose1d": 3, "ConvTranspose2d": 4, "ConvTranspose3d": 5,
}  # fmt: skip
_KINDS = {
  "Embedding": "embedding", "RotaryPositionalEmbedding": "position table",
  "LayerNorm": "norm", "RMSNorm": "norm", "GroupNorm": "norm", "BatchNorm": "norm",
  "SpectralNorm": "norm", "WeightNorm": "norm", "PReLU": "scale",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LeafSpec:
  """Shape and type of a leaf.

  Attributes:
    shape: the leaf's shape.
    dtype: the leaf's dtype.
    holder: the class of the Equinox module that holds it, as `equinox Linear`; `""` in other trees.
  """

  shape: tuple[int, ...]
  dtype: Any
  holder: str = ""

  @property
  def is_floating(self) -> bool:
    """Whether it is of a real floating type."""
    return jnp.issubdtype(self.dtype, jnp.floating)

  @property
  def rank(self) -> int:
    """The axes of a weight in its module, 0 if that is not known."""
    return _RANKS.get(self.holder.removeprefix("equinox "), 0)

  @property
  def holder_kind(self) -> str:
    """What a leaf is that its module makes no layer; `""` for others."""
    return _KINDS.get(self.holder.removeprefix("equinox "), "")


def leaf_specs(tree: Any) -> dict[str, LeafSpec]:
  """The leaves of a tree by path, in natural order; see `LeafSpec`.

  Args:
    tree: of arrays (traced or not), `jax.ShapeDtypeStruct` or `LeafSpec`.
  """
  holders = {
    leaf_path(keys): _holder(tree, keys)
    for keys, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    if any(isinstance(key, GetAttrKey) and key.name != "value" for key in keys)
  }

  def spec(path: str, leaf: Any) -> LeafSpec:
    if isinstance(leaf, LeafSpec):
      return leaf
    shape, dtype = getattr(leaf, "shape", ()), getattr(leaf, "dtype", np.dtype(object))
    return LeafSpec(tuple(shape), dtype, holders.get(path, ""))

  return {path: spec(path, leaf) for path, leaf in leaf_dict(tree).items()}


def _holder(tree: Any, keys: Sequence[Any]) -> str:
  """`equinox` and the class of the innermost Equinox module on the way to a leaf, or `""`."""
  found = ""
  for key in keys:
    ours = [c.__name__ for c in type(tree).__mro__ if c.__module__.startswith("equinox.")]
    found = f"equinox {ours[0]}" if ours else found
    if isinstance(key, GetAttrKey):
      tree = getattr(tree, key.name)
    elif isinstance(key, DictKey | SequenceKey):
      tree = tree[key.key if isinstance(key, DictKey) else key.idx]
    else:
      return found
  return found


class cached_by_shapes(Generic[T]):
  """`fn` of a tree's leaves, once for all trees of the same paths, shapes, dtypes and modules.

  Args:
    fn: is given `{path: LeafSpec}`, in natural order of the paths.

  Called with a tree, of arrays (traced or not) or of `jax.ShapeDtypeStruct`. What it remembers is
  left behind when it is pickled.
  """

  _MOST = 8  # trees that are remembered

  def __init__(self, fn: Callable[[dict[str, LeafSpec]], T]):
    """See the class."""
    self.fn = fn
    self._results: dict[tuple[tuple[str, LeafSpec], ...], T] = {}

  def __call__(self, tree: Any) -> T:
    """The result for a tree."""
    specs = leaf_specs(tree)
    key = tuple(specs.items())
    if key not in self._results:
      while len(self._results) >= self._MOST:
        del self._results[next(iter(self._results))]
      self._results[key] = self.fn(specs)
    return self._results[key]

  def __getstate__(self) -> dict[str, Any]:
    """What is pickled."""
    return {"fn": self.fn, "_results": {}}
