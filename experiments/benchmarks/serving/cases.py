"""What is served: the table of networks, that of what serves them, and the targets."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from experiments.benchmarks.serving import models, twins
from experiments.models import MODELS

SPARSITIES = (0.8, 0.9, 0.95)
TWIN_SPARSITY = 0.9
"""Of the weights that the dense rivals have; their speed does not depend on it."""
CALLERS = (1, 2, 8)

ENVIRONMENT = {
  # Dense convolutions of jax's CPU backend otherwise run on one thread in some shapes.
  "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=",
  # glibc keeps memory, which XLA asks for and gives back in every call; other runtimes keep it.
  "MALLOC_ARENA_MAX": "1",
  "MALLOC_MMAP_MAX_": "0",
  "MALLOC_TRIM_THRESHOLD_": "17179869184",
}
"""Variables of the processes of all engines."""


class Network(NamedTuple):
  """A network to serve.

  Attributes:
    make: from `nnx.Rngs`.
    inputs: for a batch, arrays as JAX takes them.
    twin: the same for other runtimes, see `twins`; images have their channels first there.
    batches: to measure.
    quick: those of `--quick`.
    distribution: of the sparsity, see `srigl_jax.allocate`.
    sparsities: of the condensed network.
    is_image: whether it is a convolutional network, whose int8 form is calibrated.
  """

  make: Callable[[nnx.Rngs], Any]
  inputs: Callable[[int], tuple[np.ndarray, ...]]
  twin: Callable[..., Any]
  batches: tuple[int, ...] = (1, 16, 64)
  quick: tuple[int, ...] = ()
  distribution: str = "erk"
  sparsities: tuple[float, ...] = SPARSITIES
  is_image: bool = False


def _floats(*shape: int) -> Callable[[int], tuple[np.ndarray, ...]]:
  return lambda batch: (np.random.default_rng(1).normal(size=(batch, *shape)).astype(np.float32),)


def _tokens(batch: int, length: int = models.GPT_LENGTH) -> tuple[np.ndarray, ...]:
  return (np.random.default_rng(1).integers(0, 65, (batch, length)).astype(np.int32),)


def _token_and_cache(batch: int) -> tuple[np.ndarray, ...]:
  shape = (6, batch, models.GPT_LENGTH - 1, 6, 64)
  past = np.random.default_rng(2).normal(size=(2, *shape)).astype(np.float32)
  return *_tokens(batch, 1), *past


def _image_network(name: str, size: int, num_classes: int) -> Callable[[nnx.Rngs], Any]:
  shape = (size, size, 3)
  return lambda rngs: MODELS[name](num_classes=num_classes, image_shape=shape, rngs=rngs)


_imagenet = functools.partial(_image_network, size=224, num_classes=1000)
_IMAGE = _floats(224, 224, 3)

NETWORKS = {
  "feed-forward pair": Network(
    models.FeedForward, _floats(768), twins.feed_forward, (1, 16, 64, 197, 512), (1, 16),
    "uniform", (TWIN_SPARSITY,),
  ),
  "MLP 3 × 4096": Network(
    models.WideMLP, _floats(4096), twins.wide_mlp, quick=(1,), distribution="uniform"
  ),
  "ViT-B/16": Network(
    _imagenet("vit_b16"), _IMAGE, twins.vit, (1, 16), distribution="uniform"
  ),
  "ResNet-50": Network(
    _imagenet("resnet50"), _IMAGE, twins.resnet50, (1, 8), (1,), is_image=True
  ),
  "MobileNet-V3 large": Network(
    _imagenet("mobilenet_v3_large"), _IMAGE, twins.mobilenet_v3, is_image=True
  ),
  "CIFAR ResNet-18": Network(
    _image_network("resnet18", 32, 10), _floats(32, 32, 3), twins.resnet18, is_image=True
  ),
  "GPT 6 × 384, 256 tokens": Network(models.GPT, _tokens, twins.gpt, (1, 16)),
  "GPT 6 × 384, a token": Network(models.GPTStep, _token_and_cache, twins.gpt),
}  # fmt: skip
"""What is measured, by name."""


_CALIBRATION = 4  # examples of one image


def calibration(network: Network) -> list[tuple[np.ndarray, ...]]:
  """Inputs of batch 1 by which ranges are found: the numbers of `inputs(1)` in another order."""
  rng = np.random.default_rng(3)
  shuffled = lambda x: rng.permutation(x.reshape(-1)).reshape(x.shape)
  return [tuple(map(shuffled, network.inputs(1))) for _ in range(_CALIBRATION)]


class Rival(NamedTuple):
  """What serves a network.

  Attributes:
    title: for tables.
    module: where its engine is made, by a function `make` of the case's folder and more.
    bits: 32, 16 or 8, of the products.
    needs: packages, which may be missing.
    precision: what the engine is told.
  """

  title: str
  module: str
  bits: int
  needs: tuple[str, ...] = ()
  precision: str = "float32"


RIVALS = {
  "jax": Rival("JAX", "jax_engines", 32),
  "ort": Rival("ONNX Runtime", "onnx_engines", 32, ("onnx", "onnxruntime")),
  "ort-int8": Rival("ONNX Runtime int8", "onnx_engines", 8, ("onnx", "onnxruntime"), "int8"),
  "openvino": Rival("OpenVINO", "onnx_engines", 32, ("onnx", "openvino")),
  "openvino-bf16": Rival("OpenVINO bf16", "onnx_engines", 16, ("onnx", "openvino"), "bfloat16"),
  "openvino-int8": Rival(
    "OpenVINO int8", "onnx_engines", 8, ("onnx", "openvino", "onnxruntime"), "int8"
  ),
  "torch": Rival("torch.compile", "torch_engine", 32, ("torch",)),
}
"""What runs the dense twin, by name."""
OURS = {
  "condensed": Rival("condensed", "jax_engines", 32),
  "condensed-bf16": Rival("condensed bf16", "jax_engines", 16, (), "bfloat16"),
  "condensed-int8": Rival("condensed int8", "jax_engines", 8, (), "int8"),
}
"""What runs the condensed network, by name."""
ENGINES = OURS | RIVALS


class Target(NamedTuple):
  """How many times faster than the best rival a network has to be, at 90 % sparsity.

  Attributes:
    network: a key of `NETWORKS`.
    goals: by batch.
    ours: bits of our engines that count; of these the fastest.
    theirs: bits of the rivals that count.
  """

  network: str
  goals: dict[int, float]
  ours: tuple[int, ...]
  theirs: tuple[int, ...]


_ALL = (32, 16, 8)
TARGETS = (
  Target("feed-forward pair", dict.fromkeys((1, 16, 64, 197, 512), 3.0), (16,), (32, 16)),
  Target("feed-forward pair", dict.fromkeys((1, 16, 64, 197, 512), 2.5), (8,), (8,)),
  Target("MLP 3 × 4096", {1: 4.0, 16: 3.0, 64: 3.0}, _ALL, _ALL),
  Target("ViT-B/16", {1: 2.5}, (32, 16), (32, 16)),
  Target("ViT-B/16", {1: 1.5}, _ALL, (8,)),
  Target("ResNet-50", {1: 1.5, 8: 1.2}, _ALL, _ALL),
  Target("ResNet-50", {1: 2.5, 8: 2.0}, (32,), (32,)),
)
CONTENTION = 0.95
"""Of one caller's throughput, at least, with any number of callers."""
