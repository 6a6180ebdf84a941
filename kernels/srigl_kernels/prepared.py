"""A condensed layer with what backends made of it; `api.prepare` makes one."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels.format import Condensed
from srigl_kernels.subpixel import Subpixel

Layout = Any  # a pytree of arrays, each backend its own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A layer with the layouts that backends read, so that these are not made in every call.

  A pytree; `prepare` makes one. The layouts are a function of `condensed.values`: gradients are
  reported in `condensed.values`, and after a change of the values it must be prepared again.
  Not so if it was prepared with `gradients=True`: its layouts hold the pattern only, its floating
  point leaves are `condensed.values` and `condensed.bias`, and it computes with what these are.
  That is how a layer is fine-tuned on its fixed pattern:

      layer = prepare(condensed, gradients=True)
      weights = layer.weights
      opt_state = tx.init(weights)

      @jax.jit
      def step(layer, weights, opt_state, x, y):
        loss = lambda w: jnp.mean((condensed_matmul(x, layer.with_weights(w)) - y) ** 2)
        updates, opt_state = tx.update(jax.grad(loss)(weights), opt_state, weights)
        return optax.apply_updates(weights, updates), opt_state

      ...
      condensed = layer.with_weights(weights).condensed  # to save, or to prepare for inference

  Attributes:
    condensed: the layer.
    layouts: by name of the backend; none of a backend whose layouts are made in every call.
    preference: names of backends in the order in which `backend="auto"` takes them.
    is_automatic: whether it takes that one of them instead that is expected to be fastest.
    gradients: whether the values may change.
    feature_group_count: groups of the convolution that it was prepared for.
    subpixel: of a transposed convolution, its sub-pixel form, which the layouts are of.
  """

  condensed: Condensed
  layouts: dict[str, Layout]
  preference: tuple[str, ...] = dataclasses.field(metadata={"static": True})
  is_automatic: bool = dataclasses.field(default=False, metadata={"static": True})
  gradients: bool = dataclasses.field(default=False, metadata={"static": True})
  feature_group_count: int = dataclasses.field(default=1, metadata={"static": True})
  subpixel: Subpixel | None = None

  @property
  def group_size(self) -> int | None:
    """Neurons that share their inputs, if it is laid out in groups."""
    layout = self.layouts.get("grouped")
    return None if layout is None else layout.group_size

  @property
  def phases(self) -> "Prepared":
    """The convolution that `subpixel` describes, prepared as this layer is."""
    if self.subpixel is None:
      return self
    return dataclasses.replace(self, condensed=self.subpixel.phases(self.condensed), subpixel=None)

  @property
  def weights(self) -> dict[str, Array]:
    """What is trained: `"values"` `[A, K]`, and `"bias"` `[N]` if there is one."""
    bias = {} if self.condensed.bias is None else {"bias": self.condensed.bias}
    return {"values": self.condensed.values, **bias}

  def with_weights(self, weights: Mapping[str, Array]) -> "Prepared":
    """The layer with other values and bias, under transformations too.

    Args:
      weights: arrays with the names and shapes of `self.weights`.

    Raises:
      ValueError: if it was not prepared with `gradients=True`, or names or shapes differ.
    """
    if not self.gradients:
      raise ValueError(
        "This layer was prepared for the values that it has: prepare(condensed, gradients=True) "
        "makes one whose values may change."
      )
    expected = {name: w.shape for name, w in self.weights.items()}
    given = {name: jnp.shape(w) for name, w in weights.items()}
    if given != expected:
      raise ValueError(f"`weights` must have the shapes {expected}, not {given}.")
    values, bias = weights["values"], weights.get("bias")
    condensed = dataclasses.replace(self.condensed, values=values, bias=bias)
    return dataclasses.replace(self, condensed=condensed)
