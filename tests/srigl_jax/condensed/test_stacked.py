"""Stacks of layers, condensed as one module that runs under their scan or vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import srigl_jax as sx
from srigl_jax.condensed.stacked import condense_stack


class Scanned(nnx.Module):
  def __init__(self, rngs, *, axis=0):
    make = lambda key: nnx.Linear(8, 8, rngs=nnx.Rngs(key))
    self.blocks = nnx.vmap(make, out_axes=axis)(jax.random.split(rngs(), 3))
    self.members = nnx.vmap(lambda key: nnx.Linear(8, 5, rngs=nnx.Rngs(key)))(
      jax.random.split(rngs(), 2)
    )

  def __call__(self, x):
    run = lambda x, block: nnx.tanh(block(x)) + x
    x = nnx.scan(run, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)(x, self.blocks)
    return nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(self.members, x)


@pytest.fixture(scope="module")
def model_and_masks():
  model = Scanned(nnx.Rngs(0))
  rng = np.random.default_rng(0)
  blocks, members = np.zeros((3, 8, 8), bool), np.zeros((2, 8, 5), bool)
  for layer, (fan_in, neurons) in zip(blocks, [(2, 8), (5, 3), (3, 6)], strict=True):
    for neuron in rng.permutation(8)[:neurons]:
      layer[rng.permutation(8)[:fan_in], neuron] = True
  members[:, :3] = True
  masks = {"blocks/kernel": jnp.asarray(blocks), "members/kernel": jnp.asarray(members)}
  for name, owner in (("blocks", model.blocks), ("members", model.members)):
    owner.kernel.set_value(jnp.where(masks[f"{name}/kernel"], owner.kernel.get_value(), 0))
    owner.bias.set_value(jnp.asarray(rng.normal(size=owner.bias.get_value().shape), jnp.float32))
  return model, masks


@pytest.mark.parametrize("fold", [False, True])
def test_a_condensed_stack_runs_under_scan_and_vmap(model_and_masks, fold):
  model, masks = model_and_masks
  x = jax.random.normal(jax.random.key(1), (4, 8))
  condensed = sx.condense_model(model, masks, x if fold else None)
  np.testing.assert_allclose(condensed(x), model(x), rtol=1e-5, atol=1e-5)
  with pytest.raises(
    ValueError, match=r"'\w+/kernel' is a stack of condensed layers, which a file"
  ):
    sx.split_condensed(condensed)


def test_all_layers_of_a_stack_have_the_sizes_of_the_largest(model_and_masks):
  model, masks = model_and_masks
  kernel, bias = model.blocks.kernel.get_value(), model.blocks.bias.get_value()
  layers = condense_stack(
    kernel, masks["blocks/kernel"], bias, sx.Axes((2,), stack=(0,))
  )  # fmt: skip
  assert {x.values.shape for x in layers} == {(8, 5)}
  for i, layer in enumerate(layers):
    expanded, mask, own = sx.expand(layer)
    np.testing.assert_array_equal(expanded, kernel[i])
    np.testing.assert_array_equal(own, bias[i])
    assert not (masks["blocks/kernel"][i] & ~mask).any()


def test_stacks_that_are_refused():
  model = Scanned(nnx.Rngs(0), axis=1)
  mask = jnp.ones((8, 3, 8), bool)
  with pytest.raises(ValueError, match="of a stack of layers, which must lie along the first axis"):
    sx.condense_model(model, {"blocks/kernel": mask})
  mask = jnp.ones((2, 8, 5), bool).at[1, 0, 0].set(False)
  model.members.kernel.set_value(model.members.kernel.get_value().at[1, 0, 0].set(0))
  with pytest.raises(ValueError, match="'members' cannot be condensed: Layer 1 of the stack"):
    sx.condense_model(model, {"members/kernel": mask})


class Block(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return x + nn.tanh(nn.Dense(8, name="dense")(x)), None


class LinenScanned(nn.Module):
  @nn.compact
  def __call__(self, x):
    blocks = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    return blocks(name="blocks")(x, None)[0]


def test_a_linen_stack(model_and_masks):
  model, masks = model_and_masks
  x = jax.random.normal(jax.random.key(1), (4, 8))
  dense = {"kernel": model.blocks.kernel.get_value(), "bias": model.blocks.bias.get_value()}
  params = {"blocks": {"dense": dense}}
  masks = {"blocks/dense/kernel": masks["blocks/kernel"]}
  condensed = sx.condense_linen(LinenScanned(), params, masks, x)
  expected = LinenScanned().apply({"params": params}, x)
  np.testing.assert_allclose(condensed(x), expected, rtol=1e-5, atol=1e-5)
  with pytest.raises(ValueError, match="is a stack of condensed layers, which a file"):
    sx.split_condensed(condensed)
