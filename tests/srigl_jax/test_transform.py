import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from srigl_jax.exact_counts import ExactFraction, fraction_digits
from srigl_jax.layers import leaf_dict
from srigl_jax.schedule import cosine_drop_fraction
from tests import helpers
from tests.helpers import SCHEDULE, SGD, Training, changed, mostly_slow, num_weights, rigl, srigl

srigl_update = jax.jit(sx.srigl_update, static_argnames=("budget", "gamma_sal"))


class Method(NamedTuple):
  """A method and what its masks hold to: `check(masks, budgets, initial sizes)`."""

  make: Callable[..., Any]
  sparsity_kwargs: dict[str, Any]
  check: Callable[..., None]
  updates: list[int]
  is_dense_at_first: bool = False


def constant_fan_in(masks, budgets):
  helpers.assert_constant_fan_in(masks, budgets, {"conv/kernel"})


def each_budget(masks, budgets):
  assert num_weights(masks) == budgets


def all_budgets(masks, budgets):
  assert sum(num_weights(masks).values()) == sum(budgets.values())


def no_less(masks, budgets):
  assert sum(num_weights(masks).values()) >= sum(budgets.values())


UNSTRUCTURED = {"sparsity": 0.6, "structure": "unstructured"}
UNIFORM = {**UNSTRUCTURED, "distribution": "uniform"}
METHODS = {
  "srigl": Method(srigl, {"sparsity": 0.6}, constant_fan_in, [3, 6]),
  "srigl_groups": Method(
    functools.partial(srigl, structure=sx.ConstantFanIn(group_size=4), drop_fraction=0.9),
    {"sparsity": 0.6},
    constant_fan_in,
    [3, 6],
  ),
  "nm_srigl": Method(
    functools.partial(sx.nm_srigl, n=2, m=4, drop_fraction=0.9, **SCHEDULE),
    {"fan_in": 2, "structure": sx.ConstantFanIn(block_size=4)},
    constant_fan_in,
    [3, 6],
  ),
  "rigl": Method(rigl, UNSTRUCTURED, each_budget, [3, 6]),
  "set_": Method(
    functools.partial(sx.set_, sparsity=0.6, **SCHEDULE), UNSTRUCTURED, each_budget, [3, 6]
  ),
  "snfs": Method(
    functools.partial(sx.snfs, sparsity=0.6, **SCHEDULE), UNIFORM, all_budgets, [3, 6]
  ),
  "continual_sparse": Method(
    functools.partial(sx.continual_sparse, sparsity=0.6, num_tasks=1, steps_per_task=9, **SCHEDULE),
    {"sparsity": 0.6},
    constant_fan_in,
    [3, 6],
  ),
  "static_sparse": Method(
    functools.partial(sx.static_sparse, sparsity=0.6), UNSTRUCTURED, each_budget, []
  ),
  "fixed_masks": Method(
    lambda inner: sx.fixed_masks(inner, rigl(inner).init(helpers.params()).masks),
    UNSTRUCTURED,
    each_budget,
    [],
  ),
  "gradual_magnitude_pruning": Method(
    functools.partial(
      sx.gradual_magnitude_pruning, sparsity=0.6, begin_step=1, end_step=7, update_every=2
    ),
    UNSTRUCTURED,
    no_less,
    [2, 4, 6],
    is_dense_at_first=True,
  ),
  "one_shot_pruning": Method(
    functools.partial(sx.one_shot_pruning, sparsity=0.6, prune_step=4),
    UNSTRUCTURED,
    no_less,
    [4],
    is_dense_at_first=True,
  ),
  "lottery_ticket": Method(
    functools.partial(sx.lottery_ticket, sparsity=0.6, steps_per_round=4, rounds=2, rewind_step=2),
    UNIFORM,
    no_less,
    [4, 6],
    is_dense_at_first=True,
  ),
}
OPTIMIZERS = {
  "sgd": optax.sgd(0.1),
  "nesterov": SGD,
  "adam": optax.adam(0.01),
  "adamw": optax.adamw(0.01, weight_decay=0.1),
  "rmsprop": optax.rmsprop(0.01, momentum=0.9),
  "lion": optax.lion(0.01),
  "adafactor": optax.adafactor(0.01, min_dim_size_to_factor=4),
}
NUM_MOMENTS = {
  "sgd": 0, "nesterov": 1, "adam": 2, "adamw": 2, "rmsprop": 2, "lion": 1, "adafactor": 1
}  # fmt: skip


