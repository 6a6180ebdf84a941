import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import srigl_jax as sx

PARAMS = {
  "conv/kernel": jnp.ones((1, 1, 4, 3)),
  "conv/bias": jnp.ones(3),
  "mlp/kernel": jnp.ones((4, 2)),
  "head/kernel": jnp.ones((2, 5)),
}
# conv: fan-ins 2, 0, 2 of 4; mlp: 3 and 1 of 4; head dense.
MASKS = {
  "conv/kernel": jnp.asarray([[1, 0, 0], [1, 0, 1], [0, 0, 1], [0, 0, 0]], bool)[None, None],
  "mlp/kernel": jnp.asarray([[1, 0], [1, 0], [1, 1], [0, 0]], bool),
}
EXPLORED = {"conv/kernel": MASKS["conv/kernel"] | True, "mlp/kernel": MASKS["mlp/kernel"]}
MACS = {"conv/kernel": 1200, "head/kernel": 10, "mlp/kernel": 8}


def test_layers():
  conv, head, mlp = sx.summarize(PARAMS, MASKS, explored=EXPLORED, macs=MACS).layers
  assert conv == sx.LayerSummary(
    path="conv/kernel",
    shape=(1, 1, 4, 3),
    num_neurons=3,
    dense_fan_in=4,
    density=4 / 12,
    active_neurons=2,
    min_fan_in=2,
    max_fan_in=2,
    itop_rate=1.0,
    macs=1200,
  )
  assert (mlp.min_fan_in, mlp.max_fan_in, mlp.active_neurons, mlp.density) == (1, 3, 2, 0.5)
  assert mlp.itop_rate == 0.5
  assert head.density == 1 and head.itop_rate == 1 and not head.is_sparse and mlp.is_sparse
  assert (head.min_fan_in, head.max_fan_in, head.active_neurons, head.size) == (2, 2, 5, 10)


def test_totals():
  summary = sx.summarize(PARAMS, MASKS, explored=EXPLORED, macs=MACS)
  assert summary.density == pytest.approx((4 + 4 + 10) / 30)
  assert summary.sparsity == pytest.approx(12 / 30)
  assert summary.active_neurons == pytest.approx((2 + 2 + 5) / 10)
  assert summary.itop_rate == pytest.approx((12 + 4 + 10) / 30)
  assert summary.inference_flops == pytest.approx((400 + 10 + 4) / 1218)


def test_what_is_not_asked_for_is_none():
  summary = sx.summarize(PARAMS, MASKS)
  assert summary.itop_rate is None and summary.inference_flops is None
  assert all(x.itop_rate is None and x.macs is None for x in summary.layers)


def test_table():
  lines = str(sx.summarize(PARAMS, MASKS, explored=EXPLORED, macs=MACS)).split("\n")
  cells = [" ".join(line.split()) for line in lines if not line.startswith("-")]
  assert cells == [
    "layer shape density fan-in active neurons ITOP MACs",
    "conv/kernel 1×1×4×3 0.3333 2 of 4 2 of 3 1.000 400",
    "head/kernel 2×5 dense 2 of 2 5 of 5 1.000 10",
    "mlp/kernel 4×2 0.5000 1–3 of 4 2 of 2 0.500 4",
    "all layers 0.6000 90.0% 0.867 0.340 of dense",
  ]
  assert len({len(line) for line in lines}) == 1  # aligned
  short = str(sx.summarize(PARAMS, MASKS)).split("\n")
  assert " ".join(short[0].split()) == "layer shape density fan-in active neurons"


def test_layer_without_any_active_neuron():
  empty = {"mlp/kernel": jnp.zeros((4, 2), bool)}
  mlp = sx.summarize(PARAMS, empty).layers[-1]
  assert (mlp.density, mlp.active_neurons, mlp.min_fan_in, mlp.max_fan_in) == (0, 0, 0, 0)


def test_abstract_params_and_layers_without_macs():
  shapes = jax.eval_shape(lambda: PARAMS)
  summary = sx.summarize(shapes, MASKS, macs={"mlp/kernel": 8})
  assert summary.density == sx.summarize(PARAMS, MASKS).density
  assert summary.inference_flops == 0.5
  assert "–" in str(summary).split("\n")[2].split()[-1]


def test_attention_neurons_are_pairs_of_head_and_dim():
  params = {"attn/query/kernel": jnp.ones((6, 2, 3))}
  mask = jnp.ones((6, 2, 3), bool).at[:, 0, 1].set(False)
  (layer,) = sx.summarize(params, {"attn/query/kernel": mask}).layers
  assert (layer.num_neurons, layer.active_neurons, layer.min_fan_in) == (6, 5, 6)


def test_unknown_mask():
  with pytest.raises(ValueError, match="masks names 'conv/bias'"):
    sx.summarize(PARAMS, {"conv/bias": jnp.ones(3, bool)})


def mask_with_active(num_active, fan_in=5):
  return (jnp.arange(10)[:, None] < fan_in) & (jnp.arange(8)[None] < num_active)


@pytest.mark.parametrize(
  ("mask", "warned"),
  [
    (mask_with_active(3), True),
    (mask_with_active(4), False),  # exactly half
    (mask_with_active(3, fan_in=1), False),  # sparser than 95 %: as intended
    (np.zeros((10, 8), bool), False),
  ],
)
def test_warning_of_too_much_ablation(mask, warned):
  params = {"mlp/kernel": jnp.ones((10, 8)), "head/kernel": jnp.ones((8, 4))}
  summary = sx.summarize(params, {"mlp/kernel": jnp.asarray(mask)})
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    paths = sx.warn_if_over_ablated(summary, 0.3)
  assert paths == (["mlp/kernel"] if warned else [])
  assert len(caught) == len(paths)
  if warned:
    message = str(caught[0].message)
    assert "'mlp/kernel' has lost 5 of its 8 neurons at only 81% sparsity" in message
    assert "gamma_sal=0.3" in message and "ablate=all_but('head', 'mlp/kernel')" in message


def test_threshold_of_the_warning():
  summary = sx.summarize({"w": jnp.ones((10, 8))}, {"w": mask_with_active(5)})
  with pytest.warns(UserWarning, match="lost 3 of its 8"):
    assert sx.warn_if_over_ablated(summary, 0.3, threshold=0.25) == ["w"]
