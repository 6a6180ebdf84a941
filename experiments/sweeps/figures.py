"""The figures of a study, by its kind."""

from collections.abc import Callable
from pathlib import Path

from experiments.sweeps import plots, returns
from experiments.sweeps.plots import Interval, active_by_layer
from experiments.sweeps.results import SweepResults, VariantResults
from experiments.workdir.scores import score_of


def sweep_figure(sweep: SweepResults, path: Path) -> bool:
  """Draws the figure of a study in the paper's form.

  Args:
    sweep: see `results.read_sweep_results`.
    path: of the image to write.

  Returns:
    Whether there is one: a mere comparison of methods has none besides that of all sweeps.
  """
  draw = _FIGURES.get(sweep.kind)
  if draw is None:
    return False
  draw(sweep, path)
  return True


def _sparsity(sweep: SweepResults, path: Path) -> None:
  methods: dict[str, dict[float, Interval]] = {}
  dense = None
  for variant in _finished(sweep):
    if "sparsity" in variant.axes:
      by_sparsity = methods.setdefault(variant.axes["method"], {})
      by_sparsity[variant.axes["sparsity"]] = _score(variant)
    elif variant.config["method"]["name"] == "dense":
      dense = _score(variant)
  plots.accuracy(
    methods, path, dense=dense, published=sweep.published, title=sweep.name, ylabel=sweep.score_axis
  )


def _neurons(sweep: SweepResults, path: Path) -> None:
  methods: dict[str, dict[float, dict[str, float]]] = {}
  for variant in _finished(sweep):
    if "sparsity" in variant.axes:
      shares = active_by_layer([run.results for run in variant.runs])
      methods.setdefault(variant.axes["method"], {})[variant.axes["sparsity"]] = shares
  plots.active_neurons(methods, path, title=sweep.name)


def _gamma(sweep: SweepResults, path: Path) -> None:
  sparsities: dict[float, dict[float, dict[str, Interval]]] = {}
  layers: dict[float, dict[float, dict[str, float]]] = {}
  for variant in _finished(sweep):
    if "gamma_sal" in variant.axes:
      sparsity = variant.axes.get("sparsity", variant.config["method"]["sparsity"])
      gamma = variant.axes["gamma_sal"]
      sparsities.setdefault(sparsity, {})[gamma] = {
        "accuracy": _score(variant),
        "active_neurons": variant.interval("active_neurons"),
      }
      shares = active_by_layer([run.results for run in variant.runs])
      layers.setdefault(sparsity, {})[gamma] = shares
  plots.gamma_sal(sparsities, layers, path, title=sweep.name, ylabel=sweep.score_axis)


def _length(sweep: SweepResults, path: Path) -> None:
  panels: dict[str, dict[str, dict[float, Interval]]] = {}
  for variant in _finished(sweep):
    if "length" in variant.axes:
      sparsity = variant.axes.get("sparsity", variant.config["method"]["sparsity"])
      panel = panels.setdefault(f"{100 * sparsity:.6g} % sparse", {})
      by_length = panel.setdefault(variant.axes["method"], {})
      by_length[variant.axes["length"]] = _score(variant)
  plots.training_length(panels, path, title=sweep.name, ylabel=sweep.score_axis)


def _score(variant: VariantResults) -> Interval:
  """The score as plots draw it, a hundred times what they are given: shares, in per cent."""
  factor = score_of(variant.runs[0].results).factor / 100
  mean, half_width = variant.score_interval()
  return factor * mean, factor * half_width


def _finished(sweep: SweepResults) -> list[VariantResults]:
  return [variant for variant in sweep.variants if variant.runs]


_FIGURES: dict[str, Callable[[SweepResults, Path], None]] = {
  "sparsity": _sparsity,
  "neurons": _neurons,
  "gamma": _gamma,
  "length": _length,
  returns.KIND: returns.returns_figure,
}