# What differs between the unstructured methods is no business of the optimizer's.
TABLE = [(method, optimizer) for method in ("srigl", "rigl") for optimizer in OPTIMIZERS]
TABLE += [(method, "adamw") for method in METHODS if method not in ("srigl", "rigl")]
RARE = ("rigl", "continual_sparse")  # the latter has its own tests
TABLE = mostly_slow(TABLE, {c for c in TABLE if c[0] not in RARE or c == ("rigl", "adamw")})


@pytest.mark.parametrize("method_and_optimizer", TABLE, ids="-".join)
def test_invariants_hold_after_every_step(method_and_optimizer):
  method, optimizer = method_and_optimizer
  inner, case = OPTIMIZERS[optimizer], METHODS[method]
  training = Training(case.make(inner))
  helpers.assert_can_be_donated(training.params, training.state)
  budgets = sx.allocate(training.params, **case.sparsity_kwargs).budgets
  assert set(training.masks) == set(budgets)
  initial, explored = training.masks, training.masks
  before = helpers.signature(training.state)
  assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(training.state))
  sizes = {path: mask.size for path, mask in initial.items()}
  used = {
    path: budget // n * n if case.check is constant_fan_in else budget
    for path, budget in budgets.items()
    for n in [initial[path].shape[-1]]
  }
  assert num_weights(initial) == (sizes if case.is_dense_at_first else used)

  updates = []
  for now in training.run(7):
    assert helpers.signature(now.state) == before
    helpers.assert_zero_off_mask(now.params, now.masks)
    checked = helpers.assert_moments_zero_off_mask(
      inner,
      now.state.inner_state,
      now.params,
      now.masks,
      atol=1e-30 if optimizer == "adafactor" else 0,  # what it adds to every squared gradient
    )
    # Adafactor factors the second moments of the head; all others are whole.
    assert checked >= NUM_MOMENTS[optimizer] * (len(budgets) - 1)
    case.check(now.masks, budgets)
    if changed(initial, now.masks):
      updates.append(now.step)
      initial = now.masks
    explored = {path: explored[path] | mask for path, mask in now.masks.items()}
    for path, mask in now.state.explored.items():
      np.testing.assert_array_equal(mask, explored[path])
    assert int(now.state.step) == now.step
  assert training.traces == 1
  assert updates == case.updates
  if case.is_dense_at_first:
    all_budgets(training.masks, budgets)


def test_srigl_ablates_here():
  """What the table above proves of ablated neurons would be little if none was."""
  (*_, end) = Training(srigl(SGD)).run(6)
  empty = {path: (helpers.neuron_fan_ins(m, path) == 0).any() for path, m in end.masks.items()}
  assert empty == {"conv/kernel": True, "head/kernel": False}


# ---------------------------------------------------------------- what one step does


def test_ordinary_step_is_the_optimizers_on_masked_gradients():
  """Bit for bit; not jitted, as XLA fuses the two programs differently."""
  params = {"sparse": helpers.params()["conv"]}
  inner = optax.adamw(0.01)
  tx = srigl(inner)
  state, inner_state = tx.init(params), inner.init(params)
  masks = sx.get_masks(state)
  params = sx.apply_masks(params, masks)
  for step in range(2):
    grads = helpers.gradients(params, step)
    updates, state = tx.update(grads, state, params)
    expected, inner_state = inner.update(sx.apply_masks(grads, masks), inner_state, params)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    jax.tree.map(np.testing.assert_array_equal, state.inner_state, inner_state)
    params = optax.apply_updates(params, updates)
  # A third step updates the topology and thereby does something else.
  grads = helpers.gradients(params, 2)
  updates, _ = tx.update(grads, state, params)
  expected, _ = inner.update(sx.apply_masks(grads, masks), inner_state, params)
  assert (updates["sparse"]["kernel"] != expected["sparse"]["kernel"]).any()
  np.testing.assert_array_equal(updates["sparse"]["bias"], expected["sparse"]["bias"])


