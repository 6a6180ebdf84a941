"""Methods as the configs name them: their settings, their schedules, what the loop must know."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from configs import base
from experiments import models
from experiments.models.small_dense import small_dense_kwargs
from experiments.training import methods
from experiments.training.method_plan import make_method, plan_method, preset, preset_names
from experiments.training.optimizer import make_optimizer
from tests.experiments.tiny import quick_compiler
from tests.helpers import mostly_slow

RNG = np.random.default_rng(0)


def method_config(name="srigl", *, kwargs=None, **changes):
  """The `method` section for a method or preset; unknown names and arguments stay as they are."""
  config = base.get_config(name if name in preset_names() else "srigl").method
  config.update(changes if name in preset_names() else {"name": name} | changes)
  config.kwargs.update(kwargs or {})
  return config


def test_clipping_sees_masked_gradients():
  """A huge gradient of an absent weight does not shorten the step of the others."""
  config = base.get_config().optimizer
  config.update({"clip_norm": 1.0, "weight_decay": 0.0, "learning_rate": 1.0, "momentum": 0.0})
  inner = make_optimizer(config, optax.constant_schedule(1.0))
  tx = make_method(method_config(name="static", sparsity=0.5), inner, total_steps=10, seed=0)
  params = {"kernel": jnp.ones((4, 4))}
  state = tx.init(params)
  mask = sx.get_masks(state)["kernel"]
  grads = {"kernel": jnp.where(mask, 0.1, 1e6)}  # norm sqrt(8) / 10 < 1 where there are weights
  updates, _ = tx.update(grads, state, sx.apply_masks(params, {"kernel": mask}))
  np.testing.assert_allclose(updates["kernel"], jnp.where(mask, -0.1, 0.0), rtol=1e-6)


PARAMS = {
  "hidden/0/kernel": jnp.asarray(RNG.normal(size=(12, 8)), jnp.float32),
  "head/kernel": jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32),
  "head/bias": jnp.zeros(4),
}


def mask_history(num_steps=10, *, rate=0.1, seed=0, gradient_seed=1, **changes):
  """The masks at the start and after each step under random gradients."""
  defaults = {"sparsity": 0.5, "update_every_steps": 2, "drop_fraction": 0.9}
  config = method_config(**defaults | changes)
  tx = make_method(config, optax.sgd(rate), total_steps=num_steps, seed=seed)
  state = tx.init(PARAMS)
  params = sx.apply_masks(PARAMS, sx.get_masks(state))
  history = [sx.get_masks(state)]
  update = jax.jit(tx.update)
  rng = np.random.default_rng(gradient_seed)
  for _ in range(num_steps):
    grads = {path: jnp.asarray(rng.normal(size=p.shape), p.dtype) for path, p in params.items()}
    with quick_compiler():
      updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    history.append(sx.get_masks(state))
  return [{path: np.asarray(mask) for path, mask in masks.items()} for masks in history]


def changes(history):
  """After which steps the hidden layer's mask was another."""
  hidden = [masks["hidden/0/kernel"] for masks in history]
  return [i for i in range(1, len(hidden)) if (hidden[i] != hidden[i - 1]).any()]


@pytest.mark.parametrize("name", mostly_slow(("set", "rigl", "srigl"), {"srigl"}))
def test_topology_changes_on_schedule(name):
  assert changes(mask_history(name=name)) == [2, 4, 6]  # 8 is not before 0.75 × 10
  assert changes(mask_history(name=name, update_until_fraction=0.5)) == [2, 4]
  assert changes(mask_history(name=name, update_every_steps=3)) == [3, 6]


@pytest.mark.parametrize("name", ["static", "set", "rigl", "srigl"])
def test_the_seed_draws_the_first_masks(name):
  one, two = (mask_history(num_steps=0, name=name, seed=seed)[0] for seed in (0, 1))
  assert (one["hidden/0/kernel"] != two["hidden/0/kernel"]).any()


@pytest.mark.parametrize("name", ["set", "rigl", "srigl"])
def test_all_but_set_grow_by_gradient(name):
  """With weights that stand still, another gradient grows other connections, or it does not."""
  one, two = (
    mask_history(num_steps=4, rate=0.0, name=name, gradient_seed=seed)[-1]["hidden/0/kernel"]
    for seed in (1, 2)
  )
  assert (one != two).any() == (name != "set")


def test_static_never_changes():
  assert changes(mask_history(name="static")) == []


def fan_ins(mask):
  return set(mask.sum(0).tolist())


def test_structures():
  unstructured = mask_history(num_steps=1, name="static")[0]["hidden/0/kernel"]
  assert len(fan_ins(unstructured)) > 1
  structured = mask_history(num_steps=1, name="static_fan_in")[0]
  assert len(fan_ins(structured["hidden/0/kernel"])) == 1
  assert all(len(fan_ins(m)) == 1 for m in mask_history(name="srigl_no_ablation")[-1].values())


