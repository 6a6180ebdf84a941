"""Condensed models in fewer bits: what falls back, what is reported, what is left alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from srigl_kernels import BACKENDS
from srigl_kernels.precision import precision_of


class Network(nnx.Module):
  """A convolution, a transposed one and two linear layers."""

  def __init__(self, rngs):
    self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
    self.up = nnx.ConvTranspose(8, 4, (2, 2), strides=2, rngs=rngs)
    self.hidden = nnx.Linear(144, 16, rngs=rngs)
    self.unused = nnx.Linear(16, 16, rngs=rngs)
    self.head = nnx.Linear(16, 5, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.up(nnx.relu(self.conv(x))[:, ::2, ::2]))
    return self.head(nnx.relu(self.hidden(x.reshape(x.shape[0], -1))))


@pytest.fixture(scope="module")
def condensed():
  """A condensed model, and inputs."""
  model = Network(nnx.Rngs(0))
  masks = {}
  for name in ("conv", "up", "hidden", "unused", "head"):
    kernel = getattr(model, name).kernel
    *inputs, neurons = kernel.shape
    even = np.arange(np.prod(inputs)).reshape(*inputs, 1) % 2 == 0
    masks[f"{name}/kernel"] = mask = jnp.broadcast_to(even, (*inputs, neurons))
    kernel.set_value(kernel.get_value() * mask)
  x = jax.random.normal(jax.random.key(0), (8, 6, 6, 3))
  return sx.condense_model(model, masks), x


@pytest.mark.parametrize(("dtype", "calibrate"), (("int8", True), ("bfloat16", False)))
def test_layers_of_fewer_bits(condensed, dtype, calibrate):
  model, x = condensed
  quantized, report = sx.quantize_model(model, x, dtype, calibrate=calibrate)
  dtypes = {layer.path: layer.dtype for layer in report.layers}
  names = [f"{name}/kernel" for name in ("conv", "head", "hidden", "up")]
  assert dtypes == dict.fromkeys(names, dtype) | {"unused/kernel": "float32"}
  assert all(0 < layer.error < 0.05 or layer.path == "unused/kernel" for layer in report.layers)
  layers, _ = sx.split_condensed(quantized)
  assert {name: precision_of(layer) for name, layer in layers.items()} == dtypes
  assert all((layers[name].input_range is not None) == calibrate for name in names)
  y = model(x)
  np.testing.assert_allclose(quantized(x), y, atol=0.06 * float(abs(y).max()))
  assert dtype in str(report)


def test_what_exceeds_the_error_falls_back(condensed):
  model, x = condensed
  _, report = sx.quantize_model(model, x, "int8")
  errors = {layer.path: layer.error for layer in report.layers if layer.path != "unused/kernel"}
  least = min(errors, key=errors.get)
  between = (sorted(errors.values())[0] + sorted(errors.values())[1]) / 2
  quantized, report = sx.quantize_model(model, x, "int8", max_error=between)
  dtypes = {layer.path: layer.dtype for layer in report.layers}
  assert [name for name, dtype in dtypes.items() if dtype == "int8"] == [least]
  assert set(dtypes.values()) == {"int8", "bfloat16", "float32"}
  _, report = sx.quantize_model(model, x, "int8", max_error=1e-9)
  assert {layer.dtype for layer in report.layers} == {"float32"}
  assert {layer.error for layer in report.layers if layer.path != "unused/kernel"} == {0}
  # What has fewer bits already is left alone.
  again, report = sx.quantize_model(quantized, x, "int8_weights")
  layers, _ = sx.split_condensed(again)
  assert precision_of(layers[least]) == "int8"
  assert precision_of(layers["unused/kernel"]) == "float32"


class Residual(nnx.Module):
  """Features of very different size are added to what was made of them, and the small ones read."""

  def __init__(self, rngs):
    self.first, self.second = nnx.Linear(24, 24, rngs=rngs), nnx.Linear(24, 24, rngs=rngs)
    self.head = nnx.Linear(24, 3, rngs=rngs)

  def __call__(self, x):
    h = nnx.relu(self.first(x))
    return self.head(nnx.relu(self.second(h) + h))


@pytest.mark.skipif(not BACKENDS["cpu"].is_available(), reason="needs the native kernels")
@pytest.mark.parametrize(("largest", "dtype"), ((1.0, "int8"), (4e4, "float32")))
def test_residuals_count(largest, dtype):
  model = Residual(nnx.Rngs(0))
  model.first.kernel.set_value(model.first.kernel.get_value().at[:, 0].mul(largest))
  small = jnp.arange(24) >= 12  # read no large feature
  masks = {
    "first/kernel": jnp.ones((24, 24), bool),
    "second/kernel": jnp.ones((24, 24), bool).at[0].set(~small).at[1].set(small),
    "head/kernel": jnp.broadcast_to(small[:, None], (24, 3)),
  }
  for name in ("second", "head"):
    kernel = getattr(model, name).kernel
    kernel.set_value(kernel.get_value() * masks[f"{name}/kernel"])
  x = jax.random.normal(jax.random.key(0), (40, 24))
  condensed = sx.condense_model(model, masks, backend="cpu")
  quantized, report = sx.quantize_model(condensed, x, calibrate=True)
  assert report.residuals.dtype == dtype and "residuals" in str(report)
  y = jax.jit(lambda x: quantized(x))(x)
  change = jnp.linalg.norm(y - quantized(x)) / jnp.linalg.norm(y)
  assert change < 1e-5 if dtype == "float32" else 1e-5 < change < 0.05
  assert (report.residuals.error > 0.05) == (dtype == "float32")


def test_layers_within_transformations_are_left_alone(condensed):
  model, x = condensed
  call = lambda model, x: nnx.jit(lambda model, x: model(x))(model, x)
  _, report = sx.quantize_model(model, x, call=call)
  assert {layer.dtype for layer in report.layers} == {"float32"}
  assert all(np.isnan(layer.error) for layer in report.layers)


def test_stacks_are_left_alone():
  stack = nnx.vmap(lambda rngs: nnx.Linear(4, 4, rngs=rngs))(nnx.Rngs(0).split(2))
  model = nnx.Dict(stack=stack)
  masks = {"stack/kernel": jnp.ones((2, 4, 4), bool)}
  run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
  condensed = sx.condense_model(model, masks, backend="xla")
  call = lambda model, x: run(x, model["stack"])
  _, report = sx.quantize_model(condensed, jnp.ones((1, 4)), call=call)
  assert [layer.dtype for layer in report.layers] == ["float32"]


def test_what_is_refused(condensed):
  model, x = condensed
  for kwargs, message in (
    ({"dtype": "float32"}, "`dtype` must be one of"),
    ({"max_error": 0}, "`max_error` must be above 0"),
    ({"dtype": "bfloat16", "calibrate": True}, "`calibrate` is for dtype='int8'"),
  ):
    with pytest.raises(ValueError, match=message):
      sx.quantize_model(model, x, **kwargs)
  linear = nnx.Linear(4, 2, rngs=nnx.Rngs(0))
  mask = jnp.ones((4, 2), bool)
  tuned = sx.condense_model(linear, {"kernel": mask}, gradients=True)
  with pytest.raises(ValueError, match="being fine-tuned"):
    sx.quantize_model(tuned, jnp.ones((1, 4)))
