"""When and how the patterns of all layers change."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from srigl_jax.condensed_training.gradient_window import GradientWindow
from srigl_jax.condensed_training.ranking import Gradients
from srigl_jax.condensed_training.tree import dense_shapes
from srigl_jax.condensed_training.update import Moves, is_native
from srigl_jax.exact_counts import Fraction
from srigl_jax.layer_filters import find_layers, select
from srigl_jax.layers import natural_key
from srigl_jax.mask_updates import MaskUpdater, drop_fraction_at
from srigl_jax.schedule import is_update_step
from srigl_kernels.pattern import Pattern

Patterns = Mapping[str, Pattern]


class LayerView(NamedTuple):
  """What a topology update sees of one layer.

  Attributes:
    values: `[C]`, the weights as the optimizer leaves them.
    pattern: where they are.
    gradients: the dense gradient in blocks of neurons; None if it does not score growth.
    key: a random key of this layer and update.
    drop_fraction: share of the active weights to prune; for `truncated_count`.
    may_ablate: whether neurons of it may be ablated.
  """

  values: Array
  pattern: Pattern
  gradients: Gradients | None
  key: Array
  drop_fraction: Fraction
  may_ablate: bool


class Topology(NamedTuple):
  """When and how patterns change.

  Attributes:
    updater: when, which layers may lose neurons, and how many gradients score growth; its `update`
      is not used.
    update: the topology update of one layer.
    needs_signals: whether gradients score the growth.
    axis_name: the mapped axis of the devices that share a batch, or None.
  """

  updater: MaskUpdater
  update: Callable[[LayerView], Moves]
  needs_signals: bool
  axis_name: str | None = None

  def is_update(self, steps_done: Any) -> Any:
    """Whether the optimizer step after so many updates the topology."""
    updater = self.updater
    return is_update_step(steps_done + 1, updater.update_every, updater.update_until)

  def window(self, accumulation_steps: int) -> GradientWindow | None:
    """Which batches score growth, if any do; so many make an optimizer step."""
    if not self.needs_signals:
      return None
    return GradientWindow(self.updater, accumulation_steps, self.axis_name)


def update_layers(
  topology: Topology,
  values: Mapping[str, Array],
  patterns: Patterns,
  kept: Mapping[str, tuple[Array, ...]],
  gradients: Callable[[Any], Gradients],
  key: Array,
  step: Array,
) -> dict[str, Moves]:
  """The topology updates of all layers.

  Args:
    topology: how patterns change.
    values: the parameters by path, as the optimizer leaves them.
    patterns: the old ones.
    kept: what dense gradients are formed of: a window, or the signals of one batch.
    gradients: the dense gradient of what is kept of a layer.
    key: of the run.
    step: `[]` int32, optimizer steps done before this one.
  """
  layers = find_layers(dense_shapes(values, patterns), sparse=lambda path, _: path in patterns)
  ablatable = select(topology.updater.ablate, layers, name="ablate")
  key = jax.random.fold_in(key, step + 1)
  fraction = drop_fraction_at(topology.updater, step + 1)
  alike: dict[Any, dict[str, Any]] = {}  # layers by all that the compiled update depends on
  for i, path in enumerate(sorted(patterns, key=natural_key)):
    arrays = {
      "values": values[path],
      "pattern": patterns[path],
      "kept": kept[path] if topology.needs_signals else (),
      "key": jax.random.fold_in(key, i),
    }
    leaves, structure = jax.tree.flatten(arrays)
    shapes = tuple((x.shape, x.dtype) for x in leaves)
    alike.setdefault((shapes, structure, path in ablatable), {})[path] = arrays
  moves: dict[str, Moves] = {}
  for (*_, may_ablate), group in alike.items():
    update = functools.partial(_update_layer, topology, gradients, fraction, may_ablate)
    first = next(iter(group.values()))
    scores = gradients(first["kept"]) if topology.needs_signals else None
    if len(group) == 1 or is_native(first["values"], first["pattern"], scores):
      results = list(map(update, group.values()))
    else:  # compiled once, run one after the other
      stacked = lax.map(update, jax.tree.map(lambda *xs: jnp.stack(xs), *group.values()))
      results = [jax.tree.map(lambda x, i=i: x[i], stacked) for i in range(len(group))]
    moves |= dict(zip(group, results, strict=True))
  return moves


def _update_layer(
  topology: Topology,
  gradients: Callable[[Any], Gradients],
  fraction: Fraction,
  may_ablate: bool,
  arrays: Mapping[str, Any],
) -> Moves:
  view = LayerView(
    values=arrays["values"],
    pattern=arrays["pattern"],
    gradients=gradients(arrays["kept"]) if topology.needs_signals else None,
    key=arrays["key"],
    drop_fraction=fraction,
    may_ablate=may_ablate,
  )
  return topology.update(view)
