"""What of a masked model need not be computed: batch norms, neurons that output a constant.

Pure: layers come as arrays, the model as a traced `FlatJaxpr`, and arrays go out. Three rewrites,
each exact up to rounding:

- A batch norm in inference mode whose input is the output of one linear layer or convolution, and
  nothing else reads that output, goes into the layer's weights and bias.
- A neuron without weights outputs its bias, and so does a neuron all of whose inputs are
  constants. Where such a constant reaches other layers through element-wise functions and
  poolings only, what it adds there goes into their biases, and the channel is removed.
- A channel that no active neuron has a weight for is removed.

A layer that pads with zeros sees a constant other than 0 change at the border: that channel stays.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from srigl_jax.condensed.channel_flow import Flow, Flows, analyze, groups
from srigl_jax.programs.flat_jaxpr import FlatJaxpr


@dataclasses.dataclass(frozen=True, eq=False)
class Weights:
  """A linear layer or convolution.

  Attributes:
    kernel: `[W, I, N]`: positions of the window, input channels, neurons.
    mask: bool of this shape; of a dense layer, where the kernel is not 0.
    bias: `[N]`, or None.
    reads_channels: whether the last axis of the input is `I`.
    writes_channels: whether the last axis of the output is `N`.
    can_shrink: whether neurons may be removed.
    pads_zeros: whether some positions see zeros in place of their inputs.
  """

  kernel: np.ndarray
  mask: np.ndarray
  bias: np.ndarray | None
  reads_channels: bool = True
  writes_channels: bool = True
  can_shrink: bool = True
  pads_zeros: bool = False


@dataclasses.dataclass(frozen=True, eq=False)
class Norm:
  """A batch norm in inference mode: `x * scale + shift`, both `[C]` float64."""

  scale: np.ndarray
  shift: np.ndarray


class Folded(NamedTuple):
  """What `fold` makes of a model.

  Attributes:
    layers: every layer that changed.
    norms: for every batch norm that lost channels, those that stay, `[C]` bool.
    folded_norms: batch norms that are now part of the layer before them.
  """

  layers: dict[str, Weights]
  norms: dict[str, np.ndarray]
  folded_norms: set[str]


def fold(
  jaxpr: FlatJaxpr,
  scalars: Mapping[int, Any],
  layers: Mapping[str, Weights],
  norms: Mapping[str, Norm],
) -> Folded:
  """Rewrites the layers of a traced model.

  Args:
    jaxpr: the traced model.
    scalars: values of its inputs that are scalars.
    layers: by path, linear layers and convolutions that may change.
    norms: by path, batch norms that may change.
  """
  calls = jaxpr.calls()
  once: dict[str, Weights] = {path: x for path, x in layers.items() if calls.get(path) == 1}
  single_norms = {path: x for path, x in norms.items() if calls.get(path) == 1}
  targets = _norm_targets(jaxpr, once, single_norms)
  changed = {}
  for norm, target in targets.items():
    changed[target] = once[target] = _scaled(once[target], single_norms.pop(norm))

  constants: dict[str, _Constants] = {}
  steps: dict[str, Callable[..., Flow | None]] = {}
  steps |= {path: _layer_step(path, once, constants) for path in once}
  steps |= {path: _norm_step(path, x) for path, x in single_norms.items()}
  steps |= dict.fromkeys(targets, _identity)
  flows = analyze(jaxpr, scalars, steps)
  kept = _choose(flows, once, constants)
  for path, found in constants.items():
    layer = _apply_constants(once[path], found, kept, path)
    if layer is not once[path]:
      changed[path] = layer
  kept_norms = {path: kept.outputs[path] for path in single_norms if path in kept.outputs}
  return Folded(changed, kept_norms, set(targets))


def _norm_targets(
  jaxpr: FlatJaxpr, layers: Mapping[str, Weights], norms: Mapping[str, Norm]
) -> dict[str, str]:
  """For each batch norm that directly follows a layer, and it alone, that layer."""
  made_by: dict[Any, Any] = {op.outputs[0]: op.layer for op in jaxpr.ops if op.layer is not None}
  uses: dict[int, int] = {}
  for x in [*(x for op in jaxpr.ops for x in op.inputs), *jaxpr.outputs]:
    if not isinstance(x, np.ndarray):
      uses[x] = uses.get(x, 0) + 1
  targets = {}
  for op in jaxpr.ops:
    if op.layer is None or op.layer not in norms:
      continue
    layer = made_by.get(op.inputs[0])
    is_alone = uses[op.inputs[0]] == 1
    if layer is not None and layer in layers and layers[layer].writes_channels and is_alone:
      targets[op.layer] = layer
  return targets


def _scaled(layer: Weights, norm: Norm) -> Weights:
  """The layer with a batch norm behind it."""
  kernel = (layer.kernel.astype(np.float64) * norm.scale).astype(layer.kernel.dtype)
  bias = (
    norm.shift if layer.bias is None else layer.bias.astype(np.float64) * norm.scale + norm.shift
  )
  return dataclasses.replace(layer, kernel=kernel, bias=bias.astype(_bias_dtype(layer)))


def _bias_dtype(layer: Weights) -> np.dtype:
  return layer.kernel.dtype if layer.bias is None else layer.bias.dtype


class _Constants(NamedTuple):
  """What a layer makes of the constants that it reads.

  Attributes:
    usable: `[I]` bool, input channels that are constants also in this layer's window.
    inputs: `[I]` float64, those constants, else 0.
    is_constant: `[N]` bool, neurons that output a constant.
    outputs: `[N]` float64, those constants, else the bias.
  """

  usable: np.ndarray
  inputs: np.ndarray
  is_constant: np.ndarray
  outputs: np.ndarray


def _constants(layer: Weights, read: Flow | None) -> _Constants:
  num_inputs, num_neurons = layer.kernel.shape[1:]
  usable, inputs = np.zeros(num_inputs, bool), np.zeros(num_inputs)
  if read is not None and layer.reads_channels:
    usable = np.asarray(read.known & ((read.value == 0) | (not layer.pads_zeros)))
    inputs = np.where(usable, read.value.astype(np.float64), 0)
  is_constant = np.asarray(~layer.mask[:, ~usable].any((0, 1)))
  outputs = np.zeros(num_neurons) if layer.bias is None else layer.bias.astype(np.float64)
  sums = inputs @ layer.kernel.astype(np.float64).sum(0)
  return _Constants(usable, inputs, is_constant, outputs + np.where(is_constant, sums, 0))


def _layer_step(path, layers, constants):
  """The output's channels of a linear layer or convolution; notes its constants."""
  layer = layers[path]

  def step(read, aval):
    constants[path] = found = _constants(layer, read)
    if not (layer.writes_channels and layer.can_shrink):
      return None
    return Flow(frozenset({path}), found.is_constant, found.outputs.astype(aval.dtype))

  return step


