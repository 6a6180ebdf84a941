"""Which layers are sparse and which may lose neurons: filters by parameter path.

A filter is `True` (every layer), `False` (none), a function `(path, shape) -> bool`, or
`only(...)` / `all_but(...)` with names of presets and regular expressions:

```python
srigl(..., sparse=all_but("first", "head"), ablate=only(r"mlp/.*kernel"))
```
"""

import difflib
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

from srigl_jax.layers import Axes, AxesFn, Layer, LayerPath
from srigl_jax.leaves.ends import FIRST, first_layers, head_layers
from srigl_jax.leaves.judge import Leaf, judge
from srigl_jax.leaves.specs import leaf_specs


class PathPatterns(NamedTuple):
  """A choice of layers by preset names and regular expressions; see `only` and `all_but`."""

  patterns: tuple[str, ...]
  inverted: bool
  inputs_multiple_of: int = 1


LayerFilter = bool | PathPatterns | Callable[[str, tuple[int, ...]], bool]


def only(*patterns: str) -> PathPatterns:
  """The layers that any of the patterns names.

  Args:
    *patterns: names in `PRESETS`, or regular expressions searched for in the layer's path.
      A pattern that fits no layer is an error when the filter is used, never ignored.
  """
  return PathPatterns(tuple(patterns), inverted=False)


def all_but(*patterns: str, inputs_multiple_of: int = 1) -> PathPatterns:
  """All layers except those that any of the patterns names; see `only`.

  Args:
    *patterns: as for `only`; none excludes no layer.
    inputs_multiple_of: also except layers whose neurons have another number of inputs, such as
      the first convolution's 27: for a structure that holds in every block of inputs.

  Raises:
    ValueError: if `inputs_multiple_of` is less than 1.
  """
  if inputs_multiple_of < 1:
    raise ValueError(f"inputs_multiple_of is {inputs_multiple_of}; it must be 1 or more.")
  return PathPatterns(tuple(patterns), inverted=True, inputs_multiple_of=inputs_multiple_of)


def find_layers(
  params: Any,
  *,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
  masks: Mapping[str, Any] = {},
) -> dict[str, Layer]:
  """The layers that count for a sparsity target, in natural order of their paths.

  Args:
    params: parameter tree, of arrays, of `jax.ShapeDtypeStruct` or of `LeafSpec`.
    sparse: a function here can also ask for leaves that are no weights by default (biases,
      norms, embeddings; at least two axes): those it accepts count as layers.
    axes: which axes of a kernel are neurons; without it they are recognised.
    masks: leaves that are layers whatever they are called, of the axes that their paths carry.

  Raises:
    ValueError: if there is no layer.
  """
  return layers_of(judge_leaves(params, sparse=sparse, axes=axes, masks=masks))


def judge_leaves(
  params: Any,
  *,
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
  masks: Mapping[str, Any] = {},
) -> dict[str, Leaf]:
  """What each leaf is, layer or not; arguments as for `find_layers`."""
  asked = sparse if callable(sparse) and not isinstance(sparse, PathPatterns) else None
  settled = () if axes else masks
  known: dict[str, Axes] = {p: p.axes for p in settled if isinstance(p, LayerPath)}
  return judge(
    leaf_specs(params),
    axes=axes,
    known=known,
    asked=lambda path, shape: path in masks or bool(asked and asked(path, shape)),
  )


def layers_of(leaves: Mapping[str, Leaf]) -> dict[str, Layer]:
  """The layers among judged leaves, by paths that carry their axes.

  Raises:
    ValueError: if there is none.
  """
  layers: dict[str, Layer] = {
    LayerPath(path, leaf.layer.axes): leaf.layer for path, leaf in leaves.items() if leaf.layer
  }
  if not layers:
    shapes = {path: leaf.shape for path, leaf in leaves.items()}
    raise ValueError(
      "No leaf of the parameters is a weight (floating, two axes or more, and not named like a "
      f"bias, norm or embedding). The leaves are {shapes}. Pass the parameters themselves, or "
      "`sparse=` a function (path, shape) -> bool that names the weights."
    )
  return layers


