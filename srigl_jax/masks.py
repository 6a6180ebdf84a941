"""Masks: drawing them, applying them, counting what they leave.

Masks are a flat dict `{path: bool array of the kernel's shape}`, True where a weight is active;
dense leaves are absent.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from srigl_jax.allocation import Allocation
from srigl_jax.arguments import ARRAYS, check_by_path, check_kind
from srigl_jax.blocks import topk_mask_per_block
from srigl_jax.layers import Layer, check_paths, from_matrix, leaf_dict, map_leaves, to_matrix
from srigl_jax.stacks import layer_keys, map_stack, one_layer
from srigl_jax.structures import ConstantFanIn, Structure
from srigl_jax.topk import topk_mask

Masks = dict[str, Array]


def init_masks(key: Array, allocation: Allocation) -> Masks:
  """Random masks at exactly the allocation's budgets and of its structure.

  Args:
    key: jax random key.
    allocation: from `allocate`. With `ConstantFanIn`, each neuron keeps `budget // N` inputs, drawn
      without replacement (in each block, and alike in a group); with `Unstructured`, `budget`
      positions are drawn over the whole layer. The layers of a stack get the masks that they
      would get in the network unrolled.
  """
  check_kind("allocation", allocation, Allocation, "what allocate(params, sparsity) returns")
  layers, structure = allocation.layers, allocation.structure

  def draw(path: str, key: Array) -> Array:
    one = one_layer(layers[path])
    random = lambda key, budget: random_mask(key, one, budget, structure)
    return map_stack(random, layers[path], (), (key, allocation.budgets[path]))

  keys = layer_keys(key, allocation.budgets, layers)
  return {path: draw(path, keys[path]) for path in allocation.budgets}


def random_mask(key: Array, layer: Layer, budget: int | Array, structure: Structure) -> Array:
  """A random mask of one layer, bool of the kernel's shape; see `init_masks`."""
  shape = (layer.dense_fan_in, layer.num_neurons)
  if not isinstance(structure, ConstantFanIn):
    return from_matrix(topk_mask(jax.random.bits(key, shape, jnp.uint32) >> 1, budget), layer)
  group = structure.num_in_group(layer)
  scores = jax.random.bits(key, (shape[0], shape[1] // group), jnp.uint32) >> 1
  blocks = structure.num_blocks(layer)
  mask = topk_mask_per_block(scores, budget // (shape[1] * blocks), shape[0] // blocks)
  return from_matrix(jnp.repeat(mask, group, axis=1), layer)


def apply_masks(params: Any, masks: Mapping[str, Array]) -> Any:
  """Zeroes the masked weights of a parameter tree (or of a tree shaped like it).

  Args:
    params: any pytree whose leaves have paths: a Linen dict, `nnx.State`, ...
    masks: bool arrays by path.

  Returns:
    The tree with exact zeros off the masks; leaves without a mask are as given.

  Raises:
    ValueError: if a mask's path is no leaf's, or its shape is not the leaf's.
  """
  check_masks(masks, params)
  return map_leaves(lambda leaf, mask: jnp.where(mask, leaf, 0), params, masks)


def check_masks(masks: Mapping[str, Array], params: Any) -> None:
  """Raises a ValueError if a mask's path is no leaf's, or its shape is not the leaf's."""
  leaves = leaf_dict(params)
  check_by_path("masks", masks, ARRAYS, "bool arrays, from get_masks(opt_state)")
  check_paths(masks, leaves, name="masks")
  for path, mask in masks.items():
    if leaves[path].shape != mask.shape:
      raise ValueError(
        f"The mask of {path!r} has shape {mask.shape}, its leaf {leaves[path].shape}: these masks "
        "belong to another model."
      )


def fan_ins(mask: Array, layer: Layer) -> Array:
  """Active connections of each neuron, `[N]` int32; of a stack, `[*stack, N]`."""
  return to_matrix(mask, layer).sum(-2, dtype=jnp.int32)
