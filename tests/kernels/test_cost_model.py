"""The choice among backends: by the estimates, among what is there, and told why."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import (
  BACKENDS,
  auto,
  choose_backend,
  condensed_matmul,
  cost_model,
  make_condensed,
  prepare,
)
from srigl_kernels.problems import PROBLEMS, Problem, make_problem

HAS_CPU = BACKENDS["cpu"].is_available()
SIZES = cost_model.Sizes(in_features=100, out_features=60, num_active=40, fan_in=10)


def test_terms_are_what_a_backend_does():
  for name, batch, expected in (
    ("dense", 7, cost_model.Rates(1, 6000, 42000, 1120, 0, 7)),
    ("structured", 7, cost_model.Rates(1, 4000, 28000, 1120, 420, 7)),
    ("xla", 7, cost_model.Rates(1, 400, 2800, 1120, 420, 7)),
    ("cpu avx512", 12, cost_model.Rates(1, 400, 4800, 1920, 0, 12)),
    ("cpu avx512", 13, cost_model.Rates(1, 400, 6400, 2080, 0, 16)),
    ("cpu generic", 1, cost_model.Rates(1, 400, 6400, 160, 0, 16)),
    ("cpu avx2", 33, cost_model.Rates(1, 400, 19200, 5280, 0, 48)),
  ):
    assert cost_model.terms(name, SIZES, batch) == expected
  assert cost_model.terms("xla", SIZES._replace(num_active=60), 7).scatter == 0


@pytest.mark.parametrize("name", cost_model.SECONDS)
def test_estimates_are_positive_and_grow(name):
  times = [cost_model.estimate(name, SIZES, batch) for batch in (0, 1, 16, 256, 2048)]
  assert times[0] > 0 and times == sorted(times)
  wider = SIZES._replace(in_features=1000, out_features=600, num_active=400, fan_in=100)
  assert cost_model.estimate(name, wider, 64) > cost_model.estimate(name, SIZES, 64)


def test_ranking_follows_the_estimates(monkeypatch):
  rates = {
    "a": cost_model.Rates(5, 0, 0, 0),
    "b": cost_model.Rates(1, 0, 0, 1),
    "c": cost_model.Rates(5, 0, 0, 0),
  }
  monkeypatch.setattr(cost_model, "SECONDS", rates)
  assert cost_model.rank(SIZES, 0, ["a", "b", "c"]) == [("b", 1), ("a", 5), ("c", 5)]
  assert [name for name, _ in cost_model.rank(SIZES, 1, ["c", "b", "a"])] == ["c", "a", "b"]


def test_small_layers_leave_the_dense_product_for_a_gain_alone(monkeypatch):
  large = SIZES._replace(in_features=4000)
  for native, expected in ((0.95, ["dense", "cpu avx512"]), (0.9, ["cpu avx512"] * 2)):
    rates = {"dense": cost_model.Rates(1, 0, 0, 0), "cpu avx512": cost_model.Rates(native, 0, 0, 0)}
    monkeypatch.setattr(cost_model, "SECONDS", rates)
    monkeypatch.setattr(cost_model, "SMALL", rates)
    first = lambda sizes: cost_model.rank(sizes, 1, list(rates))[0][0]  # noqa: B023
    assert [first(SIZES), first(large)] == expected


def with_rates(monkeypatch, **rates):
  """Sets the constants of all backends; the native ones' are the same on every CPU target."""
  cpu = {f"cpu {isa}": rates["cpu"] for isa in ("avx512", "avx2", "generic")}
  monkeypatch.setattr(cost_model, "SECONDS", rates | cpu)
  monkeypatch.setattr(cost_model, "SMALL", {})


CROSSING = {
  # 160 features a row: cpu is the fastest for up to 6 rows, xla for up to 306, then structured.
  "cpu": cost_model.Rates(0, 0, 0, 4),
  "xla": cost_model.Rates(2000, 0, 0, 2),
  "structured": cost_model.Rates(100_000, 0, 0, 0),
  "dense": cost_model.Rates(1e9, 0, 0, 0),
}


