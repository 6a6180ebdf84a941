"""The figure of a results file: time of a step, state and memory against sparsity."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator

from experiments.benchmarks.sparse_training.engine import STEP
from experiments.benchmarks.sparse_training.report import TITLES
from experiments.reports.plot_style import finish, plt, save

_STYLE = {"dense": "k--", "torch": "0.6", "masked": "C1", "sparselab": "C2", "condensed": "C0"}


def draw(results: Mapping[str, Any], path: Path) -> None:
  """Draws the figure.

  Args:
    results: of `python -m experiments.benchmark_sparse_training`.
    path: of the image to write.

  Raises:
    ValueError: if the results have no grid over sparsity.
  """
  grid = results.get("grids", {}).get("sparsity")
  if not grid:
    raise ValueError("The results have no grid over sparsity: run the command without --only.")
  figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
  density = [1 - one["case"]["sparsity"] for one in grid]
  panels = (
    ("time of a training step (ms)", lambda one, name: 1e3 * one["seconds"][name][STEP], "seconds"),
    ("state (MB)", lambda one, name: one["state_bytes"][name] / 1e6, "state_bytes"),
    ("peak memory of the process (MB)", lambda one, name: one["peak_bytes"][name] / 1e6,
     "peak_bytes"),
  )  # fmt: skip
  for panel, (label, value, where) in zip(axes, panels, strict=True):
    for name, style in _STYLE.items():
      points = [(d, value(one, name)) for d, one in zip(density, grid, strict=True)
                if name in one[where]]  # fmt: skip
      if points:
        color = {"color": style} if style[0] in "0C" else {}
        fmt = "-" if color else style
        width = 2.2 if name == "condensed" else 1.3
        panel.plot(*zip(*points, strict=True), fmt, **color, lw=width, label=TITLES[name])
    panel.set_xscale("log")
    panel.set_yscale("log")
    panel.invert_xaxis()
    ticks = [0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.001]
    panel.set_xticks(ticks, [f"{100 * (1 - d):g}" for d in ticks])
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panel.minorticks_off()
    finish(panel, xlabel="sparsity (%)", ylabel=label, legend=panel is axes[0])
  sizes = grid[0]["case"]["sizes"]
  figure.suptitle(f"MLP {len(sizes) - 1} × {sizes[-1]}, batch {grid[0]['case']['batch']}, Adam")
  save(figure, path)
