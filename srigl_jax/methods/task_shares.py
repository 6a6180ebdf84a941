"""What each task of continual learning gets of a layer, and how its connections are chosen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from srigl_jax.allocation import Allocation
from srigl_jax.exact_counts import truncated_count
from srigl_jax.layer_filters import LayerFilter, select
from srigl_jax.layer_views import LayerView
from srigl_jax.layers import Layer, from_matrix, to_matrix
from srigl_jax.masks import Masks
from srigl_jax.structures import ConstantFanIn
from srigl_jax.topk import ALWAYS, count, ranking_key, topk_mask, topk_mask_per_column


class Share(NamedTuple):
  """How a layer is divided among tasks.

  Attributes:
    layer: the layer.
    per_neuron: whether each neuron gets as many connections.
    is_output: whether its neurons belong to tasks, in equal parts.
    num_tasks: how many tasks there are.
  """

  layer: Layer
  per_neuron: bool
  is_output: bool
  num_tasks: int

  def size(self, budget: Any) -> Any:
    """A task's connections, of each neuron that it connects or of the layer, by its budget."""
    whole = budget // self.layer.num_neurons if self.per_neuron else budget
    return whole if self.is_output and self.per_neuron else whole // self.num_tasks


def densities_below_1(allocation: Allocation, sparse: LayerFilter) -> dict[str, float]:
  """The densities of all layers that may be sparse, those that came out dense with an input less.

  A layer without a mask could not be divided among tasks.
  """
  chosen = select(sparse, allocation.layers, name="sparse")
  most = lambda layer: 1 - 1 / layer.dense_fan_in
  layers = allocation.layers
  return {p: allocation.densities.get(p, most(layers[p])) for p in layers if p in chosen}


def shares_of(allocation: Allocation, num_tasks: int, outputs: LayerFilter) -> dict[str, Share]:
  """What each task gets of every sparse layer."""
  output_paths = select(outputs, allocation.layers, name="outputs")
  if dense := sorted(output_paths - allocation.budgets.keys()):
    raise ValueError(
      f"Layer {dense[0]!r} is dense, and its neurons belong to tasks: its weights would learn in "
      "the first task alone. Let it be sparse, or give outputs=False."
    )
  shares = {}
  for path, budget in allocation.budgets.items():
    layer, is_output = allocation.layers[path], path in output_paths
    if layer.axes.stack:
      raise ValueError(f"Layer {path!r} is a stack of layers: give each layer a kernel of its own.")
    if is_output and layer.num_neurons % num_tasks:
      raise ValueError(
        f"Layer {path!r} has {layer.num_neurons} neurons, which {num_tasks} tasks cannot divide: "
        "give outputs=False if they share them, or another number of neurons."
      )
    per_neuron = isinstance(allocation.structure, ConstantFanIn)
    share = Share(layer, per_neuron, is_output, num_tasks)
    if not share.size(int(budget)):
      each = f" and each of its {layer.num_neurons} neurons" if per_neuron else ""
      raise ValueError(
        f"Layer {path!r} may have {budget} connections, fewer than one for each of {num_tasks} "
        f"tasks{each}: lower the sparsity, or use distribution='erk', which spares thin layers."
      )
    shares[path] = share
  return shares


def _room(share: Share, owners: Array, task: Any) -> Array:
  """Where a task may have connections, `[I, N]` bool."""
  free = to_matrix(owners, share.layer) < 0
  if not share.is_output:
    return free
  num_neurons = share.layer.num_neurons
  return free & (np.arange(num_neurons)[None] // (num_neurons // share.num_tasks) == task)


def _choose(keys: Array, room: Array, share: Share, size: Any) -> Array:
  """The largest keys of each neuron that has room, or of the layer; key 0 is never chosen."""
  chosen = topk_mask_per_column(keys, size) if share.per_neuron else topk_mask(keys, size)
  return chosen & room & (keys > 0)


def draw_connections(
  key: Array,
  shares: Mapping[str, Share],
  budgets: Mapping[str, Any],
  owners: Mapping[str, Array],
  task: Any,
) -> Masks:
  """Random connections for a task among the free ones."""
  masks = {}
  for i, (path, share) in enumerate(shares.items()):
    room = _room(share, owners[path], task)
    keys = ranking_key(jax.random.uniform(jax.random.fold_in(key, 2 + i), room.shape))
    chosen = _choose(jnp.where(room, keys, 0), room, share, share.size(budgets[path]))
    masks[path] = from_matrix(chosen, share.layer)
  return masks


def move_connections(
  view: LayerView, share: Share, owners: Array, task: Any, *, at_random: bool
) -> Array:
  """A topology update of a task: prunes the smallest of its weights, grows as many in its room.

  Exact zeros are never kept, and a neuron of constant fan-in gets back as many as it has lost.

  Args:
    view: of the layer, with the task's own connections.
    share: of the layer.
    owners: see `Owners`.
    task: the task, may be traced.
    at_random: whether growth is, in place of by gradient.
  """
  room = _room(share, owners, task)
  mask, weights = (to_matrix(x, share.layer) for x in (view.mask, view.weights))
  num_active = count(mask)
  num_kept = num_active - truncated_count(num_active, view.drop_fraction)
  magnitudes = jnp.where(mask & (weights != 0), ranking_key(weights), 0)
  kept = topk_mask(magnitudes, num_kept) & (magnitudes > 0)
  scores = to_matrix(view.scores, share.layer)
  if at_random:
    scores = jax.random.uniform(view.key, scores.shape)
  keys = jnp.where(kept, jnp.uint32(ALWAYS), jnp.where(room, ranking_key(scores), 0))
  size = share.size(view.budget) if share.per_neuron else num_active
  return from_matrix(_choose(keys, room, share, size), share.layer)