@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_topology_update_follows_the_optimizers_step(accumulate):
  """Magnitudes are those after the step, gradients those before it, or the mean of the last."""
  tx = srigl(SGD, gamma_sal=0.5, grad_accumulation_steps=accumulate, drop_fraction=0.5)
  budgets = sx.allocate(helpers.params(), 0.6).budgets
  training = Training(tx)
  grads = [leaf_dict(helpers.gradients(training.params, step)) for step in range(7)]
  for update_step in (3, 6):
    before = training.masks
    for now in training.run(2):  # 2, or 2 of the next 3
      assert not changed(before, now.masks)
    masks, params, state = training.masks, training.params, training.state.inner_state
    for _ in training.run(update_step - training.step):
      pass
    updates, _ = jax.jit(SGD.update)(
      sx.apply_masks(helpers.gradients(params, update_step - 1), masks), state, params
    )
    moved = leaf_dict(optax.apply_updates(params, updates))
    window = grads[update_step - accumulate : update_step]
    for path, mask in masks.items():
      score = sum(g[path].astype(jnp.float32) / accumulate for g in window)
      expected = srigl_update(
        moved[path],
        score if accumulate > 1 else window[0][path],
        mask,
        budget=budgets[path],
        drop_fraction=ExactFraction(fraction_digits(cosine_drop_fraction(update_step, 0.5, 8))),
        gamma_sal=0.5 if path in {"conv/kernel"} else 0,
      )
      np.testing.assert_array_equal(training.masks[path], expected)
      # Weights that stay, those pruned and regrown included, have moved; grown ones are 0.
      np.testing.assert_allclose(
        leaf_dict(training.params)[path], jnp.where(expected & mask, moved[path], 0), rtol=1e-6
      )
      assert (np.asarray(expected) & ~mask).any()


def test_inner_optimizer_sees_masked_gradients_only():
  """As clipping by the global norm has it; elementwise optimizers would not tell."""
  norm = optax.stateless(
    lambda updates, _: jax.tree.map(lambda u: jnp.full_like(u, optax.tree.norm(updates)), updates)
  )
  params = {"w": jnp.ones((8, 8)), "bias": jnp.zeros(3)}
  tx = rigl(norm)
  state = tx.init(params)
  updates, _ = tx.update({"w": jnp.ones((8, 8)), "bias": jnp.zeros(3)}, state, params)
  np.testing.assert_allclose(updates["bias"], np.sqrt(state.masks["w"].sum()), rtol=1e-6)


def test_gradients_of_the_last_window_only_are_averaged():
  training = Training(srigl(SGD, update_every=4, update_until=20, grad_accumulation_steps=2))
  empty = lambda: not any(np.asarray(x).any() for x in training.state.grad_mean.values())
  # Steps 3 and 4 count toward the update after step 4, 7 and 8 toward the next.
  assert empty()
  first = leaf_dict(helpers.gradients(training.params, 2))  # that of step 3
  for _ in training.run(3):
    pass
  for path, total in training.state.grad_mean.items():
    np.testing.assert_array_equal(total, first[path].astype(jnp.float32) / 2)

  training = Training(training.tx)
  assert [empty() for _ in training.run(8)] == [True, True, False, True, True, True, False, True]
  assert not Training(srigl(SGD)).state.grad_mean


def test_a_window_as_long_as_the_interval_is_cleared():
  """Row 11: the authors' code never clears it."""
  training = Training(srigl(SGD, update_every=2, update_until=20, grad_accumulation_steps=2))
  for now in training.run(4):
    summed = any(np.asarray(x).any() for x in now.state.grad_mean.values())
    assert summed == (now.step % 2 == 1)


