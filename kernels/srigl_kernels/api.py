"""The condensed product: backends by name, the choice among them, and its derivative."""

import functools
import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from srigl_kernels import cost, cpu_gradients, dense, reference, xla
from srigl_kernels.epilogue import ACTIVATIONS
from srigl_kernels.format import FLOATS, Condensed, check_structure
from srigl_kernels.geometry import Geometry, check_groups, expand_groups
from srigl_kernels.prepared import Layout, Prepared


class Backend(NamedTuple):
  """One way to compute the product.

  Attributes:
    pack: `(condensed) -> layout`, the arrays that `matmul` reads.
    matmul: `(x [B, I], layout, bias [N] or None, activation) -> y [B, N]` of x's type.
    is_available: whether it can run here.
    packs_traced: whether `pack` also takes traced arrays.
    pack_pattern: `(condensed) -> layout`, all that does not depend on the values; None where
      `pack` is cheap enough for every call.
    with_values: `(layout, values [A, K]) -> layout`, from what `pack_pattern` or `pack` made to
      what `matmul` and `conv` read.
    input_gradient: `(g [B, N], condensed, layout) -> dx [B, I]`.
    values_gradient: `(g [B, N], x [B, I], condensed, layout) -> dvalues [A, K]`.
    conv: `(x [B, *S, C], layout, bias or None, activation, geometry) -> y [B, *S_out, N]`; None if
      it runs a convolution as `patches.conv` with its `matmul`.
    conv_groups: whether `conv` knows groups; to others the layer's are expanded.
  """

  pack: Callable[[Condensed], Layout]
  matmul: Callable[[Array, Layout, Array | None, str | None], Array]
  is_available: Callable[[], bool] = lambda: True
  packs_traced: bool = True
  pack_pattern: Callable[[Condensed], Layout] | None = None
  with_values: Callable[[Layout, Array], Layout] = lambda layout, values: layout
  input_gradient: Callable[[Array, Condensed, Layout], Array] = lambda g, condensed, layout: (
    xla.input_gradient(g, condensed)
  )
  values_gradient: Callable[[Array, Array, Condensed, Layout], Array] = (
    lambda g, x, condensed, layout: xla.values_gradient(g, x, condensed)
  )
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
    pack_pattern=cpu_gradients.pack,
    with_values=cpu_gradients.with_values,
    input_gradient=cpu_gradients.input_gradient,
    values_gradient=cpu_gradients.values_gradient,
    conv=lambda *args: importlib.import_module("srigl_kernels.cpu_conv").conv(*args),
  ),
  "structured": Backend(dense.pack_structured, dense.matmul, conv=dense.conv, conv_groups=True),
  "dense": Backend(dense.pack_dense, dense.matmul, conv=dense.conv, conv_groups=True),
}
"""All backends by name."""


def prepare(
  condensed: Condensed,
  *,
  backend: str | Sequence[str] = "auto",
  batch: int | Sequence[int] | None = None,
  gradients: bool = False,
  feature_group_count: int = 1,
) -> Prepared:
  """Makes the layouts of one or more backends.

  Args:
    condensed: the layer.
    backend: a name in `BACKENDS`, or several in order of preference, or `"auto"`: those that are
      expected to be fastest at some batch size; `condensed_matmul` then takes the fastest in every
      call. On CPU that is decided by `srigl_kernels.cost`, among `cpu` (where it can run) and
      `xla`, `structured`, `dense`; elsewhere `xla` where few weights are left, else a dense matrix.
    batch: for `"auto"`, the batch sizes (rows of x) to expect; by default anything from 1 to 2048.
      Each layout takes memory besides the layer itself: `cpu` two copies of the weights with one
      byte of index each, one of them padded, `xla` one copy, `structured` a dense matrix of the
      active neurons, `dense` the dense kernel.
    gradients: prepares for training: the values may change, as `Prepared` describes, and `cpu` has
      native gradients in x. Costs a permutation of the values in every call and direction, and on
      `cpu` the faster kernel for batches of up to a dozen rows; for inference prepare without.
      `"auto"` then takes one backend, that for the largest batch.
    feature_group_count: of the convolution that will be run with it, 1 for other layers.

  Raises:
    ValueError: if a name is unknown, the backend cannot run here, it packs on the host and the
      layer (with `gradients`: its pattern) is traced, a batch size is negative, or the neurons
      cannot be cut into so many groups.
  """
  check_structure(condensed)
  check_groups(condensed, feature_group_count)
  names, is_automatic = _names(condensed, backend, batch, gradients)
  layouts = {
    name: pack(name, condensed, feature_group_count, gradients=gradients) for name in names
  }
  layouts = {name: layout for name, layout in layouts.items() if layout is not None}
  return Prepared(condensed, layouts, names, is_automatic, gradients, feature_group_count)


