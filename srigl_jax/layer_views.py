"""What a topology update sees: a view of each layer, those of a stack one by one."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from srigl_jax.arguments import check_callable
from srigl_jax.exact_counts import Fraction
from srigl_jax.layers import Axes, Layer, make_layer
from srigl_jax.masks import Masks
from srigl_jax.stacks import (
  from_stack,
  layer_keys,
  layer_names,
  map_stack,
  one_layer,
  sparse_names,
  to_stack,
)
from srigl_jax.state import SparseState


class LayerView(NamedTuple):
  """What a topology update sees of one layer.

  Attributes:
    path: the kernel's path; of a layer in a stack, the stack's.
    axes: which axes of it are neurons.
    may_ablate: whether neurons of it may be ablated.
    budget: `[]` int32, connections that it may have.
    weights: the kernel as the optimizer leaves it under the old mask, 0 off it.
    scores: the dense gradient that scores growth, same shape.
    mask: the old mask, bool, same shape.
    key: a random key of this layer and update.
    drop_fraction: fraction of the active weights to prune; for `truncated_count`.
    step: `[]` int32, optimizer steps done.
    frozen: `[]` bool, whether the optimizer left all weights of the leaf where they were, and moved
      others. Its mask will stay if the new one has other weights: methods that move connections
      between layers must leave it out.
  """

  path: str
  axes: Axes
  may_ablate: bool
  budget: Array
  weights: Array
  scores: Array
  mask: Array
  key: Array
  drop_fraction: Fraction
  step: Array
  frozen: Array | bool = False

  @property
  def layer(self) -> Layer:
    """Its neurons and inputs, for `to_matrix` and `from_matrix`."""
    return make_layer(self.path, self.mask.shape, lambda *_: self.axes)


MaskUpdate = Callable[[dict[str, LayerView]], Masks]


@dataclasses.dataclass(frozen=True)
class PerLayer:
  """A topology update of the network that looks at one layer at a time; see `per_layer`.

  Attributes:
    update: the update of a layer.
  """

  update: Callable[[LayerView], Array]

  def __call__(self, layers: dict[str, LayerView]) -> Masks:
    """The new masks of all layers."""
    return {path: self.update(layer) for path, layer in layers.items()}


def per_layer(update: Callable[[LayerView], Array]) -> MaskUpdate:
  """A topology update of the network from one of a layer: `LayerView -> new mask`.

  Over a stack of layers it is mapped, and compiled once.
  """
  check_callable("update", update, "a function LayerView -> new mask")
  return PerLayer(update)


class LayerPlan(NamedTuple):
  """What is known of a sparse leaf before the first step.

  Attributes:
    layer: its neurons and inputs.
    may_ablate: whether neurons of it may be ablated.
    budget: as in an `Allocation`.
  """

  layer: Layer
  may_ablate: bool
  budget: Any


def new_masks(
  update: MaskUpdate,
  plans: Mapping[str, LayerPlan],
  state: SparseState,
  weights: Mapping[str, Array],
  scores: Mapping[str, Array],
  frozen: Mapping[str, Array],
  drop_fraction: Fraction,
) -> Masks:
  """The masks after a topology update.

  Args:
    update: of the network.
    plans: the sparse leaves, in natural order.
    state: the state, its step already counted up.
    weights: the sparse leaves as the optimizer leaves them under the old masks.
    scores: of growth, of the same shapes.
    frozen: `[]` bool each, see `LayerView`.
    drop_fraction: of this update.

  Raises:
    ValueError: if the update returns anything but a mask for each layer.
  """
  budgets = {path: plan.budget for path, plan in plans.items()}
  layers = {path: plan.layer for path, plan in plans.items()}
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
  keys = layer_keys(key, budgets, layers)
  views = {
    path: LayerView(
      path=path,
      axes=plan.layer.axes,
      may_ablate=plan.may_ablate,
      budget=state.budgets[path],
      weights=weights[path],
      scores=scores[path],
      mask=state.masks[path],
      key=keys[path],
      drop_fraction=drop_fraction,
      step=state.step,
      frozen=frozen[path],
    )
    for path, plan in plans.items()
  }
  if isinstance(update, PerLayer):
    return {path: _update_each(update.update, view) for path, view in views.items()}
  unrolled = {name: view for view in views.values() for name, view in _unroll(view).items()}
  sparse = {name: unrolled[name] for name in sparse_names(budgets, layers)}
  masks = _update_network(update, sparse)
  all_masks = {name: masks.get(name, view.mask) for name, view in unrolled.items()}
  return {
    path: from_stack(jnp.stack([all_masks[name] for name in layer_names(layer)]), layer)
    if layer.axes.stack
    else all_masks[path]
    for path, layer in layers.items()
  }


def _update_each(update: Callable[[LayerView], Array], view: LayerView) -> Array:
  """The new mask of a leaf, from the update of a layer."""
  if not view.axes.stack:
    return _checked(update(view), view)
  one = one_layer(view.layer)

  def update_one(weights, scores, mask, budget, key):
    of_one = view._replace(
      axes=one.axes, budget=budget, weights=weights, scores=scores, mask=mask, key=key
    )
    # A dense layer among sparse ones stays dense.
    return jnp.where(budget < one.size, _checked(update(of_one), of_one), mask)

  kernels = view.weights, view.scores, view.mask
  return map_stack(update_one, view.layer, kernels, (view.budget, view.key))


def _unroll(view: LayerView) -> dict[str, LayerView]:
  """Views of the layers that a leaf holds, by name."""
  if not view.axes.stack:
    return {view.path: view}
  layer = view.layer
  budgets, keys = view.budget.reshape(-1), view.key.reshape(-1)
  weights, scores, masks = (to_stack(x, layer) for x in (view.weights, view.scores, view.mask))
  return {
    name: view._replace(
      axes=one_layer(layer).axes,
      budget=budgets[i],
      weights=weights[i],
      scores=scores[i],
      mask=masks[i],
      key=keys[i],
    )
    for i, name in enumerate(layer_names(layer))
  }


def _update_network(update: MaskUpdate, views: dict[str, LayerView]) -> Masks:
  """What the update returns; a ValueError unless it is a mask for each layer."""
  remedy = "wrap a function of one layer in per_layer"
  try:
    masks = update(views)
  except AttributeError as error:
    if error.obj is not views:
      raise
    raise ValueError(
      f"MaskUpdater.update asked for .{error.name}, but is given a dict {{path: LayerView}} of all "
      f"layers: {remedy}."
    ) from error
  if not isinstance(masks, Mapping):
    raise ValueError(
      f"MaskUpdater.update returned a {type(masks).__name__}; it must return a dict "
      f"{{path: mask}}: {remedy}."
    )
  if masks.keys() != views.keys():
    raise ValueError(
      f"MaskUpdater.update returned masks for {sorted(masks)}, but was given {sorted(views)}: it "
      "must return one for each."
    )
  return {path: _checked(mask, views[path]) for path, mask in masks.items()}


def _checked(mask: Array, view: LayerView) -> Array:
  """A new mask; a ValueError unless it is one."""
  shape, dtype = getattr(mask, "shape", None), getattr(mask, "dtype", None)
  if shape != view.mask.shape or dtype != jnp.bool_:
    found = f"{dtype} of shape {shape}" if dtype else repr(mask)
    raise ValueError(
      f"MaskUpdater.update returned {found} for {view.path!r}; it must be a bool array of shape "
      f"{view.mask.shape}."
    )
  return mask
