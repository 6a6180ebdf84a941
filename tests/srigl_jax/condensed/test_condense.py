import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import srigl_jax as sx
from srigl_jax.condensed.condense import condense, expand
from srigl_jax.layers import Axes
from srigl_kernels import condensed_matmul

# Three inputs, four neurons: neuron 0 reads inputs 0 and 2, neuron 3 inputs 1 and 2.
MASK = np.array([[1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1]], bool)
KERNEL = np.array([[5, 0, 0, 0], [0, 0, 0, 7], [6, 0, 0, 8]], np.float32)
BIAS = np.arange(4, dtype=np.float32)


def test_a_layer_by_hand():
  layer = condense(KERNEL, MASK, BIAS)
  assert layer.values.tolist() == [[5, 6], [7, 8]]
  assert layer.indices.tolist() == [[0, 2], [1, 2]]
  assert layer.active.tolist() == [0, 3]
  assert (layer.kernel_shape, layer.neuron_axes) == ((3, 4), (1,))


def test_weights_of_zero_on_the_mask_are_kept():
  layer = condense(np.zeros_like(KERNEL), MASK)
  assert layer.values.shape == (2, 2)
  assert np.array_equal(expand(layer)[1], MASK)


def test_no_active_neuron():
  layer = condense(np.zeros_like(KERNEL), np.zeros_like(MASK), BIAS)
  assert layer.values.shape == (0, 0)
  kernel, mask, bias = expand(layer)
  assert not kernel.any() and not mask.any() and np.array_equal(bias, BIAS)


def test_inputs_of_a_convolution_are_numbered_row_major():
  mask = np.zeros((2, 3, 4, 5), bool)
  mask[1, 2, 3, 0] = mask[0, 1, 2, 4] = True
  layer = condense(mask.astype(np.float32), mask)
  assert layer.indices.tolist() == [[(1 * 3 + 2) * 4 + 3], [(0 * 3 + 1) * 4 + 2]]
  assert layer.kernel_shape == (2, 3, 4, 5)


@st.composite
def layers(draw):
  """A masked kernel of constant fan-in in one of Flax's layouts or a stranger one, and its axes."""
  shape = tuple(draw(st.lists(st.integers(1, 5), min_size=2, max_size=4)))
  neurons = tuple(draw(st.sets(st.integers(0, len(shape) - 1), max_size=len(shape) - 1)))
  axes = Axes(neurons) if neurons else None
  neuron_axes = neurons or (len(shape) - 1,)
  bias_shape = [shape[a] for a in sorted(neuron_axes)]
  num_neurons = int(np.prod(bias_shape))
  num_inputs = int(np.prod(shape)) // num_neurons
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  fan_in = draw(st.integers(1, num_inputs))
  is_active = rng.random(num_neurons) < draw(st.sampled_from([0.0, 0.5, 1.0]))
  rank = rng.random((num_inputs, num_neurons)).argsort(0).argsort(0)
  mask = np.moveaxis(
    ((rank < fan_in) & is_active).reshape(
      [n for a, n in enumerate(shape) if a not in neuron_axes] + bias_shape
    ),
    range(-len(neuron_axes), 0),
    sorted(neuron_axes),
  )
  dtype = draw(st.sampled_from([np.float32, jnp.bfloat16]))
  kernel = np.where(mask, rng.normal(size=shape), 0).astype(dtype)
  bias = rng.normal(size=bias_shape).astype(np.float32) if draw(st.booleans()) else None
  return kernel, mask, bias, axes


@hypothesis.given(layers())
def test_expand_gives_back_what_was_condensed(layer):
  kernel, mask, bias, axes = layer
  condensed = condense(kernel, mask, bias, axes=axes)
  again = expand(condensed)
  assert again[0].dtype == kernel.dtype
  np.testing.assert_array_equal(again[0], kernel)
  np.testing.assert_array_equal(again[1], mask)
  if bias is None:
    assert again[2] is None
  else:
    np.testing.assert_array_equal(again[2], bias)
  twice = condense(*again, axes=axes)
  assert jax.tree.structure(twice) == jax.tree.structure(condensed)
  jax.tree.map(np.testing.assert_array_equal, twice, condensed)


def test_a_trained_layer_multiplies_as_its_dense_twin():
  key = jax.random.key(0)
  params = {"hidden": {"kernel": jax.random.normal(key, (40, 30))}}
  allocation = sx.allocate(params, 0.8)
  masks = sx.init_masks(key, allocation)
  kernel = sx.apply_masks(params, masks)["hidden"]["kernel"]
  x = jax.random.normal(key, (7, 40))
  y = condensed_matmul(x, condense(kernel, masks["hidden/kernel"], jnp.ones(30)))
  np.testing.assert_allclose(y, x @ kernel + 1, rtol=1e-5, atol=1e-5)


def test_different_fan_ins_are_refused_by_number():
  mask = MASK.copy()
  mask[1, 0] = mask[0, 2] = True
  with pytest.raises(ValueError, match="`mask` has 3: 1, 2, 3"):
    condense(np.where(mask, 1, 0).astype(np.float32), mask)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"kernel": KERNEL + 1}, "8 weights off the mask that are not 0"),
    ({"kernel": np.where(MASK, KERNEL, np.float32(np.nan))}, "weights off the mask"),
    ({"kernel": KERNEL.astype(float)}, "`kernel` must be float32 or bfloat16, not float64"),
    ({"kernel": KERNEL[0], "mask": MASK[0]}, "two axes or more"),
    ({"mask": MASK.astype(int)}, "`mask` must be bool"),
    ({"mask": MASK.T}, "`mask` must be bool of the kernel's shape"),
    ({"bias": BIAS[:2]}, r"`bias` must have the neurons' shape \(4,\)"),
    ({"bias": BIAS.astype(float)}, "`bias` must be float32"),
    ({"axes": Axes(neurons=(0, 1))}, "no input axis"),
    ({"axes": Axes(neurons=(2,))}, "do not fit"),
  ],
)
def test_what_cannot_be_condensed(changes, message):
  arguments = {"kernel": KERNEL, "mask": MASK, "bias": BIAS, **changes}
  with pytest.raises(ValueError, match=message):
    condense(**arguments)


def test_traced_arrays_are_refused():
  with pytest.raises(ValueError, match="outside of jit"):
    jax.jit(lambda kernel: condense(kernel, MASK).values)(KERNEL)
