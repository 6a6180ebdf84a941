"""The dense network in JAX, and the condensed one."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import srigl_jax as sx
from experiments.benchmarks.serving import models
from experiments.benchmarks.serving.cases import ENGINES, NETWORKS, OURS, calibration
from experiments.benchmarks.serving.engine import Arrays, Call, Engine, Task


def why_not(precision: str) -> str:
  """Why the library cannot condense to a precision, empty if it can."""
  known = precision == "float32" or "dtype" in inspect.signature(sx.condense_model).parameters
  return "" if known else f"condense_model has no dtype={precision!r}"


def make(task: Task) -> Engine:
  """The engine."""
  network = NETWORKS[task.network]
  model, masks = models.build(network.make, task.sparsity, network.distribution)
  if task.engine not in OURS:
    return dense(model)
  shapes = tuple(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in network.inputs(1))
  precision = ENGINES[task.engine].precision
  is_calibrated = precision == "int8" and network.is_image
  kwargs: dict[str, Any] = {}
  if precision != "float32" and not is_calibrated:
    kwargs["dtype"] = precision
  if network.is_image:  # what is left dense is native, too
    masks = {**_full_masks(model, precision), **masks}
  condensed = sx.condense_model(model, masks, shapes, **kwargs)
  if is_calibrated:
    examples = tuple(map(np.concatenate, zip(*calibration(network), strict=True)))
    condensed, _ = sx.quantize_model(condensed, examples, calibrate=True)
  # Weights are constants of the compiled program, as a server has one network for long.
  return _engine(jax.jit(lambda *x: condensed(*x)))


def _full_masks(model: nnx.Module, precision: str) -> dict[str, Any]:
  """Masks of every weight of the convolutions that are of one group.

  None in float32 if others are depthwise: native convolutions pass on tiles to each other alone,
  and dense ones of few channels are XLA's then.
  """
  modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(model)}
  convs = {path: module for path, module in modules.items() if isinstance(module, nnx.Conv)}
  plain = {path: conv for path, conv in convs.items() if conv.feature_group_count == 1}
  if precision == "float32" and len(plain) < len(convs):
    return {}
  shapes = {path: conv.kernel.get_value().shape for path, conv in plain.items()}
  return {f"{path}/kernel": np.ones(shape, bool) for path, shape in shapes.items()}


def dense(model: nnx.Module) -> Engine:
  """The dense network. Its weights are arguments: as constants they would be folded for minutes."""
  graphdef, state = nnx.split(model)
  apply = jax.jit(lambda state, *x: nnx.merge(graphdef, state)(*x))
  return _engine(lambda *x: apply(state, *x))


def _engine(apply: Any) -> Engine:
  def prepare(inputs: Arrays) -> Call:
    on_device = [jnp.asarray(x) for x in inputs]
    if isinstance(jax.eval_shape(apply, *on_device), jax.ShapeDtypeStruct):  # one array
      return lambda: apply(*on_device).block_until_ready()
    return lambda: jax.block_until_ready(apply(*on_device))

  return Engine(prepare)
