"""A trained network pruned to constant fan-in: by hand, over structures, and fine-tuned."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from srigl_jax.layers import make_layer, to_matrix
from tests import helpers

# Columns are neurons; of 8 weights kept the largest are 9, 8, 7, 6, 5, 4 and, alike, 3 and 3.
KERNEL = np.array(
  [
    [9.0, -1.0, 0.5, 3.0],
    [-8.0, 1.5, 0.1, -0.2],
    [7.0, 6.0, 0.2, 2.0],
    [5.0, -4.0, 0.3, 3.0],
  ],
  np.float32,
)


@pytest.mark.parametrize(
  "gamma_sal, kept",
  [
    (0, ["xx..", "..xx", "x..x", "x..x"]),  # two of each neuron
    # Without the neuron that has none of the largest: 8 // 3 of each other.
    (0.5, ["xx..", "..xx", "....", "x..x"]),
    # The budget would not fit into the one neuron that has 3 of the largest: 2 are enough then.
    (3, ["xx..", "..xx", "....", "x..x"]),
  ],
)
def test_by_hand(gamma_sal, kept):
  params = {"a": {"kernel": jnp.asarray(KERNEL)}}
  (mask,) = sx.prune_to_fan_in(params, fan_in=2, gamma_sal=gamma_sal, ablate=True).values()
  assert ["".join(".x"[int(x)] for x in neuron) for neuron in np.asarray(mask).T] == kept


@pytest.mark.parametrize("structure", ["constant_fan_in", "constant_fan_in:group_size=2"])
@pytest.mark.parametrize("gamma_sal", [0.0, 0.95])
def test_every_neuron_that_stays_has_one_fan_in(gamma_sal, structure):
  params = helpers.params()
  kwargs = {"sparsity": 0.6, "structure": structure}
  budgets = sx.allocate(params, **kwargs).budgets
  prune = lambda params: sx.prune_to_fan_in(params, gamma_sal=gamma_sal, **kwargs)
  masks = prune(params)
  plain = gamma_sal and structure == "constant_fan_in"
  jitted = jax.jit(prune)(params) if plain else masks
  for path, mask in masks.items():
    np.testing.assert_array_equal(mask, jitted[path])
    helpers.assert_constant_fan_in({path: np.asarray(mask)}, budgets, {"conv/kernel"})
    found = helpers.neuron_fan_ins(np.asarray(mask), path)
    assert (found > 0).all() or (gamma_sal and path != "head/kernel")
  assert gamma_sal == 0 or not masks["conv/kernel"].any((0, 1, 2)).all()


def test_without_ablation_each_neuron_keeps_its_largest():
  params = helpers.params()
  for path, mask in sx.prune_to_fan_in(params, 0.6, gamma_sal=0).items():
    layer = make_layer(path, mask.shape)
    magnitudes = np.abs(np.asarray(to_matrix(params[path.split("/")[0]]["kernel"], layer), float))
    chosen = np.asarray(to_matrix(mask, layer))
    for column, kept in zip(magnitudes.T, chosen.T, strict=True):
      assert column[kept].min() >= column[~kept].max()


def test_fine_tuning_keeps_the_masks_and_the_weights_left():
  params = helpers.params()
  run = helpers.Training(sx.prune_pretrained(helpers.SGD, sparsity=0.6, gamma_sal=0.95), params)
  masks = sx.prune_to_fan_in(params, 0.6, gamma_sal=0.95)
  for path, mask in masks.items():
    np.testing.assert_array_equal(run.masks[path], mask)
    name = path.split("/")[0]
    np.testing.assert_array_equal(run.params[name]["kernel"], params[name]["kernel"] * mask)
  for now in run.run(3):
    helpers.assert_zero_off_mask(now.params, now.masks)
  assert all((now.masks[path] == np.asarray(mask)).all() for path, mask in masks.items())


def test_srigl_goes_on_from_pruned_masks():
  masks = sx.prune_to_fan_in(helpers.params(), 0.6, gamma_sal=0)
  tx = sx.srigl(helpers.SGD, initial=masks, gamma_sal=0, **helpers.SCHEDULE)
  run = helpers.Training(tx)
  budgets = {path: int(mask.sum()) for path, mask in masks.items()}
  assert {path: int(n) for path, n in run.state.budgets.items()} == budgets
  for now in run.run(7):
    helpers.assert_constant_fan_in(now.masks, budgets)
  assert any((now.masks[path] != np.asarray(mask)).any() for path, mask in masks.items())
  with pytest.raises(ValueError, match="leave out sparsity"):
    sx.srigl(helpers.SGD, initial=masks, sparsity=0.5, **helpers.SCHEDULE)


def test_a_stack_is_pruned_layer_by_layer():
  rng = np.random.default_rng(0)
  kernels = rng.normal(size=(3, 12, 8)).astype(np.float32) * np.exp(rng.normal(size=(3, 1, 8)))
  stacked = {"blocks": {"kernel": jnp.asarray(kernels, jnp.float32)}}
  axes = lambda path, shape: sx.Axes(neurons=(2,), stack=(0,))
  kwargs = {"fan_in": 3, "gamma_sal": 0.9, "ablate": True}
  (mask,) = sx.prune_to_fan_in(stacked, axes=axes, **kwargs).values()
  for kernel, one in zip(stacked["blocks"]["kernel"], mask, strict=True):
    (alone,) = sx.prune_to_fan_in({"a": {"kernel": kernel}}, **kwargs).values()
    np.testing.assert_array_equal(one, alone)


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"sparsity": 1.5}, "sparsity is 1.5"),
    ({"sparsity": 0.5, "gamma_sal": -1}, "gamma_sal is -1"),
    ({"sparsity": 0.5, "structure": "unstructured"}, "keeps a constant fan-in"),
    ({"sparsity": 0.5, "salient_base": "fan"}, "salient_base is 'fan'"),
  ],
)
def test_what_is_out_of_range(kwargs, message):
  with pytest.raises(ValueError, match=message):
    sx.prune_to_fan_in(helpers.params(), **kwargs)
  with pytest.raises(ValueError, match=message):
    sx.prune_pretrained(optax.sgd(0.1), **kwargs).init(helpers.params())
