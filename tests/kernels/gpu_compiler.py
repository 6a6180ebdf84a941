"""Compiles kernels and a training step for an H100, on a machine that has none.

    python -m tests.kernels.gpu_compiler FOLDER [NAME ...]

It needs jax's CUDA plugin on the path, of jax's version; test_gpu_compiler.py puts it there. Runs
nothing: XLA compiles for a device that is described and not present. For each case FOLDER gets
`NAME.hlo`, the optimised program, and `NAME/`, what XLA dumped, with the PTX of every kernel,
Pallas' as well.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

from srigl_kernels import make_condensed
from srigl_kernels.backends import dense, grouped
from srigl_kernels.backends.pallas import gpu
from srigl_kernels.conv_geometry import Geometry
from srigl_kernels.problems import LAYERS

NAME = "NVIDIA H100 80GB HBM3"
# What XLA asks of a device, as `xla.gpu.GpuTargetConfigProto`: NVIDIA's figures for the SXM5 card.
_H100 = f"""
gpu_device_info {{
  name: "{NAME}"
  device_vendor: "NVIDIA Corporation"
  platform_version: "Compute Capability 9.0a"
  cuda_compute_capability {{ major: 9 }}
  core_count: 132
  fpus_per_core: 128
  clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000
  pcie_bandwidth: 34359738368
  device_memory_size: 84942979072
  l2_cache_size: 52428800
  device_address_bits: 64
  ecc_enabled: true
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  registers_per_block_limit: 65536
  registers_per_core_limit: 65536
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{NAME}"
"""

Case = tuple[Callable[..., Any], tuple[Any, ...]]


def compile_for_h100(function: Callable[..., Any], args: tuple[Any, ...], dump: Path) -> Any:
  """The compiled function of arrays, or of their shapes; `dump` gets the PTX of its kernels."""
  described = topologies.get_topology_desc(
    "h100", platform="cuda", target_config=_H100, topology="1x1x1"
  )
  place = SingleDeviceSharding(described.devices[0])
  on_it = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  device = AbstractDevice(device_kind=NAME, num_cores=132, platform="gpu")
  asked, jax.default_backend = jax.default_backend, lambda: "gpu"  # code that asks is told so
  try:
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=device)):
      traced = jax.jit(function).trace(*jax.tree.map(on_it, args))
      lowered = traced.lower(lowering_platforms=("cuda",))
    return lowered.compile({"xla_dump_to": str(dump), "xla_dump_emitter_re": ".*"})
  finally:
    jax.default_backend = asked


def product(layer: str, batch: int, dtype: str) -> Case:
  """A layer's product by Pallas, packed beforehand."""
  condensed, layout = _packed(layer, dtype)
  x = jax.ShapeDtypeStruct((batch, LAYERS[layer].in_features), dtype)
  return lambda x, layout, bias: gpu.matmul(x, layout, bias, "relu"), (x, layout, condensed.bias)


def gradients(layer: str, batch: int, dtype: str) -> Case:
  """The gradients of a product in x and in the values, by Pallas."""
  condensed, _ = _packed(layer, dtype)
  pattern = jax.eval_shape(gpu.pack_pattern, condensed)
  x, g = (jax.ShapeDtypeStruct((batch, n), dtype) for n in LAYERS[layer][:2])

  def run(g: Any, x: Any, condensed: Any, pattern: Any) -> Any:
    dx = gpu.input_gradient(g, condensed, pattern)
    return dx, gpu.values_gradient(g, x, condensed, pattern)

  return run, (g, x, condensed, pattern)


def in_groups(size: int, batch: int, dtype: str) -> Case:
  """The product of a layer whose neurons share their inputs in groups, by Pallas."""
  num_inputs, num_groups, fan_in = 768, 64, 206
  rng = np.random.default_rng(0)
  rows = np.stack([np.sort(rng.permutation(num_inputs)[:fan_in]) for _ in range(num_groups)])
  values = jnp.zeros((num_groups * size, fan_in), dtype)
  condensed = make_condensed(
    values,
    rows.repeat(size, 0),
    np.arange(len(values)),
    jnp.zeros(len(values)),
    kernel_shape=(num_inputs, len(values)),
  )
  layer = grouped.group(condensed, size)
  layer = dataclasses.replace(layer, pattern=dataclasses.replace(layer.pattern, kernels="gpu"))
  x = jax.ShapeDtypeStruct((batch, num_inputs), dtype)
  return lambda x, layer, bias: grouped.matmul(x, layer, bias, "relu"), (x, layer, condensed.bias)


def convolution(dtype: str) -> Case:
  """A 3×3 convolution by the dense kernel of its active neurons."""
  x = jax.ShapeDtypeStruct((128, 32, 32, 64), dtype)
  matrix = jax.ShapeDtypeStruct((9 * 64, 64), dtype)
  layout = dense.Structured(matrix, jax.ShapeDtypeStruct((64,), jnp.int32))
  geometry = Geometry((3, 3), (1, 1), (1, 1), ((1, 1), (1, 1)), 1)
  return lambda x, layout: dense.conv(x, layout, None, "relu", geometry), (x, layout)


def training_step(network: str) -> Case:
  """A step of SRigL with its topology update, as `configs/sweeps/gpu.py` trains."""
  from configs.sweeps import gpu as sweeps
  from experiments.processes.sharding import AXIS
  from experiments.sweeps.spec import expand
  from experiments.training.setup import prepare

  config = next(c for name, c in expand(sweeps.get_config(network)).items() if "srigl/" in name)
  with config.unlocked():
    config.data.name = "synthetic"
    config.data.kwargs = {"image_shape": (32, 32, 3), "num_train": 1024, "num_test": 128}
  run, state = prepare(config)
  x = jax.ShapeDtypeStruct((config.data.batch_size, 32, 32, 3), "float32")
  y = jax.ShapeDtypeStruct((config.data.batch_size, 10), "float32")

  def step(state: Any, x: Any, y: Any) -> Any:
    key = jax.random.key(0)
    found = run.engine.gradients(lambda logits: run.task.loss(logits, y), state, x, key)
    return run.engine.update(found.grads, state._replace(model_state=found.model_state))[0]

  one_device = {"in_axes": None, "out_axes": None, "axis_size": 1, "axis_name": AXIS}
  return jax.vmap(step, **one_device), (state, x, y)


def _packed(layer: str, dtype: str) -> tuple[Any, Any]:
  """Shapes of a layer, and of what its backend packs."""
  num_inputs, num_neurons, num_active, fan_in, _ = LAYERS[layer]
  one = make_condensed(
    jnp.zeros((num_active, 1), dtype),
    np.zeros((num_active, 1), int),
    np.arange(num_active),
    jnp.zeros(num_neurons),
    kernel_shape=(num_inputs, num_neurons),
  )
  widen = lambda x: jax.ShapeDtypeStruct((num_active, fan_in), x.dtype)
  condensed = dataclasses.replace(one, values=widen(one.values), indices=widen(one.indices))
  return condensed, jax.eval_shape(gpu.pack, condensed)


_TYPES = "float32", "bfloat16"
_LAYERS = "vit_ffn_up", "vit_ffn_down", "wide"
CASES: dict[str, Callable[[], Case]] = {
  **{
    f"product-{layer}-{batch}-{dtype}": functools.partial(product, layer, batch, dtype)
    for layer in _LAYERS for batch in (1, 16, 256) for dtype in _TYPES
  },
  **{
    f"gradients-{batch}-{dtype}": functools.partial(gradients, "vit_ffn_up", batch, dtype)
    for batch in (4, 2048) for dtype in _TYPES
  },
  **{
    f"groups-{size}-{batch}-{dtype}": functools.partial(in_groups, size, batch, dtype)
    for size, batch in ((16, 1), (32, 256)) for dtype in _TYPES
  },
  **{f"convolution-{dtype}": functools.partial(convolution, dtype) for dtype in _TYPES},
  "step-wrn22-99": functools.partial(training_step, "wrn22-99"),
}  # fmt: skip
"""By name."""


def main(folder: Path, *names: str) -> None:
  """Compiles the cases of these names, or all of them."""
  for name in names or CASES:
    compiled = compile_for_h100(*CASES[name](), folder / name)
    (folder / f"{name}.hlo").write_text(compiled.as_text())
    print(f"{name}: compiled", flush=True)


if __name__ == "__main__":
  main(Path(sys.argv[1]), *sys.argv[2:])
