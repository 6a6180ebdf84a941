"""The CUDA kernels: on a GPU, or emulated where there is none.

The emulation takes half a minute to compile and run: all of it is slow.
"""

import itertools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import auto, condensed_matmul, make_condensed, prepare
from srigl_kernels.backends import grouped
from srigl_kernels.backends.cuda import grouped as cuda_grouped
from srigl_kernels.backends.cuda import layout, library, products
from srigl_kernels.problems import PROBLEMS, Problem, make_problem

MORE = {
  "batch_1": Problem(300, 200, 130, 50, (1,)),
  "batch_2": Problem(300, 200, 130, 50, (2,)),
  "batch_7": Problem(129, 65, 65, 129, (7,)),  # all active, one row and one input beyond a tile
  "batch_9": Problem(300, 200, 130, 50, (9,)),
  "batch_40": Problem(300, 200, 130, 50, (40,)),
  "dense_tiles": Problem(520, 200, 130, 400, (100,)),  # more weights in a tile than threads hold
  "rows_70": Problem(400, 90, 70, 60, (70,)),
  "split": Problem(1100, 100, 70, 600, (33,)),  # blocks of threads share the inputs
}
NAMES = [name for name in (PROBLEMS | MORE) if not name.startswith("vit")]
# How far results may be from the reference, in norms: float32, TF32, bfloat16.
TOLERANCE = {"highest": 1e-6, None: 1e-3, "bfloat16": 5e-3}


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
  """A library whose kernels run on the CPU."""
  if shutil.which("g++") is None:
    pytest.skip("g++ is not there to build the emulated kernels")
  path = tmp_path_factory.mktemp("cuda") / "libsrigl_cuda.so"
  library.build(path, [], emulate=True)
  return path


@pytest.fixture
def kernels(request, monkeypatch):
  """The backend can run: on the GPU, or emulated."""
  if jax.default_backend() != "gpu":
    monkeypatch.setenv(library.LIBRARY, str(request.getfixturevalue("emulated")))
  library._why_not.cache_clear()
  assert library.why_not() is None
  yield
  library._why_not.cache_clear()


def error(actual, expected):
  difference = np.linalg.norm(np.asarray(actual, np.float64) - expected)
  return difference / max(np.linalg.norm(expected), 1e-30)


def check(name, dtype, precision):
  """The product by both kernels and its gradients, against float64."""
  x, condensed = make_problem((PROBLEMS | MORE)[name], dtype=jnp.dtype(dtype))
  x = x.astype(dtype).reshape(-1, condensed.in_features)
  g = np.random.default_rng(1).standard_normal((len(x), condensed.out_features))
  g = jnp.asarray(g, dtype)
  indices, active = np.asarray(condensed.indices), np.asarray(condensed.active)[:, None]
  kernel = np.zeros((condensed.in_features, condensed.out_features))
  kernel[indices, active] = np.asarray(condensed.values, np.float64)
  rows, factors = np.asarray(x, np.float64), np.asarray(g, np.float64)
  y = rows @ kernel + np.asarray(condensed.bias, np.float64)
  tolerance = TOLERANCE["bfloat16" if dtype == "bfloat16" else precision]
  with jax.default_matmul_precision(precision):
    pattern = layout.pack_pattern(condensed)
    packed = layout.with_values(pattern, condensed.values)
    for kind in ("gather", "tiles"):
      got = products.matmul(x, packed, condensed.bias, "relu", kernel=kind)
      assert got.dtype == x.dtype
      exact = TOLERANCE["highest"] if kind == "gather" and dtype == "float32" else tolerance
      assert error(got, np.maximum(y, 0)) < exact, kind
    assert error(products.input_gradient(g, condensed, pattern), factors @ kernel.T) < tolerance
    dvalues = products.values_gradient(g, x, condensed, pattern)
    assert error(dvalues, (rows.T @ factors)[indices, active]) < tolerance


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
  ("dtype", "precision"), [("float32", "highest"), ("float32", None), ("bfloat16", None)]
)
def test_products_and_gradients(kernels, name, dtype, precision):
  check(name, dtype, precision)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("tile", products._TILE_CLOCKS)
