"""Pruning of dense networks and lottery tickets, against numpy in doubles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from srigl_jax.layers import leaf_dict
from tests import helpers
from tests.helpers import SGD, Training, num_weights
from tests.srigl_jax import reference

FROZEN = optax.sgd(0.0)


def magnitudes_that_stay(params, masks, counts):
  """Whether each layer's mask is its `counts` largest magnitudes."""
  for path, mask in masks.items():
    weights = np.asarray(params[path], np.float64)
    (want,) = reference.largest_of_all([weights], [np.ones(mask.shape, bool)], counts[path])
    np.testing.assert_array_equal(mask, want)


@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_gradual_pruning_follows_the_cubic(distribution):
  tx = sx.gradual_magnitude_pruning(
    FROZEN, sparsity=0.8, distribution=distribution, begin_step=3, end_step=11, update_every=2
  )
  params = {"conv": jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 2, 5)), jnp.float32)}
  params["head"] = jnp.asarray(np.random.default_rng(1).normal(size=(30, 7)), jnp.float32)
  budgets = sx.allocate(params, 0.8, distribution, structure="unstructured").budgets
  training = Training(tx, params)
  counts = {path: params[path].size for path in budgets}
  for now in training.run(13):
    if now.step % 2 == 0:  # from 3 to 10, the last multiple of 2 up to 11
      x = min(max((now.step - 3) / (10 - 3), 0), 1)
      counts = {
        path: params[path].size - int((params[path].size - n) * (1 - (1 - x) ** 3))
        for path, n in budgets.items()
      }
    assert num_weights(now.masks) == counts
    magnitudes_that_stay(params, now.masks, counts)
  assert counts == budgets


def test_pruned_weights_do_not_come_back():
  training = Training(
    sx.gradual_magnitude_pruning(SGD, sparsity=0.7, begin_step=0, end_step=6, update_every=1)
  )
  before = training.masks
  for now in training.run(7):
    assert all((mask <= before[path]).all() for path, mask in now.masks.items())
    before = now.masks


def test_one_shot_by_layer():
  params = helpers.params()
  training = Training(sx.one_shot_pruning(FROZEN, sparsity=0.6, prune_step=2), params)
  budgets = sx.allocate(params, 0.6, structure="unstructured").budgets
  sizes = [sum(num_weights(now.masks).values()) for now in training.run(3)]
  assert sizes == [96 + 48, sum(budgets.values()), sum(budgets.values())]
  magnitudes_that_stay(leaf_dict(params), training.masks, budgets)


def test_one_shot_globally():
  params = helpers.params()
  params["head"]["kernel"] *= 10
  training = Training(
    sx.one_shot_pruning(FROZEN, sparsity=0.6, prune_step=1, ranking="global"), params
  )
  (now,) = training.run(1)
  budgets = sx.allocate(params, 0.6, "uniform", structure="unstructured").budgets
  leaves = leaf_dict(params)
  want = reference.largest_of_all(
    [np.asarray(leaves[path], np.float64) for path in budgets],
    [np.ones(leaves[path].shape, bool) for path in budgets],
    sum(budgets.values()),
  )
  for path, mask in zip(budgets, want, strict=True):
    np.testing.assert_array_equal(now.masks[path], mask)
  assert num_weights(now.masks) != budgets


# ---------------------------------------------------------------- lottery tickets


def test_rounds():
  rounds = sx.Rounds(length=5, num_prunings=3, rewind_step=2)
  assert list(rounds.pruning_steps) == [5, 8, 11]
  assert rounds.total_steps == 14
  assert [rounds.inner_step(t) for t in range(14)] == [0, 1, 2, 3, 4] + [2, 3, 4] * 3
  assert [rounds.inner_step(t) for t in (14, 15)] == [5, 6]  # what is left over is trained on
  assert list(sx.Rounds(4, 1).pruning_steps) == [4]


RATE = lambda count: 0.1 / (1 + count)


