"""The look that all figures share."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

__all__ = ["finish", "plt", "save"]


def finish(axes: Axes, *, xlabel: str = "", ylabel: str = "", legend: bool = True) -> None:
  """Labels a panel, with a legend if anything in it has a label."""
  axes.set_xlabel(xlabel)
  axes.set_ylabel(ylabel)
  axes.grid(alpha=0.3)
  axes.spines[["top", "right"]].set_visible(False)
  if legend and axes.get_legend_handles_labels()[0]:
    axes.legend(frameon=False, fontsize="small")


def save(figure: Any, path: Path) -> None:
  """Writes a figure as an image, making its folder, and closes it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=130)
  plt.close(figure)
