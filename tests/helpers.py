"""What several test files share: a tiny network's parameters, steps over it, invariants."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import tree_leaves_with_path

import srigl_jax as sx
from srigl_jax.layers import leaf_dict, leaf_path, make_layer, to_matrix

SGD = optax.sgd(0.1, momentum=0.9, nesterov=True)
SCHEDULE = {"update_every": 3, "update_until": 8}  # topology updates after steps 3 and 6
srigl = functools.partial(sx.srigl, sparsity=0.6, gamma_sal=0.95, **SCHEDULE)
rigl = functools.partial(sx.rigl, sparsity=0.6, **SCHEDULE)


def mostly_slow(cases, keep):
  """Cases of a parametrized test, of which the default suite runs those that are in `keep`."""
  assert set(keep) <= set(cases)
  return [x if x in keep else pytest.param(x, marks=pytest.mark.slow) for x in cases]


def params():
  """A convolution in bfloat16 and a classifier in float32; neurons of very different scale."""
  rng = np.random.default_rng(0)

  def kernel(*shape, dtype):
    scales = np.exp(2 * rng.normal(size=shape[-1]))
    return jnp.asarray(rng.normal(size=shape) * scales, dtype)

  return {
    "conv": {"kernel": kernel(2, 2, 3, 8, dtype=jnp.bfloat16), "bias": jnp.ones(8)},
    "head": {"kernel": kernel(8, 6, dtype=jnp.float32), "bias": jnp.ones(6)},
  }


def gradients(tree, step):
  """Gradients for a tree like `params`, another set for each step."""
  flat, structure = jax.tree.flatten(tree)
  rng = np.random.default_rng(1000 + step)
  scales = lambda x: np.exp(2 * rng.normal(size=jnp.shape(x)[-1:]))
  new = [jnp.asarray(rng.normal(size=jnp.shape(x)) * scales(x), x.dtype) for x in flat]
  return jax.tree.unflatten(structure, new)


class Training:
  """Steps of a transformation over `params`, jitted; knows how often they were traced."""

  def __init__(self, tx, tree=None):
    self.tx = tx
    self.params = params() if tree is None else tree
    self.state = tx.init(self.params)
    self.step = 0
    self.traces = 0
    self.params = sx.apply_masks(self.params, self.masks)
    self._update = jax.jit(self._traced_update)

  def _traced_update(self, grads, state, tree):
    self.traces += 1
    updates, state = self.tx.update(grads, state, tree)
    return optax.apply_updates(tree, updates), state

  def run(self, num_steps):
    """Steps on; yields itself after each."""
    for _ in range(num_steps):
      grads = gradients(self.params, self.step)
      self.params, self.state = jax.block_until_ready(self._update(grads, self.state, self.params))
      self.step += 1
      yield self

  @property
  def masks(self):
    return {path: np.asarray(mask) for path, mask in sx.get_masks(self.state).items()}


def assert_can_be_donated(*trees):
  """No two arrays are one buffer, which could not be given away twice."""
  buffers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves(trees)]
  assert len(set(buffers)) == len(buffers)


def assert_zero_off_mask(tree, masks):
  """Masked weights are exactly 0, and nothing is NaN."""
  leaves = leaf_dict(tree)
  for path, mask in masks.items():
    weights = np.asarray(leaves[path], np.float32)
    assert np.isfinite(weights).all(), path
    assert not weights[~mask].any(), path


def assert_moments_zero_off_mask(tx, state, tree, masks, atol=0.0):
  """Param-shaped leaves of the state of `tx`, found by optax's own means, are 0 off the masks."""
  everywhere = leaf_dict(jax.tree.map(lambda x: np.ones(x.shape, bool), tree)) | masks
  by_path = jax.tree.unflatten(
    jax.tree.structure(tree), [everywhere[leaf_path(k)] for k, _ in tree_leaves_with_path(tree)]
  )
  seen = []

  def check(moment, mask):
    if moment.shape == mask.shape:
      seen.append(moment.shape)
      assert (np.abs(np.asarray(moment, np.float32)[~mask]) <= atol).all()
    return moment

  optax.tree.map_params(tx, check, state, by_path)
  return len(seen)


def assert_constant_fan_in(masks, budgets, ablatable=()):
  """SRigL's invariants: budget kept, neurons full or empty, only ablatable ones empty."""
  for path, mask in masks.items():
    fan_ins = neuron_fan_ins(mask, path)
    num_active = int((fan_ins > 0).sum())
    assert mask.sum() <= budgets[path]
    assert set(fan_ins.tolist()) <= {0, budgets[path] // num_active}, path
    if path not in ablatable:
      assert num_active == len(fan_ins), path


def neuron_fan_ins(mask, path):
  layer = make_layer(path, mask.shape)
  return np.asarray(to_matrix(jnp.asarray(mask), layer)).sum(0)


def num_weights(masks):
  return {path: int(mask.sum()) for path, mask in masks.items()}


def changed(before, after):
  """Whether the masks of any layer differ."""
  return any((before[path] != after[path]).any() for path in before)


def signature(tree):
  """Structure, shapes and dtypes (weak types included): what must not change between steps."""
  return jax.tree.structure(tree), [jax.typeof(x) for x in jax.tree.leaves(tree)]


def table_cells(text: str) -> list[list[str]]:
  """The cells of the Markdown tables in a text by row, headers included and rules left out."""
  rows = [line[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
  return [[c.strip() for c in row] for row in rows if set("".join(row)) - set("-: ")]