@pytest.mark.parametrize("rewind", [0, 2])
def test_lottery_ticket_agrees_with_the_reference(rewind):
  """Momentum, learning rate and every weight go back to the snapshot."""
  rng = np.random.default_rng(0)
  params = {"a": rng.normal(size=(6, 5)), "b": rng.normal(size=(5, 4)), "bias": rng.normal(size=4)}
  grads = [{p: rng.normal(size=x.shape) for p, x in params.items()} for _ in range(20)]
  rounds = sx.Rounds(length=4, num_prunings=2, rewind_step=rewind)
  tx = sx.lottery_ticket(
    optax.sgd(RATE, momentum=0.9),
    sparsity=0.75,
    steps_per_round=4,
    rounds=2,
    rewind_step=rewind,
  )
  single = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
  got, state, update = single(params), tx.init(single(params)), jax.jit(tx.update)

  p = {k: x.copy() for k, x in params.items()}
  v = {k: np.zeros_like(x) for k, x in params.items()}
  masks = {k: np.ones(x.shape, bool) for k, x in params.items()}
  count, snapshot = 0, (p, v)
  for step in range(rounds.total_steps):
    assert count == rounds.inner_step(step)
    updates, state = update(single(grads[step]), state, got)
    got = optax.apply_updates(got, updates)
    v = {k: 0.9 * v[k] + grads[step][k] * masks[k] for k in p}
    p = {k: p[k] - RATE(count) * v[k] for k in p}
    count += 1
    if step + 1 == rewind:
      snapshot = (p, v)
    if step + 1 in rounds.pruning_steps:
      left = {0: round(50 * (13 / 50) ** 0.5), 1: 13}[rounds.pruning_steps.index(step + 1)]
      new = reference.largest_of_all([p["a"], p["b"]], [masks["a"], masks["b"]], left)
      masks |= dict(zip("ab", new, strict=True))
      p, v = ({k: x[k] * masks[k] for k in x} for x in snapshot)
      count = rewind
    for k in p:
      np.testing.assert_allclose(got[k], p[k], rtol=2e-5, atol=1e-6)
      np.testing.assert_array_equal(sx.get_masks(state).get(k, masks[k]), masks[k])
      assert not np.asarray(got[k])[~masks[k]].any()
  # 20 weights of b and 30 of a at 75 %: 5 and, trunc(22.5) of them missing, 8.
  assert masks["a"].sum() + masks["b"].sum() == 13


def test_a_share_for_each_round():
  tx = sx.lottery_ticket(FROZEN, share_per_round=0.5, steps_per_round=1, rounds=3)
  params = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)), jnp.float32)}
  sizes = [int(now.masks["w"].sum()) for now in Training(tx, params).run(4)]
  assert sizes == [32, 16, 8, 8]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rewinding_is_exact_up_to_rounding(dtype):
  """A weight that has grown a thousandfold comes back to within its unit in the last place."""
  start = jnp.asarray([[1e-3, 2e-3], [-3e-3, 4e-3]], dtype)
  tx = sx.lottery_ticket(optax.sgd(1.0), sparsity=0.5, steps_per_round=1, rounds=1)
  params, state = {"w": start}, tx.init({"w": start})
  updates, state = tx.update({"w": jnp.asarray([[-5, 1], [2, 7]], dtype)}, state, params)
  new = np.asarray(optax.apply_updates(params, updates)["w"], np.float64)
  mask = np.asarray(state.masks["w"])
  assert mask.tolist() == [[True, False], [False, True]]
  assert (new[~mask] == 0).all()
  np.testing.assert_allclose(
    new[mask], np.asarray(start, np.float64)[mask], atol=7 * jnp.finfo(dtype).eps
  )
  np.testing.assert_array_equal(state.extra.params["w"], start)


GMP = functools.partial(sx.gradual_magnitude_pruning, SGD, sparsity=0.5)
LOTTERY = functools.partial(sx.lottery_ticket, SGD)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: GMP(begin_step=5, end_step=5), "a multiple of update_every"),
    (lambda: GMP(begin_step=5, end_step=99), "begin_step is 5 and end_step 99"),
    (lambda: GMP(begin_step=-1, end_step=500), "begin_step is -1"),
    (lambda: GMP(begin_step=1, end_step=500, update_every=0), "update_every is 0"),
    (lambda: GMP(begin_step=1, end_step=5.5), r"end_step is 5\.5"),
    (lambda: sx.one_shot_pruning(SGD, sparsity=0.5, prune_step=0), "prune_step is 0"),
    (
      lambda: sx.one_shot_pruning(SGD, sparsity=0.5, prune_step=3, ranking="neuron"),
      "ranking is 'neuron'; .*'layer', 'global'",
    ),
    (lambda: LOTTERY(steps_per_round=5, rounds=2), "give one of them"),
    (lambda: LOTTERY(steps_per_round=5, rounds=2, share_per_round=1.0), r"in \(0, 1\)"),
    (lambda: LOTTERY(steps_per_round=5, rounds=0, sparsity=0.5), "rounds is 0"),
    (
      lambda: LOTTERY(steps_per_round=5, rounds=1, rewind_step=5, sparsity=0.5),
      "rewind_step is 5, but a round has only 5 steps",
    ),
    (
      lambda: sx.sparse_training(SGD, None, initial="full", sparsity=0.5),
      "initial is 'full'; it must be 'random', 'dense'",
    ),
  ],
)
def test_rejects(make, message):
  with pytest.raises(ValueError, match=message):
    make()
