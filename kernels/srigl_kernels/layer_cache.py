"""What is derived from a layer that nobody prepared, made once for as long as its arrays live.

The cache is keyed by the identity of the arrays: a layer that `vmap` or `tree.map` takes apart and
puts together again is still the same.
"""

import weakref
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from srigl_kernels.format import Condensed

_T = TypeVar("_T")


class _Entry(NamedTuple):
  arrays: tuple[weakref.ref, ...]  # of values, indices and active neurons
  made: dict[Hashable, Any]


_ENTRIES: dict[int, _Entry] = {}  # by `id(values)`; removed when the values are


def is_concrete(condensed: Condensed) -> bool:
  """Whether the layer consists of arrays that this process can read: neither traced nor remote."""
  return all(
    isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.is_fully_addressable
    for x in (condensed.values, condensed.indices, condensed.active, *_rounding(condensed))
  )


def remember(condensed: Condensed, key: Hashable, make: Callable[[Condensed], _T]) -> _T:
  """`make(condensed)`, made when it is first asked for, also while a function is being traced.

  Args:
    condensed: a concrete layer.
    key: what is made.
    make: a function of the arrays' contents and the layer's shape; the bias is not read.

  Returns:
    What was made. If it holds the layer's own values it is not kept, as these would never be freed.
  """
  number = id(condensed.values)
  arrays = condensed.values, condensed.indices, condensed.active
  entry = _ENTRIES.get(number)
  if entry is None or any(ref() is not x for ref, x in zip(entry.arrays, arrays, strict=True)):
    released = weakref.ref(condensed.values, lambda ref: _release(number, ref))
    entry = _Entry((released, *map(weakref.ref, arrays[1:])), {})
    _ENTRIES[number] = entry
  key = key, condensed.kernel_shape, condensed.neuron_axes, condensed.rounds_inputs
  key = *key, *(np.asarray(x).tobytes() for x in _rounding(condensed))
  if key in entry.made:
    return entry.made[key]
  with jax.ensure_compile_time_eval():  # arrays, not tracers of the function that calls
    made = make(condensed)
  if all(leaf is not condensed.values for leaf in jax.tree.leaves(made)):
    entry.made[key] = made
  return made


def _rounding(condensed: Condensed) -> list[jax.Array]:
  """The small arrays of a layer of int8, in which two layers of the same integers may differ."""
  return [x for x in (condensed.scales, condensed.input_range) if x is not None]


def _release(number: int, ref: weakref.ref) -> None:
  entry = _ENTRIES.get(number)
  if entry is not None and entry.arrays[0] is ref:
    del _ENTRIES[number]
