"""The methods of the GPU benchmark: our backends, and what else one would run such a layer with.

Each is a function `(x [B, I], weights) -> y [B, N]` to be compiled as part of a program, bias
included, and a function that makes its weights. `dense` is true float32 (`highest`), `dense_tf32`
what JAX does by default.
"""

import contextlib
import dataclasses
import functools
import importlib
import itertools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import sparse

from experiments.benchmarks.kernels.gpu_cases import Case, make_layer
from experiments.benchmarks.kernels.gpu_timing import num_copies
from srigl_kernels import Condensed, condensed_matmul, prepare
from srigl_kernels.backends import dense
from srigl_kernels.backends.cuda.products import matmul as cuda_matmul

_LOCK = threading.Lock()
# How far results may be from the reference, as `gpu_cases.error` has it.
_ERRORS = {"float32": 1e-5, "tf32": 3e-3, "bfloat16": 1e-2}


class Method(NamedTuple):
  """A method.

  Attributes:
    weights: `(condensed) -> pytree`, from a layer whose values have the method's type.
    apply: `(x, weights) -> y`.
    dtype: of x, values and result.
    group: active neurons that share their inputs, in the layer that it runs.
    rate: which products bound it: `"float32"`, `"tf32"` or `"bfloat16"`.
    key: in `srigl_kernels.cost_model.SECONDS`, or None.
    products: of one row of the batch, for its floor.
    gradients: whether what is timed is forward and backward.
    most: bytes of weights above which it is left out.
  """

  weights: Callable[[Condensed], Any]
  apply: Callable[[Array, Any], Array]
  dtype: str = "float32"
  group: int = 1
  rate: str = "float32"
  key: str | None = None
  products: Callable[[Case], int] = lambda case: case.num_active * case.fan_in
  gradients: bool = False
  most: float = 8e9

  @property
  def tolerance(self) -> float:
    """Largest error of a right result."""
    return _ERRORS["bfloat16" if self.dtype == "bfloat16" else self.rate]

  def layer(self, case: Case) -> Condensed:
    """The case's layer as the method sees it: values in its type."""
    with _LOCK:  # methods are prepared side by side, and share it
      condensed = make_layer(case._replace(batch=0, targets=()), self.group)
    return dataclasses.replace(condensed, values=condensed.values.astype(self.dtype))


def _dense_weights(condensed: Condensed) -> tuple[Array, Any]:
  return jax.jit(lambda c: dense.pack_dense(c).matrix)(condensed), condensed.bias


def _apply_dense(x: Array, weights: Any, precision: Any = None) -> Array:
  matrix, bias = weights
  y = jnp.dot(x, matrix, precision=precision, preferred_element_type=jnp.float32)
  return (y + bias[None]).astype(x.dtype)


def _apply_backend(x: Array, layer: Any, name: str, precision: str | None = None) -> Array:
  with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
    return condensed_matmul(x, layer, backend=name)


def _backend(name: str, *, precision: str | None = None, **fields: Any) -> Method:
  dtype = fields.get("dtype", "float32")
  exact = " highest" if precision and name in ("structured", "cuda") else ""
  return Method(
    functools.partial(prepare, backend=name),
    functools.partial(_apply_backend, name=name, precision=precision),
    key=f"{name} gpu {dtype}{exact}",
    **fields,
  )


def _cuda_kernel(kernel: str, *, precision: str | None = None, **fields: Any) -> Method:
  """One of the kernels of "cuda", at any batch size."""

  def apply(x: Array, layer: Any) -> Array:
    with jax.default_matmul_precision(precision):
      return cuda_matmul(x, layer.layouts["cuda"], layer.condensed.bias, kernel=kernel)

  exact = " highest" if precision else ""
  key = f"cuda_{kernel} gpu {fields.get('dtype', 'float32')}{exact}"
  return Method(functools.partial(prepare, backend="cuda"), apply, key=key, **fields)


def _training(name: str, *, precision: str | None = None, **fields: Any) -> Method:
  """Forward and backward of a layer whose values change: the gradients in x and values."""

  def apply(x: Array, layer: Any) -> Array:
    def loss(x: Array, weights: Any) -> Array:
      y = condensed_matmul(x, layer.with_weights(weights), backend=name)
      return (y.astype(jnp.float32) ** 2).sum()

    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
      dx, weights = jax.grad(loss, (0, 1))(x, layer.weights)
    return dx + weights["values"].sum().astype(dx.dtype)

  weights = functools.partial(prepare, backend=name, gradients=True)
  return Method(weights, apply, gradients=True, **fields)


def _dense_training(precision: Any = None, **fields: Any) -> Method:
  def apply(x: Array, weights: Any) -> Array:
    loss = lambda x, weights: (_apply_dense(x, weights, precision).astype(jnp.float32) ** 2).sum()
    dx, (dmatrix, _) = jax.grad(loss, (0, 1))(x, weights)
    return dx + dmatrix.sum().astype(dx.dtype)

  return Method(_dense_weights, apply, products=_all_products, gradients=True, **fields)