@pytest.mark.parametrize("name", ["static_fan_in", "srigl_no_ablation"])
def test_fan_in_in_place_of_sparsity(name):
  for masks in mask_history(name=name, kwargs={"fan_in": 3}):
    assert fan_ins(masks["hidden/0/kernel"]) == fan_ins(masks["head/kernel"]) == {3}


def test_ablation_spares_the_layers_named():
  drastic = {"name": "srigl", "kwargs": {"gamma_sal": 0.9}}
  assert 0 in fan_ins(mask_history(**drastic)[-1]["hidden/0/kernel"])
  assert 0 not in fan_ins(mask_history(**drastic)[-1]["head/kernel"])
  spared = mask_history(**drastic, never_ablate=("hidden", "head"))[-1]
  assert 0 not in fan_ins(spared["hidden/0/kernel"])
  off = mask_history(name="srigl_no_ablation")[-1]
  assert 0 not in fan_ins(off["hidden/0/kernel"])


def test_dense_layers_have_no_mask():
  assert mask_history(num_steps=1, dense=("head",))[0].keys() == {"hidden/0/kernel"}


def test_distribution():
  uniform = mask_history(num_steps=1, name="rigl", distribution="uniform")[0]
  erk = mask_history(num_steps=1, name="rigl", distribution="erk")[0]
  assert [m.mean() for m in uniform.values()] == [0.5, 0.5]
  assert erk["head/kernel"].mean() > 0.5 > erk["hidden/0/kernel"].mean()


def test_gradient_accumulation_averages_the_growth_score():
  """Another score, another topology; SET takes no gradients and has no such setting."""
  one = mask_history(name="rigl")[-1]["hidden/0/kernel"]
  two = mask_history(name="rigl", grad_accumulation_steps=2)[-1]["hidden/0/kernel"]
  assert (one != two).any()


@pytest.mark.parametrize(
  "name, message",
  [
    ("rigl", r"kwargs of 'rigl' has 'fan_in'; it may have nothing\. --config=FILE:rigl brings"),
    ("sr_ste", r"kwargs of 'sr_ste' has 'fan_in'; it may have n, m, decay\."),
    ("lottery", r"kwargs of 'lottery' has 'fan_in'; it may have rounds, rewind_fraction\."),
  ],
)
def test_a_method_has_its_own_arguments_and_no_others(name, message):
  with pytest.raises(ValueError, match=rf"config\.method\.{message}"):
    make_method(method_config(name, kwargs={"fan_in": 3}), optax.sgd(0.1), total_steps=10, seed=0)


def test_an_unknown_name():
  with pytest.raises(ValueError, match=r"config\.method\.name is 'srgil'; .*'srigl'\?"):
    make_method(method_config(name="srgil"), optax.sgd(1.0), total_steps=1, seed=0)


# ---- every method ------------------------------------------------------------------------------

SHORT = {
  "lottery": {"rounds": 2, "rewind_fraction": 0.25},
  "gradual_pruning": {"prune_from_fraction": 0.0},
  "srigl_shared": {"structure": "constant_fan_in:group_size=2"},
}
MASKED = [
  name
  for name in preset_names()
  if methods.METHODS[preset(name)["name"]].has_masks and name != "fixed_masks"
]


def num_active(masks):
  return sum(int(mask.sum()) for mask in masks.values())


@pytest.mark.parametrize(
  "name", mostly_slow(MASKED, set(MASKED) - {"continual_rigl", "continual_set"})
)
def test_masks_change_when_the_plan_says_so(name):
  chosen = {"name": name, "kwargs": SHORT.get(name)}
  history = mask_history(**chosen)
  plan = plan_method(method_config(update_every_steps=2, **chosen), total_steps=10)
  differ = lambda a, b: any((a[path] != b[path]).any() for path in a)
  at = [i for i in range(1, 11) if differ(history[i - 1], history[i])]
  assert set(at) <= set(plan.updates)
  assert (at == []) == (len(plan.updates) == 0)
  # SR-STE's may change in any step; a group that is pruned last may grow again at once.
  if name not in ("sr_ste", "srigl_shared"):
    assert at == list(plan.updates)
  assert [plan.last_update(step) for step in range(11)] == [
    max([0, *(u for u in plan.updates if u <= step)]) for step in range(11)
  ]
  target = num_active(history[-1])
  assert all(num_active(masks) == target for masks in history[plan.sparse_from :])
  assert plan.sparse_from == 0 or num_active(history[plan.sparse_from - 1]) > target
  size = sum(p.size for path, p in PARAMS.items() if path != "head/bias")
  assert (num_active(history[0]) == size) == (plan.method.flops == "mean")
  assert target / size == pytest.approx(0.5, abs=0.05)


def test_schedule_of_a_lottery_ticket():
  plan = plan_method(
    method_config("lottery", kwargs={"rounds": 3, "rewind_fraction": 0.1}), total_steps=1000
  )
  assert plan.rounds == sx.Rounds(length=270, num_prunings=3, rewind_step=27)
  assert plan.schedule_steps == 270
  assert plan.rounds.total_steps == 999
  assert [plan.schedule_step(s) for s in (0, 269, 270, 512, 513, 998, 999)] == [
    0, 269, 27, 269, 27, 269, 270
  ]  # fmt: skip
  other = plan_method(method_config(), total_steps=1000)
  assert (other.schedule_steps, other.schedule_step(512)) == (1000, 512)


