"""The library in the signatures that the golden vectors' `oracle_check` wants (torch layout).

From the repository's root: `python <golden>/oracle_check.py tests.golden_adapter:update --rigl
tests.golden_adapter:rigl_update`.
"""

import functools

import jax
import numpy as np

import srigl_jax as sx
from srigl_jax import allocation, distributions, exact_counts, schedule
from srigl_jax.layers import Axes, make_layer

drop_fraction = schedule.cosine_drop_fraction
fires = schedule.is_update_step
accumulates = schedule.accumulates_gradient

# Each layer shape is compiled once and run once: spare the compiler its optimizations.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
_srigl = _jit(sx.srigl_update, static_argnames=("budget", "gamma_sal", "salient_base"))
_rigl = _jit(sx.rigl_update)


def update(weight, grad, mask, sparsity, drop_fraction, min_salient, threshold_base):
  """New mask, ablated neurons (bool), fan-in, new weights."""
  layer = torch_layer("weight", mask.shape)
  new_mask = _srigl(
    *map(to_flax, (weight, grad, mask)),
    budget=int(layer.size * (1 - sparsity)),
    drop_fraction=exact(drop_fraction),
    gamma_sal=min_salient,
    salient_base={"sparse": "constant_fan_in", "dense": "dense_fan_in"}[threshold_base],
  )
  new_mask = to_torch(new_mask)
  fan_ins = new_mask.reshape(len(new_mask), -1).sum(1)
  return new_mask, fan_ins == 0, fan_ins.max(), np.where(new_mask & mask, weight, 0)


def rigl_update(weight, grad, mask, drop_fraction):
  """New mask, new weights."""
  new_mask = _rigl(*map(to_flax, (weight, grad, mask)), drop_fraction=exact(drop_fraction))
  return to_torch(new_mask), np.where(to_torch(new_mask) & mask, weight, 0)


def allocate(shapes, density, dist, linear, mha, options):
  """Sparsity of each layer, 0 or less where dense."""
  layers = {str(i): torch_layer(str(i), shape) for i, shape in enumerate(shapes)}
  dense = {str(i) for i, flag in enumerate(linear) if flag and options["ignore_linear_layers"]}
  dense |= {str(i) for i, flag in enumerate(mha) if flag and options["ignore_mha_layers"]}
  if options["keep_first_layer_dense"] and (dist != "uniform" or len(shapes) > 1):
    dense.add("0")
  return list(distributions.DISTRIBUTIONS[dist](layers, density, dense).values())


def fan_in(shape, sparsity):
  """Constant fan-in of a layer, 0 where `srigl_jax.allocate` refuses."""
  return allocation.constant_fan_in(torch_layer("weight", shape), sparsity)


def exact(drop_fraction):
  """A double that jit traces, so that cases of one shape share a compilation."""
  return exact_counts.ExactFraction(exact_counts.fraction_digits(drop_fraction))


def torch_layer(path, shape):
  """Torch kernels: (out, in) and (out, in, *window)."""
  axes = Axes(neurons=(0,), spatial=tuple(range(2, len(shape))))
  return make_layer(path, shape, lambda *_: axes)


def to_flax(x):
  """(out, in, *window) -> (*window, in, out)."""
  return np.transpose(x, (*range(2, x.ndim), 1, 0))


def to_torch(x):
  """(*window, in, out) -> (out, in, *window)."""
  return np.transpose(np.asarray(x), (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)))
