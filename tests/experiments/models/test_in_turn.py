"""Parts of a network that are computed one after the other."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.models.in_turn import first_turn, in_turn

WIDTH, BATCH, PARTS = 64, 512, 8


def part(args, x):
  weights, labels = args
  logits = x @ weights
  return jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, labels[:, None], -1)[:, 0]


def loss_in_turn(weights, x, labels):
  turn, total = first_turn(), 0.0
  for w in weights:
    out, turn = in_turn(part, (w, labels), x, turn)
    total += out.sum()
  return total


def loss_at_once(weights, x, labels):
  checkpointed = jax.checkpoint(part)
  return sum(checkpointed((w, labels), x).sum() for w in weights)


def test_values_and_gradients_are_those_of_the_parts():
  keys = jax.random.split(jax.random.key(0), 4)
  weights = list(jax.random.normal(keys[0], (3, 5, 7)))
  x, labels = jax.random.normal(keys[1], (4, 5)), jax.random.randint(keys[2], (4,), 0, 7)
  of = lambda fn: jax.jit(jax.value_and_grad(fn, argnums=(0, 1)))(weights, x, labels)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    of(loss_in_turn),
    of(loss_at_once),
  )


def test_what_is_not_finite_stays_so():
  weights, labels = [jnp.full((2, 3), jnp.inf), jnp.ones((2, 3))], jnp.zeros(1, int)
  assert not np.isfinite(loss_in_turn(weights, jnp.ones((1, 2)), labels))


def test_one_part_is_in_memory_at_a_time():
  shapes = [jax.ShapeDtypeStruct((WIDTH, 4096), jnp.float32)] * PARTS
  x, labels = jax.ShapeDtypeStruct((BATCH, WIDTH), jnp.float32), jax.ShapeDtypeStruct((BATCH,), int)

  def temporary(fn):
    compiled = jax.jit(jax.grad(fn)).lower(shapes, x, labels).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  logits = 4 * BATCH * 4096
  assert temporary(loss_in_turn) < 4 * logits < PARTS * logits <= temporary(loss_at_once)
