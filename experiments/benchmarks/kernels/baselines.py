"""The methods that are compared: ours, and what else one would run such a layer with.

Each is what a knowledgeable user of its library would write: the matrix on the side that the
library has a fast kernel for, laid out once, the bias added inside the compiled call where there is
one. Methods of JAX are one jitted function whose weights are arguments; results have the layer's
full width.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental import sparse

import srigl_jax as sx
from experiments.benchmarks.kernels.layers import Layer
from srigl_kernels import BACKENDS, make_condensed
from srigl_kernels.backends.cpu import library

Call = Callable[[Any], Any]
"""From an input `[B, I]` in the library's form to the result `[B, N]`, when that is there."""


class Baseline(NamedTuple):
  """A method; a row of `baselines`.

  Attributes:
    make: from a layer to the call.
    convert: from `[B, I]` float32 numpy to what the call takes.
    isa: CPU target that the native kernels are to use, or empty.
    missing: why it cannot run here, or empty.
    temporary: bytes per row of the batch that it needs besides arguments and result.
    is_layer: whether it computes the layer, and is checked; only measured by name if not.
  """

  make: Callable[[Layer], Call]
  convert: Callable[[np.ndarray], Any] = jnp.asarray
  isa: str = ""
  missing: str = ""
  temporary: Callable[[Layer], int] = lambda layer: 0
  is_layer: bool = True


def _jitted(fn: Callable[..., jax.Array], *weights: Any) -> Call:
  """The call of `fn(x, *weights)` under jit."""
  compiled = jax.jit(fn)
  return lambda x: compiled(x, *weights).block_until_ready()


def _dense(layer: Layer) -> Call:
  return _jitted(
    lambda x, w, b: x @ w + b[None], jnp.asarray(layer.kernel), jnp.asarray(layer.bias)
  )


def _backend(name: str, isa: str = "", exact: bool = True) -> Callable[[Layer], Call]:
  """A backend of `condensed_matmul`, on a layer that is prepared for it."""

  def make(layer: Layer) -> Call:
    if isa:
      library.set_isa(isa)
    prepared = sx.prepare(layer.condensed, backend=name, exact=exact)
    return _jitted(lambda x, prepared: sx.condensed_matmul(x, prepared, backend=name), prepared)

  return make


def _floor(layer: Layer) -> Call:
  """The native kernels' call of the layer without its active neurons: what any such call takes."""
  empty = make_condensed(
    np.zeros((0, 0), np.float32),
    np.zeros((0, 0), int),
    np.zeros(0, int),
    layer.bias,
    kernel_shape=layer.kernel.shape,
  )
  return _backend("cpu")(dataclasses.replace(layer, condensed=empty))


def _bcsr(layer: Layer) -> Call:
  # XLA's CSR kernel for CPU takes the matrix on the left and int32 indices; with the matrix on the
  # right, JAX falls back to scattering. Below 16 columns the kernel is slower than with 16, so
  # fewer rows are filled up.
  matrix = sparse.BCSR.from_scipy_sparse(_csr(layer))

  def apply(x, w, b):
    rows = jnp.pad(x, ((0, max(0, 16 - len(x))), (0, 0)))
    return (w @ rows.T).T[: len(x)] + b[None]

  return _jitted(apply, matrix, jnp.asarray(layer.bias))


def _scipy(layer: Layer) -> Call:
  matrix, bias = _csr(layer), layer.bias

  def call(x: np.ndarray) -> np.ndarray:
    y = (matrix @ x[0])[None] if len(x) == 1 else (matrix @ x.T).T
    y += bias
    return y

  return call


def _csr(layer: Layer) -> Any:
  """The transposed kernel `[N, I]` in SciPy's CSR, indices int32."""
  return scipy.sparse.csr_array(layer.kernel.T)


def _torch_dense(layer: Layer) -> Call:
  torch = _torch()
  weight, bias = torch.from_numpy(layer.kernel.T.copy()), torch.from_numpy(layer.bias.copy())
  return lambda x: torch.nn.functional.linear(x, weight, bias)


