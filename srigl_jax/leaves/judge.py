"""The judgement: what each leaf of a parameter tree is, by which rule, and what is doubtful.

Everything that needs to know asks here: `allocate` and the transformations (and warn of what is
doubtful), `plan` (and shows it), `summarize`. A leaf is judged by what is given (`axes=`), by the
module that holds it (Equinox), by the bias beside it and what else is in its module, and last by
its name and shape.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from srigl_jax.layers import Axes, AxesFn, Layer, make_layer
from srigl_jax.leaves import conventions, names
from srigl_jax.leaves.conventions import Convention
from srigl_jax.leaves.evidence import find_biases, readings, stacked_modules
from srigl_jax.leaves.specs import LeafSpec
from srigl_jax.leaves.wording import argument, describe, doubt_of


class Leaf(NamedTuple):
  """A leaf of a parameter tree as it is judged.

  Attributes:
    path: the leaf's path.
    shape: the leaf's shape.
    kind: what it is: "dense", "convolution", "attention in", ..., or what is no layer: "bias",
      "norm", "embedding", "position table", "token", "adapter", "scale", "state", "statistic",
      "table", "not floating".
    rule: what it was judged by.
    layer: its neurons and inputs; None if it is no layer.
    doubt: another reading that is as likely, and which argument decides; `""` if there is none.
  """

  path: str
  shape: tuple[int, ...]
  kind: str
  rule: str
  layer: Layer | None = None
  doubt: str = ""


def judge(
  specs: Mapping[str, LeafSpec],
  *,
  axes: AxesFn | None = None,
  known: Mapping[str, Axes] = {},
  asked: Callable[[str, tuple[int, ...]], bool] | None = None,
) -> dict[str, Leaf]:
  """Judges all leaves of a tree.

  Args:
    specs: the leaves by path, see `leaf_specs`.
    axes: which axes of a kernel are neurons, as the user says; a leaf for which it returns None,
      and all leaves without it, are recognised.
    known: axes by path that were settled before, as the paths of masks carry them.
    asked: leaves of two axes or more that the user calls layers, whatever their name.

  Raises:
    ValueError: if given axes do not fit a leaf, or a pattern of `axes` fits none.
  """
  _check_axes(axes, specs)
  tree = _Tree(specs)
  leaves = {}
  for path, spec in specs.items():
    wanted = len(spec.shape) > 1 and (path in known or (asked and asked(path, spec.shape)))
    other = None if wanted else tree.no_layer(path, spec)
    if not (other or wanted) and len(spec.shape) == 2 and _is_stack(axes, path):
      other = "vector", f"axes={axes} makes it a stack of vectors"
    if other:
      leaves[path] = Leaf(path, spec.shape, *other)
      continue
    given = known.get(path) or (axes(path, spec.shape) if axes else None)
    yields = getattr(axes, "yields_to_bias", None)
    if path not in known and yields and yields(path) and tree.is_beside_bias(path):
      given = None
    if given:
      found, doubt = Convention(given, _name_of(axes, path in known), is_sure=True), ""
    else:
      found, doubt = tree.recognise(path, spec)
      doubt = tree.inner_stack(path) or doubt
    layer = make_layer(path, spec.shape, lambda *_, found=found: found.axes)
    if given and path not in known:
      doubt = tree.contradiction(layer)
    kind = _kind(layer, tree.alias(path))
    leaves[path] = Leaf(path, spec.shape, kind, found.rule, layer, doubt)
  return leaves


class _Tree:
  """What leaves say of each other."""

  def __init__(self, specs: Mapping[str, LeafSpec]):
    self._shapes = {path: spec.shape for path, spec in specs.items()}
    self._biases = find_biases(self._shapes)
    self._stacks = stacked_modules(self._shapes)
    self._inner_stacks = stacked_modules(self._shapes, axis=1)
    # Whether neurons come first, as far as biases tell, by the leaf's own name.
    self._votes: dict[str, set[bool]] = {}
    for path in self._biases:
      if len(ways := self._readings(path)) == 1:
        is_first = ways[0].neurons == (len(ways[0].stack),)
        self._votes.setdefault(conventions.names_of(path)[0], set()).add(is_first)
    self._attention = {
      path.rsplit("/", 2)[0]
      for path in specs
      if path.count("/") > 1 and conventions.is_attention_in(path)
    }

  def _readings(self, path: str) -> list[Axes]:
    bias = self._shapes.get(self._biases.get(path, ""), ())
    ways = readings(self._shapes[path], bias) if bias else []
    if self._stack_of(path):
      ways = [way for way in ways if way.stack] or ways
    return ways

  def is_beside_bias(self, path: str) -> bool:
    """Whether the bias beside a kernel tells its neurons."""
    return len(self._readings(path)) == 1

  def _stack_of(self, path: str) -> str:
    parts = path.split("/")
    above = ("/".join(parts[:depth]) for depth in range(1, len(parts)))
    return next((module for module in above if module in self._stacks), "")

  def no_layer(self, path: str, spec: LeafSpec) -> tuple[str, str] | None:
    """Kind and rule of a leaf that is no layer."""
    if not spec.is_floating:
      return "not floating", str(spec.dtype)
    if spec.holder_kind:
      return spec.holder_kind, f"in an {spec.holder}"
    beside = self._shapes.get(self._biases.get(path, ""))
    stack = self._stack_of(path)
    if path in self._biases.values() and path not in self._biases:
      return "bias", "beside a kernel"
    if len(spec.shape) < 2:
      return names.no_layer(path, spec.shape, has_bias=False) or ("vector", "fewer than two axes")
    if beside == spec.shape and not names.is_kernel_name(path):
      return "norm", "of the shape of its bias"
    if len(spec.shape) == 2 and stack and not self._biases.get(path):
      below = names.no_layer(path, spec.shape[1:], has_bias=False)
      return below or ("vector", f"a vector, stacked under {stack!r}")
    return names.no_layer(path, spec.shape, has_bias=bool(self._readings(path)))

  def recognise(self, path: str, spec: LeafSpec) -> tuple[Convention, str]:
    """A kernel's axes, by which rule, and the doubt."""
    shape, ndim = spec.shape, len(spec.shape)
    leaf = conventions.names_of(path)[0]
    ways, stack = self._readings(path), self._stack_of(path)
    if spec.rank and ndim >= spec.rank:
      axes = conventions.behind(conventions.first(spec.rank), ndim - spec.rank)
      return Convention(axes, spec.holder, is_sure=True), ""
    num_stacked = 1 if stack and ndim > 2 else 0
    votes = self._votes.get(leaf, set())
    named_first = leaf.startswith("weight") or spec.holder.startswith("equinox")
    out_first = votes == {True} or (named_first and votes != {False})
    usual = conventions.convention(self.alias(path), shape[num_stacked:], out_first=out_first)
    usual = usual._replace(axes=conventions.behind(usual.axes, num_stacked))
    if num_stacked:
      usual = usual._replace(rule=f"all under {stack!r} has {shape[0]} in front; {usual.rule}")
    if ways:
      fitting = [way for way in ways if _same(way, usual.axes)]
      if fitting:
        return usual._replace(rule=f"{usual.rule}, as the bias beside it"), ""
      if len(ways) == 1:
        found = Convention(_with_window(ways[0], ndim), "the bias beside it", is_sure=True)
        return found, ""
      usual = usual._replace(axes=_with_window(ways[0], ndim), rule="the bias beside it")
      return usual, doubt_of(path, shape, usual.axes, _with_window(ways[1], ndim))
    is_sure = usual.is_sure
    if ndim - num_stacked == 2 and (named_first or votes):
      is_sure = len(votes) == 1
    if is_sure:
      return usual, ""
    return usual, doubt_of(path, shape, usual.axes, *_others(usual.axes, shape, num_stacked))

  def inner_stack(self, path: str) -> str:
    """What to say if the second axis of all in a module is one of layers; else `""`."""
    parts, shape = path.split("/"), self._shapes[path]
    above = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
    module = next((module for module in above if module in self._inner_stacks), "")
    if not module or len(shape) < 3:
      return ""
    if self._stack_of(path) and shape[0] <= shape[1]:  # both, but layers are fewer than features
      return ""
    return (
      f"{path!r} of shape {shape} is taken for no such stack, but all leaves under {module!r}, "
      f"norms too, have {shape[1]} along their second axis, as layers stacked there have. If they "
      f"are, axes=sx.axes.stacked({f'^{module}/'!r}, axis=1) says so."
    )

  def contradiction(self, layer: Layer) -> str:
    """What to say if given axes are not those of the bias beside the kernel; else `""`."""
    ways = self._readings(layer.path)
    if not ways and layer.axes.neurons == (0, 2) and conventions.stack_name(layer.path):
      stack = f"{layer.shape[0]} layers (axes={argument(layer.path, Axes((2,), stack=(0,)))})"
      return f"{layer.path!r} is {describe(layer)}, as `axes` says, in one layer and not {stack}."
    if not ways or any(_same(way, layer.axes) for way in ways):
      return ""
    axes = _with_window(ways[0], len(layer.shape))
    other = make_layer(layer.path, layer.shape, lambda *_: axes)
    bias = self._biases[layer.path]
    return (
      f"{layer.path!r} of shape {layer.shape} is taken for {describe(layer)}, as `axes` says, but "
      f"{bias!r} beside it has the shape {self._shapes[bias]} of {describe(other)} "
      f"(axes={argument(layer.path, axes)})."
    )

  def alias(self, path: str) -> str:
    """The path, or what says more: a module beside query, key and value is called attention's."""
    module, *rest = path.rsplit("/", 2)
    return "/".join(["attention", *rest]) if len(rest) > 1 and module in self._attention else path