def test_every_tile(kernels, monkeypatch, tile, dtype):
  """Each number of rows of x of a block, with its inputs shared among three and not shared."""
  x, condensed = make_problem(MORE["rows_70"], dtype=jnp.dtype(dtype))
  packed = layout.pack(condensed)
  want = condensed_matmul(x, condensed, backend="reference")
  for splits in (1, 3):
    monkeypatch.setattr(products, "_cut", lambda *sizes, splits=splits: (tile, splits))
    products._tiles.cache_clear()
    with jax.default_matmul_precision("highest"):
      got = products.matmul(x.astype(dtype), packed, condensed.bias, kernel="tiles")
    assert (
      error(got, np.asarray(want)) < TOLERANCE["bfloat16" if dtype == "bfloat16" else "highest"]
    )
  products._tiles.cache_clear()


def check_groups(problem, size, dtype, precision):
  """The product of a layer in groups, against float64."""
  x, condensed = make_problem(problem, dtype=jnp.dtype(dtype))
  rows = np.asarray(condensed.indices)
  rows = rows[np.arange(len(rows)) // size * size]
  condensed = make_condensed(
    condensed.values, rows, condensed.active, condensed.bias, kernel_shape=condensed.kernel_shape
  )
  kernel = np.zeros((condensed.in_features, condensed.out_features))
  kernel[rows, np.asarray(condensed.active)[:, None]] = np.asarray(condensed.values, np.float64)
  x = x.astype(dtype)
  want = np.asarray(x, np.float64) @ kernel + np.asarray(condensed.bias, np.float64)
  layer = grouped.group(condensed, size)
  assert layer.pattern.kernels == "cuda"
  with jax.default_matmul_precision(precision):
    got = grouped.matmul(x, layer, condensed.bias)
    other = jnp.float32 if dtype == "bfloat16" else jnp.bfloat16
    mixed = grouped.matmul(x.astype(other), layer, condensed.bias)
  assert error(got, want) < TOLERANCE["bfloat16" if dtype == "bfloat16" else precision]
  assert mixed.dtype == other and error(mixed, want) < TOLERANCE["bfloat16"]


@pytest.mark.slow
@pytest.mark.parametrize("problem", [
  *MORE.values(), Problem(1300, 60, 3, 1, (40,)), Problem(64, 1300, 1290, 9, (200,)),
])  # fmt: skip
@pytest.mark.parametrize("size", cuda_grouped.SIZES)
@pytest.mark.parametrize(
  ("dtype", "precision"), [("float32", "highest"), ("float32", None), ("bfloat16", None)]
)
def test_groups(kernels, problem, size, dtype, precision):
  check_groups(problem, size, dtype, precision)


@pytest.mark.slow
def test_through_the_front_door(kernels):
  """Prepared and not, mixed types, under vmap, and a step of training."""
  x, condensed = make_problem(PROBLEMS["odd_sizes"])
  layer = prepare(condensed, backend="cuda")
  want = condensed_matmul(x, condensed, backend="reference", activation="gelu")
  run = lambda x, layer: condensed_matmul(x, layer, backend="cuda", activation="gelu")
  with jax.default_matmul_precision("highest"):
    np.testing.assert_allclose(run(x, layer), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(run, (0, None))(x, layer), want, rtol=1e-5, atol=1e-5)
    half = run(x.astype(jnp.bfloat16), layer)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), want, rtol=0.03, atol=0.03)

    trained = prepare(condensed, backend="cuda", gradients=True)
    loss = lambda w, layer, name: (
      condensed_matmul(x, layer.with_weights(w), backend=name, activation="relu") ** 2
    ).sum()
    plain = prepare(condensed, backend="reference", gradients=True)
    got = jax.grad(loss)(trained.weights, trained, "cuda")
    expected = jax.grad(loss)(plain.weights, plain, "reference")
  for name in got:
    np.testing.assert_allclose(got[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_layer_without_groups_can_be_packed(dtype):
  _, condensed = make_problem(PROBLEMS["none_active"])
  steps = cuda_grouped.pack(condensed, 16)
  held = cuda_grouped.fragments(jnp.zeros((0, 16, condensed.fan_in), dtype), steps)
  assert held.shape == (0,) and cuda_grouped._as_float32(held, 0, 16).shape == (0,)


def test_tiles_hold_every_weight_once():
  _, condensed = make_problem(MORE["dense_tiles"])
  fan_in = condensed.fan_in
  tiles = layout.pack_pattern(condensed).tiles
  positions, starts, sources = map(np.asarray, (tiles.positions, tiles.starts, tiles.sources))
  found = np.flatnonzero(sources < condensed.values.size)
  assert np.array_equal(np.sort(sources[found]), np.arange(condensed.values.size))
  tile = np.searchsorted(starts, found // 8, side="right") - 1
  chunks = -(-condensed.in_features // layout.TILE_COLUMNS)
  row = tile // chunks * layout.TILE_ROWS + positions[found] // layout.TILE_COLUMNS
  column = tile % chunks * layout.TILE_COLUMNS + positions[found] % layout.TILE_COLUMNS
  assert np.array_equal(row, sources[found] // fan_in)
  assert np.array_equal(column, np.asarray(condensed.indices).reshape(-1)[sources[found]])
  fill = positions[np.setdiff1d(np.arange(positions.size), found)]
  assert (fill == layout.TILE_ROWS * layout.TILE_COLUMNS).all()


def test_lanes_that_write_at_once_meet_few_banks():
  _, condensed = make_problem(Problem(256, 128, 128, 64, (1,)))
  tiles = layout.pack_pattern(condensed).tiles
  starts, positions = np.asarray(tiles.starts), np.asarray(tiles.positions).astype(int)
  row, column = np.divmod(positions, layout.TILE_COLUMNS)
  bank = ((column + 4 * row) % 32).reshape(-1, 8)
  worst = []
  for first, end in itertools.pairwise(starts):
    for group in range(first, end, 32):
      for turn in bank[group : min(group + 32, end)].T:
        worst.append(np.bincount(turn, minlength=32).max())
  assert np.mean(worst) < 2  # 3.5 for positions at random


@pytest.mark.parametrize("itemsize", [2, 4])
@pytest.mark.parametrize("fan_in", [410, 307, 64, 9, 0])
def test_lanes_that_read_at_once_meet_few_banks(fan_in, itemsize):
  rng = np.random.default_rng(0)
  indices = np.sort(rng.random((20, 4096)).argsort(1)[:, :fan_in], 1)
  order = np.asarray(layout.order_rows(jnp.asarray(indices, jnp.uint16), itemsize))
  assert np.array_equal(np.sort(order, 1), np.broadcast_to(np.arange(fan_in), order.shape))
  if fan_in < 100:
    return
  whole = fan_in // 64 * 64
  rows = np.take_along_axis(indices, order, 1)[:, :whole].reshape(20, -1, 8, 8)  # lane, place
  bank = np.asarray(layout.bank_of(rows, itemsize))
  worst = [np.bincount(lanes).max() for lanes in bank.swapaxes(2, 3).reshape(-1, 8)]
  assert np.mean(worst) < 1.3  # 2.6 as they come


def test_without_a_gpu_it_says_what_is_missing(monkeypatch):
  if jax.default_backend() == "gpu":
    pytest.skip("there is a GPU")
  monkeypatch.delenv(library.LIBRARY, raising=False)
  library._why_not.cache_clear()
  x, condensed = make_problem(PROBLEMS["odd_sizes"])
  with pytest.raises(ValueError, match="cannot run here, on cpu: it needs an NVIDIA GPU"):
    condensed_matmul(x, condensed, backend="cuda")
  assert "not on an NVIDIA GPU" in library.why_not()
  library._why_not.cache_clear()


def test_a_gpu_without_nvcc_falls_back_with_one_warning(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr(library, "_architecture", lambda: 90)
  monkeypatch.setattr(shutil, "which", lambda *args, **kwargs: None)
  monkeypatch.delenv(library.LIBRARY, raising=False)
  library._why_not.cache_clear()
  auto._warn_of_no_cuda.cache_clear()
  _, condensed = make_problem(PROBLEMS["odd_sizes"])
  with pytest.warns(UserWarning, match="nvcc, the CUDA compiler, is neither on PATH") as caught:
    names = auto.candidates(condensed)
    auto.candidates(condensed)
  assert "pallas" in names and "cuda" not in names and len(caught) == 1
  library._why_not.cache_clear()


def test_a_library_that_does_not_load_is_told(monkeypatch, tmp_path):
  monkeypatch.setenv(library.LIBRARY, str(tmp_path / "missing.so"))
  library._why_not.cache_clear()
  assert "missing.so" in library.why_not() and not library.is_available()
  library._why_not.cache_clear()


def test_too_large_a_batch_is_refused():
  with pytest.raises(ValueError, match="takes up to 3145680 rows of x at once"):
    products._cut(2**30, 1024, 1024)
