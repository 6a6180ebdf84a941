"""Runs that train together: which may, and how their states are one.

Everything that tells two runs of one shape apart (weights, masks, budgets, the random key) is in
their states. Stacked along a new first axis, these are updated by one program under `jax.vmap`. The
counters of steps are the same in all and stay as they are: a topology update that depended on a
counter of each run would be computed in every step and thrown away in most.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

State = TypeVar("State")

# Settings by which the runs of a pack may differ: all of them are in the state from step 0 on.
MAY_DIFFER = (
  "name",
  "seed",
  "method.sparsity",
  "method.distribution",
  "method.fan_in",
  "method.sparse_init",
)

# Fields of states that count steps: ours, and those of optax.
_COUNTERS = ("step", "count", "mini_step", "gradient_step")


def run_axes(state: State) -> State:
  """The axis of runs of each leaf, for `jax.vmap`: 0, or None for a counter."""
  axis = lambda path, leaf: None if _is_counter(path) else 0
  return jax.tree_util.tree_map_with_path(axis, state)


def stack(states: Sequence[State]) -> State:
  """One state of several, with a first axis of runs; a single one is left as it is.

  Args:
    states: at the same step, alike in structure, shapes and dtypes.

  Returns:
    A state of numpy arrays, or the only state.
  """
  if len(states) == 1:
    return states[0]
  join = lambda path, *leaves: leaves[0] if _is_counter(path) else np.stack(leaves)
  return jax.tree_util.tree_map_with_path(join, *states)


def unstack(state: State, index: int, num_runs: int) -> State:
  """The state of one run of a pack of `num_runs`."""
  if num_runs == 1:
    return state
  take = lambda path, leaf: leaf if _is_counter(path) else leaf[index]
  return jax.tree_util.tree_map_with_path(take, state)


def _is_counter(path: tuple[Any, ...]) -> bool:
  return getattr(path[-1], "name", None) in _COUNTERS


def signature(state: Any) -> tuple[Any, ...]:
  """What must be equal for states to be stacked: structure, shapes, dtypes."""
  leaves, structure = jax.tree.flatten(state)
  return structure, tuple((np.shape(x), np.dtype(x.dtype)) for x in leaves)


def group(runs: Mapping[str, ConfigDict], size: int) -> list[list[str]]:
  """Divides runs into packs.

  Args:
    runs: configs by name.
    size: of a pack at most; 1: each run alone.

  Returns:
    The names of each pack, packs and runs in the order of `runs`.
  """
  alike: dict[str, list[str]] = {}
  for name, config in runs.items():
    alike.setdefault(_kind(config), []).append(name)
  packs = [
    names[start : start + size] for names in alike.values() for start in range(0, len(names), size)
  ]
  order = {name: i for i, name in enumerate(runs)}
  return sorted(packs, key=lambda names: order[names[0]])


def choose_size(pack: str, config: ConfigDict) -> int:
  """How many runs train together at most.

  Args:
    pack: "off", a number, or "auto": on CPU none, since processes with a core each are faster
      (`experiments.benchmark_packing` measures it); on an accelerator, where nothing has been
      measured yet, networks without convolutions, which XLA turns into grouped ones.
    config: of one of the runs.

  Raises:
    ValueError: if `pack` is none of these.
  """
  if pack == "off":
    return 1
  if pack == "auto":
    return 1 if config.model.name != "mlp" or jax.default_backend() == "cpu" else 8
  if not pack.isdecimal() or int(pack) < 1:
    raise ValueError(f"--pack is {pack!r}; it must be auto, off, or a number of runs.")
  return int(pack)


def check(configs: Iterable[ConfigDict]) -> None:
  """Raises a ValueError if configs cannot be those of one pack."""
  if len({_kind(config) for config in configs}) > 1:
    raise ValueError(
      f"Only runs whose configs differ in nothing but {', '.join(MAY_DIFFER)} can train together; "
      "these differ in more: train them one after the other."
    )


def _kind(config: ConfigDict) -> str:
  """What runs of one pack have in common, as text."""
  values = config.to_dict()
  for path in MAY_DIFFER:
    *sections, field = path.split(".")
    section = values
    for name in sections:
      section = section.get(name, {})
    section.pop(field, None)
  return repr(sorted(values.items()))
