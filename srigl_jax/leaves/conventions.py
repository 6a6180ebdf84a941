"""Axes of a kernel by its names and shape, where no bias tells: conventions of the frameworks."""

import re
from typing import NamedTuple

from srigl_jax.layers import Axes
from srigl_jax.leaves.evidence import is_window
from srigl_jax.leaves.names import owner_name, plain

_ATTENTION_IN = re.compile(
  r"(.*_)?(query|key|value|queries|keys|values|[qkv]|w[qkv]|to_[qkv])(_?proj)?"
)
_FUSED_IN = re.compile(
  r"(.*_)?(w?qkv|w?kv|w?qk|query_key_value|key_value|(qkv|kv|in)_?proj(ection)?|c_attn|to_qkv|to_kv)"
)
_ATTENTION_OUT = re.compile(r"(.*_)?(attn|attention)_(out\w*|proj)")
_ATTENTION = re.compile(
  r"(^|/)\w*att(n|ention)\w*/(out|proj|out_proj|o_?proj|o|w?o|output)(/|$)", re.IGNORECASE
)
_CONV = re.compile(
  r"(.*_)?(\w*conv\w*|stem|patch\w*|depthwise|pointwise|separable|(down|up)sample)(_.*)?"
)
_GENERAL = re.compile(r"(.*_)?(einsum|linear_general|dense_general)(_.*)?")
# Gemma's, leaves called `w`: `(heads, in, size)`, `(2, heads, in, size)`, and `(heads, size, out)`.
_EINSUM_IN = re.compile(r"(.*_)?(q|kv|qkv|k|v)_einsum")
_EINSUM_OUT = re.compile(r"(.*_)?attn_vec_einsum")
_TRANSPOSED = re.compile(r"(.*_)?conv\d_?d_transpose(_.*)?")  # Haiku's and Keras's; not Flax's
_KERAS_DEPTHWISE = re.compile(r"depthwise_kernel|depthwise_conv\dd")
_EXPERTS = re.compile(r"(.*_)?(experts?|moe)(_.*)?")
_STACKS = re.compile(r"(.*_)?(layers|blocks|stack|stacked|scan\w*|cells|stages|h|repeats?)")


class Convention(NamedTuple):
  """Axes as names and shape suggest them.

  Attributes:
    axes: of the kernel.
    rule: what was gone by.
    is_sure: whether nothing else is likely.
  """

  axes: Axes
  rule: str
  is_sure: bool


def last(ndim: int) -> Axes:
  """`(*window, in, out)`: Flax, Haiku, Keras."""
  return Axes((ndim - 1,), tuple(range(ndim - 2)))


def first(ndim: int) -> Axes:
  """`(out, in, *window)`: Equinox, PyTorch."""
  return Axes((0,), tuple(range(2, ndim)))


def heads(ndim: int) -> Axes:
  """`(in, heads, head size)` and the like: all axes but the first are neurons."""
  return Axes(tuple(range(1, ndim)))


def heads_first(ndim: int) -> Axes:
  """`(heads, in, head size)`, `(3, heads, in, head size)`: all axes but the last but one."""
  return Axes((*range(ndim - 2), ndim - 1))


def transposed(ndim: int) -> Axes:
  """`(*window, out, in)`: transposed convolutions of Haiku and Keras."""
  return Axes((ndim - 2,), tuple(range(ndim - 2)))


def depthwise(ndim: int) -> Axes:
  """`(*window, in, multiplier)`: depthwise convolutions of Keras, a neuron for each pair."""
  return Axes((ndim - 2, ndim - 1), tuple(range(ndim - 2)))


def behind(axes: Axes, stack: int) -> Axes:
  """The axes of a kernel with `stack` axes of a stack in front of what `axes` are of."""
  shift = lambda group: tuple(a + stack for a in group)
  return Axes(shift(axes.neurons), shift(axes.spatial), (*range(stack), *shift(axes.stack)))


def names_of(path: str) -> tuple[str, str]:
  """The names that tell: the leaf's own and that of the module it stands in, both plain."""
  return plain(path.rsplit("/", 1)[-1]), owner_name(path)


