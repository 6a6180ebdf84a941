"""The condensed product: backends by name, the choice among them, and its derivative."""

import dataclasses
import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels import dense, reference, xla
from srigl_kernels.epilogue import ACTIVATIONS
from srigl_kernels.format import FLOATS, Condensed, check_structure
from srigl_kernels.geometry import Geometry, check_groups, expand_groups

Layout = Any  # a pytree of arrays, each backend its own


class Backend(NamedTuple):
  """One way to compute the product.

  Attributes:
    pack: `(condensed) -> layout`, the arrays that `matmul` reads.
    matmul: `(x [B, I], layout, bias [N] or None, activation) -> y [B, N]` of x's type.
    is_available: whether it can run here.
    packs_traced: whether `pack` also takes traced arrays.
    input_gradient: `(g [B, N], condensed) -> dx [B, I]`.
    values_gradient: `(g [B, N], x [B, I], condensed) -> dvalues [A, K]`.
    conv: `(x [B, *S, C], layout, bias or None, activation, geometry) -> y [B, *S_out, N]`; None if
      it runs a convolution as `patches.conv` with its `matmul`.
    conv_groups: whether `conv` knows groups; to others the layer's are expanded.
  """

  pack: Callable[[Condensed], Layout]
  matmul: Callable[[Array, Layout, Array | None, str | None], Array]
  is_available: Callable[[], bool] = lambda: True
  packs_traced: bool = True
  input_gradient: Callable[[Array, Condensed], Array] = xla.input_gradient
  values_gradient: Callable[[Array, Array, Condensed], Array] = xla.values_gradient
  conv: Callable[[Array, Layout, Array | None, str | None, Geometry], Array] | None = None
  conv_groups: bool = False


@functools.cache
def _cpu() -> Any:
  """The module of the native CPU kernels if it is there and its library loads, else None."""
  try:
    cpu = importlib.import_module("srigl_kernels.cpu")
    return cpu if cpu.is_available() else None
  except (ImportError, OSError):  # OSError: the library is there but does not load
    return None


def _pack_cpu(condensed: Condensed) -> Layout:
  return _cpu().pack(
    condensed.values,
    condensed.indices,
    condensed.active,
    condensed.in_features,
    condensed.out_features,
  )