def _names(
  condensed: Condensed,
  backend: str | Sequence[str],
  batch: int | Sequence[int] | None,
  gradients: bool,
) -> tuple[tuple[str, ...], bool]:
  """The backends to prepare for, and whether each call chooses the fastest of them."""
  if backend != "auto":
    names: tuple[str, ...] = (backend,) if isinstance(backend, str) else tuple(backend)
    return names, False
  batches = _BATCHES if batch is None else (batch,) if isinstance(batch, int) else tuple(batch)
  if not batches or min(batches) < 0:
    raise ValueError(f"`batch` must be a size, or several, of 0 or more, not {batch!r}.")
  candidates = _candidates(condensed, gradients)
  best = lambda n: _rank(condensed, n, candidates)[0][0]
  if gradients:
    return (best(max(batches)),), False
  return tuple(dict.fromkeys(best(n) for n in batches)), True


def choose_backend(layer: Condensed | Prepared, batch: int = 1) -> tuple[str, str]:
  """What `backend="auto"` runs, and why.

  Args:
    layer: a layer as it would be given to `condensed_matmul`.
    batch: rows of x, all axes but the last taken together. Under `jax.vmap` a call sees the rows of
      one example only; name a backend there if that misleads it.

  Returns:
    `(name, reason)`. Of a layer prepared with `backend="auto"` the layout that is expected to be
    fastest for the batch, of one prepared for backends by name the first of them, of any other
    `xla`: other layouts cost more to make in every call than they save.
  """
  if not isinstance(layer, Prepared) or not layer.preference:
    return "xla", "the layer is not prepared, and this layout is cheap to make in every call"
  if not layer.is_automatic:
    return layer.preference[0], "it is the first backend that the layer was prepared for"
  names = layer.preference
  best = _rank(layer.condensed, batch, names)[0][0]
  if len(names) > 1:
    return best, _expectation(layer.condensed, batch, names)
  others = dict.fromkeys([best, *_candidates(layer.condensed)])
  why = _expectation(layer.condensed, batch, list(others))
  return best, f"it is the only layout that the layer was prepared with; {why}"


