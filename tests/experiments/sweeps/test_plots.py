"""The figures of the studies: what they show, read back from the axes."""

import math

import numpy as np
import pytest

from experiments.sweeps import plots
from experiments.sweeps.plots import (
  accuracy,
  active_by_layer,
  active_neurons,
  gamma_sal,
  training_length,
)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
  """Keeps figures open to look at; `drawn()` is the last one."""
  figures = []
  save = plots.save

  def keep(figure, path):
    save(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    figures.append(figure)

  monkeypatch.setattr(plots, "save", keep)
  return lambda: figures[-1]


def lines_of(axes):
  """Points of the lines with error bars by label."""
  return {
    bars.get_label(): bars.lines[0].get_xydata().round(6).tolist() for bars in axes.containers
  }


def test_active_by_layer():
  layers = [
    {"path": "a", "density": 0.1, "active_neurons": 3, "num_neurons": 4},
    {"path": "b", "density": 1.0, "active_neurons": 4, "num_neurons": 4},
  ]
  other = [{**layers[0], "active_neurons": 1}, layers[1]]
  assert active_by_layer([{"layers": layers}, {"layers": other}]) == {"a": 0.5}


def test_active_neurons(drawn, tmp_path):
  methods = {
    "rigl": {0.99: {"a": 0.5, "b": 0.25}, 0.9: {"a": 1.0, "b": 0.9}},
    "srigl": {0.9: {"a": 0.75}},
  }
  active_neurons(methods, tmp_path / "figure.png", title="A study")
  rigl, srigl = drawn().axes[:2]
  assert [rigl.get_title(), srigl.get_title()] == ["rigl", "srigl"]
  np.testing.assert_array_equal(rigl.images[0].get_array(), [[100, 50], [90, 25]])
  assert [t.get_text() for t in rigl.get_xticklabels()] == ["90", "99"]
  assert [t.get_text() for t in rigl.get_yticklabels()] == ["a", "b"]
  assert [t.get_text() for t in srigl.texts] == ["75"]
  assert len(srigl.patches) == 3 and not rigl.patches  # what is missing is hatched, and explained
  assert "hatched: the layer is dense" in drawn().get_suptitle()


def test_accuracy_spreads_high_sparsities(drawn, tmp_path):
  methods = {"srigl": {0.999: (0.5, 0.01), 0.9: (0.9, 0.02), 0.99: (0.7, math.nan)}}
  published = {"srigl": {0.9: (0.95, 0.001)}, "rigl": {0.95: (0.93, math.nan)}}
  accuracy(methods, tmp_path / "figure.png", dense=(0.96, 0.01), published=published)
  (axes,) = drawn().axes
  assert lines_of(axes) == {
    "srigl": [[1, 90], [2, 70], [3, 50]],
    "srigl, published": [[1, 95]],
    "rigl, published": [[-round(math.log10(0.05), 6), 93]],
  }
  assert [t.get_text() for t in axes.get_xticklabels()] == ["90", "95", "99", "99.9"]
  assert axes.lines[-1].get_ydata()[0] == pytest.approx(96)
  colors = {bars.get_label(): bars.lines[0].get_color() for bars in axes.containers}
  assert colors["srigl"] == colors["srigl, published"] != colors["rigl, published"]
  places = [bars.lines[0].get_transform().transform((1, 90))[0] for bars in axes.containers]
  assert len(set(places)) == 3  # bars side by side, or they would hide each other


def test_intervals_are_as_wide_as_given(drawn, tmp_path):
  accuracy({"srigl": {0.9: (0.9, 0.02), 0.99: (0.7, math.nan)}}, tmp_path / "figure.png")
  (bars,) = drawn().axes[0].containers
  segments = np.array(bars.lines[2][0].get_segments())
  np.testing.assert_allclose(segments[:, :, 1], [[88, 92], [70, 70]])


def test_gamma_sal(drawn, tmp_path):
  values = {
    0.3: {"accuracy": (0.9, 0.01), "active_neurons": (0.8, math.nan)},
    0.0: {"accuracy": (0.8, 0.01), "active_neurons": (1.0, math.nan)},
  }
  layers = {0.99: {0.3: {"a": 0.5, "b": 1.0}, 0.0: {"a": 1.0}}}
  gamma_sal({0.99: values}, layers, tmp_path / "figure.png")
  left, right, below, _ = (axes for figure in drawn().subfigs for axes in figure.axes)
  assert [text.get_text() for text in below.texts] == ["100", "50", "100"]
  assert [tick.get_text() for tick in below.get_xticklabels()] == ["0", "30"]
  assert lines_of(left) == {"99 % sparse": [[0, 80], [30, 90]]}
  assert lines_of(right) == {"99 % sparse": [[0, 100], [30, 80]]}


def test_training_length(drawn, tmp_path):
  panels = {
    "90 %": {"srigl": {5: (0.95, 0.0), 1: (0.9, 0.0)}},
    "99 %": {"rigl": {1: (0.5, 0.0)}, "srigl": {2: (0.6, 0.0)}},
  }
  training_length(panels, tmp_path / "figure.png")
  first, second = drawn().axes
  assert lines_of(first) == {"srigl": [[1, 90], [5, 95]]}
  assert [t.get_text() for t in first.get_xticklabels()] == ["1×", "5×"]
  assert second.get_title() == "99 %"
  same = [bars.lines[0].get_color() for axes in (first, second) for bars in axes.containers]
  assert same[0] == same[2] != same[1]  # a method has one colour in all panels