@pytest.mark.parametrize(
  ("initial", "shape", "num_active", "num_pruned"),
  [
    (0.58, (10, 20), 100, 28),  # 0.29 * 100 is 28.999999999999996 in double, 29 in float32
    (0.7, (10, 4), 20, 7),  # 0.35 * 20 is 7 in double, 6.9999998 with the float32 0.35
  ],
)
def test_drop_fraction_is_counted_in_double(initial, shape, num_active, num_pruned):
  params = {"w": jnp.ones(shape)}
  tx = sx.rigl(
    optax.sgd(0.0),
    distribution={"w": 0.5},
    update_every=1,
    update_until=2,  # half-way, the cosine is half the initial value
    drop_fraction=initial,
  )
  state = tx.init(params)
  mask = state.masks["w"]
  assert mask.sum() == num_active
  # Gradients off the mask only: what is pruned does not grow again.
  _, state = jax.jit(tx.update)({"w": jnp.where(mask, 0.0, 1.0)}, state, params)
  assert (mask & ~state.masks["w"]).sum() == num_pruned


def test_drop_fraction_may_be_a_function_of_the_step():
  params = {"w": jnp.ones((10, 4))}
  tx = sx.rigl(
    optax.sgd(0.0),
    distribution={"w": 0.5},
    update_every=2,
    update_until=9,
    drop_fraction=lambda step: step / 8,
  )
  state, update, pruned = tx.init(params), jax.jit(tx.update), []
  for _ in range(4):
    before = state.masks["w"]
    _, state = update({"w": jnp.where(before, 0.0, 1.0)}, state, params)
    pruned.append(int((before & ~state.masks["w"]).sum()))
  assert pruned == [0, 5, 0, 10]  # of 20: a quarter once 2 steps are done, half after 4


@pytest.mark.parametrize(("every", "until"), [(1, 0), (5, 5)])
def test_a_schedule_without_any_update(every, until):
  training = Training(srigl(SGD, update_every=every, update_until=until))
  masks = training.masks
  assert not any(changed(masks, now.masks) for now in training.run(6))


@pytest.mark.parametrize(
  ("every", "until", "expected"),
  [(2, 6, [2, 4]), (2, 7, [2, 4, 6]), (1, 3, [1, 2]), (9, 5, []), (5, 5, []), (1, 0, [])],
)
def test_topology_changes_at_multiples_before_the_end(every, until, expected):
  training = Training(
    sx.set_(
      optax.sgd(0.1),
      sparsity=0.5,
      update_every=every,
      update_until=until,
      drop_fraction=lambda step: 0.5,
    ),
    {"w": jnp.ones((8, 8))},
  )
  steps, masks = [], training.masks
  for now in training.run(9):
    if changed(masks, now.masks):
      steps.append(now.step)
    masks = now.masks
  assert steps == expected


FLOATS = [jnp.bfloat16, jnp.float16, jnp.float32]


@pytest.mark.parametrize("update_dtype", FLOATS)
def test_pruned_weights_become_exactly_zero(update_dtype):
  """Whatever the float formats of weights and updates: p + u is 0, not almost 0."""
  rng = np.random.default_rng(0)
  scales = 10.0 ** rng.integers(-4, 4, 16)
  params = [jnp.asarray(rng.normal(size=(16, 16)) * scales, dtype) for dtype in FLOATS]
  cast = optax.stateless(lambda updates, _: jax.tree.map(lambda u: u.astype(update_dtype), updates))
  tx = sx.rigl(
    optax.chain(optax.sgd(1e-3), cast),
    distribution=dict.fromkeys("012", 0.5),
    update_every=1,
    update_until=5,
  )

  @jax.jit
  def step(params, grads):
    state = tx.init(params)
    params = sx.apply_masks(params, state.masks)
    updates, new_state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state.masks, new_state.masks

  params, before, after = step(params, jax.tree.map(jnp.ones_like, params))
  for path, mask in after.items():
    pruned = np.asarray(before[path] & ~mask)
    assert pruned.sum() > 10
    assert (np.asarray(params[int(path)], np.float32)[pruned] == 0).all()