def _norm_step(path, norm):
  """The channels that a batch norm rescales."""

  def step(read, aval):
    if read is None:
      return None
    value = (read.value.astype(np.float64) * norm.scale + norm.shift).astype(aval.dtype)
    return Flow(read.sources | {path}, read.known, value)

  return step


def _identity(read, aval):
  """What is left of a batch norm that was folded: its output's type."""
  return read and read._replace(value=read.value.astype(aval.dtype))


class _Kept(NamedTuple):
  """What stays, `[C]` bool each; layers that are absent keep everything.

  Attributes:
    outputs: by path, the neurons of a layer, or the channels of a batch norm.
    inputs: by path, the input channels of a layer.
  """

  outputs: dict[str, np.ndarray]
  inputs: dict[str, np.ndarray]


def _choose(
  flows: Flows, layers: Mapping[str, Weights], constants: Mapping[str, _Constants]
) -> _Kept:
  """Which channels stay.

  A channel goes if every layer that reads it can do without. Its neuron then reads nothing, so
  that channels before it may go as well: this repeats until nothing changes.
  """
  readers: dict[str, set[str]] = {}  # by source
  pinned = set(flows.pinned)
  sizes: dict[str, int] = {}
  for path, flow in flows.reads:
    sizes |= dict.fromkeys(flow.sources, len(flow.known))
    if path in layers:  # a batch norm hands on what it reads
      pinned |= set() if layers[path].reads_channels else flow.sources
      for source in flow.sources:
        readers.setdefault(source, set()).add(path)
  kept = _Kept({}, {})
  members = []
  for group in groups(flows):
    paths = sorted(set[str]().union(*(readers.get(source, ()) for source in group)))
    if paths and not group & pinned:
      members.append((group, paths))
      stays: Any = np.ones(next(sizes[source] for source in group if source in sizes), bool)
      kept.outputs.update(dict.fromkeys(group, stays))
      kept.inputs.update(dict.fromkeys(paths, stays))

  def needed(path: str) -> np.ndarray:
    computed = ~constants[path].is_constant
    computed = computed & kept.outputs.get(path, computed)
    return layers[path].mask[:, :, computed].any((0, 2)) & ~constants[path].usable

  is_stable = False
  while not is_stable:
    is_stable = True
    for group, paths in members:
      before = kept.inputs[paths[0]]
      stays = np.any([needed(path) for path in paths], axis=0)
      if not stays.any():
        stays[np.argmax(before)] = True  # a layer has at least one neuron
      if not np.array_equal(stays, before):
        is_stable = False
        kept.outputs.update(dict.fromkeys(group, stays))
        kept.inputs.update(dict.fromkeys(paths, stays))
  return kept


def _apply_constants(layer: Weights, constants: _Constants, kept: _Kept, path: str) -> Weights:
  """The layer without the channels that go, their constants in its bias."""
  num_inputs, num_neurons = layer.kernel.shape[1:]
  keep_inputs = kept.inputs.get(path, np.ones(num_inputs, bool))
  keep_outputs = kept.outputs.get(path, np.ones(num_neurons, bool))
  computed = ~constants.is_constant
  is_same = keep_inputs.all() and keep_outputs.all()
  if is_same and not layer.mask[:, :, ~computed].any():
    return layer
  moved = np.where(keep_inputs, 0, constants.inputs) @ layer.kernel.astype(np.float64).sum(0)
  bias = constants.outputs + np.where(computed, moved, 0)
  has_bias = layer.bias is not None or bool(bias.any())
  window = np.ix_(np.arange(len(layer.kernel)), keep_inputs, keep_outputs)
  return dataclasses.replace(
    layer,
    kernel=np.where(computed, layer.kernel, 0).astype(layer.kernel.dtype)[window],
    mask=(layer.mask & computed)[window],
    bias=bias[keep_outputs].astype(_bias_dtype(layer)) if has_bias else None,
  )


def pad_fan_in(mask: np.ndarray) -> np.ndarray:
  """Gives every active neuron the largest fan-in among them.

  Folding takes different numbers of weights from different neurons. What a neuron then lacks it
  gets back as weights of 0, for the first inputs that it does not read.

  Args:
    mask: `[I, N]` bool.

  Returns:
    `[I, N]` bool, a superset of `mask` whose empty columns are the same.
  """
  fan_ins = mask.sum(0)
  missing = np.where(fan_ins > 0, fan_ins.max(initial=0) - fan_ins, 0)
  return mask | (~mask & (np.cumsum(~mask, axis=0) <= missing))
