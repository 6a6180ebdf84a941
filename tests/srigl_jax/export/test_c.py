import itertools
import re
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import srigl_jax as sx
from experiments.benchmarks.edge import cortex_m
from srigl_jax.export.activations import ACTIVATIONS, GRID, recognize
from srigl_jax.export.network import Activation
from tests.srigl_jax.export.compilers import (
  SANITIZERS,
  WARNINGS,
  assert_same,
  compiler,
  run_compiled,
)
from tests.srigl_jax.export.networks import convnet, mlp

_NUMBER = itertools.count()


def export(model, x, **kwargs):
  kwargs.setdefault("calibration", np.asarray(x))
  return sx.export_c(model, x, name=f"net{next(_NUMBER)}", **kwargs)


@pytest.fixture(scope="module")
def small():
  model, x = mlp()
  return model, x, np.asarray(jax.jit(lambda x: model(x))(x))


ARITHMETICS = {"float32": 1e-5, "int8": 0.05, "q3.12": 5e-3, "q2.5": 0.2, "q8.23": 1e-5}


def test_the_code_computes_what_the_model_computes(small, tmp_path):
  model, x, logits = small
  exports = [export(model, x, arithmetic=a, style="loops") for a in ARITHMETICS]
  exports += [export(model, x, arithmetic=a, style="unrolled") for a in ("float32", "int8")]
  exports += [export(model, x, form="dense"), export(model, x, output="softmax")]
  exports += [export(model, x, arithmetic="int8", output="softmax")]
  found = run_compiled(exports, np.asarray(x), tmp_path, cc=compiler("gcc"))
  for one, y in zip(exports, found, strict=True):
    assert_same(one, y, np.asarray(x))
    expected = jax.nn.softmax(logits) if one.plan.softmax else logits
    real = y if one.plan.softmax else one.dequantize(y)
    np.testing.assert_allclose(real, expected, atol=ARITHMETICS[one.plan.name], rtol=1e-5)
  by_style = {one.style: one for one in exports if one.plan.name == "float32"}
  assert by_style.keys() == {"loops", "unrolled"}
  assert export(model, x).style == "unrolled"  # it is small


def test_convolutions_compute_what_the_model_computes():
  model, x = convnet()
  logits, x = np.asarray(jax.jit(lambda x: model(x))(x)), np.asarray(x)
  for arithmetic, tolerance in {"float32": 1e-5, "int8": 0.05, "q3.12": 0.01}.items():
    exported = export(model, x, arithmetic=arithmetic)  # compiled by the slow tests
    np.testing.assert_allclose(exported.run(x), logits, atol=tolerance, rtol=1e-5)
    assert exported.style == "loops"


