"""Flax NNX layers that train in condensed form, their gradients and their optimizer."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from srigl_jax.arguments import check_kind
from srigl_jax.condensed.nnx_modules import as_static, check_sharding, over_axes, promote
from srigl_jax.condensed_training.transform import CondensedTraining, Signals
from srigl_jax.layers import kernel_path
from srigl_kernels.pattern import Pattern
from srigl_kernels.training import sparse_linear
from srigl_kernels.training_conv import conv_probe, sparse_conv


class PatternVariable(nnx.Variable):
  """The variable that holds a layer's `Pattern`: state like a batch norm's, not a parameter."""


class ProbeVariable(nnx.Variable):
  """Where `value_and_grad` puts a layer's probe; `()` outside of it."""


class OptimizerVariable(nnx.Variable):
  """The variable that holds the state of a `CondensedOptimizer`."""


class SparseLayer(nnx.Module):
  """What the layers have in common: values as their `kernel`, a pattern, a bias, a probe.

  Attributes:
    kernel: `nnx.Param` `[C]` float32, the values.
    pattern: which connections these are.
    bias: `nnx.Param` of the neurons' shape, or None.
    dtype: compute type, or None for that of inputs and weights.
  """

  def __init__(self, values: Array, pattern: Pattern, like: Any):
    self.kernel = nnx.Param(values)
    self.pattern = PatternVariable(pattern)
    self.probe = ProbeVariable(())
    self.bias = like.bias
    self.dtype = like.dtype
    self.recording = False

  def _promote(self, inputs: Array) -> Array:
    bias = None if self.bias is None else self.bias.get_value()
    return promote(inputs, self.dtype, self.kernel.get_value(), bias)

  def _bias(self) -> Array | None:
    return None if self.bias is None else self.bias.get_value().reshape(-1)

  def _probe(self, zeros: Callable[[], Any]) -> Any:
    """The probe to give to the product, or None; `zeros()` makes one where it is not known yet."""
    probe = self.probe.get_value()
    if not self.recording:
      return probe or None
    if probe:
      raise ValueError(
        "A layer that trains in condensed form is called twice in one pass: topology updates "
        "would see one of its calls only. Keep it dense with sparse=all_but(...)."
      )
    self.probe.set_value(zeros())
    return None


class SparseLinear(SparseLayer):
  """Stands for an `nnx.Linear` or `nnx.LinearGeneral` (attention projections)."""

  def __init__(self, values: Array, pattern: Pattern, like: Any):
    super().__init__(values, pattern, like)
    self.axis = tuple(getattr(like, "axis", (-1,)))  # nnx.Linear has none

  def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
    """Maps `[..., I]` to `[..., N]`, each of them several axes if the layer had several."""
    check_sharding(out_sharding)
    pattern = self.pattern.get_value()
    x = self._promote(inputs)
    return over_axes(self._product, x, self.axis, pattern.kernel_shape, pattern.neuron_axes)

  def _product(self, x: Array) -> Array:
    pattern = self.pattern.get_value()

    def zeros() -> tuple[Array, ...]:
      rows, widths = x.size // x.shape[-1], (pattern.in_features, pattern.out_features)
      return tuple(jnp.zeros((rows, n), x.dtype) for n in widths)

    probe = self._probe(zeros)
    return sparse_linear(x, self.kernel.get_value(), pattern, self._bias(), probe=probe)


class SparseConv(SparseLayer):
  """Stands for an `nnx.Conv` of one group."""

  feature_group_count = 1

  def __init__(self, values: Array, pattern: Pattern, like: Any):
    super().__init__(values, pattern, like)
    self.strides = as_static(like.strides)
    self.padding = as_static(like.padding)
    self.input_dilation = as_static(like.input_dilation)
    self.kernel_dilation = as_static(like.kernel_dilation)

  def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
    """Maps `[..., *positions, channels]` to `[..., *positions, N]`."""
    check_sharding(out_sharding)
    pattern, x = self.pattern.get_value(), self._promote(inputs)
    arguments = {
      "strides": self.strides,
      "padding": self.padding,
      "input_dilation": self.input_dilation,
      "kernel_dilation": self.kernel_dilation,
    }
    probe = self._probe(lambda: conv_probe(x, pattern, **arguments))
    return sparse_conv(x, self.kernel.get_value(), pattern, self._bias(), probe=probe, **arguments)


