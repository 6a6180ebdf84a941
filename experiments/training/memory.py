"""Where the memory of a device goes: what the arrays take, and what a step takes besides."""

from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.training.steps import TrainState
from srigl_jax import get_state


class Memory(NamedTuple):
  """Bytes on each device.

  Attributes:
    parts: by what they are for.
    step: what one call of the training function takes besides: activations, gradients and other
      temporaries, as the compiler has planned them; None if not known.
  """

  parts: dict[str, int]
  step: int | None = None

  def __str__(self) -> str:
    """One line for people."""
    parts = [*self.parts.items(), *([("step", self.step)] if self.step is not None else [])]
    listed = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in parts)
    return f"memory of a device: {listed}; {sum(size for _, size in parts) / 1e6:.1f} MB in all"


def memory_of(state: TrainState, device_data: Any, *, is_sparse: bool) -> Memory:
  """What the arrays of a run take on each device, masks and moments by themselves.

  Args:
    state: as it lies on the devices, a copy on each.
    device_data: the data there.
    is_sparse: whether the optimizer's state has masks.
  """
  parts = {"parameters": _bytes(state.params), "statistics": _bytes(state.model_state)}
  own: dict[str, Any] = {}
  if is_sparse:
    sparse = get_state(state.opt_state)
    own = {
      "masks": sparse.masks,
      "explored": sparse.explored,
      "mean gradients": sparse.grad_mean,
      "method": sparse.extra,
    }
  parts |= {name: _bytes(tree) for name, tree in own.items()}
  parts["optimizer"] = _bytes(state.opt_state) - sum(_bytes(tree) for tree in own.values())
  parts["data"] = _bytes(device_data)
  return Memory({name: size for name, size in parts.items() if size})


def _bytes(tree: Any) -> int:
  return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))