@pytest.mark.parametrize(
  "inner",
  [
    optax.chain(optax.centralize(), optax.sgd(0.1, momentum=0.9)),
    optax.noisy_sgd(0.1, key=0),
    optax.contrib.muon(0.1),
  ],
  ids=["centralize", "noise", "muon"],
)
def test_grown_weights_start_at_zero_whatever_the_optimizer(inner):
  """Some optimizers move weights that have neither a gradient nor moments."""
  training = Training(rigl(inner), {"a": jnp.ones((8, 8), jnp.bfloat16), "b": jnp.ones((8, 8))})
  masks = training.masks
  for now in training.run(6):
    helpers.assert_zero_off_mask(now.params, now.masks)
    grown = {path: ~masks[path] & mask for path, mask in now.masks.items()}
    assert any(mask.any() for mask in grown.values()) == (now.step % 3 == 0)
    for path, mask in grown.items():
      assert not np.asarray(leaf_dict(now.params)[path], np.float32)[mask].any()
    masks = now.masks


def test_params_that_were_not_masked_at_first_are_after_a_step():
  params = helpers.params()
  tx = srigl(SGD)
  state = tx.init(params)
  updates, state = tx.update(helpers.gradients(params, 0), state, params)
  helpers.assert_zero_off_mask(
    optax.apply_updates(params, updates), jax.tree.map(np.asarray, sx.get_masks(state))
  )


# ---------------------------------------------------------------- finding the state


def test_get_masks_without_a_sparse_state():
  with pytest.raises(ValueError, match=r"Found 0 sparse .*wrap the optimizer with srigl"):
    sx.get_masks(SGD.init(helpers.params()))


def test_get_masks_with_several():
  labels = {"conv": "a", "head": "b"}
  tx = optax.multi_transform({"a": srigl(SGD), "b": srigl(SGD)}, labels)
  with pytest.raises(ValueError, match=r"Found 2 sparse .*pass the part"):
    sx.get_masks(tx.init(helpers.params()))


def test_get_state_finds_the_whole_state():
  params = helpers.params()
  state = srigl(SGD).init(params)
  found = sx.get_state((optax.EmptyState(), {"deep": [state]}))
  assert helpers.signature(found) == helpers.signature(state)
  jax.tree.map(np.testing.assert_array_equal, found, state)


@pytest.mark.parametrize(
  ("update", "message"),
  [
    (lambda layer: layer.mask, r"asked for \.mask, .* wrap a function of one layer in per_layer"),
    (lambda layers: None, r"returned a NoneType; it must return a dict \{path: mask\}"),
    (lambda layers: {}, "it must return one for each"),
    (sx.per_layer(lambda layer: layer.mask.astype(int)), r"returned int32 of shape .*a bool array"),
    (sx.per_layer(lambda layer: layer.mask[1:]), r"returned bool of shape .*a bool array of shape"),
    (sx.per_layer(lambda layer: None), "returned None for .*a bool array"),
  ],
)
def test_a_wrong_update_is_told_what_to_return(update, message):
  params = {"w": jnp.ones((8, 8))}
  tx = sx.sparse_training(optax.sgd(0.1), sx.MaskUpdater(update, 1, 9), sparsity=0.5)
  with pytest.raises(ValueError, match=message):
    tx.update(params, tx.init(params), params)


def test_wrong_arguments_of_sparse_training():
  with pytest.raises(TypeError, match=r"has no argument sparsty; .* sparsity"):
    sx.sparse_training(optax.sgd(0.1), None, sparsty=0.9)
  with pytest.raises(ValueError, match=r"inner is .*; it must be an optimizer, such as"):
    sx.sparse_training(optax.sgd, None, sparsity=0.9)