def condensed_matmul(
  x: Array,
  layer: Condensed | Prepared,
  *,
  backend: str = "auto",
  activation: str | None = None,
) -> Array:
  """Output of a condensed layer, differentiable in x, values and bias on every backend.

  Give x its batch as leading axes: of a vmapped call the gradient in the values is one gradient for
  every example, added up afterwards.

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
  condensed = check_call(x, layer, activation)
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
  if backend == "auto":
    backend, _ = choose_backend(layer, batch=math.prod(x.shape[:-1]))
  if isinstance(layer, Prepared) and backend in layer.layouts:
    layout = layer.layouts[backend]
  else:
    layout = pack(backend, condensed)
  return _apply(x, condensed, layout, backend=backend, activation=activation)


def check_call(x: Array, layer: Condensed | Prepared, activation: str | None) -> Condensed:
  """The layer that a call is about; raises a ValueError for what no backend takes.

  Args:
    x: the input, of any shape.
    layer: as it was given.
    activation: a name in `ACTIVATIONS`, or None.
  """
  condensed = layer.condensed if isinstance(layer, Prepared) else layer
  check_structure(condensed)
  if activation not in ACTIVATIONS:
    raise ValueError(f"`activation` must be one of {list(ACTIVATIONS)}, not {activation!r}.")
  if x.dtype not in FLOATS:
    raise ValueError(f"`x` must be float32 or bfloat16, not {x.dtype}.")
  return condensed


_BATCHES = tuple(2**i for i in range(12))  # what a layer is prepared for unless it is told


def _candidates(condensed: Condensed, gradients: bool = False) -> list[str]:
  """The backends among which `prepare` chooses; warns if the native one is not installed."""
  names = ["structured" if condensed.num_active < condensed.out_features else "dense", "xla"]
  reads = (condensed.indices, condensed.active) if gradients else condensed
  if BACKENDS["cpu"].is_available() and not _is_traced(reads):
    return ["cpu", *names]
  if jax.default_backend() == "cpu" and _cpu() is None:
    _warn_of_no_cpu_library()
  return names


def _rank(condensed: Condensed, batch: int, names: Sequence[str]) -> list[tuple[str, float]]:
  """Backends with the seconds that they are expected to take, the fastest first."""
  if jax.default_backend() != "cpu":
    # Nothing was measured there: gather where so few weights are left that it won on CPU, too.
    gather = 32 * condensed.fan_in <= condensed.in_features
    first = sorted(names, key=lambda name: (name == "xla") != gather)
    return [(name, math.nan) for name in first]
  # `cost` keeps the constants of the native kernels by CPU target.
  keys = {f"cpu {_cpu().isa()}" if name == "cpu" else name: name for name in names}
  sizes = cost.Sizes(
    condensed.in_features, condensed.out_features, condensed.num_active, condensed.fan_in
  )
  return [(keys[key], seconds) for key, seconds in cost.rank(sizes, batch, list(keys))]


def _expectation(condensed: Condensed, batch: int, names: Sequence[str]) -> str:
  """What was expected of some backends, in words."""
  ranked = _rank(condensed, batch, names)
  if math.isnan(ranked[0][1]):
    return f"a rule of thumb: fan-in {condensed.fan_in} of {condensed.in_features} inputs"
  times = ", ".join(f"{name} {1e6 * seconds:.3g} us" for name, seconds in ranked)
  return f"expected times at batch {batch}: {times}"


@functools.cache
def _warn_of_no_cpu_library() -> None:
  """Warns once per process."""
  warnings.warn(
    "The native CPU kernels are not installed, so condensed layers run on plain XLA, several "
    "times slower. Reinstall srigl-jax on a machine with a C++ compiler: its build makes them "
    "(in a checkout, `pip install -e .`).",
    stacklevel=4,
  )


def pack(
  name: str, condensed: Condensed, feature_group_count: int = 1, *, gradients: bool = False
) -> Layout:
  """The layout of one backend; raises as `prepare` does.

  With `gradients`, None if it is to be made in every call.
  """
  if name not in BACKENDS:
    raise ValueError(f"`backend` must be 'auto' or one of {list(BACKENDS)}, not {name!r}.")
  backend = BACKENDS[name]
  if not backend.is_available():
    raise ValueError(
      f"Backend {name!r} cannot run here: its library is not installed, or jax runs on another "
      f"kind of device ({jax.default_backend()}). backend='auto' takes one that can."
    )
  if gradients and backend.packs_traced:
    return None
  reads = (condensed.indices, condensed.active) if gradients else condensed
  if not backend.packs_traced and _is_traced(reads):
    raise ValueError(
      f"Backend {name!r} lays a layer out on the host and cannot do so with traced arrays: call "
      f"prepare(condensed, backend={name!r}) before, outside of jit, and pass what it returns; "
      "with gradients=True its values may change."
    )
  if not backend.conv_groups:
    condensed = expand_groups(condensed, feature_group_count)
  if gradients and backend.pack_pattern is not None:
    return backend.pack_pattern(condensed)
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
  layout = BACKENDS[backend].with_values(layout, values)
  return BACKENDS[backend].matmul(x, layout, bias, activation)


def _matmul_forward(backend, activation, x, values, bias, condensed, layout):
  current = BACKENDS[backend].with_values(layout, values)
  z = BACKENDS[backend].matmul(x, current, bias, None)
  if activation is None:
    return z, (x, bias, condensed, layout, None)
  y = ACTIVATIONS[activation](z.astype(jnp.float32)).astype(z.dtype)
  return y, (x, bias, condensed, layout, z)


def _matmul_backward(backend, activation, residuals, g):
  x, bias, condensed, layout, z = residuals
  if activation is not None:
    (g,) = jax.vjp(ACTIVATIONS[activation], z)[1](g)
  dx = BACKENDS[backend].input_gradient(g, condensed, layout)
  dvalues = BACKENDS[backend].values_gradient(g, x, condensed, layout)
  dbias = None if bias is None else g.sum(0, dtype=jnp.float32).astype(bias.dtype)
  return dx, dvalues, dbias, None, None


_matmul.defvjp(_matmul_forward, _matmul_backward)
