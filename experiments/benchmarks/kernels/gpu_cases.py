"""The layers of the GPU benchmark, at given batch sizes, and what their results should be."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from srigl_kernels.format import Condensed, make_condensed
from srigl_kernels.problems import LAYERS

_DRAWN_ROWS = 20_000  # of larger layers so many rows are drawn, and repeated


class Case(NamedTuple):
  """A layer and a batch size.

  Attributes:
    layer: its name.
    in_features: `I`.
    out_features: `N`.
    num_active: `A`.
    fan_in: `K`.
    batch: rows of x.
    targets: `(slower, faster, at least)`: how many times faster a method should be than another.
  """

  layer: str
  in_features: int
  out_features: int
  num_active: int
  fan_in: int
  batch: int
  targets: tuple[tuple[str, str, float], ...] = ()

  @property
  def name(self) -> str:
    """For tables."""
    return f"{self.layer} batch {self.batch}"


_TINY = {
  "vit_ffn_up": (24, 60, 35, 6),
  "vit_ffn_down": (60, 24, 24, 6),
  "wide": (64, 48, 48, 8),
  "square_90": (48, 40, 40, 6),
  "square_95": (48, 40, 40, 3),
  "classes": (12, 70, 70, 3),
}
# Of each layer its batch sizes, the most telling cells first.
_BATCHES = (
  ("vit_ffn_up", (256, 1)),
  ("vit_ffn_down", (256, 1)),
  ("wide", (1, 16)),
  ("classes", (1,)),
  ("vit_ffn_up", (64, 16, 2048)),
  ("vit_ffn_down", (64, 16, 2048)),
  ("wide", (64, 512)),
  ("classes", (64,)),
  ("square_90", (1, 8, 16, 64, 256, 1024)),
  ("square_95", (1, 8, 16, 64, 256, 1024)),
  ("vit_ffn_up", (8, 1024, 512, 4)),
  ("vit_ffn_down", (8, 1024, 512, 4)),
)


def cases(tiny: bool = False) -> list[Case]:
  """All cells, the most telling first; `tiny` ones are for trying the program."""
  layers = _TINY if tiny else {name: layer[:4] for name, layer in LAYERS.items()}
  found = [
    Case(layer, *layers[layer], batch, _targets(layer, batch))
    for layer, batches in _BATCHES
    for batch in batches
  ]
  if tiny:
    return [case._replace(batch=min(case.batch, 18)) for case in found[:3]]
  return found


def _targets(layer: str, batch: int) -> tuple[tuple[str, str, float], ...]:
  """Ratios that the kernels should reach on an H100 or H200, all of one run."""
  found: list[tuple[str, str, float]] = []
  if layer.startswith("vit") and batch <= 256:
    dense, csr = (2.0, 15.0) if batch == 256 else (1.0, 1.5)
    found = [("dense", "cuda", dense), ("csr", "cuda", csr)]
    found += [("dense_tf32", "cuda_tf32", 1.0), ("structured_tf32", "cuda_tf32", 1.0)]
    found += [("dense_bf16", "cuda_bf16", 1.0), ("structured_bf16", "cuda_bf16", 1.0)]
  if layer == "wide" and batch <= 16:
    found = [("dense", "cuda", 6.0), ("csr", "cuda", 2.0), ("dense_bf16", "cuda_bf16", 4.0)]
  if batch >= 512 and layer != "classes":
    found += [("dense_bf16", "grouped32_bf16", 2.0)]
  return tuple(found)


@functools.lru_cache(maxsize=8)
def make_layer(case: Case, group: int = 1) -> Condensed:
  """A random layer in float32, of the case with batch 0 so that its batches share it.

  Args:
    case: sizes.
    group: active neurons that share their inputs.
  """
  rng = np.random.default_rng(0)
  num_rows = -(-case.num_active // group)
  drawn = rng.random((min(num_rows, _DRAWN_ROWS), case.in_features), dtype=np.float32)
  rows = np.sort(np.argpartition(drawn, case.fan_in - 1, axis=1)[:, : case.fan_in], axis=1)
  rows = np.resize(rows, (num_rows, case.fan_in))
  values = rng.standard_normal((case.num_active, case.fan_in), dtype=np.float32)
  return make_condensed(
    values / np.float32(np.sqrt(case.fan_in)),
    np.repeat(rows, group, axis=0)[: case.num_active],
    np.sort(rng.permutation(case.out_features)[: case.num_active]),
    rng.standard_normal(case.out_features, dtype=np.float32),
    kernel_shape=(case.in_features, case.out_features),
  )


def expected_rows(x: np.ndarray, condensed: Condensed) -> np.ndarray:
  """Some rows of the product in float64, from what the arrays hold in their types.

  Args:
    x: `[rows, I]`.
    condensed: the layer.
  """
  values = np.asarray(condensed.values.astype(jnp.float32), np.float64)
  indices = np.asarray(condensed.indices)
  y = np.zeros((len(x), condensed.out_features))
  for row, out in zip(np.asarray(x, np.float64), y, strict=True):
    out[np.asarray(condensed.active)] = np.einsum("ak,ak->a", values, row[indices])
  if condensed.bias is not None:
    y += np.asarray(condensed.bias, np.float64)
  return y


def error(actual: np.ndarray, expected: np.ndarray) -> float:
  """The norm of the error over that of what was expected; nan if anything is not finite."""
  difference = float(np.linalg.norm(np.asarray(actual, np.float64) - expected))
  return difference / max(float(np.linalg.norm(expected)), 1e-30)
