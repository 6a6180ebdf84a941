"""PyTorch's dense layers, and sparselab's sparse ones, with Adam; where they can be imported.

sparselab trains what it stores sparsely: padded rows of values and indices. Its topology updates
(SET) are another algorithm than ours and are not timed.
"""

import importlib
import os
from collections.abc import Callable
from typing import Any

from experiments.benchmarks.sparse_training.cases import Case
from experiments.benchmarks.sparse_training.engine import (
  BACKWARD,
  FORWARD,
  LEARNING_RATE,
  OPTIMIZER,
  STEP,
  Engine,
)


def torch_dense(case: Case) -> Engine:
  """PyTorch's `nn.Linear`."""
  torch = importlib.import_module("torch")
  return _engine(case, torch, torch.nn.Linear)


def sparselab(case: Case) -> Engine:
  """The `SparseLinear` of sparselab."""
  torch = importlib.import_module("torch")
  module = importlib.import_module("sparselab")
  return _engine(case, torch, lambda i, n: module.SparseLinear(i, n, sparsity=case.sparsity))


def _engine(case: Case, torch: Any, make: Callable[[int, int], Any]) -> Engine:
  torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
  torch.manual_seed(0)
  layers = torch.nn.ModuleDict({name: make(i, n) for name, (i, n) in case.layers.items()})
  parameters = [p for p in layers.parameters() if p.requires_grad]
  sizes = list(case.layers.values())
  x, target = (torch.randn(case.batch, n) for n in (sizes[0][0], sizes[-1][1]))
  optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True)
  losses: list[Any] = []

  def forward() -> None:
    losses[:] = [((_outputs(case, torch, layers, x) - target) ** 2).mean()]

  def backward() -> None:
    optimizer.zero_grad(set_to_none=True)
    losses[0].backward()

  def step() -> float:
    forward()
    backward()
    if case.kind != "vit":
      optimizer.step()
    return float(losses[0].detach())

  step()  # the moments are made
  moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
  gradients = [p.grad for p in parameters]
  tensors = [*parameters, *layers.buffers(), *gradients, *moments]
  num_bytes = sum(t.numel() * t.element_size() for t in tensors)
  num_bytes += sum(_index_bytes(layer) for layer in layers.values())
  calls: dict[str, Callable[[], Any]] = {STEP: step}
  if case.kind == "vit":
    return Engine(calls, num_bytes)
  calls |= {FORWARD: forward, BACKWARD: backward, OPTIMIZER: optimizer.step}
  return Engine(calls, num_bytes, prepare={BACKWARD: forward})


def _outputs(case: Case, torch: Any, layers: Any, x: Any) -> Any:
  if case.kind == "vit":
    attended = layers["out"](layers["qkv"](x)[:, : x.shape[-1]])
    return layers["down"](torch.nn.functional.gelu(layers["up"](attended), approximate="tanh"))
  *hidden, last = case.layers
  for name in hidden:
    x = torch.relu(layers[name](x))
  return layers[last](x)


def _index_bytes(layer: Any) -> int:
  """Of what sparselab stores beside its values."""
  rows = getattr(layer, "_csr", None)
  if rows is None:
    return 0
  arrays = (getattr(rows, name) for name in ("col_indices", "row_start", "row_nnz", "row_capacity"))
  return sum(array.nbytes for array in arrays)