def warn_of_doubts(leaves: Mapping[str, Leaf], paths: Collection[str]) -> None:
  """Warns of leaves whose axes cannot be told for certain, once for all that are named alike.

  Args:
    leaves: the judgement of a tree.
    paths: the leaves that it matters for.
  """
  alike: dict[str, list[str]] = {}
  for path, leaf in leaves.items():
    if leaf.doubt and path in paths:
      alike.setdefault(re.sub(r"\d+", "#", path), []).append(leaf.doubt)
  for doubts in alike.values():
    more = f" The same goes for {len(doubts) - 1} more like it." if len(doubts) > 1 else ""
    warnings.warn(doubts[0] + more, stacklevel=3)


def select(layer_filter: LayerFilter, layers: Mapping[str, Layer], *, name: str) -> frozenset[str]:
  """Paths of the layers that a filter chooses.

  Args:
    layer_filter: see the module's docstring.
    layers: all layers that count, by path.
    name: the argument that the filter came in by, for messages.

  Raises:
    ValueError: if a pattern fits no layer or the filter is of no known kind.
  """
  if isinstance(layer_filter, bool):
    return frozenset(layers if layer_filter else ())
  if isinstance(layer_filter, PathPatterns):
    named = frozenset().union(
      *(_matches(pattern, layers, name) for pattern in layer_filter.patterns)
    )
    chosen = frozenset(layers) - named if layer_filter.inverted else named
    return frozenset(
      p for p in chosen if not layers[p].dense_fan_in % layer_filter.inputs_multiple_of
    )
  if callable(layer_filter):
    return frozenset(path for path, layer in layers.items() if layer_filter(path, layer.shape))
  raise ValueError(
    f"{name} is {layer_filter!r}; it must be True, False, a function (path, shape) -> bool, or "
    f"only(...) / all_but(...) with presets ({', '.join(PRESETS)}) or regular expressions."
  )


def _matches(pattern: str, layers: Mapping[str, Layer], name: str) -> frozenset[str]:
  if pattern in PRESETS:
    found = frozenset(PRESETS[pattern](layers))
  else:
    found = frozenset(path for path in layers if re.search(pattern, path))
  if not found:
    near = difflib.get_close_matches(pattern, [*PRESETS, *layers], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
      f"{name} names {pattern!r}, which fits no layer.{hint} Presets: {', '.join(PRESETS)}; "
      f"layers: {', '.join(layers)}. Give a preset that occurs, or a regular expression."
    )
  return found


def _by_path(regex: str) -> Callable[[Mapping[str, Layer]], Iterable[str]]:
  return lambda layers: [path for path in layers if re.search(regex, path)]


def _depthwise(layers: Mapping[str, Layer]) -> list[str]:
  # A stem that sees one channel has the same shape: it is told apart by its name.
  return [
    path
    for path, layer in layers.items()
    if layer.axes.spatial and layer.dims[1] == 1 and not FIRST.search(path)
  ]


PRESETS: dict[str, Callable[[Mapping[str, Layer]], Iterable[str]]] = {
  "first": first_layers,
  "head": head_layers,
  "depthwise": _depthwise,
  "query": _by_path(r"(^|/)query/kernel$"),
  "key": _by_path(r"(^|/)key/kernel$"),
  "value": _by_path(r"(^|/)value/kernel$"),
  "attention_out": _by_path(r"[aA]tt\w*/out/kernel$|(^|/)out_proj/"),
  "attention": _by_path(r"(^|/)(query|key|value)/kernel$|[aA]tt\w*/out/kernel$|(^|/)out_proj/"),
  "mlp": _by_path(r"(^|/)[mM][lL][pP]\w*/"),
}
"""Names for `only` and `all_but`: the classifier ("head"), the layer that sees the input
("first"), depthwise convolutions, and the parts of a transformer block."""
