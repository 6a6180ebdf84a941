"""Paired differences between variants: the tests, what is compared, the table, figure and file."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from experiments.common.files import RESULTS, read_json
from experiments.sweeps import paired_report
from experiments.sweeps.paired import (
  compare,
  holm,
  paired_t_p,
  pairs_needed,
  planned,
  pooled_spread,
  sign_flip_p,
)
from experiments.sweeps.paired_report import paired_figure, paired_table
from experiments.sweeps.results import (
  FinishedRun,
  SweepResults,
  VariantResults,
  read_results_file,
  results_file,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")

VALUES = (0.011, 0.004, -0.002, 0.009, 0.006)


def test_p_values_are_those_of_scipy():
  assert paired_t_p(VALUES) == pytest.approx(stats.ttest_1samp(VALUES, 0).pvalue)
  mean = lambda x, axis: np.mean(x, axis=axis)
  expected = stats.permutation_test(
    (np.array(VALUES),), mean, permutation_type="samples", vectorized=True, n_resamples=np.inf
  )
  assert sign_flip_p(VALUES) == pytest.approx(expected.pvalue)
  assert sign_flip_p([1.0] * 6) == 2**-5  # all of a sign: the smallest of six
  assert sign_flip_p([1.0, -1.0]) == 1
  assert math.isnan(paired_t_p([0.5])) and sign_flip_p([0.5]) == 1
  assert paired_t_p([0.25, 0.25]) == 0 and paired_t_p([0.0, 0.0]) == 1


def test_many_signs_are_drawn():
  values = np.random.default_rng(0).normal(0.3, 1, 20)
  expected = stats.ttest_1samp(values, 0).pvalue
  assert sign_flip_p(values) == pytest.approx(expected, abs=0.02)
  assert sign_flip_p(values) == sign_flip_p(values)


def test_holm():
  """0.01 · 4, 0.02 · 3, then 0.03 · 2 and 0.04 · 1 that may not be below; nan is no test."""
  found = holm([0.04, 0.01, math.nan, 0.03, 0.02])
  assert [round(p, 9) for p in found if p == p] == [0.06, 0.04, 0.06, 0.06] and found[2] != found[2]
  assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_pairs_needed_have_the_power():
  num = pairs_needed(1.0, 0.8)
  draws = np.random.default_rng(0).normal(0.8, 1, (2, 4000, num))
  power = np.mean(stats.ttest_1samp(draws[0], 0, axis=1).pvalue < 0.05)
  less = np.mean(stats.ttest_1samp(draws[1][:, 1:], 0, axis=1).pvalue < 0.05)
  assert power > 0.785 and less < 0.8
  assert num < pairs_needed(1.0, 0.8, tests=4) < pairs_needed(1.5, 0.8, tests=4)
  assert pairs_needed(0.0, 0.1) == 2 and pairs_needed(1.0, 1e-6, most=50) is None


def sweep_of(accuracies, kind="sparsity", comparisons=()):
  """A sweep whose runs have these accuracies: by variant, its axes and those of seeds 0 and on."""
  environment = {"environment": {"python": "3"}}
  variants = [
    VariantResults(
      name,
      axes,
      {"method": {"name": axes["method"]}},
      [
        FinishedRun(seed, {"test_accuracy": value, **environment}, [])
        for seed, value in enumerate(values)
        if value is not None
      ],
    )
    for name, (axes, values) in accuracies.items()
  ]
  return SweepResults("A study", kind, "command", variants, 0, {}, {}, list(comparisons))


def at(method, sparsity):
  return {"method": method, "sparsity": sparsity}


SWEEP = sweep_of(
  {
    "dense": ({"method": "dense"}, [0.9, 0.8, 0.7]),
    "a_90": (at("a", 0.9), [0.5, 0.6, 0.7]),
    "a_99": (at("a", 0.99), [0.4, None, 0.6]),
    "b_90": (at("b", 0.9), [0.4, 0.4, 0.4]),
    "b_99": (at("b", 0.99), [0.5, 0.5, None]),
    "b_95": (at("b", 0.95), [0.5, 0.5, 0.5]),
    "c_95": (at("c", 0.95), [None, None, None]),
  },
  comparisons=[("a", "b"), ("a", "c"), ("a_90", "dense")],
)


def places(comparisons):
  return {(c.name, c.place): tuple(round(d, 9) for d in c.differences) for c in comparisons}


def test_methods_are_compared_where_both_stand():
  assert places(compare(SWEEP, [("a", "b")])) == {
    ("a − b", "sparsity 0.9"): (0.1, 0.2, 0.3),
    ("a − b", "sparsity 0.99"): (-0.1,),  # of the one seed that both have
  }
  assert places(compare(SWEEP, [("a", "b")], at=[0.9])).keys() == {("a − b", "sparsity 0.9")}
  assert places(compare(SWEEP, [("a", "b")], pool=True)) == {
    ("a − b", "all"): (0.1, 0.2, 0.3, -0.1)
  }
  assert places(compare(SWEEP, [("dense", "b")])).keys() == {
    ("dense − b", f"sparsity {s:g}") for s in (0.9, 0.95, 0.99)
  }
  assert places(compare(SWEEP, [("a_90", "b_99")])) == {("a_90 − b_99", ""): (0.0, 0.1)}


def test_all_that_is_compared_is_one_family():
  first, second, single = compare(SWEEP, [("a", "b"), ("dense", "a")], at=[0.9]) + compare(
    SWEEP, [("a", "b")], at=[0.99]
  )
  assert first.t_p < second.t_p
  assert first.holm_p == pytest.approx(2 * first.t_p)
  assert second.holm_p == pytest.approx(max(second.t_p, first.holm_p))
  assert math.isnan(single.half_width) and math.isnan(single.holm_p)


def test_spread_is_that_within_comparisons():
  spread, most, freedom = pooled_spread(compare(SWEEP, [("a", "b")]))
  assert (spread, freedom) == (pytest.approx(0.1), 2)
  assert most == pytest.approx(0.1 * math.sqrt(2 / stats.chi2.ppf(0.05, 2)))
  assert math.isnan(pooled_spread(compare(SWEEP, [("a", "b")], at=[0.99]))[0])


@pytest.mark.parametrize(
  ("pairs", "options", "message"),
  [
    ([("a", "nobody")], {}, "no variant or method 'nobody'.*dense, a, b, c, a_90"),
    ([("a", "c")], {}, "a and c have no two finished runs of one seed"),
    ([("a", "b")], {"at": [0.95]}, "no two finished runs of one seed at 0.95"),
  ],
)
def test_what_cannot_be_compared(pairs, options, message):
  with pytest.raises(ValueError, match=message):
    compare(SWEEP, pairs, **options)


def test_a_study_without_an_axis_has_no_places():
  with pytest.raises(ValueError, match="without an axis"):
    compare(SWEEP._replace(kind="methods"), [("a", "b")], at=[0.9])


def test_a_sweep_says_what_it_compares():
  assert planned(SWEEP) == [("a", "b"), ("a_90", "dense")]


def test_table_and_figure(monkeypatch, tmp_path):
  found = compare(SWEEP, [("a", "b"), ("dense", "a")])
  table = paired_table(found, smallest=5)
  assert (
    "| a − b          | sparsity 0.9  |     3 |      +20.00 ± 24.84 |             3 of 3 |" in table
  )
  assert "-10.00 |             0 of 1 |           – |         1.000 |       – |" in table
  assert "at 5 % / 3 finds 5 points with a power of 80 % in" in table
  assert "not known" in paired_table(compare(SWEEP, [("a", "b")], at=[0.99]), smallest=1)
  drawn = []
  monkeypatch.setattr(paired_report, "save", lambda figure, path: drawn.append(figure))
  paired_figure(found, tmp_path / "figure.png", smallest=1)
  (axes,) = drawn[0].axes
  means = [bars.lines[0].get_xydata()[0].tolist() for bars in axes.containers]
  assert np.allclose(means, [(100 * c.mean, row) for row, c in enumerate(found)])
  assert [t.get_text() for t in axes.get_yticklabels()][:2] == [
    "a − b, sparsity 0.9",
    "a − b, sparsity 0.99",
  ]
  paired_report.plt.close(drawn[0])


def test_the_command_reads_a_results_file(command, tmp_path):
  source, out, figure = (tmp_path / name for name in ("sweep.json", "out.json", "figure.png"))
  written = results_file(SWEEP, "table")
  source.write_text(json.dumps(written))
  assert read_results_file(source).comparisons == SWEEP.comparisons
  arguments = (f"--results={source}", "--compare=a,b", "--at=0.9", "--smallest=2")
  code, printed, _ = command("report", *arguments, f"--out={out}", f"--figure={figure}")
  assert code == 0 and "+20.00" in printed and figure.exists()
  stored = read_json(out)
  assert stored["table"] in printed and stored["command"].endswith(f"--figure={figure}")
  assert stored["comparisons"][0]["differences"] == pytest.approx([0.1, 0.2, 0.3])
  assert stored["environment"] == {"python": "3"}


def test_variants_of_two_sweeps_are_compared(command, tmp_path):
  others = {"d_90": (at("d", 0.9), [0.3, 0.3, 0.3]), "dense": ({"method": "dense"}, [0.5])}
  other = sweep_of(others)
  held_out = sweep_of(others)
  held_out.variants[0].config["data"] = {"validation_fraction": 0.1}
  sweeps = {"one": SWEEP, "other": other, "length": other._replace(kind="length")}
  for name, sweep in (sweeps | {"held_out": held_out}).items():
    (tmp_path / f"{name}.json").write_text(json.dumps(results_file(sweep, "table")))

  def report(*names, compare="a,d"):
    files = [f"--results={tmp_path / name}.json" for name in names]
    code, printed, errors = command("report", *files, f"--compare={compare}")
    assert code == (2 if errors else 0)
    return errors or printed

  assert "| a − d          | sparsity 0.9 |     3 |      +30.00" in report("one", "other")
  assert "dense is in 'A study' and in 'A study'" in report("one", "other", compare="a,dense")
  assert "a study 'sparsity' by accuracy, 'A study' one 'length'" in report("one", "length")
  assert "config.data.validation_fraction is 0.1, not None" in report("one", "held_out")


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((), "Give --workdir"),
    (("--results=x.json",), "--results is given without --compare"),
    (("--results=x.json", "--compare=a"), "--compare=a does not name two"),
    (("--results=x.json", "--compare=a,b"), "x.json does not exist"),
    (("--results=x.json", "--compare=a,b", "--smallest=-1"), "--smallest is -1.0"),
  ],
)
def test_the_command_refuses(command, arguments, message):
  code, _, errors = command("report", *arguments)
  assert code == 2 and message in errors


def test_every_results_file_of_a_sweep_can_be_read():
  read = [
    read_results_file(path)
    for path in sorted(RESULTS.glob("*.json"))
    if "variants" in read_json(path)
  ]
  assert len(read) >= 6
  for sweep in read:
    names = [v.name for v in sweep.variants if len(v.runs) > 1]
    for pair in itertools.islice(itertools.combinations(names, 2), 3):
      assert compare(sweep, [pair])[0].differences
