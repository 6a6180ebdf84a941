"""What a tree says of its kernels' axes: the bias beside a kernel, and what lies under one name.

A bias has the shape of the neurons (`kernel (8, 3, 2, 4)`, `bias (3, 2, 4)`; `weight (10, 32)`,
`bias (10,)`), of a stack of layers with the stack's axes in front. Where all that lies in a module,
biases and norms too, has one more axis in front, the module is a stack.
"""

import re
from collections.abc import Mapping

from srigl_jax.layers import Axes
from srigl_jax.leaves.names import plain

Shapes = Mapping[str, tuple[int, ...]]

_LEADING_WEIGHT = re.compile(r"^(kernel|weights?|w)(?=$|_|\d|[A-Z])", re.IGNORECASE)
_SMALL = re.compile(r"(.*_)?(bias|scale|gamma|beta|offset|b)")


def find_biases(shapes: Shapes) -> dict[str, str]:
  """`{path of a kernel: path of the bias beside it}`.

  By name (`kernel`/`bias`, `w`/`b`, `W1`/`b1`, `weight_ih`/`bias_ih`), and in lists without names
  the vector that follows the kernel.
  """
  found = {}
  for path, shape in shapes.items():
    module, slash, leaf = path.rpartition("/")
    if len(shape) < 2:
      continue
    if leaf.isdigit():
      after = f"{module}{slash}{int(leaf) + 1}"
      if len(shapes.get(after, ())) == 1:
        found[path] = after
      continue
    names = [_LEADING_WEIGHT.sub(bias, leaf) for bias in ("bias", "b", "B", "biases")]
    names += ["bias"] if leaf.endswith("kernel") else []
    beside = [f"{module}{slash}{name}" for name in names if name != leaf]
    if bias := next((other for other in beside if other in shapes), None):
      found[path] = bias
  return found


def readings(shape: tuple[int, ...], bias: tuple[int, ...]) -> list[Axes]:
  """All the ways in which a bias can be that of a kernel's neurons; the windows are left open."""
  while len(bias) > 1 and bias[-1] == 1:  # Equinox: (out, 1, 1)
    bias = bias[:-1]
  ndim, ways = len(shape), []
  for s in range(len(bias)):
    stack, own, t = tuple(range(s)), bias[s:], len(bias) - s
    if bias[:s] != shape[:s] or s + t >= ndim:
      continue
    if shape[ndim - t :] == own:
      ways.append(Axes(tuple(range(ndim - t, ndim)), stack=stack))
    if t == 1 and shape[s] == own[0]:
      ways.append(Axes((s,), stack=stack))
    if t == 1 and ndim - s > 2 and shape[-2] == own[0]:
      ways.append(Axes((ndim - 2,), stack=stack))  # transposed convolutions of Haiku and Keras
    if t == 1 and ndim - s > 2 and shape[-1] > 1 < shape[-2] and shape[-2] * shape[-1] == own[0]:
      ways.append(Axes((ndim - 2, ndim - 1), stack=stack))  # depthwise convolutions of Keras
  return ways


def stacked_modules(shapes: Shapes, axis: int = 0) -> dict[str, int]:
  """`{path of a module: size}` of modules of which each leaf has an axis of that size in front.

  Only where a bias or norm is among them, which would be a vector in a single layer, and has two
  axes; a bias that heads explain (`query/bias (heads, size)`) proves nothing.

  Args:
    shapes: of all leaves, by path.
    axis: 0 for stacks in front; 1 for those that `nn.scan` was told to put there, which norms
      alone prove.
  """
  biases = find_biases(shapes)
  of = {bias: kernel for kernel, bias in biases.items()}
  modules: dict[str, list[str]] = {}
  for path in shapes:
    parts = path.split("/")
    for depth in range(1, len(parts)):
      modules.setdefault("/".join(parts[:depth]), []).append(path)

  def proves(path: str) -> bool:
    shape, kernel = shapes[path], of.get(path)
    if len(shape) < 2 or shape[-1] == 1 or not _SMALL.fullmatch(plain(path.rsplit("/", 1)[-1])):
      return False
    if kernel is None:
      return max(shape[:-1]) > 1 and (axis == 0 or len(shape) == 2)
    if axis:
      return False
    ways = readings(shapes[kernel], shape)
    return bool(ways) and all(way.stack for way in ways)

  found = {}
  for module, paths in modules.items():
    sizes = {shapes[path][axis] if len(shapes[path]) > 1 else 0 for path in paths}
    if len(sizes) == 1 and min(sizes) > 1 and any(proves(path) for path in paths):
      found[module] = sizes.pop()
  return found


def is_window(sizes: tuple[int, ...]) -> bool:
  """Whether axes look like the window of a convolution in two dimensions or more."""
  same, odd = len(set(sizes)) == 1, all(n % 2 for n in sizes)
  return len(sizes) > 1 and max(sizes) <= 32 and (same or (odd and max(sizes) <= 11))
