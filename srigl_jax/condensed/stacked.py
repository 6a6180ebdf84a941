"""Condensed layers stacked, to run under the scan or vmap that runs the dense ones."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srigl_jax.condensed.condense import condense
from srigl_jax.layers import Axes, from_matrix, make_layer
from srigl_jax.stacks import host_stack, one_layer
from srigl_kernels import Condensed, Prepared, cost_model, prepare


def condense_stack(kernel: Any, mask: Any, bias: Any, axes: Axes) -> list[Condensed]:
  """The condensed form of each layer of a stack, all of the same sizes.

  One program runs them all, so they have as many active neurons, and as large a fan-in, as the
  layer that has most: what another lacks it gets as weights of 0.

  Args:
    kernel: of the stack, float32 or bfloat16; exactly 0 off the mask.
    mask: bool of the kernel's shape.
    bias: `(*stack, *neurons)`, or None.
    axes: with a stack.

  Raises:
    ValueError: as for `condense`, of which layer.
  """
  layers = condense(kernel, mask, bias, axes=axes)  # for its checks
  num_active, fan_in = (max(sizes) for sizes in zip(*(x.values.shape for x in layers), strict=True))
  layer = make_layer("kernel", np.shape(kernel), lambda *_: axes)
  one = one_layer(layer)
  order = one.input_axes + one.axes.neurons
  padded = [
    from_matrix(jnp.asarray(_padded(x, num_active, fan_in)), one)
    for x in (
      m.transpose(order).reshape(one.dense_fan_in, one.num_neurons) for m in host_stack(mask, layer)
    )
  ]
  kernels = host_stack(kernel, layer)
  biases = [None] * len(kernels) if bias is None else np.asarray(bias).reshape(len(kernels), -1)
  neurons = [one.shape[a] for a in one.axes.neurons]
  shaped = [None if b is None else b.reshape(neurons) for b in biases]
  return [condense(k, m, b, axes=one.axes) for k, m, b in zip(kernels, padded, shaped, strict=True)]


def _padded(mask: np.ndarray, num_active: int, fan_in: int) -> np.ndarray:
  """A superset of `[I, N]` bool with so many active neurons, of that fan-in each."""
  idle = ~mask.any(0)
  more = idle & (np.cumsum(idle) <= num_active - (~idle).sum())
  mask = mask.copy()
  mask[:fan_in, more] = True
  active = mask.any(0)
  missing = np.where(active, fan_in - mask.sum(0), 0)
  return mask | (~mask & (np.cumsum(~mask, axis=0) <= missing))


def backend_in_loop(layer: Condensed, backend: str | Sequence[str]) -> str | Sequence[str]:
  """What a layer that runs in a loop is prepared for: `"auto"` leaves small layers dense on CPU.

  XLA runs the small products of a loop's body one after another in a quarter of a microsecond each,
  where native code takes a call of more than half of one.

  Args:
    layer: the layer, or the first of a stack.
    backend: what was asked for.
  """
  is_small = cost_model.is_small(layer.in_features, layer.out_features)
  on_cpu = jax.default_backend() == "cpu"
  return "dense" if backend == "auto" and is_small and on_cpu else backend


def prepare_stack(
  layers: Sequence[Condensed], backend: str | Sequence[str], **kwargs: Any
) -> Prepared:
  """The layers of a stack prepared, every array with the stack as its first axis.

  Args:
    layers: from `condense_stack`.
    backend: see `srigl_jax.prepare`; `"xla"` instead if its layouts differ in size from layer to
      layer. Small layers that are left to `"auto"` are dense, as in every loop; a scan besides
      copies each array of a layout out of its stack before native code is called.
    **kwargs: further arguments of `prepare`.
  """
  backend = backend_in_loop(layers[0], backend)
  prepared = [prepare(layer, backend=backend, **kwargs) for layer in layers]
  if len({_form(x) for x in prepared}) > 1:
    prepared = [prepare(layer, backend="xla", **kwargs) for layer in layers]
  return jax.tree.map(lambda *x: jnp.stack(x), *prepared)


def _form(prepared: Prepared) -> Any:
  leaves, structure = jax.tree.flatten(prepared)
  return structure, tuple((x.shape, x.dtype) for x in leaves)