def layer_of(num_active, fan_in=10):
  return make_problem(Problem(100, 60, num_active, fan_in, (4,)))[1]


@pytest.mark.filterwarnings("ignore:The native CPU kernels")
def test_a_layer_is_prepared_for_all_batches_and_chosen_by_each(monkeypatch):
  monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(is_available=lambda: False))
  with_rates(monkeypatch, **CROSSING)
  layer = prepare(layer_of(num_active=40))
  assert list(layer.layouts) == ["xla", "structured"]
  assert [choose_backend(layer, batch=n)[0] for n in (1, 300, 400)] == ["xla", "xla", "structured"]
  _, reason = choose_backend(layer, batch=400)
  assert reason == "expected times at batch 400: structured 1e+11 us, xla 1.3e+11 us"


@pytest.mark.skipif(not HAS_CPU, reason="needs the native kernels")
def test_the_native_kernels_take_part(monkeypatch):
  with_rates(monkeypatch, **CROSSING)
  layer = prepare(layer_of(num_active=40))
  assert list(layer.layouts) == ["cpu", "xla", "structured"]
  assert [choose_backend(layer, n)[0] for n in (1, 10, 400)] == ["cpu", "xla", "structured"]


@pytest.mark.filterwarnings("ignore:The native CPU kernels")
@pytest.mark.parametrize("batch, names", [(1, ["xla"]), (500, ["structured"]), ((1, 500), None)])
def test_expected_batches_decide_what_is_prepared(monkeypatch, batch, names):
  monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(is_available=lambda: False))
  with_rates(monkeypatch, **CROSSING)
  layer = prepare(layer_of(num_active=40), batch=batch)
  assert list(layer.layouts) == (names or ["xla", "structured"])
  if names:  # a single layout is taken for every batch, and the estimates are still told
    name, reason = choose_backend(layer, batch=2)
    assert name == names[0] and "only layout" in reason and "structured" in reason


def test_wrong_batches():
  for batch in (-1, 0, 2.5, "8", (1, -2), ()):
    with pytest.raises(ValueError, match=r"`batch` is .*; it must be a whole number of 1 or more"):
      prepare(layer_of(40), batch=batch)
    with pytest.raises(ValueError, match=r"`batch` is .*; it must be a whole number of 1 or more"):
      choose_backend(layer_of(40), batch)


@pytest.mark.filterwarnings("ignore:The native CPU kernels")
def test_calls_choose_by_their_rows_also_under_jit(monkeypatch):
  monkeypatch.setitem(BACKENDS, "cpu", BACKENDS["cpu"]._replace(is_available=lambda: False))
  with_rates(monkeypatch, **CROSSING)
  used = []
  for name in ("xla", "structured"):
    matmul = BACKENDS[name].matmul
    spy = lambda *args, name=name, matmul=matmul: used.append(name) or matmul(*args)
    monkeypatch.setitem(BACKENDS, name, BACKENDS[name]._replace(matmul=spy))
  condensed = layer_of(num_active=40)
  layer = prepare(condensed)
  for shape, expected in (((5, 100), "xla"), ((50, 10, 100), "structured"), ((100,), "xla")):
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    y = jax.jit(condensed_matmul)(x, layer)
    assert used.pop() == expected and not used
    np.testing.assert_allclose(y, condensed_matmul(x, condensed, backend="reference"), atol=1e-4)


@pytest.mark.filterwarnings("ignore:The native CPU kernels")
def test_a_traced_layer_is_prepared_without_the_native_kernels():
  x, condensed = make_problem(PROBLEMS["odd_sizes"])
  auto.warn_of_unprepared_layer.cache_clear()
  with pytest.warns(UserWarning, match="arrays are traced") as warned:
    y = jax.jit(lambda x, c: condensed_matmul(x, prepare(c)))(x, condensed)
  assert warned[-1].filename == __file__
  np.testing.assert_allclose(y, condensed_matmul(x, condensed, backend="reference"), atol=1e-4)