def _csr_weights(condensed: Condensed) -> tuple[Any, Any]:
  starts = jnp.full(condensed.out_features, 0, jnp.int32).at[condensed.active].set(condensed.fan_in)
  ends = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(starts, dtype=jnp.int32)])
  indices = condensed.indices.reshape(-1).astype(jnp.int32)
  shape = condensed.out_features, condensed.in_features
  matrix = sparse.BCSR((condensed.values.reshape(-1), indices, ends), shape=shape)
  return matrix, condensed.bias


def _apply_csr(x: Array, weights: Any) -> Array:
  """JAX's CSR product, which is cuSPARSE's where `jax_bcoo_cusparse_lowering` is set."""
  matrix, bias = weights
  return (matrix @ x.T).T + bias[None]


def _all_products(case: Case) -> int:
  return case.in_features * case.out_features


def _active_products(case: Case) -> int:
  return case.in_features * case.num_active


_HIGHEST = jax.lax.Precision.HIGHEST

METHODS: dict[str, Method] = {
  "dense": Method(
    _dense_weights, functools.partial(_apply_dense, precision=_HIGHEST), products=_all_products,
    key="dense gpu float32 highest",
  ),
  "cuda": _backend("cuda", precision="highest"),
  "cuda_tf32": _backend("cuda", rate="tf32"),
  "cuda_bf16": _backend("cuda", dtype="bfloat16", rate="bfloat16"),
  "cuda_gather": _cuda_kernel("gather"),
  "cuda_gather_bf16": _cuda_kernel("gather", dtype="bfloat16", rate="bfloat16"),
  "cuda_tiles": _cuda_kernel("tiles", precision="highest"),
  "cuda_tiles_tf32": _cuda_kernel("tiles", rate="tf32"),
  "cuda_tiles_bf16": _cuda_kernel("tiles", dtype="bfloat16", rate="bfloat16"),
  "pallas": _backend("pallas"),
  "pallas_bf16": _backend("pallas", dtype="bfloat16"),
  "dense_bf16": Method(
    _dense_weights, _apply_dense, "bfloat16", rate="bfloat16", products=_all_products,
    key="dense gpu bfloat16",
  ),
  "csr": Method(_csr_weights, _apply_csr),
  "dense_tf32": Method(
    _dense_weights, _apply_dense, rate="tf32", products=_all_products, key="dense gpu float32",
  ),
  "grouped32_bf16": _backend("grouped", dtype="bfloat16", group=32, rate="bfloat16"),
  "grouped16_bf16": _backend("grouped", dtype="bfloat16", group=16, rate="bfloat16"),
  "structured": _backend("structured", precision="highest", products=_active_products),
  "structured_tf32": _backend("structured", rate="tf32", products=_active_products),
  "structured_bf16": _backend(
    "structured", dtype="bfloat16", rate="bfloat16", products=_active_products
  ),
  "grouped16": _backend("grouped", group=16, rate="tf32"),
  "grouped32": _backend("grouped", group=32, rate="tf32"),
  "xla": _backend("xla"),
}  # fmt: skip
"""By name, the most telling first."""

TRAINING: dict[str, Method] = {
  "cuda_gradients": _training("cuda", precision="highest"),
  "cuda_gradients_tf32": _training("cuda", rate="tf32"),
  "cuda_gradients_bf16": _training("cuda", dtype="bfloat16", rate="bfloat16"),
  "pallas_gradients": _training("pallas"),
  "dense_gradients": _dense_training(_HIGHEST),
  "pallas_gradients_bf16": _training("pallas", dtype="bfloat16"),
  "dense_gradients_bf16": _dense_training(dtype="bfloat16", rate="bfloat16"),
  "grouped32_gradients_bf16": _training("grouped", dtype="bfloat16", group=32, rate="bfloat16"),
}
"""Forward and backward."""


def torch_calls(condensed: Condensed, x: Any, method: str) -> tuple[Callable[[], Any], int]:
  """A call of PyTorch, `torch_dense`, `torch_tf32`, `torch_bf16` or `torch_csr`; and its copies.

  Raises:
    ImportError: if PyTorch is not installed.
    RuntimeError: if it has no GPU.
  """
  torch = importlib.import_module("torch")
  if not torch.cuda.is_available():
    raise RuntimeError("PyTorch is installed without a GPU that it can use.")
  torch.set_grad_enabled(False)
  dtype = torch.bfloat16 if method == "torch_bf16" else torch.float32
  load = lambda array: torch.from_numpy(array).cuda().to(dtype)
  matrix, bias = load(_host_matrix(condensed)), load(jax.device_get(condensed.bias).copy())
  each = matrix.numel() * matrix.element_size()
  if method == "torch_csr":
    matrix = matrix.to_sparse_csr()
    each = 8 * condensed.values.size
  pairs = [(load(x), matrix.clone()) for _ in range(num_copies(each + x.nbytes))]
  turns = itertools.cycle(pairs)

  def call() -> Any:
    torch.backends.cuda.matmul.allow_tf32 = method == "torch_tf32"
    x, matrix = next(turns)
    if method == "torch_csr":
      return (matrix @ x.T).T + bias
    return torch.nn.functional.linear(x, matrix, bias)

  return call, len(pairs)


def _host_matrix(condensed: Condensed) -> Any:
  """The transposed kernel `[N, I]` float32, on the host."""
  matrix, _ = _dense_weights(condensed)
  return jax.device_get(matrix).T.copy()