def _torch_csr(layer: Layer) -> Call:
  torch = _torch()
  weight = torch.from_numpy(layer.kernel.T.copy()).to_sparse_csr()
  bias = torch.from_numpy(layer.bias.copy())

  def call(x: Any) -> Any:
    # The matrix on the left: `linear` takes longer.
    return (weight @ x[0] + bias)[None] if len(x) == 1 else (weight @ x.T).T + bias

  return call


@functools.cache
def _torch() -> Any:
  torch = importlib.import_module("torch")
  torch.set_grad_enabled(False)
  return torch


def _to_torch(x: np.ndarray) -> Any:
  return _torch().from_numpy(x)


def _brainevent(layer: Layer) -> Call:
  brainevent = importlib.import_module("brainevent")
  condensed = layer.condensed
  indices = condensed.indices.astype(jnp.int32)
  shape = (condensed.num_active, condensed.in_features)

  def apply(x, values, indices, active, bias):
    kwargs = {"shape": shape, "transpose": False}
    if len(x) == 1:
      products = brainevent.fcnmv(values, indices, x[0], **kwargs)[None]
    else:
      products = brainevent.fcnmm(values, indices, x.T, **kwargs).T
    if condensed.num_active == condensed.out_features:
      return products + bias[None]
    return jnp.broadcast_to(bias, (len(x), len(bias))).at[:, active].add(products)

  bias = jnp.asarray(layer.bias)
  return _jitted(apply, condensed.values, indices, condensed.active, bias)


def native(isa: str, exact: bool = True) -> Baseline:
  """The native backend on a CPU target, which the CPU must have."""
  return Baseline(_backend("cpu", isa, exact), isa=isa)


@functools.cache
def _absence(module: str) -> str:
  """Why a module cannot be used, or empty."""
  try:
    importlib.import_module(module)
  except Exception as error:  # a broken install raises anything
    return f"{module} cannot be imported: {error}".splitlines()[0]
  return ""


def _gathered(layer: Layer) -> int:
  return 4 * layer.condensed.values.size


def baselines(names: tuple[str, ...] = ()) -> dict[str, Baseline]:
  """The methods by name, those that cannot run here included.

  Args:
    names: only these, if any.

  Raises:
    ValueError: if a name is unknown.
  """
  no_cpu = "" if BACKENDS["cpu"].is_available() else "the native library is not installed"
  best = "" if no_cpu else _best_isa()
  no_avx512 = no_cpu or ("" if best.startswith("avx512") else f"the CPU's own target is {best}")
  optional = {name: _absence(name) for name in ("torch", "brainevent") if _wanted(name, names)}
  known = {
    "dense": Baseline(_dense),
    "structured": Baseline(_backend("structured")),
    "cpu": native(best)._replace(missing=no_cpu),
    "cpu_rounded": native(best, exact=False)._replace(missing=no_avx512),
    "cpu_avx2": native("avx2")._replace(missing=no_avx512),
    "xla": Baseline(_backend("xla")),
    "reference": Baseline(_backend("reference"), temporary=_gathered),
    "bcsr": Baseline(_bcsr),
    "scipy_csr": Baseline(_scipy, np.asarray),
    "torch_dense": Baseline(_torch_dense, _to_torch, missing=optional.get("torch", "")),
    "torch_csr": Baseline(_torch_csr, _to_torch, missing=optional.get("torch", "")),
    "brainevent": Baseline(_brainevent, missing=optional.get("brainevent", "")),
    "floor": Baseline(_floor, missing=no_cpu, is_layer=False),
  }
  if unknown := [name for name in names if name not in known]:
    raise ValueError(f"There is no method {unknown[0]!r}: give some of {', '.join(known)}.")
  return {name: known[name] for name in names or known if names or known[name].is_layer}


def _wanted(module: str, names: tuple[str, ...]) -> bool:
  return not names or any(name.startswith(module) for name in names)


@functools.cache
def _best_isa() -> str:
  """The CPU target that the library chose itself, asked before anything forces another."""
  return library.isa()


def versions() -> dict[str, str]:
  """Versions of what the methods run on, and the CPU target of the native kernels."""
  found = {"scipy": scipy.__version__}
  for name in ("torch", "brainevent"):
    if not _absence(name):
      found[name] = str(importlib.import_module(name).__version__)
  if BACKENDS["cpu"].is_available():
    found["native_kernels"] = _best_isa()
  return found
