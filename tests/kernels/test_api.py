import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import BACKENDS, choose_backend, condensed_matmul, prepare
from srigl_kernels.problems import PROBLEMS, make_problem

HAS_CPU = BACKENDS["cpu"].is_available()
SMALL = PROBLEMS["odd_sizes"]


def test_a_layer_that_is_traced_and_not_prepared_runs_on_xla():
  _, condensed = make_problem(SMALL)
  chosen = []
  jax.jit(lambda layer: chosen.append(choose_backend(layer)) or layer.values)(condensed)
  assert chosen[0][0] == "xla" and "not prepared" in chosen[0][1]


@pytest.mark.parametrize("name", ["reference", "xla", "structured", "dense"])
def test_a_prepared_layer_runs_on_what_it_was_prepared_for(name):
  _, condensed = make_problem(SMALL)
  assert choose_backend(prepare(condensed, backend=name))[0] == name


def test_the_order_of_preference_survives_a_transformation():
  _, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend=("xla", "dense"))
  again = jax.tree.map(lambda x: x, layer)
  assert set(again.layouts) == {"xla", "dense"} and choose_backend(again)[0] == "xla"


@pytest.mark.skipif(not HAS_CPU, reason="needs the native kernels")
def test_automatic_choice_with_native_kernels():
  _, condensed = make_problem(PROBLEMS["vit_ffn_up"])  # dense is as fast for small ones
  assert choose_backend(prepare(condensed))[0] == "cpu"


@pytest.mark.skipif(not HAS_CPU, reason="needs the native kernels")
def test_a_traced_layer_cannot_be_packed_on_the_host():
  x, condensed = make_problem(SMALL)
  with pytest.raises(ValueError, match="outside of jit"):
    jax.jit(lambda c: condensed_matmul(x, c, backend="cpu"))(condensed)


@pytest.mark.parametrize("name", ["reference", "xla", "structured", "dense", "cpu"])
def test_weights_that_need_not_be_exact(name):
  if name == "cpu" and not HAS_CPU:
    pytest.skip("needs the native kernels")
  x, condensed = make_problem(SMALL)
  layer = prepare(condensed, backend=name, exact=False)
  want = condensed_matmul(x, condensed, backend="reference")
  assert jnp.allclose(condensed_matmul(x, layer), want, rtol=1e-5, atol=1e-5)
  dx = jax.grad(lambda x, layer: jnp.sin(condensed_matmul(x, layer)).sum())
  assert jnp.allclose(dx(x, layer), dx(x, prepare(condensed, backend="xla")), atol=1e-4)


def test_values_that_may_change_are_exact():
  _, condensed = make_problem(SMALL)
  with pytest.raises(ValueError, match="prepare with one of the two"):
    prepare(condensed, gradients=True, exact=False)


def test_wrong_arguments():
  x, condensed = make_problem(SMALL)
  for changes, message in (
    ({"x": x[..., 1:]}, "37 inputs, but x has shape"),
    ({"x": jnp.float32(1)}, "37 inputs, but x has shape"),
    ({"x": x.astype(jnp.float16)}, "`x` must be float32 or bfloat16, not float16"),
    ({"x": jnp.ones((2, 37), int)}, "`x` must be float32 or bfloat16"),
    ({"backend": "gpu"}, "`backend` must be 'auto' or one of"),
    ({"activation": "tanh"}, "`activation` must be one of"),
    ({"layer": jnp.ones((37, 5))}, "A condensed layer is needed, .* not a ArrayImpl"),
  ):
    kwargs = {"x": x, "layer": condensed, **changes}
    with pytest.raises(ValueError, match=message):
      condensed_matmul(kwargs.pop("x"), kwargs.pop("layer"), **kwargs)
  with pytest.raises(ValueError, match="`backend` must be 'auto' or one of"):
    prepare(condensed, backend="gpu")
  with pytest.raises(ValueError, match="A condensed layer is needed"):
    prepare(np.ones((37, 5), np.float32))
