"""An axis on which 90 %, 99 % and 99.9 % stand one step apart."""

import numpy as np
from matplotlib.axes import Axes


def nines(sparsity: float) -> float:
  """Where a sparsity stands on its axis: 1 for 90 %, 2 for 99 %, 3 for 99.9 %."""
  return float(-np.log10(1 - sparsity))


def label_sparsities(axes: Axes, sparsities: set[float]) -> None:
  """Ticks at these sparsities, in per cent."""
  ticks = sorted(sparsities)
  axes.set_xticks([nines(s) for s in ticks], [percent(s) for s in ticks])


def percent(share: float) -> str:
  """A share as a number of per cent."""
  return f"{100 * share:.6g}"
