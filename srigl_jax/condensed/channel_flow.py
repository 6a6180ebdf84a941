"""Which channels of a model's tensors are constant: data flow through a traced jaxpr.

A channel is an index of a tensor's last axis. From the constants that ablated neurons output, the
analysis follows every channel through element-wise functions and poolings to the layers that read
it, and tells what else would notice if the channel were not there.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srigl_jax.programs.flat_jaxpr import FlatJaxpr, Op


class Flow(NamedTuple):
  """What is known of a tensor whose channels are those of some layers' outputs, one by one.

  Attributes:
    sources: paths of the layers that put the channels out, or rescale them.
    known: `[C]` bool, channels that hold one constant at every position.
    value: `[C]` of the tensor's type; means nothing where not known.
  """

  sources: frozenset[str]
  known: np.ndarray
  value: np.ndarray


class Uniform(NamedTuple):
  """A tensor that holds one number everywhere."""

  value: np.ndarray


Value = Flow | Uniform | None  # None: anything else
Layer = Callable[[Flow | None, jax.core.ShapedArray], Flow | None]


class Flows(NamedTuple):
  """What `analyze` finds.

  Attributes:
    reads: `(layer, flow)` for each layer that reads channels.
    together: sets of sources whose channels meet in one tensor.
    pinned: sources all of whose channels must stay, because something else sees them.
  """

  reads: list[tuple[str, Flow]]
  together: set[frozenset[str]]
  pinned: set[str]


def analyze(jaxpr: FlatJaxpr, scalars: Mapping[int, Any], layers: Mapping[str, Layer]) -> Flows:
  """Follows channels through a jaxpr.

  Args:
    jaxpr: see `inline`.
    scalars: values of inputs that are scalars.
    layers: for each layer that may be changed its output, given `(flow of its input, shape and
      type of its output)`. Any other layer lets nothing through.
  """
  env: dict[int, Value] = {i: Uniform(np.asarray(x)) for i, x in scalars.items()}
  flows = Flows([], set(), set())
  for op in jaxpr.ops:
    inputs = [Uniform(x) if isinstance(x, np.ndarray) else env.get(x) for x in op.inputs]
    output: Value
    if op.layer is not None:
      read = inputs[0] if isinstance(inputs[0], Flow) else None
      output = None
      if op.layer in layers:
        output = layers[op.layer](read, op.out_avals[0])
        flows.reads.extend([] if read is None else [(op.layer, read)])
      elif read is not None:
        flows.pinned.update(read.sources)
    else:
      output = _apply(op, inputs)
      if not isinstance(output, Flow):
        flows.pinned.update(*(x.sources for x in inputs if isinstance(x, Flow)))
    if isinstance(output, Flow):
      flows.together.add(output.sources)
    env |= dict.fromkeys(op.outputs, output)
  last = [env.get(x) for x in jaxpr.outputs if not isinstance(x, np.ndarray)]
  flows.pinned.update(*(x.sources for x in last if isinstance(x, Flow)))
  return flows


_ELEMENTWISE = frozenset(
  """
  abs acos acosh add and asin asinh atan atan2 atanh cbrt ceil clamp convert_element_type copy cos
  cosh div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow is_finite le log log1p
  logistic lt max min mul ne neg nextafter not or pow reduce_precision rem round rsqrt select_n
  sign sin sinh sqrt square sub tan tanh xor
  """.split()  # noqa: SIM905
)


def _apply(op: Op, inputs: Sequence[Value]) -> Value:
  """All that an operation that is no layer puts out; None if it is not followed."""
  name = op.primitive.name
  if name in _ELEMENTWISE:
    return _elementwise(op, inputs)
  if len(inputs) != 1 or inputs[0] is None:
    return None
  x, (aval,) = inputs[0], op.in_avals
  if name == "split":
    is_whole = isinstance(x, Uniform) or op.params["axis"] != len(aval.shape) - 1
    return x if is_whole else None
  if len(op.out_avals) != 1:
    return None
  (out,) = op.out_avals
  moves = name in ("broadcast_in_dim", "reshape", "squeeze", "transpose", "slice")
  if isinstance(x, Uniform):
    return x if moves else None
  if moves and _keeps_channels(op, aval.shape, out.shape):
    return x
  factor = _pooled(op, aval.shape)
  if factor is None:
    return None
  with np.errstate(all="ignore"):
    return _finite(x.sources, x.known, (x.value * factor).astype(x.value.dtype))


def _elementwise(op: Op, inputs: Sequence[Value]) -> Value:
  flows = [x for x in inputs if isinstance(x, Flow)]
  if any(x is None for x in inputs):
    return None
  values = [x.value for x in inputs if x is not None]
  if not flows:
    return Uniform(np.asarray(op.primitive.bind(*map(jnp.asarray, values), **op.params)))
  shape = flows[0].known.shape
  values = [np.broadcast_to(x, shape) for x in values]
  value = np.asarray(op.primitive.bind(*map(jnp.asarray, values), **op.params))
  known = np.all([x.known for x in flows], axis=0)
  if op.primitive is lax.mul_p:  # a constant 0 stays 0 whatever it gates
    zero = [
      (x.known if isinstance(x, Flow) else True) & (y == 0)
      for x, y in zip(inputs, values, strict=True)
    ]
    zero_any = np.any(zero, axis=0)
    known, value = known | zero_any, np.where(zero_any, np.zeros_like(value), value)
  return _finite(frozenset[str]().union(*(x.sources for x in flows)), known, value)


def _finite(sources: frozenset[str], known: np.ndarray, value: np.ndarray) -> Flow:
  return Flow(sources, known & np.isfinite(value.astype(np.float32)), value)


def _keeps_channels(op: Op, shape: tuple[int, ...], out: tuple[int, ...]) -> bool:
  """Whether a rearrangement leaves the last axis as it is."""
  if not out or shape[-1] != out[-1]:
    return False
  name, params, last = op.primitive.name, op.params, len(shape) - 1
  if name == "broadcast_in_dim":
    return params["broadcast_dimensions"][-1] == len(out) - 1
  if name == "transpose":
    return params["permutation"][-1] == last
  if name == "squeeze":
    return last not in params["dimensions"]
  if name == "slice":
    return not params["strides"] or params["strides"][-1] == 1
  return True  # a reshape is row-major: axes of equal size at the end are the same axis


def _pooled(op: Op, shape: tuple[int, ...]) -> int | None:
  """By what a reduction over positions multiplies a constant; None if it is something else.

  The first axis is taken for the batch: a sum over it would depend on its size.
  """
  name, params, last = op.primitive.name, op.params, len(shape) - 1
  if name in ("reduce_sum", "reduce_max", "reduce_min"):
    if {0, last} & set(params["axes"]):
      return None
    return math.prod(shape[a] for a in params["axes"]) if name == "reduce_sum" else 1
  if name in ("reduce_window_sum", "reduce_window_max"):
    window, padding = params["window_dimensions"], params["padding"]
    if window[0] != 1 or window[-1] != 1 or any(params["padding"][-1] + params["padding"][0]):
      return None
    if params["window_strides"][-1] != 1 or any(d != 1 for d in params["base_dilation"]):
      return None
    if name == "reduce_window_max":  # pads with the smallest number
      return 1
    return None if any(low or high for low, high in padding) else math.prod(window)
  return None


def groups(flows: Flows) -> Iterator[frozenset[str]]:
  """Sources whose channels come and go together, directly or through others."""
  merged: list[frozenset[str]] = []
  for sources in flows.together:
    touching = [group for group in merged if group & sources]
    merged = [group for group in merged if not group & sources]
    merged.append(sources.union(*touching))
  yield from sorted(merged, key=sorted)
