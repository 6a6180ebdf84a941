import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from tests.srigl_jax.export.networks import convnet, mlp


def onnxruntime():
  pytest.importorskip("onnx", reason="onnx is not installed")
  return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


def run(path, x):
  session = onnxruntime().InferenceSession(str(path), providers=["CPUExecutionProvider"])
  return session.run(None, {"input": np.asarray(x)})[0]


@pytest.mark.parametrize("form", ["gather", "dense"])
@pytest.mark.parametrize("network", [mlp, convnet])
def test_onnx_runtime_computes_what_the_model_computes(network, form, tmp_path):
  onnxruntime()
  model, x = network()
  path = sx.export_onnx(model, tmp_path / "new" / "model.onnx", x, form=form)
  logits = jax.jit(lambda x: model(x))(x)
  np.testing.assert_allclose(run(path, x), logits, atol=1e-4, rtol=1e-4)
  np.testing.assert_allclose(run(path, x[:1]), logits[:1], atol=1e-4, rtol=1e-4)
  with pytest.raises(FileExistsError):
    sx.export_onnx(model, path, x)
  sx.export_onnx(model, path, x, form=form, output="softmax", overwrite=True)
  np.testing.assert_allclose(run(path, x).sum(-1), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
  "function",
  [
    nnx.gelu, nnx.silu, jnp.tanh, nnx.sigmoid, nnx.hard_swish, nnx.softplus, nnx.elu, nnx.relu6,
    nnx.leaky_relu, nnx.hard_sigmoid, lambda x: jax.nn.gelu(x, approximate=False),
  ],
)  # fmt: skip
def test_every_activation_is_one_of_onnx(function, tmp_path):
  onnxruntime()
  model, x = mlp(function)
  path = sx.export_onnx(model, tmp_path / "model.onnx", x)
  np.testing.assert_allclose(run(path, x), model(x), atol=1e-4, rtol=1e-4)


def test_what_is_missing_or_unknown_is_named(tmp_path, monkeypatch):
  layer = sx.condense(np.ones((4, 2), np.float32), np.ones((4, 2), bool))
  with pytest.raises(ValueError, match="`form`"):
    sx.export_onnx([layer], tmp_path / "x.onnx", form="csr")
  with pytest.raises(ValueError, match="`output`"):
    sx.export_onnx([layer], tmp_path / "x.onnx", output="argmax")
  monkeypatch.setitem(sys.modules, "onnx", None)
  with pytest.raises(ModuleNotFoundError, match=r"srigl-jax\[onnx\]"):
    sx.export_onnx([layer], tmp_path / "x.onnx")
