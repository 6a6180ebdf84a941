"""PyTorch's compiler on the dense twin."""

import functools
import importlib
from typing import Any

import numpy as np

from experiments.benchmarks.serving.cases import NETWORKS
from experiments.benchmarks.serving.engine import Arrays, Call, Engine, Task
from experiments.benchmarks.serving.torch_ops import torch_module


def make(task: Task) -> Engine:
  """The engine; constants are frozen into the compiled program, layouts chosen for them."""
  torch = importlib.import_module("torch")
  torch.set_num_threads(task.threads)
  weights = dict(np.load(task.folder / "weights.npz"))
  network = NETWORKS[task.network]
  num_inputs = len(network.inputs(1))
  module = torch_module(lambda ops, *x: network.twin(ops, weights, *x), num_inputs)
  compiled: Any = torch.compile(module, dynamic=False, options={"freezing": True})

  def prepare(inputs: Arrays) -> Call:
    tensors = [torch.from_numpy(np.ascontiguousarray(x)) for x in inputs]
    return torch.inference_mode()(functools.partial(compiled, *tensors))

  return Engine(prepare)
