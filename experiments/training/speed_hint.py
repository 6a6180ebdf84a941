"""Whether a run in condensed form will be slower than with masks: said when it starts.

A rule of thumb, not a measurement: `python -m experiments.benchmark_sparse_training` measures.
"""

from collections.abc import Mapping

import srigl_jax as sx
from srigl_kernels.backends.cpu import training as native

_DENSEST = 0.3
"""Above this density dense products win: they do three to five times as many a second."""
_SMALLEST = 2**18
"""Weights, when dense, below which calling a layer's kernels takes more than their products."""


def why_slower(patterns: Mapping[str, sx.Pattern], macs: Mapping[str, int]) -> str | None:
  """Why a network is likely to train slower than with masks; None if it is not.

  Args:
    patterns: of its sparse layers, by path.
    macs: of each layer when dense, for one example: what a layer counts.
  """
  if not native.is_available():
    return "the native kernels are not there, and without them products are as slow as dense ones"
  reasons: dict[str, int] = {"too dense": 0, "too small": 0, "": 0}
  for path, pattern in patterns.items():
    size = pattern.in_features * pattern.out_features
    reason = "too small" if size < _SMALLEST else ""
    reason = "too dense" if pattern.capacity > _DENSEST * size else reason
    reasons[reason] += macs.get(path, 0)
  paying = reasons.pop("")
  if paying >= sum(reasons.values()):
    return None
  worst = max(reasons, key=lambda reason: reasons[reason])
  limit = (
    f"more than {_DENSEST:.0%} dense"
    if worst == "too dense"
    else (f"less than {_SMALLEST:,} weights when dense")
  )
  return f"most of the work is in layers of {limit}"
