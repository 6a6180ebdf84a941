"""What a transformation has settled before its first step, and how to overhear it.

`init` makes the plan from shapes alone, however deep the transformation is nested in others; who
wants to know it runs `init` abstractly and listens.
"""

import contextvars
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
import optax

from srigl_jax.allocation import Allocation
from srigl_jax.layer_views import LayerPlan
from srigl_jax.leaves.judge import Leaf


class TrainingPlan(NamedTuple):
  """What is known before the first step, from the shapes of the parameters alone.

  Attributes:
    leaves: the judgement of every leaf, by path.
    allocation: how sparse the layers are.
    layers: what updates of the masks know of the sparse layers.
  """

  leaves: dict[str, Leaf]
  allocation: Allocation
  layers: dict[str, LayerPlan]


_listener: contextvars.ContextVar[list[TrainingPlan] | None] = contextvars.ContextVar(
  "_listener", default=None
)


def report(plan: TrainingPlan) -> None:
  """Tells the plan to who listens; called by `init`."""
  heard = _listener.get()
  if heard is not None:
    heard.append(plan)


def training_plan(tx: optax.GradientTransformation, params: Any) -> TrainingPlan:
  """The plan that a transformation makes for parameters; nothing is computed.

  Args:
    tx: a sparse training transformation, in any nesting of others.
    params: parameter tree, of arrays or of `jax.ShapeDtypeStruct`.

  Raises:
    ValueError: if there is no sparse training in it, or more than one.
  """
  heard: list[TrainingPlan] = []
  token = _listener.set(heard)
  try:
    jax.eval_shape(tx.init, params)
  finally:
    _listener.reset(token)
  if len(heard) != 1:
    raise ValueError(
      f"Found {len(heard)} sparse training transformations in `tx`, need exactly one: pass what "
      "srigl(...), rigl(...) or another sparse method returned, alone or in a chain."
    )
  return heard[0]


def make_training_plan(
  leaves: dict[str, Leaf], allocation: Allocation, ablatable: Collection[str] = ()
) -> TrainingPlan:
  """See `TrainingPlan`.

  Args:
    leaves: the judgement of every leaf.
    allocation: how sparse the layers are.
    ablatable: paths of the layers that may lose neurons.
  """
  layers = {
    path: LayerPlan(allocation.layers[path], path in ablatable, budget)
    for path, budget in allocation.budgets.items()
  }
  return TrainingPlan(leaves, allocation, layers)
