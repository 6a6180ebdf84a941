"""The mean of the dense gradients of several batches, until a topology update has used it.

Two things can be kept of a layer, and the smaller one is: what the gradients are made of, that is
the inputs and the gradients in the outputs of every batch of the window, or their mean itself.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from srigl_jax.condensed_training.conditional import apply_if
from srigl_jax.condensed_training.ranking import DenseGradient, Gradients, LayerSignals
from srigl_jax.layers import check_paths
from srigl_jax.mask_updates import MaskUpdater
from srigl_jax.schedule import accumulates_gradient
from srigl_kernels.pattern import Pattern


class Mean(NamedTuple):
  """The mean dense gradient of the batches so far, `[I, N]` float32."""

  gradient: Array


Kept = LayerSignals | Mean
Window = dict[str, Kept]
"""By path, the signals of W batches of B rows on all devices, `[W * B, ...]`; or their `Mean`."""


class GradientWindow(NamedTuple):
  """Which batches' gradients score the growth of an update: the last ones before it.

  Attributes:
    updater: when the topology is updated, and how many optimizer steps score growth.
    accumulation_steps: batches that make an optimizer step.
    axis_name: the mapped axis of the devices that share a batch, or None.
  """

  updater: MaskUpdater
  accumulation_steps: int
  axis_name: str | None

  @property
  def size(self) -> int:
    """How many batches; the gradient of a single one need not be kept."""
    return self.updater.grad_accumulation_steps * self.accumulation_steps

  def needs(self, steps_done: Any) -> Any:
    """Whether the gradients of the optimizer step after so many score growth."""
    updater = self.updater
    return accumulates_gradient(
      steps_done, updater.update_every, updater.update_until, updater.grad_accumulation_steps
    )

  def empty(self, signals: Mapping[str, Any] | None, patterns: Mapping[str, Pattern]) -> Window:
    """A window with nothing in it.

    Args:
      signals: of a batch of all devices by path, arrays or their shapes.
      patterns: of the layers.

    Raises:
      ValueError: if there are none, but their gradients would have to be kept.
    """
    if self.size == 1:
      return {}
    if signals is None:
      raise ValueError(
        f"Growth is scored by the gradients of {self.size} batches, but it is not known how large "
        "they are: give `signals`, those of a batch of all devices or their shapes "
        "(jax.eval_shape)."
      )
    check_paths(patterns, signals, name="patterns")

    def empty(signal: Any, pattern: Pattern) -> Kept:
      num_bytes = sum(self.size * a.size * a.dtype.itemsize for a in jax.tree.leaves(signal))
      if num_bytes < 4 * pattern.in_features * pattern.out_features:
        rows = lambda a: jnp.zeros((self.size * a.shape[0], *a.shape[1:]), a.dtype)
        return jax.tree.map(rows, signal)
      return Mean(jnp.zeros((pattern.in_features, pattern.out_features), jnp.float32))

    return {path: empty(signals[path], patterns[path]) for path in patterns}

  def with_batch(
    self, window: Window, signals: Mapping[str, LayerSignals], step: Array, batch: Array
  ) -> Window:
    """The window with one more batch, if it belongs there.

    Args:
      window: so far; what an earlier one held is forgotten with the first batch of the next.
      signals: of the batch, by path.
      step: `[]` int32, optimizer steps done.
      batch: `[]` int32, batches since the last step.
    """
    if not window:
      return window
    steps_left = self.updater.update_every - step % self.updater.update_every
    place = (self.updater.grad_accumulation_steps - steps_left) * self.accumulation_steps + batch
    add = lambda window: {
      path: self._add(kept, signals[path], place) for path, kept in window.items()
    }
    return apply_if(self.needs(step), add, window)

  def _add(self, kept: Kept, signal: LayerSignals, place: Array) -> Kept:
    axis_name = self.axis_name
    if isinstance(kept, Mean):
      num_neurons = kept.gradient.shape[1]
      gradient = DenseGradient(signal, axis_name)(0, num_neurons) / self.size
      return Mean(jnp.where(place == 0, 0, kept.gradient) + gradient)
    if axis_name is not None:
      signal = jax.tree.map(lambda rows: lax.all_gather(rows, axis_name, tiled=True), signal)
    put = lambda all_rows, rows: lax.dynamic_update_slice_in_dim(
      all_rows, rows, place * rows.shape[0], axis=0
    )
    return jax.tree.map(put, kept, signal)


def window_gradient(kept: Kept) -> Gradients:
  """The mean dense gradient of a full window, up to a factor, in blocks of a layer's neurons."""
  if isinstance(kept, Mean):
    return lambda first, size: lax.dynamic_slice_in_dim(kept.gradient, first, size, axis=1)
  return DenseGradient(kept)


def batch_gradient(signal: LayerSignals, *, axis_name: str | None) -> Gradients:
  """The dense gradient of a single batch, averaged over the devices."""
  return DenseGradient(signal, axis_name)