def convention(path: str, shape: tuple[int, ...], *, out_first: bool) -> Convention:
  """See `Convention`.

  Args:
    path: the kernel's.
    shape: without the axes of a stack; two axes or more.
    out_first: whether kernels of this name have their neurons first in this tree.
  """
  ndim, names = len(shape), names_of(path)
  named = lambda regex: any(regex.fullmatch(name) for name in names)
  if ndim == 2:
    return Convention(first(2) if out_first else last(2), "two axes", is_sure=True)
  conv = named(_CONV)
  if out_first:
    if conv or is_window(shape[2:]) or not is_window(shape[:-2]):
      return Convention(first(ndim), "window last", conv or is_window(shape[2:]))
    return Convention(last(ndim), "window first", is_sure=False)
  if _KERAS_DEPTHWISE.fullmatch(names[0]) or _KERAS_DEPTHWISE.fullmatch(names[1]):
    return Convention(depthwise(ndim), "Keras's name of a depthwise kernel", is_sure=True)
  if named(_TRANSPOSED):
    return Convention(transposed(ndim), "named like a transposed convolution", is_sure=True)
  if names[0] == "w" and ndim > 2 and _EINSUM_IN.fullmatch(names[1]):
    return Convention(heads_first(ndim), "named like Gemma's projections", is_sure=True)
  if names[0] == "w" and ndim > 2 and _EINSUM_OUT.fullmatch(names[1]):
    return Convention(Axes((ndim - 1,)), "named like Gemma's output", is_sure=True)
  stack = stack_name(path)
  if stack and _EXPERTS.fullmatch(plain(stack)) and not conv and ndim < 5:
    inner = convention(path, shape[1:], out_first=out_first)
    return Convention(behind(inner.axes, 1), f"under {stack!r}", inner.is_sure)
  if not conv and is_attention_out(path) and ndim == 3:
    return Convention(Axes((2,)), "named like attention's output", is_sure=True)
  square = ndim > 3 and shape[0] == shape[1] and shape[0] in (1, 5, 7)
  if named(_FUSED_IN) and not conv and not square and shape[0] > 1:
    return Convention(heads(ndim), "named like a fused projection", is_sure=True)
  general = named(_GENERAL)
  if conv or (ndim > 3 and is_window(shape[:-2]) and not general):
    if ndim > 3 and is_window(shape[2:]) and not is_window(shape[:-2]):
      return Convention(first(ndim), "window last", is_sure=False)
    return Convention(last(ndim), "named like a convolution" if conv else "window first", True)
  if named(_ATTENTION_IN) and ndim == 3 and shape[0] > 1:
    return Convention(heads(ndim), "named like attention's input", is_sure=True)
  if stack and ndim < 5:
    inner = convention(path, shape[1:], out_first=out_first)
    return Convention(behind(inner.axes, 1), f"under {stack!r}", is_sure=False)
  if ndim > 3 and is_window(shape[2:]):
    return Convention(first(ndim), "window last", is_sure=False)
  if general:
    return Convention(heads(ndim), "named like a general dense layer", is_sure=False)
  return Convention(last(ndim), "more than two axes", is_sure=False)


def usual_axes(path: str, shape: tuple[int, ...]) -> Axes:
  """The axes of one kernel of which nothing else is known."""
  return convention(path, shape, out_first=names_of(path)[0].startswith("weight")).axes


def is_attention_out(path: str) -> bool:
  """Whether a kernel is named like attention's output projection."""
  return bool(_ATTENTION.search(path)) or any(_ATTENTION_OUT.fullmatch(n) for n in names_of(path))


def is_attention_in(path: str) -> bool:
  """Whether a kernel is named like attention's query, key or value, or like a fused one."""
  return any(r.fullmatch(n) for r in (_ATTENTION_IN, _FUSED_IN) for n in names_of(path))


def stack_name(path: str) -> str:
  """The part of a path that says that layers are stacked: a plural without a number after it."""
  parts = path.split("/")[:-1]
  for part, following in zip(parts, [*parts[1:], ""], strict=False):
    name = plain(part)
    numbered = following.isdigit() or part[-1:].isdigit()
    if name == "moe" or ((_EXPERTS.fullmatch(name) or _STACKS.fullmatch(name)) and not numbered):
      return part
  leaf = plain(path.rsplit("/", 1)[-1])
  return leaf if re.fullmatch(r"(.*_)?experts?(_.*)?", leaf) else ""