def test_unknown_devices_keep_to_a_rule_of_thumb(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "another")
  for fan_in, num_active, expected in ((2, 40, "xla"), (4, 40, "structured"), (4, 60, "dense")):
    layer = prepare(layer_of(num_active, fan_in))
    assert list(layer.layouts) == [expected]
    assert choose_backend(layer, 8)[1].endswith(f"fan-in {fan_in} of 100 inputs")


@pytest.mark.parametrize("device", ["gpu", "tpu"])
def test_accelerators_choose_by_their_own_constants(monkeypatch, device):
  monkeypatch.setattr(jax, "default_backend", lambda: device)
  rates = {f"{name} {device} float32": rate for name, rate in CROSSING.items()}
  rates[f"pallas {device} float32"] = rates.pop(f"cpu {device} float32")
  monkeypatch.setattr(cost_model, "SECONDS", rates)
  layer = prepare(layer_of(num_active=40), batch=(1, 1000))
  assert list(layer.layouts) == ["pallas", "structured"]
  assert [choose_backend(layer, n)[0] for n in (1, 1000)] == ["pallas", "structured"]
  assert [choose_backend(layer.condensed, n)[0] for n in (1, 1000)] == ["pallas", "structured"]
  chosen = []
  jax.eval_shape(lambda c: chosen.append(choose_backend(c)[0]), layer.condensed)
  assert chosen == ["pallas" if device == "gpu" else "xla"]
  traced = jax.eval_shape(lambda c: prepare(c, batch=1), layer.condensed)
  assert traced.preference == (("pallas",) if device == "gpu" else ("xla",))


def test_estimates_for_accelerators_are_told(monkeypatch):
  """The wide layer is one of those that memory bounds: few weights win at small batch sizes."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  sizes = cost_model.Sizes(4096, 16384, 16384, 410, group_size=16)
  for dtype in ("float32", "bfloat16"):
    names = [f"{name} gpu {dtype}" for name in ("dense", "pallas", "grouped")]
    assert cost_model.rank(sizes, 1, names)[0][0] != names[0]
    assert cost_model.rank(sizes._replace(fan_in=4096), 2048, names[:2])[0][0] == names[0]
  one, two = (
    cost_model.terms("grouped gpu float32", sizes._replace(group_size=g), 8) for g in (16, 32)
  )
  assert one.products == 2 * two.products
  assert (
    cost_model.terms("structured gpu float32", sizes._replace(num_active=5), 2).scatter == 2 * 16384
  )
  assert cost_model.terms("pallas gpu float32", sizes._replace(num_active=5), 2).scatter == 0


def test_layers_in_groups_are_found(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  rng = np.random.default_rng(0)
  indices = np.repeat(np.sort(rng.random((3, 20)).argsort(1)[:, :5], axis=1), 16, axis=0)
  values = rng.normal(size=indices.shape).astype(np.float32)
  condensed = make_condensed(values, indices, np.arange(48), kernel_shape=(20, 48))
  assert auto.candidates(condensed) == ["dense", "pallas", "grouped"]
  assert all(seconds > 0 for _, seconds in auto.rank(condensed, 4, auto.candidates(condensed)))
  layer = prepare(condensed, batch=(1, 4096))
  assert layer.group_size in (None, 16)
  everything = prepare(condensed, backend=("grouped", "dense"))
  automatic = dataclasses.replace(everything, is_automatic=True)
  outside = choose_backend(automatic, 64)
  told = []
  jax.eval_shape(lambda layer: told.append(choose_backend(layer, 64)), automatic)
  assert told == [outside] and "grouped" in outside[1]
  with jax.default_matmul_precision("highest"):
    (exact,) = auto.rank(condensed, 4, ["dense"])
  assert exact[1] > auto.rank(condensed, 4, ["dense"])[0][1]


def test_every_layer_has_a_choice():
  for problem in PROBLEMS.values():
    condensed = dataclasses.replace(make_problem(problem)[1])
    ranked = auto.rank(condensed, 3, ["structured", "dense", "xla"])
    assert all(seconds > 0 for _, seconds in ranked)
