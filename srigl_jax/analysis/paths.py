"""Masks that leave no way from a network's inputs to its outputs.

No gradient flows where no path leads. In what order layers come is not in the parameters: each
layer is looked at by itself, and layers that fit one behind the other, as named, as a chain.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from srigl_jax.layers import Layer, to_matrix
from srigl_jax.leaves.ends import find_head


def broken_paths(
  layers: Mapping[str, Layer], masks: Mapping[str, Any], counts: Mapping[str, np.ndarray]
) -> list[str]:
  """What masks cut off, in words.

  Args:
    layers: every layer that counts, dense ones included, by path.
    masks: concrete bool arrays by path, of some of them.
    counts: the fan-ins `[N]` of each layer by name.

  Returns:
    A sentence for each layer without any weight, and for outputs that nothing reaches; empty if
    there are none.
  """
  empty = [name for name, of_layer in counts.items() if not of_layer.any()]
  if empty:
    return [f"{name!r} has no weight left: nothing passes it, and no gradient." for name in empty]
  heads = [path for path in find_head(layers).paths if not layers[path].axes.stack]
  dead = {head: int((counts[head] == 0).sum()) for head in heads}
  if any(dead.values()):
    size = {head: layers[head].num_neurons for head in heads}
    return [
      f"{n} of the {size[head]} outputs of {str(head)!r} have no weight left: they are the same "
      "for all inputs."
      for head, n in dead.items()
      if n
    ]
  chain = [path for path in layers if path not in heads] + heads
  if len(heads) != 1 or not _is_chain(chain, layers):
    return []
  reached: np.ndarray = np.ones(layers[chain[0]].dense_fan_in, bool)
  for path in chain:
    if path in masks:
      reached = np.any(np.asarray(to_matrix(masks[path], layers[path]))[reached], axis=0)
    else:
      reached = np.full(layers[path].num_neurons, reached.any())
  if reached.all():
    return []
  return [
    f"{int((~reached).sum())} of the {len(reached)} outputs of {str(heads[0])!r} are reached by no "
    f"path from an input, if the layers come one behind the other: {', '.join(chain)}."
  ]


def _is_chain(paths: list[str], layers: Mapping[str, Layer]) -> bool:
  plain = all(not layers[path].axes.spatial and not layers[path].axes.stack for path in paths)
  pairs = itertools.pairwise(paths)
  return plain and all(layers[a].num_neurons == layers[b].dense_fan_in for a, b in pairs)
