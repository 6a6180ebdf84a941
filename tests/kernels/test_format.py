import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import check_condensed, make_condensed
from srigl_kernels.format import check_structure

# A layer of 5 inputs and 4 neurons, of which neurons 0 and 2 read two inputs each.
ARRAYS = {
  "values": np.array([[1, 2], [3, 4]], np.float32),
  "indices": np.array([[0, 4], [1, 2]]),
  "active": np.array([0, 2]),
  "bias": np.zeros(4, np.float32),
}


def make(kernel_shape=(5, 4), **changes):
  return make_condensed(**{**ARRAYS, **changes}, kernel_shape=kernel_shape)


def test_a_layer():
  layer = make()
  assert (layer.in_features, layer.out_features, layer.num_active, layer.fan_in) == (5, 4, 2, 2)
  dtypes = [x.dtype for x in (layer.values, layer.indices, layer.active, layer.bias)]
  assert dtypes == [jnp.float32, jnp.uint16, jnp.int32, jnp.float32]
  check_condensed(layer)


def test_features_of_a_convolution_and_of_an_attention_projection():
  conv = make(kernel_shape=(3, 3, 2, 4))
  assert (conv.in_features, conv.out_features, conv.neuron_axes) == (18, 4, (3,))
  query = make_condensed(**ARRAYS, kernel_shape=(5, 2, 2), neuron_axes=(-2, -1))
  assert (query.in_features, query.out_features, query.neuron_axes) == (5, 4, (1, 2))


def test_indices_are_as_small_as_they_can_be():
  assert make(kernel_shape=(65536, 4)).indices.dtype == jnp.uint16
  assert make(kernel_shape=(65537, 4)).indices.dtype == jnp.int32


def test_it_is_a_pytree_of_its_arrays():
  layer = make(bias=None)
  assert len(jax.tree.leaves(layer)) == 3
  doubled = jax.jit(lambda layer: jax.tree.map(lambda x: 2 * x, layer))(layer)
  assert doubled.kernel_shape == (5, 4) and doubled.values[1, 1] == 8


WRONG = {
  "float16 values": ({"values": ARRAYS["values"].astype(np.float16)}, "`values` must be float32"),
  "float64 bias": ({"bias": np.zeros(4)}, "`bias` must be float32"),
  "float indices": ({"indices": ARRAYS["values"]}, "`indices` must be integers"),
  "bool active": ({"active": np.array([True, True])}, "`active` must be integers"),
  "three axes": (
    {"values": np.ones((2, 2, 1), np.float32), "indices": np.ones((2, 2, 1), int)},
    "one shape",
  ),
  "other shapes": ({"indices": np.array([[0], [1]])}, "one shape"),
  "index out of range": ({"indices": [[0, 5], [1, 2]]}, "`indices` must lie in 0..4"),
  "negative index": ({"indices": [[-1, 4], [1, 2]]}, "`indices` must lie in 0..4"),
  "index that would wrap": ({"indices": [[0, 2**16 + 4], [1, 2]]}, "`indices` must lie in 0..4"),
  "index that is repeated": ({"indices": [[0, 0], [1, 2]]}, "`indices` must ascend"),
  "index that descends": ({"indices": [[0, 4], [2, 1]]}, "`indices` must ascend"),
  "neuron out of range": ({"active": [0, 4]}, "`active` must lie in 0..3"),
  "negative neuron": ({"active": [-1, 2]}, "`active` must lie in 0..3"),
  "neuron that wraps": ({"active": [0, 2**32 + 1]}, "`active` must lie in 0..3"),
  "neuron that is repeated": ({"active": [2, 2]}, "`active` must ascend"),
  "neuron that descends": ({"active": [2, 0]}, "`active` must ascend"),
  "too few neurons": ({"active": [0]}, "`active` must name the 2 rows"),
  "too many neurons": ({"kernel_shape": (5, 1), "bias": None}, "2 active neurons, but the layer"),
  "too large fan-in": ({"kernel_shape": (1, 4)}, "fan-in 2; it must lie in 1..1"),
  "fan-in 0": (
    {"values": np.ones((2, 0), np.float32), "indices": np.ones((2, 0), int)},
    "fan-in 0",
  ),
  "bias of other size": ({"bias": np.zeros(2, np.float32)}, r"`bias` must have shape \(4,\)"),
  "kernel of one axis": ({"kernel_shape": (5,)}, "`kernel_shape` must be"),
  "empty kernel": ({"kernel_shape": (0, 4)}, "`kernel_shape` must be"),
  "huge kernel": ({"kernel_shape": (2**20, 2**12, 4)}, "more inputs or neurons"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_layer_is_refused(name):
  changes, message = WRONG[name]
  with pytest.raises(ValueError, match=message):
    make(**changes)


@pytest.mark.parametrize("axes", [(), (2,), (-3,), (0, 1), (1, 1)])
def test_wrong_neuron_axes_are_refused(axes):
  with pytest.raises(ValueError, match="neuron_axes"):
    make_condensed(**ARRAYS, kernel_shape=(5, 4), neuron_axes=axes)


def test_a_layer_made_by_hand_is_checked():
  layer = make()
  for name, array in {
    "indices": jnp.asarray([[0, 9], [1, 2]], jnp.uint16),
    "active": layer.active[::-1],
    "values": layer.values[:, :1],
  }.items():
    with pytest.raises(ValueError, match=f"`{name}`"):
      check_condensed(dataclasses.replace(layer, **{name: array}))
  with pytest.raises(ValueError, match="`indices` must be uint16, not int32"):
    check_structure(dataclasses.replace(layer, indices=layer.indices.astype(jnp.int32)))


def test_traced_arrays_are_refused():
  with pytest.raises(ValueError, match="outside of jit"):
    jax.jit(lambda values: make(values=values).values)(ARRAYS["values"])