BACKENDS: dict[str, Backend] = {
  "reference": Backend(lambda condensed: condensed, reference.matmul),
  "xla": Backend(xla.pack, xla.matmul),
  "cpu": Backend(
    _pack_cpu,
    lambda *args: _cpu().matmul(*args),
    is_available=lambda: _cpu() is not None and jax.default_backend() == "cpu",
    packs_traced=False,
    conv=lambda *args: importlib.import_module("srigl_kernels.cpu_conv").conv(*args),
  ),
  "structured": Backend(dense.pack_structured, dense.matmul, conv=dense.conv, conv_groups=True),
  "dense": Backend(dense.pack_dense, dense.matmul, conv=dense.conv, conv_groups=True),
}
"""All backends by name."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Prepared:
  """A layer with the layouts that backends read, so that these are not made in every call.

  A pytree; `prepare` makes one. The layouts are a function of `condensed.values`: gradients are
  reported in `condensed.values`, and after a change of the values it must be prepared again.

  Attributes:
    condensed: the layer.
    layouts: by name of the backend.
    preference: the same names in the order in which `backend="auto"` takes them.
    feature_group_count: groups of the convolution that it was prepared for.
  """

  condensed: Condensed
  layouts: dict[str, Layout]
  preference: tuple[str, ...] = dataclasses.field(metadata={"static": True})
  feature_group_count: int = dataclasses.field(default=1, metadata={"static": True})


def prepare(
  condensed: Condensed, *, backend: str | Sequence[str] = "auto", feature_group_count: int = 1
) -> Prepared:
  """Makes the layouts of one or more backends.

  Args:
    condensed: the layer.
    backend: a name in `BACKENDS`, or several in order of preference, or `"auto"`: `cpu` where it
      can run; without it, where gathering costs more than the products it saves, a dense matrix
      (`structured`, or `dense` if all neurons are active), else `xla`.
    feature_group_count: of the convolution that will be run with it, 1 for other layers.

  Raises:
    ValueError: if a name is unknown, the backend cannot run here, it packs on the host and the
      layer is traced, or the neurons cannot be cut into so many groups.
  """
  check_structure(condensed)
  check_groups(condensed, feature_group_count)
  if backend == "auto":
    names: tuple[str, ...] = (_prefer(condensed),)
  else:
    names = (backend,) if isinstance(backend, str) else tuple(backend)
  layouts = {name: pack(name, condensed, feature_group_count) for name in names}
  return Prepared(condensed, layouts, names, feature_group_count)


def choose_backend(layer: Condensed | Prepared) -> tuple[str, str]:
  """What `backend="auto"` runs, and why.

  Args:
    layer: a layer as it would be given to `condensed_matmul`.

  Returns:
    `(name, reason)`. Of a prepared layer the first backend that it was prepared for, of any other
    `xla`: other layouts cost more to make in every call than they save.
  """
  if isinstance(layer, Prepared) and layer.preference:
    return layer.preference[0], "it is the first backend that the layer was prepared for"
  return "xla", "the layer is not prepared, and this layout is cheap to make in every call"


def condensed_matmul(
  x: Array,
  layer: Condensed | Prepared,
  *,
  backend: str = "auto",
  activation: str | None = None,
) -> Array:
  """Output of a condensed layer, differentiable in x, values and bias on every backend.

  Sums, bias and activation are in float32 whatever the types of x and values. An infinite or
  NaN input may also reach neurons that have no weight for it, as it does in a dense layer.

  Args:
    x: `[..., I]` float32 or bfloat16.
    layer: the layer. A `Condensed` is laid out in every call, which for `backend="cpu"` takes
      longer than the product: `prepare` it once, outside of jit, and pass what that returns.
    backend: a name in `BACKENDS`, or `"auto"`: see `choose_backend`.
    activation: None, `"relu"` or `"gelu"` (its tanh form, the default of `jax.nn.gelu`).

  Returns:
    `[..., N]` of x's type; outputs of ablated neurons are their bias, activation applied.

  Raises:
    ValueError: if shapes, types or names are not as above, or the backend cannot run here.
  """
  condensed = layer.condensed if isinstance(layer, Prepared) else layer
  check_structure(condensed)
  if activation not in ACTIVATIONS:
    raise ValueError(f"`activation` must be one of {list(ACTIVATIONS)}, not {activation!r}.")
  if isinstance(layer, Prepared) and layer.feature_group_count != 1:
    raise ValueError(
      f"The layer was prepared for a convolution of {layer.feature_group_count} groups: run it by "
      "`condensed_conv`, or prepare it without `feature_group_count`."
    )
  if x.ndim < 1 or x.shape[-1] != condensed.in_features:
    raise ValueError(
      f"The last axis of `x` must be the layer's {condensed.in_features} inputs, but x has shape "
      f"{x.shape}."
    )
  if x.dtype not in FLOATS:
    raise ValueError(f"`x` must be float32 or bfloat16, not {x.dtype}.")
  if backend == "auto":
    backend, _ = choose_backend(layer)
  if isinstance(layer, Prepared) and backend in layer.layouts:
    layout = layer.layouts[backend]
  else:
    layout = pack(backend, condensed)
  return _apply(x, condensed, layout, backend=backend, activation=activation)


def _prefer(condensed: Condensed) -> str:
  """The backend to prepare for; see `prepare`."""
  if BACKENDS["cpu"].is_available() and not _is_traced(condensed):
    return "cpu"
  if jax.default_backend() == "cpu" and _cpu() is None:
    _warn_of_no_cpu_library()
  # Batch 1 to 256 on 4 cores of a Zen 5, shared with other work: gathering won at a fan-in of 21
  # of 768 and 31 of 3072 inputs, and mostly lost at 206 and 307.
  if 32 * condensed.fan_in <= condensed.in_features:
    return "xla"
  return "structured" if condensed.num_active < condensed.out_features else "dense"


@functools.cache
def _warn_of_no_cpu_library() -> None:
  """Warns once per process."""
  warnings.warn(
    "The native CPU kernels are not installed, so condensed layers run on plain XLA, several "
    "times slower. Reinstall srigl-jax on a machine with a C++ compiler: its build makes them "
    "(in a checkout, `pip install -e .`).",
    stacklevel=4,
  )


def pack(name: str, condensed: Condensed, feature_group_count: int = 1) -> Layout:
  """The layout of one backend; raises as `prepare` does."""
  if name not in BACKENDS:
    raise ValueError(f"`backend` must be 'auto' or one of {list(BACKENDS)}, not {name!r}.")
  backend = BACKENDS[name]
  if not backend.is_available():
    raise ValueError(
      f"Backend {name!r} cannot run here: its library is not installed, or jax runs on another "
      f"kind of device ({jax.default_backend()}). backend='auto' takes one that can."
    )
  if not backend.packs_traced and _is_traced(condensed):
    raise ValueError(
      f"Backend {name!r} lays a layer out on the host and cannot do so with traced arrays: call "
      f"prepare(condensed, backend={name!r}) before, outside of jit, and pass what it returns."
    )
  if not backend.conv_groups:
    condensed = expand_groups(condensed, feature_group_count)
  return backend.pack(condensed)


def _is_traced(tree: Any) -> bool:
  return any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tree))


@functools.partial(jax.jit, static_argnames=("backend", "activation"))
def _apply(x, condensed: Condensed, layout: Layout, *, backend: str, activation: str | None):
  rows = x.reshape(-1, condensed.in_features)
  y = _matmul(backend, activation, rows, condensed.values, condensed.bias, condensed, layout)
  return y.reshape(*x.shape[:-1], condensed.out_features)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _matmul(backend, activation, x, values, bias, condensed, layout):
  """The product of `x` `[B, I]`: a function of `values` and `bias` to differentiation only."""
  return BACKENDS[backend].matmul(x, layout, bias, activation)


def _matmul_forward(backend, activation, x, values, bias, condensed, layout):
  z = BACKENDS[backend].matmul(x, layout, bias, None)
  if activation is None:
    return z, (x, bias, condensed, None)
  y = ACTIVATIONS[activation](z.astype(jnp.float32)).astype(z.dtype)
  return y, (x, bias, condensed, z)


def _matmul_backward(backend, activation, residuals, g):
  x, bias, condensed, z = residuals
  if activation is not None:
    (g,) = jax.vjp(ACTIVATIONS[activation], z)[1](g)
  dx = BACKENDS[backend].input_gradient(g, condensed)
  dvalues = BACKENDS[backend].values_gradient(g, x, condensed)
  dbias = None if bias is None else g.sum(0, dtype=jnp.float32).astype(bias.dtype)
  return dx, dvalues, dbias, None, None


_matmul.defvjp(_matmul_forward, _matmul_backward)