class CondensedGradients(NamedTuple):
  """What `value_and_grad` returns beside the loss.

  Attributes:
    params: `nnx.State` of the parameters' gradients.
    signals: what topology updates need, by path; None to leave the topology as it is.
  """

  params: Any
  signals: Signals | None


def value_and_grad(loss_fn: Callable[..., Any], *, has_aux: bool = False) -> Callable[..., Any]:
  """See `srigl_jax.condensed_value_and_grad`."""

  def run(model: nnx.Module, *args: Any) -> tuple[Any, CondensedGradients]:
    split: Any = nnx.split(model, nnx.Param, ...)
    graphdef, params, rest = split

    def evaluate(params: Any, probes: dict[str, Any], recording: bool) -> tuple[Array, Any]:
      copy = nnx.merge(graphdef, params, rest, copy=True)
      layers = sparse_layers(copy)
      for path, layer in layers.items():
        layer.recording = recording
        layer.probe.set_value(probes.get(path, ()))
      out = loss_fn(copy, *args)
      seen = {path: layer.probe.get_value() for path, layer in layers.items()}
      for layer in layers.values():
        layer.recording = False
        layer.probe.set_value(())
      return (out[0] if has_aux else out), (out, nnx.state(copy, nnx.Not(nnx.Param)), seen)

    shapes = jax.eval_shape(lambda: evaluate(params, {}, True)[1][2])
    idle = sorted(path for path, probe in shapes.items() if not probe)
    if idle:
      raise ValueError(f"The loss does not call the sparse layer {idle[0]!r}: keep it dense.")
    probes = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    (_, (out, new_rest, _)), (grads, signals) = jax.value_and_grad(
      lambda params, probes: evaluate(params, probes, False), argnums=(0, 1), has_aux=True
    )(params, probes)
    nnx.update(model, new_rest)
    return out, CondensedGradients(grads, signals)

  return run


class CondensedOptimizer(nnx.Module):
  """See `srigl_jax.condensed_optimizer`."""

  def __init__(self, model: nnx.Module, tx: CondensedTraining, signals: Signals | None = None):
    check_kind("tx", tx, CondensedTraining, "what condensed_srigl(...) or another returns")
    params, patterns = _trained(model)
    self.tx = tx
    self.state = OptimizerVariable(tx.init(params, patterns, signals))

  def update(self, model: nnx.Module, grads: CondensedGradients, **extra_args: Any) -> None:
    """One step: changes the model's parameters and patterns, and this state.

    Args:
      model: the model that it was made for.
      grads: from `condensed_value_and_grad`.
      **extra_args: for the inner optimizer.
    """
    params, patterns = _trained(model)
    params, patterns, state = self.tx.update(
      nnx.as_pure(grads.params),
      grads.signals,
      self.state.get_value(),
      params,
      patterns,
      **extra_args,
    )
    nnx.update(model, params)
    for path, layer in sparse_layers(model).items():
      layer.pattern.set_value(patterns[path])
    self.state.set_value(state)


def sparse_layers(model: nnx.Module) -> dict[str, SparseLayer]:
  """The layers of a model that train in condensed form, by the path of their kernel."""
  check_model(model)
  return {
    kernel_path("/".join(map(str, path))): module
    for path, module in nnx.iter_modules(model)
    if isinstance(module, SparseLayer)
  }


def check_model(model: Any) -> None:
  """Raises a ValueError unless it is a Flax NNX model."""
  check_kind("model", model, nnx.Module, "a Flax NNX model, from sparsify(...)")


def _trained(model: nnx.Module) -> tuple[Any, dict[str, Pattern]]:
  patterns = {path: layer.pattern.get_value() for path, layer in sparse_layers(model).items()}
  return nnx.as_pure(nnx.state(model, nnx.Param)), patterns