def _check_axes(axes: AxesFn | None, specs: Mapping[str, LeafSpec]) -> None:
  if axes is not None and not callable(axes):
    raise ValueError(
      f"axes is {axes!r}; it must be a layout, such as sx.axes.flax or sx.axes.equinox, "
      "sx.axes.at({pattern: Axes(...)}), or a function (path, shape) -> Axes."
    )
  for pattern in getattr(axes, "patterns", ()):
    if not any(re.search(pattern, path) for path in specs):
      raise ValueError(
        f"axes names {pattern!r}, which fits no leaf of the parameters: {', '.join(specs)}."
      )


def _is_stack(axes: AxesFn | None, path: str) -> bool:
  stacks = getattr(axes, "stacks", None)
  return bool(stacks and stacks(path))


def _same(one: Axes, other: Axes) -> bool:
  return (one.neurons, one.stack) == (other.neurons, other.stack)


def _with_window(axes: Axes, ndim: int) -> Axes:
  """The axes with the windows that such a layout has."""
  s = len(axes.stack)
  layouts = [conventions.last, conventions.first, conventions.transposed]
  if s + 4 == ndim:
    layouts.append(conventions.depthwise)
  if ndim - s > 2:
    for layout in layouts:
      found = conventions.behind(layout(ndim - s), s)
      if _same(found, axes):
        return found
  return axes


def _others(taken: Axes, shape: tuple[int, ...], stack: int) -> list[Axes]:
  """Other readings of a shape."""
  ndim = len(shape) - stack
  if ndim == 2:
    other = conventions.last if taken.neurons == (stack,) else conventions.first
    return [conventions.behind(other(2), stack)]
  usual = [conventions.last(ndim), conventions.heads(ndim)]
  if ndim == 3:
    usual.insert(1, conventions.behind(conventions.last(2), 1))
  return [axes for way in usual if (axes := conventions.behind(way, stack)) != taken]


def _kind(layer: Layer, path: str) -> str:
  axes = layer.axes
  if axes.spatial:
    kind = "depthwise convolution" if layer.dims[1] == 1 else "convolution"
  elif conventions.is_attention_in(path):
    kind = "attention in"
  elif conventions.is_attention_out(path):
    kind = "attention out"
  else:
    kind = "dense"
  return f"{layer.num_stacked} × {kind}" if axes.stack else kind


def _name_of(axes: AxesFn | None, settled: bool) -> str:
  if settled:
    return "as the masks say"
  return f"axes={getattr(axes, '__name__', None) or axes}"
