"""What a transformation has settled before its first step, and how to overhear it.

`init` makes the plan from shapes alone, however deep the transformation is nested in others; who
wants to know it runs `init` abstractly and listens.
"""

import contextvars
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
