"""What the engines of a network are given: files that are made once and then stay in a folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from experiments.benchmarks.serving import models
from experiments.benchmarks.serving.cases import NETWORKS, TWIN_SPARSITY, Network, calibration
from experiments.benchmarks.serving.engine import Arrays
from experiments.benchmarks.serving.jax_engines import dense
from experiments.models.functional import flatten


def prepare(name: str, folder: Path, sparsities: Sequence[float], engines: Sequence[str]) -> None:
  """Writes the outputs of the dense network for each sparsity, and the twin's weights and files.

  Args:
    name: of the network.
    folder: is made; what is there stays.
    sparsities: of the network.
    engines: that will be used.
  """
  network = NETWORKS[name]
  folder.mkdir(parents=True, exist_ok=True)
  for sparsity in {*sparsities, TWIN_SPARSITY}:
    path = expected_path(folder, sparsity)
    weights_path = folder / "weights.npz"
    if path.exists() and (sparsity != TWIN_SPARSITY or weights_path.exists()):
      continue
    model, _ = models.build(network.make, sparsity, network.distribution)
    if sparsity == TWIN_SPARSITY:
      weights: dict[str, Any] = {k: np.asarray(x) for k, x in flatten(nnx.state(model)).items()}
      np.savez(weights_path, **weights)
    outputs = jax.tree.leaves(dense(model).prepare(network.inputs(1))())
    np.savez(path, *map(np.asarray, outputs))
  if any(engine.startswith(("ort", "openvino")) for engine in engines):
    _write_onnx(network, folder, engines)


def expected_path(folder: Path, sparsity: float) -> Path:
  """The file of the dense network's outputs for `inputs(1)`."""
  return folder / f"expected_{sparsity:g}.npz"


def for_rivals(network: Network, batch: int, inputs: Arrays | None = None) -> Arrays:
  """Inputs of the dense twin: those of JAX, images with their channels first."""
  inputs = network.inputs(batch) if inputs is None else inputs
  if inputs[0].ndim != 4:
    return inputs
  return (np.ascontiguousarray(inputs[0].transpose(0, 3, 1, 2)),)


def _write_onnx(network: Network, folder: Path, engines: Sequence[str]) -> None:
  from experiments.benchmarks.serving.onnx_engines import quantize
  from experiments.benchmarks.serving.onnx_ops import write_onnx

  path = folder / "model.onnx"
  one, two = (for_rivals(network, batch) for batch in (1, 2))
  if not path.exists():
    weights = dict(np.load(folder / "weights.npz"))
    shapes = [
      ["batch" if a != b else a for a, b in zip(x.shape, y.shape, strict=True)]
      for x, y in zip(one, two, strict=True)
    ]
    twin = lambda ops, *x: network.twin(ops, weights, *x)
    write_onnx(twin, shapes, [x.dtype for x in one], path)
  examples = [for_rivals(network, 1, example) for example in calibration(network)]
  if "ort-int8" in engines:
    made = quantize(path, iter(examples), static=network.is_image)
    target = folder / "int8.onnx"
    if not target.exists():
      target.symlink_to(made.name)
  if "openvino-int8" in engines:
    quantize(path, iter(examples), static=True, only_products=not network.is_image)
