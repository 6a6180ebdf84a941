"""Constant fan-in in every block of inputs (N:M), and shared by groups of neurons."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import srigl_jax as sx
from srigl_jax.layers import make_layer
from tests import helpers
from tests.helpers import SCHEDULE, SGD, Training, changed
from tests.srigl_jax import reference
from tests.srigl_jax.methods.test_topology import drop_fractions, exact, jit, layer_states, matrix

STATIC = ("budget", "gamma_sal", "structure")
FOURS = sx.ConstantFanIn(block_size=4)
srigl_update = jit(sx.srigl_update, static_argnames=STATIC)

CASES = [  # kernel shape, budget, gamma_sal, block_size, group_size, neurons in a group
  ((8, 5), 20, 0.0, 4, 1, 1),
  ((8, 5), 14, 0.7, 4, 1, 1),
  ((8, 5), 32, 0.9, 2, 1, 1),
  ((3, 1, 2, 4), 13, 0.6, 2, 1, 1),
  ((6, 6), 16, 0.0, None, 2, 2),
  ((6, 6), 17, 0.8, None, 4, 2),  # 4 does not divide 6 neurons: groups of 2
  ((4, 8), 24, 0.5, 2, 4, 4),
]


@pytest.mark.parametrize(("shape", "budget", "gamma_sal", "block", "group_size", "group"), CASES)
def test_agrees_with_the_reference(shape, budget, gamma_sal, block, group_size, group):
  layer = make_layer("kernel", shape)

  @hypothesis.given(layer_states(shape), drop_fractions)
  def check(state, drop_fraction):
    kwargs = {"budget": budget, "gamma_sal": gamma_sal}
    structure = sx.ConstantFanIn(block, group_size)
    got = srigl_update(*state, drop_fraction=exact(drop_fraction), structure=structure, **kwargs)
    want = reference.srigl(
      *(matrix(x, layer) for x in state),
      drop_fraction=drop_fraction,
      salient_base="constant_fan_in",
      block_size=block,
      group=group,
      **kwargs,
    )
    got = matrix(got, layer)
    np.testing.assert_array_equal(got, want.mask)
    # The structure, said without the reference's words.
    per_block = got.reshape(-1, block or layer.dense_fan_in, layer.num_neurons).sum(1)
    active = per_block[:, got.any(0)]
    assert len(np.unique(active)) == 1 and active[0, 0] > 0
    assert got.sum() <= budget
    groups = got.reshape(layer.dense_fan_in, -1, group)
    assert (groups == groups[..., :1]).all()

  check()


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 2, 6)])
@pytest.mark.parametrize("gamma_sal", [0.0, 0.6])
def test_one_block_and_groups_of_one_are_plain_srigl(shape, gamma_sal):
  layer = make_layer("kernel", shape)
  one_block = sx.ConstantFanIn(layer.dense_fan_in, group_size=1)
  kwargs = {"budget": layer.size // 2 - 1, "gamma_sal": gamma_sal}

  @hypothesis.given(layer_states(shape), drop_fractions)
  def check(state, drop_fraction):
    kwargs["drop_fraction"] = exact(drop_fraction)
    plain = srigl_update(*state, **kwargs)
    general = srigl_update(*state, structure=one_block, **kwargs)
    np.testing.assert_array_equal(plain, general)

  check()
  key = jax.random.key(0)
  params = {"kernel": jnp.zeros(shape)}
  masks = sx.init_masks(key, sx.allocate(params, 0.5))
  general = sx.allocate(params, 0.5, structure=one_block)
  assert not changed(masks, sx.init_masks(key, general))


def test_two_of_four_by_hand():
  """Two blocks of four inputs; one weight to prune, and it is block 2 that loses and grows."""
  weights = jnp.asarray([9.0, 8, 0, 0, 7, 0.1, 0, 0])[:, None]
  grads = jnp.asarray([1.0, 1, 99, 1, 0, 2, 3, 1])[:, None]
  got = sx.srigl_update(
    weights, grads, weights != 0, budget=4, drop_fraction=0.25, gamma_sal=0, structure=FOURS
  )
  assert got[:, 0].tolist() == [True, True, False, False, True, False, True, False]


def test_blocks_of_a_convolution_run_over_channels_first():
  """With four channels and 2:4, every window position keeps two of its channels."""
  params = {"conv": {"kernel": jnp.ones((3, 3, 4, 8))}}
  for masks in (
    sx.nm_srigl(SGD, 2, 4, update_until=9).init(params).masks,
    sx.static_sparse(SGD, fan_in=1, structure=FOURS).init(params).masks,
  ):
    counts = np.unique(np.asarray(masks["conv/kernel"]).sum(2))
    assert len(counts) == 1 and counts[0] in (1, 2)


def test_ablation_hands_connections_to_the_blocks_that_stay():
  training = Training(sx.nm_srigl(SGD, 1, 4, gamma_sal=0.9, drop_fraction=0.6, **SCHEDULE))
  (*_, end) = training.run(6)
  per_block = end.masks["conv/kernel"].reshape(3, 4, 8).sum(1)
  stays = per_block.any(0)
  assert 0 < stays.sum() < 8
  assert (per_block[:, stays] == 24 // (3 * stays.sum())).all()
  assert (end.masks["head/kernel"].reshape(2, 4, 6).sum(1) == 1).all()


def test_groups_share_their_inputs_and_are_ablated_together():
  training = Training(
    helpers.srigl(SGD, structure=sx.ConstantFanIn(group_size=4), drop_fraction=0.6)
  )
  for now in training.run(6):
    for path, group in (("conv/kernel", 4), ("head/kernel", 2)):  # 4 does not divide 6
      mask = now.masks[path]
      groups = mask.reshape(-1, mask.shape[-1] // group, group)
      assert (groups == groups[..., :1]).all()
      assert (groups.any((0, 2)).any()) and (groups[:, 0] != groups[:, 1]).any()


def test_allocation_with_blocks():
  params = {"a": jnp.zeros((8, 6)), "b": jnp.zeros((3, 3, 3, 4))}
  rule = sx.all_but(inputs_multiple_of=4)
  allocation = sx.allocate(params, fan_in=2, structure=FOURS, sparse=rule)
  assert (allocation.budgets, allocation.densities) == ({"a": 24}, {"a": 0.5})
  assert sx.allocate(params, fan_in=4, structure=FOURS).budgets == {}
  assert sx.allocate({"a": params["a"]}, 0.7, structure=FOURS).budgets == {"a": 15}
  assert sx.all_but("head", inputs_multiple_of=4) != sx.all_but("head")


@hypothesis.settings(max_examples=30)  # each compiles programs of its own
@hypothesis.given(st.integers(1, 4), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 3, 16]))
def test_initial_masks_have_the_structure(n, block, group_size):
  n = min(n, block - 1)
  hypothesis.assume(n > 0)
  params = {"a": jnp.zeros((8, 6))}
  allocation = sx.allocate(params, fan_in=n, structure=sx.ConstantFanIn(block, group_size))
  mask = np.asarray(sx.init_masks(jax.random.key(1), allocation)["a"])
  assert (mask.reshape(-1, block, 6).sum(1) == n).all()
  groups = mask.reshape(8, -1, np.gcd(6, group_size))
  assert (groups == groups[..., :1]).all()


def test_structures_from_text():
  read = lambda text: sx.allocate({"a": jnp.zeros((8, 6))}, 0.5, structure=text).structure
  assert read("unstructured") == sx.Unstructured()
  assert read("constant_fan_in") == sx.ConstantFanIn()
  assert read("constant_fan_in:block_size=4,group_size=2") == sx.ConstantFanIn(4, 2)


PARAMS = {"conv1": {"kernel": jnp.ones((3, 3, 3, 8))}, "head": {"kernel": jnp.ones((8, 6))}}
nm = functools.partial(sx.nm_srigl, update_until=9)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: nm(SGD, 0, 4), "n is 0 and m is 4: .*1 <= n <= m"),
    (lambda: nm(SGD, 5, 4), "n is 5 and m is 4"),
    (lambda: nm(SGD, 2.0, 4), "n is 2.0"),
    (
      lambda: nm(SGD).init(PARAMS),
      r"'conv1/kernel' .* has 27 inputs .*sparse=all_but\(inputs_multiple_of=4\)",
    ),
    (
      lambda: sx.srigl(SGD, sparsity=0.9, structure=FOURS, update_until=9).init(
        {"head": PARAMS["head"]}
      ),
      "fewer than one for each of its 6 neurons' blocks of 4 inputs",
    ),
    (lambda: sx.allocate(PARAMS, fan_in=5, structure=FOURS), "from 1 to 4, .* in a block"),
    (lambda: sx.ConstantFanIn(0), "block_size is 0"),
    (lambda: sx.ConstantFanIn(group_size=2.5), r"group_size is 2\.5"),
    (lambda: sx.ConstantFanIn(group_size=None), "group_size is None"),
    (lambda: sx.allocate(PARAMS, 0.5, structure="unstructured:group_size=2"), "structure is 'unst"),
    (lambda: sx.allocate(PARAMS, 0.5, structure="constant_fan_in:groups=2"), "structure is 'const"),
    (lambda: sx.allocate(PARAMS, 0.5, structure="constant_fan_in:group_size"), "group_size is ''"),
    (lambda: sx.allocate(PARAMS, 0.5, structure=4), "structure is 4"),
    (
      lambda: sx.srigl(SGD, sparsity=0.9, structure="unstructured", update_until=9),
      "structure is 'unstructured', but SRigL",
    ),
    (lambda: sx.all_but(inputs_multiple_of=0), "inputs_multiple_of is 0"),
    (
      lambda: sx.srigl_update(
        *[jnp.ones((8, 3))] * 2,
        jnp.ones((8, 3), bool),
        budget=5,
        drop_fraction=0.3,
        structure=FOURS,
      ),
      "in 2 block.* needs 6 <= budget < 24",
    ),
  ],
)
def test_rejects(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_the_way_out_of_an_odd_layer():
  masks = nm(SGD, sparse=sx.all_but(inputs_multiple_of=4)).init(PARAMS).masks
  assert set(masks) == {"head/kernel"}
