"""The figure of the output-norm study: closed forms as lines, simulations as points."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.reports.plot_style import finish, plt, save
from srigl_jax.analysis.norm_variance import output_norm_variance, uniform_direction_variance

NAMES = {
  "bernoulli": "Bernoulli",
  "constant_per_layer": "constant per layer",
  "constant_fan_in": "constant fan-in",
}
_COLORS = {mask: f"C{i}" for i, mask in enumerate(NAMES)}
_FORMULAE = (
  r"$z = \sqrt{2/k}\,(W \circ I)(\xi \circ u),\;\; W_{ij} \sim \mathcal{N}(0, 1),\;\;"
  r" \xi_j \sim \mathrm{Bernoulli}(1/2),\;\; u$ uniform, $|u| = 1,\;\; E|z|^2 = 1.$"
  r"   One layer, $n\,(n+2)\,\mathrm{Var}\,|z|^2$:",
  r"Bernoulli $\;5n - 8 + 18\,\frac{n}{k}$,    constant per layer $\;(n+8)(n-1)\,"
  r"\frac{n - 1/k}{n - 1/n} - n^2 - 2n + 18\,\frac{n}{k}$,    constant fan-in"
  r" $\;5n - 5 + 15\,\frac{n}{k}$",
  r"Depth: $B_{l+1} = 3\,[\,2B_l/k + \kappa\,(A_l - B_l)/n\,],\;\;"
  r" A_{l+1} = B_{l+1} + \kappa'\,(1 - 1/n)(A_l + B_l),\;\; A_0 = 1,\;\; B_0 = 3/(n+2),\;\;"
  r" \mathrm{Var}\,|z_L|^2 = A_L - 1;$",
  r"$\kappa$, $\kappa'$: 1, 1 (Bernoulli); $C$, $C$, $C = \frac{n - 1/k}{n - 1/n}$ (per layer);"
  r" $\frac{1 - 1/k}{1 - 1/n}$, 1 (fan-in).   Points: simulated, two standard errors.",
)


def output_norm_variance_figure(points: Mapping[str, Sequence[Any]], path: Path) -> None:
  """Variance over width, fan-in and depth; below, relative to the closed form of Bernoulli masks.

  Args:
    points: `experiments.theory.Point`s by panel: "width", "fan_in", "depth".
    path: of the image to write.
  """
  figure, axes = plt.subplots(2, 3, figsize=(13, 8), sharex="col", layout="constrained")
  width, fan_in, depth = points["width"], points["fan_in"], points["depth"]
  sizes = sorted({p.n for p in width})
  widths = np.unique(np.geomspace(sizes[0], sizes[-1], 60).astype(int))
  fan_ins = range(min(p.k for p in fan_in), max(p.k for p in fan_in) + 1)
  depths = range(1, max(p.depth for p in depth) + 1)
  n, k, deep = fan_in[0].n, width[0].k, depth[0]
  _column(axes[:, 0], width, "n", widths, lambda mask, x: output_norm_variance(mask, x, k))
  _column(axes[:, 1], fan_in, "k", fan_ins, lambda mask, x: output_norm_variance(mask, n, x))
  _column(
    axes[:, 2],
    depth,
    "depth",
    depths,
    lambda mask, x: output_norm_variance(mask, deep.n, deep.k, depth=x),
  )
  if_uniform = [
    uniform_direction_variance("constant_fan_in", deep.n, deep.k, depth=x) for x in depths
  ]
  label = "constant fan-in, $(1 + \\mathrm{Var}_1)^L - 1$"
  axes[0, 2].plot(depths, if_uniform, ":", color=_COLORS["constant_fan_in"], label=label)
  axes[0, 0].set_title(f"width, fan-in k = {k}")
  axes[0, 1].set_title(f"fan-in, n = {n} neurons")
  axes[0, 2].set_title(f"depth, n = {deep.n}, k = {deep.k}")
  for column, (name, ticks) in enumerate((("neurons n", sizes), ("fan-in k", None))):
    axes[1, column].set_xscale("log", base=2)
    shown = ticks or sorted({p.k for p in fan_in})
    axes[1, column].set_xticks(shown, [str(x) for x in shown])
    finish(axes[1, column], xlabel=name, legend=False)
  axes[1, 2].set_xticks(list(depths))
  finish(axes[1, 2], xlabel="layers L", legend=False)
  for panel in axes[0]:
    panel.set_yscale("log")
    finish(panel)
  axes[0, 0].set_ylabel("Var |z|²")
  axes[1, 0].set_ylabel("relative to Bernoulli's closed form")
  figure.suptitle("\n".join(_FORMULAE), fontsize=10)
  save(figure, path)


def _column(
  axes: Sequence[Axes],
  points: Sequence[Any],
  coordinate: str,
  xs: Sequence[int] | np.ndarray,
  form: Callable[[str, int], float],
) -> None:
  """One setting that varies: variances above, and relative ones below.

  Args:
    axes: the two panels.
    points: simulated; error bars are two standard errors.
    coordinate: field of a point that varies.
    xs: its values for the lines.
    form: closed form by mask and value.
  """
  above, below = axes
  for i, (mask, name) in enumerate(NAMES.items()):
    color = _COLORS[mask]
    line = np.array([form(mask, int(x)) for x in xs])
    base = np.array([form("bernoulli", int(x)) for x in xs])
    above.plot(xs, line, color=color, label=name)
    below.plot(xs, line / base, color=color)
    for gates, marker in (("bernoulli", "o"), ("relu", "s")):
      chosen = [p for p in points if p.mask == mask and p.gates == gates]
      if not chosen:
        continue
      x = np.array([getattr(p, coordinate) for p in chosen])
      y = np.array([p.simulated for p in chosen])
      error = 2 * np.array([p.standard_error for p in chosen])
      scale = np.array([form("bernoulli", int(value)) for value in x])
      aside = (i - 1) * 2 + (gates == "relu")  # so that bars do not cover each other
      where = x + 0.03 * aside if coordinate == "depth" else x * 1.02**aside
      label = {"bernoulli": "simulated", "relu": "simulated, ReLU"}[gates] if i == 2 else None
      fill = "none" if gates == "relu" else color
      for panel, values, bars in ((above, y, error), (below, y / scale, error / scale)):
        panel.errorbar(
          where,
          values,
          bars,
          fmt=marker,
          color=color,
          markerfacecolor=fill,
          markersize=4,
          capsize=2,
          label=label,
        )