def test_ablated_and_unread_neurons_are_not_there(small):
  _, x, _ = small
  kernels = [jax.random.normal(jax.random.key(i), s) for i, s in enumerate([(16, 12), (12, 5)])]
  first = np.arange(16)[:, None] % 4 == np.arange(12) % 4
  first[:, 8:] = False  # four ablated neurons
  second = np.zeros((12, 5), bool)
  second[1:12:2] = True  # which reads every other neuron
  layers = [
    sx.condense(k * m, m, jnp.arange(m.shape[1]) / 4.0)
    for k, m in zip(kernels, (first, second), strict=True)
  ]
  exported = sx.export_c([layers[0], "relu", layers[1]])
  assert [step.num_neurons for step in exported.plan.network.steps] == [4, 5]
  hidden = np.maximum(np.asarray(x @ (kernels[0] * first)) + np.arange(12) / 4, 0)
  expected = hidden @ np.asarray(kernels[1] * second) + np.arange(5) / 4
  np.testing.assert_allclose(exported.run(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_recognized_by_what_they_compute(name):
  alpha = {"leaky_relu": 0.25, "elu": 0.5}.get(name, 0.0)
  y = ACTIVATIONS[name].compute(GRID.astype(np.float64), alpha)
  assert recognize(y.astype(np.float32)) == Activation(name, alpha)
  assert recognize(3 * GRID - 1) == (3.0, -1.0)
  assert recognize(np.sin(GRID)) is None


def test_sums_cannot_overflow():
  wide = np.full((1024, 3), 100.0, np.float32)
  layer = sx.condense(wide, np.ones_like(wide, bool))
  exported = sx.export_c([layer], arithmetic="q7.8")
  assert exported.plan.numbers[0].accumulator == "int64_t"
  assert "int64_t s0" in exported.source or "int64_t s" in exported.source
  top = exported.run(np.full((1, 1024), 127.0))
  np.testing.assert_allclose(top, 128 - 2**-8)  # limited, not wrapped
  with pytest.raises(ValueError, match="more bits before the point"):
    sx.export_c([layer], arithmetic="q5.10")


def test_bad_arguments_are_refused(small):
  model, x, _ = small
  for match, kwargs in (
    ("'float32', 'int8', or fixed point", {"arithmetic": "float16"}),
    ("2 to 32", {"arithmetic": "q20.12"}),
    ("needs `calibration`", {"arithmetic": "int8", "calibration": None}),
    (r"of shape \[B, 16\]", {"arithmetic": "int8", "calibration": np.zeros((3, 4))}),
    ("`style`", {"style": "fast"}),
    ("`output`", {"output": "argmax"}),
    ("`form`", {"form": "csr"}),
  ):
    with pytest.raises(ValueError, match=match):
      export(model, x, **kwargs)
  with pytest.raises(ValueError, match="identifier in C"):
    sx.export_c(model, x, name="my-model")
  with pytest.raises(ValueError, match="first axis is the batch"):
    sx.export_c(model, None)
  with pytest.raises(ValueError, match="A Flax NNX model is needed"):
    sx.export_c(lambda x: x, x)
  with pytest.raises(ValueError, match="no layer"):
    sx.export_c([])
  with pytest.warns(UserWarning, match="more bits before the point"):
    export(model, x, arithmetic="q3.12", calibration=9 * x)


@pytest.mark.parametrize(
  ("match", "call"),
  [
    ("softmax", lambda m, x: jax.nn.softmax(m(x))),
    ("element-wise function", lambda m, x: m(x) ** 3),
    ("'sin'", lambda m, x: jnp.sin(m(x))),
    ("parameter of its own", None),
    ("mixes examples", lambda m, x: m(x).reshape(-1)),
    ("one array", lambda m, x: (m(x), m(x))),
    ("'sort'", lambda m, x: jnp.sort(m(x))),
  ],
)
def test_what_cannot_be_exported_is_named(match, call):
  class Outer(nnx.Module):
    def __init__(self):
      self.inner = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
      self.bias = nnx.Param(jnp.ones(4))

    def __call__(self, x):
      if match == "parameter of its own":
        return self.inner(x) * self.bias[...][None]
      return call(self.inner, x)

  with pytest.raises(ValueError, match=match):
    sx.export_c(Outer(), jnp.zeros((2, 4)))


def test_files_are_written_once(small, tmp_path):
  model, x, _ = small
  exported = sx.export_c(model, x, name="trigger")
  header, source = exported.write(tmp_path / "new")
  assert header.read_text() == exported.header and '#include "trigger.h"' in source.read_text()
  with pytest.raises(FileExistsError):
    exported.write(tmp_path / "new")
  exported.write(tmp_path / "new", overwrite=True)


FUNCTIONS = [
  nnx.gelu, nnx.silu, jnp.tanh, nnx.sigmoid, nnx.hard_swish, nnx.softplus, nnx.elu, nnx.relu6,
  nnx.leaky_relu, nnx.hard_sigmoid, lambda x: jax.nn.gelu(x, approximate=False),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("cc", ["gcc", "clang"])
@pytest.mark.parametrize("flags", [SANITIZERS, ("-O2",), ("-O3",)], ids=["sanitized", "O2", "O3"])
def test_everything_compiles_and_computes_the_same(cc, flags, tmp_path):
  cc = compiler(cc)
  images = "float32", "int8", "q4.11", "q2.5"
  cases = [(convnet(), [{"arithmetic": a, "form": f} for a in images for f in ("auto", "dense")])]
  vectors = "float32", "int8", "q3.12", "q4.3"
  styles = [{"arithmetic": a, "style": s} for a in vectors for s in ("loops", "unrolled")]
  cases += [(mlp(function), styles) for function in FUNCTIONS]
  for (model, x), options in cases:
    exports = [export(model, x, **kwargs) for kwargs in options]
    found = run_compiled(exports, np.asarray(x), tmp_path, cc=cc, flags=flags)
    for one, y in zip(exports, found, strict=True):
      assert_same(one, y, np.asarray(x))


def _measured_stack(cc, flags, exported, folder):
  """Bytes that a compiler says the functions take, one called within the other."""
  _, source = exported.write(folder, overwrite=True)
  subprocess.run(
    [cc, *WARNINGS, *flags, "-fstack-usage", "-c", source.name, "-o", "out.o"],
    check=True,
    cwd=folder,
  )
  return sum(int(n) for n in re.findall(r"\t(\d+)\t", (folder / "out.su").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize("cc", ["gcc", "arm-none-eabi-gcc"])
def test_the_stack_is_what_is_stated(cc, tmp_path):
  cc = compiler(cc)
  target = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16")
  target = target if "arm" in cc else ()
  for model, x in (mlp(nnx.gelu), convnet()):
    for arithmetic in ("float32", "int8", "q3.12", "q8.23"):
      for style in ("loops", "unrolled"):
        exported = export(model, x, arithmetic=arithmetic, style=style)
        for level in ("-Os", "-O2", "-O3"):
          measured = _measured_stack(cc, (*target, level), exported, tmp_path)
          assert measured <= exported.stack_bytes, (arithmetic, style, level)


@pytest.mark.slow
@pytest.mark.parametrize("arithmetic", ["float32", "int8", "q3.12"])
def test_a_cortex_m_computes_the_same(arithmetic, tmp_path):
  if not cortex_m.is_available():
    pytest.skip("arm-none-eabi-gcc and qemu-system-arm are not both installed")
  model, x = mlp(nnx.gelu)
  x = np.asarray(x)[:4]
  exported = export(model, x, arithmetic=arithmetic)
  found, instructions = cortex_m.run_on_cortex_m(exported, x, tmp_path)
  assert_same(exported, found, x)
  assert 0 < instructions < 100_000
