"""The two ends of a network: the layer that sees the input, and the head, which makes the outputs.

Flattened trees are sorted by name, so position says nothing: the ends are found by name, by number
(`Dense_0` ... `Dense_2`), and by what feeds what: a head's outputs are no other layer's inputs.
"""

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from srigl_jax.layers import Layer, natural_key
from srigl_jax.leaves.conventions import is_attention_in
from srigl_jax.leaves.names import owner_name, plain

_HEAD = re.compile(
  r"^(params/)?(head|heads|fc|linear|classifier|logits|output|lm_head|un_?embed\w*|to_logits"
  r"|output_layer|predictions?)(/|$)"
)
_HEADS = re.compile(r"^(params/)?(\w+_)?heads?(/|$)")
# Names of a head that other layers have too: a head only if its outputs go nowhere.
_MAYBE = re.compile(
  r"(decoder|out|outputs?|predict\w*|readout|score|proj_?out"
  r"|(out|output|final|fc|dense)_?(proj|projection|out|dense|layer|linear|fc)?|final|last|top|policy"
  r"|values?|critic|actor|q|mean|logits|mlm|cls|classif\w*|lm|vocab_proj\w*)"
)
FIRST = re.compile(
  r"^(params/)?(conv_init|conv1|conv_1|conv0|conv_0|conv_proj|stem\w*|patch_embed\w*|input\w*)(/|$)"
)


class Head(NamedTuple):
  """The layers that make a network's outputs.

  Attributes:
    paths: theirs; mostly one.
    rule: what they were found by.
    doubt: what to say of it; `""` if their name says it, or there is but one.
  """

  paths: tuple[str, ...]
  rule: str
  doubt: str = ""


def find_head(layers: Mapping[str, Layer]) -> Head:
  """The classifier, or all heads of a network with several.

  By name first (`head`, `fc`, `linear`, `classifier`, ...): of several layers the last. If that one
  feeds others and another layer does not, both. Without a name: the last, if all of the outermost
  matrices are numbered alike; else, of the outermost, those named like an output, those that feed
  no other, or the last.
  """
  root = _root(layers)
  named = [path for path in layers if _HEAD.search(path[root:])]
  several = [path for path in layers if _HEADS.search(path[root:])]
  top = lambda path: path[root:].removeprefix("params/").partition("/")[0]
  if len({top(path) for path in several}) > 1:
    ends_of = {top(path): path for path in sorted({*named, *several}, key=natural_key)}
    return Head(tuple(ends_of.values()), "named like heads")
  named = named or several
  outermost = _outermost(layers)
  if named:
    head = max(named, key=natural_key)
    ends = [path for path in outermost if path != head and _ends(path, layers)]
    others = [path for path in ends if not is_attention_in(path) and not _gates(path, layers)]
    likely = [path for path in others if _MAYBE.fullmatch(_own_name(path))] or others
    if _ends(head, layers) or not likely:
      return Head((head,), f"named {top(head)!r}")
    heads = (head, *likely)
    return Head(
      heads,
      f"named {top(head)!r}, and those whose outputs are no layer's inputs",
      f"{head!r} is named like the head, but its outputs are inputs of other layers, and those of "
      f"{_listed(likely)} are not: all are taken for heads and never ablated. {_remedy(head)}",
    )
  if len(outermost) == 1 and _ends(outermost[0], layers):
    return Head((outermost[0],), "the only one that is not in a block")
  if len(outermost) > 1 and len({_stem(path) for path in outermost}) == 1:
    return Head((max(outermost, key=natural_key),), "the last by number")
  plain_ones = [path for path in outermost if not is_attention_in(path)] or outermost
  ends = [path for path in plain_ones if _ends(path, layers)] or plain_ones
  maybe = [path for path in ends if _MAYBE.fullmatch(_own_name(path))]
  heads = tuple(maybe) or (max(ends, key=natural_key),)
  feeds = ", whose outputs are no other layer's inputs" if len(ends) < len(outermost) else ""
  rule = f"the last of {[str(path) for path in maybe or ends]}{feeds}"
  return Head(
    heads,
    rule,
    "No layer is named like a classifier (head, fc, linear, classifier, logits, output); "
    f"{_listed(heads)}, {rule}, {'is' if len(heads) == 1 else 'are'} taken for it and never "
    f"ablated. {_remedy(heads[0])}",
  )


def head_layers(layers: Mapping[str, Layer]) -> Sequence[str]:
  """The paths of the head, with a warning where they were guessed; see `find_head`."""
  head = find_head(layers)
  if head.doubt:
    warnings.warn(head.doubt, stacklevel=2)
  return head.paths


def first_layers(layers: Mapping[str, Layer]) -> Sequence[str]:
  """The layer that sees the input: the first named like one, else the first by number.

  Raises:
    ValueError: if neither tells.
  """
  named = [path for path in layers if FIRST.search(path)]
  if named:
    return [min(named, key=natural_key)]
  if len({_stem(path) for path in layers}) == 1:
    return [min(layers, key=natural_key)]
  raise ValueError(
    "Preset 'first' cannot tell which layer sees the input: none is named conv1, conv_init, "
    f"stem, conv_proj, patch_embed or the like among {', '.join(layers)}. Give its path as a "
    "regular expression instead of 'first'."
  )


def _outermost(layers: Mapping[str, Layer]) -> list[str]:
  matrices = [p for p, x in layers.items() if not x.axes.spatial and not x.axes.stack]
  matrices = matrices or list(layers)
  depth = min(path.count("/") for path in matrices)
  return [path for path in matrices if path.count("/") == depth]


def _ends(path: str, layers: Mapping[str, Layer]) -> bool:
  """Whether the layer's outputs fit no other layer's inputs, flattened after a convolution."""
  n, is_conv = layers[path].num_neurons, bool(layers[path].axes.spatial)
  inputs = {other.dims[1] for name, other in layers.items() if name != path}
  return n not in inputs and not (is_conv and any(i % n == 0 for i in inputs))


def _gates(path: str, layers: Mapping[str, Layer]) -> bool:
  """Whether the outputs are two, three or four times another layer's inputs: gates, fused heads."""
  inputs = {other.dims[1] for other in layers.values()}
  return any(layers[path].num_neurons == n * i for n in (2, 3, 4) for i in inputs)


def _remedy(head: str) -> str:
  return f"Name the right one: ablate=all_but(r'path/of/classifier'), or {head!r} if it is."


def _listed(paths: Sequence[str]) -> str:
  return ", ".join(repr(str(path)) for path in paths)


def _own_name(path: str) -> str:
  return owner_name(path) or plain(path)


def _root(layers: Mapping[str, Layer]) -> int:
  """Length of what all paths have in front, if the network is one module of a larger tree."""
  parts = [path.split("/")[:-2] for path in layers]
  in_all = [at[0] for at in zip(*parts, strict=False) if len(set(at)) == 1]
  is_prefix = len(parts) > 1 and all(path[: len(in_all)] == in_all for path in parts)
  return sum(len(part) + 1 for part in in_all) if is_prefix else 0


def _stem(path: str) -> str:
  return re.sub(r"\d+", "#", path)
