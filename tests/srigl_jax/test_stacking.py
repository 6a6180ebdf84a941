"""States of one shape, stacked: all that tells runs apart is in them, and time is shared."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from tests import helpers
from tests.helpers import SCHEDULE, changed, mostly_slow, srigl

SGD = optax.sgd(0.1, momentum=0.9)
# name -> one transformation for each of two runs; the first one's update serves both
PAIRS = {
  "srigl": [functools.partial(srigl, sparsity=s, seed=int(10 * s)) for s in (0.5, 0.75)],
  "nm_srigl": [functools.partial(sx.nm_srigl, n=n, m=4, **SCHEDULE) for n in (1, 2)],
  "continual_sparse": [
    functools.partial(
      sx.continual_sparse,
      sparsity=s,
      num_tasks=2,
      steps_per_task=4,
      update_every=2,
      update_until=3,
      seed=int(10 * s),
    )
    for s in (0.25, 0.5)
  ],
  "snfs": [functools.partial(sx.snfs, sparsity=s, **SCHEDULE) for s in (0.5, 0.75)],
  "gradual_magnitude_pruning": [
    functools.partial(
      sx.gradual_magnitude_pruning, sparsity=s, begin_step=1, end_step=6, update_every=3
    )
    for s in (0.5, 0.75)
  ],
  "one_shot_pruning": [
    functools.partial(sx.one_shot_pruning, sparsity=s, prune_step=3, ranking="global")
    for s in (0.5, 0.75)
  ],
  "lottery_ticket": [
    functools.partial(sx.lottery_ticket, sparsity=s, steps_per_round=3, rounds=2, rewind_step=1)
    for s in (0.5, 0.75)
  ],
  "sr_ste": [functools.partial(sx.sr_ste, n=n, m=4) for n in (1, 2)],
}


@pytest.mark.parametrize("name", mostly_slow(PAIRS, {"srigl", "lottery_ticket"}))
def test_stacked_runs_are_the_runs(name):
  txs = [make(SGD) for make in PAIRS[name]]
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  starts = [{"hidden": draw(8, 6), "head": draw(8, 4)} for _ in txs]
  states = [tx.init(start) for tx, start in zip(txs, starts, strict=True)]
  params = [sx.apply_masks(p, sx.get_masks(s)) for p, s in zip(starts, states, strict=True)]
  stack = lambda trees: jax.tree.map(lambda *x: jnp.stack(x), *trees)
  state = stack(states)._replace(step=states[0].step)

  def step(update, grads, state, params):
    updates, state = update(grads, state, params)
    return optax.apply_updates(params, updates), state

  axes = jax.tree.map(lambda _: 0, state)._replace(step=None)
  together = jax.vmap(functools.partial(step, txs[0].update), (0, axes, 0), (0, axes))
  stacked = stack(params)
  if name != "sr_ste":  # which changes its masks in every step
    program = str(jax.make_jaxpr(together)(stacked, state, stacked))
    assert " cond[" in program  # the topology update is skipped, not computed and thrown away
  run, initial = jax.jit(together), state.masks
  single = [jax.jit(functools.partial(step, tx.update)) for tx in txs]
  for i in range(7):
    grads = [helpers.gradients(p, 10 * i + j) for j, p in enumerate(params)]
    stacked, state = run(stack(grads), state, stacked)
    for j, one in enumerate(single):
      params[j], states[j] = one(grads[j], states[j], params[j])
      for path, mask in states[j].masks.items():
        np.testing.assert_array_equal(state.masks[path][j], mask)
        np.testing.assert_allclose(stacked[path][j], params[j][path], rtol=1e-5, atol=1e-6)
  assert changed(initial, state.masks)
  assert int(state.step) == 7 and state.step.shape == ()
