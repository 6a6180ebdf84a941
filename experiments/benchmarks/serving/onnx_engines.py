"""ONNX Runtime and OpenVINO on the dense twin's ONNX file."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.benchmarks.serving.cases import ENGINES
from experiments.benchmarks.serving.engine import Arrays, Call, Engine, Task


def make(task: Task) -> Engine:
  """The engine; the file it needs is there, see `preparation`."""
  precision = ENGINES[task.engine].precision
  is_openvino = task.engine.startswith("openvino")
  name = "model.onnx"
  if precision == "int8":
    name = "int8_static.onnx" if is_openvino else "int8.onnx"
  path = task.folder / name
  return (_openvino if is_openvino else _onnxruntime)(path, precision, task.threads)


def _onnxruntime(path: Path, precision: str, threads: int) -> Engine:
  import onnxruntime as ort

  sessions: dict[Any, Any] = {}

  def prepare(inputs: Arrays) -> Call:
    batch = inputs[0].shape[0]
    if batch not in sessions:
      options = ort.SessionOptions()
      options.intra_op_num_threads = threads
      options.add_free_dimension_override_by_name("batch", batch)
      options.log_severity_level = 3
      sessions[batch] = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feeds = _named(inputs)
    return lambda: sessions[batch].run(None, feeds)

  return Engine(prepare)


def _openvino(path: Path, precision: str, threads: int) -> Engine:
  import openvino as ov

  core = ov.Core()
  config = {
    "INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32",
    "INFERENCE_NUM_THREADS": str(threads),
    "PERFORMANCE_HINT": "LATENCY",
  }
  compiled: dict[Any, Any] = {}
  making = threading.Lock()

  def prepare(inputs: Arrays) -> Call:
    batch = inputs[0].shape[0]
    with making:
      if batch not in compiled:
        model = core.read_model(path)
        model.reshape({name: x.shape for name, x in _named(inputs).items()})
        compiled[batch] = core.compile_model(model, "CPU", config)
      request = compiled[batch].create_infer_request()
    feeds = _named(inputs)
    outputs = compiled[batch].outputs

    def call() -> list[np.ndarray]:
      found = request.infer(feeds, share_inputs=True, share_outputs=True)
      return [found[output] for output in outputs]

    return call

  return Engine(prepare)


def quantize(
  path: Path, examples: Iterator[Arrays], *, static: bool, only_products: bool = False
) -> Path:
  """Writes the int8 form of an ONNX file beside it, if it is not there.

  Args:
    path: of the float32 file.
    examples: inputs, over which a static form takes the ranges of activations.
    static: whether activations are quantized by constants (QDQ, weights by channel), or by their
      own range whenever a linear layer is called.
    only_products: whether a static form leaves other operations than products in float32, as is
      usual for transformers, whose norms and activations lose too much.
  """
  from onnxruntime import quantization as q

  out = path.with_name("int8_static.onnx" if static else "int8_dynamic.onnx")
  if out.exists():
    return out
  if not static:
    q.quantize_dynamic(path, out, weight_type=q.QuantType.QInt8, per_channel=True)
    return out

  class Reader(q.CalibrationDataReader):
    def get_next(self) -> Any:
      inputs = next(examples, None)
      return None if inputs is None else _named(inputs)

  q.quantize_static(
    path, out, Reader(), quant_format=q.QuantFormat.QDQ, per_channel=True,
    activation_type=q.QuantType.QUInt8, weight_type=q.QuantType.QInt8,
    op_types_to_quantize=["MatMul", "Conv"] if only_products else None,
  )  # fmt: skip
  return out


def _named(inputs: Arrays) -> dict[str, np.ndarray]:
  return {f"input{i}": np.ascontiguousarray(x) for i, x in enumerate(inputs)}