@pytest.mark.parametrize("steps", [4, 5, 17, 1000])
def test_the_rounds_of_a_lottery_ticket_fit(steps):
  rounds = plan_method(method_config("lottery", kwargs={"rounds": 3}), total_steps=steps).rounds
  longer = sx.Rounds(rounds.length + 1, 3, int(0.05 * (rounds.length + 1)))
  assert rounds.total_steps <= steps < longer.total_steps


def test_training_flops():
  flops = lambda name, **kwargs: plan_method(
    method_config(name=name), total_steps=100
  ).training_flops(0.1, **{"update_every": 100, "history": {0: 1.0, 60: 0.1}} | kwargs)
  assert flops("set") == flops("static") == flops("fixed_masks") == 0.1
  assert flops("rigl") == flops("nm_srigl") == sx.training_flops(0.1, update_every=100)
  assert flops("snfs") == pytest.approx(0.4)
  assert flops("sr_ste") == pytest.approx(0.7)
  assert flops("lottery") == pytest.approx(0.64)


def test_masks_of_another_run(monkeypatch, tmp_path):
  masks = {"head/kernel": jnp.asarray(RNG.random((8, 4)) < 0.5)}
  dense = tmp_path / "dense"
  dense.mkdir()
  for workdir in (tmp_path, dense):
    (workdir / "results.json").write_text("{}")
  found = {tmp_path: masks, dense: {}}
  monkeypatch.setattr(methods, "read_masks", found.get)
  history = mask_history(num_steps=2, name="fixed_masks", kwargs={"masks_from": str(tmp_path)})
  for now in history:
    np.testing.assert_array_equal(now["head/kernel"], masks["head/kernel"])
  for workdir, message in (
    ("", "masks_from is empty"),
    (str(dense), "a dense run"),
    (str(tmp_path / "unfinished"), "holds no finished run"),
  ):
    with pytest.raises(ValueError, match=message):
      mask_history(name="fixed_masks", kwargs={"masks_from": workdir})


@pytest.mark.parametrize(
  ("name", "kwargs", "message"),
  [
    ("lottery", {"rounds": 11}, "10 optimizer steps are too few for the 11 rounds"),
    ("lottery", {"rewind_fraction": 1.0}, r"rewind_fraction 1\.0; .*in \[0, 1\)"),
    ("lottery", {"rounds": 0}, "rounds is 0"),
    ("one_shot", {"ranking": "all"}, "ranking is 'all'"),
    ("sr_ste", {"m": 3, "n": 4}, "n is 4 and m is 3"),
  ],
)
def test_settings_that_cannot_be(name, kwargs, message):
  with pytest.raises(ValueError, match=message):
    make_method(method_config(name, kwargs=kwargs), optax.sgd(0.1), total_steps=10, seed=0)


# ---- small dense networks ----------------------------------------------------------------------


def num_weights(name, **kwargs):
  make = lambda key: (
    models.init(name, num_classes=10, image_shape=(8, 8, 3), key=key, **kwargs).params
  )
  shapes = jax.eval_shape(make, jax.random.key(0))
  return sum(leaf.size for path, leaf in shapes.items() if path.endswith("kernel"))


@pytest.mark.parametrize(
  ("name", "kwargs", "argument"),
  [
    ("mlp", {}, "hidden"),
    ("mlp", {"hidden": (64, 16)}, "hidden"),
    ("convnet", {"widths": (8, 16), "convs_per_stage": 1}, "widths"),
    ("resnet18", {"stage_sizes": (1, 1)}, "width"),
    ("wide_resnet22_2", {"depth": 10}, "widen"),
  ],
)
@pytest.mark.parametrize("density", mostly_slow((0.1, 0.5), {0.1}))
def test_a_narrow_network_has_as_many_weights(name, kwargs, argument, density):
  got = small_dense_kwargs(name, density, num_classes=10, image_shape=(8, 8, 3), **kwargs)
  assert got.keys() == {*kwargs, argument} and {**got, **kwargs}.items() >= kwargs.items()
  assert num_weights(name, **got) <= density * num_weights(name, **kwargs)
  assert num_weights(name, **got) == pytest.approx(density * num_weights(name, **kwargs), rel=0.3)
  assert small_dense_kwargs(name, 1.0, num_classes=10, image_shape=(8, 8, 3), **got) == got


def test_too_narrow():
  with pytest.raises(ValueError, match="Even with one neuron a layer, mlp has more"):
    small_dense_kwargs("mlp", 1e-4, num_classes=10, image_shape=(8, 8, 3), hidden=(4,))
  with pytest.raises(ValueError, match="density is 0; it must"):
    small_dense_kwargs("mlp", 0, num_classes=10, image_shape=(8, 8, 3))
