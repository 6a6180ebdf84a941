"""The networks by name, each as its framework's users write it."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from experiments.benchmarks.networks import gpt, others, vision
from experiments.benchmarks.networks.network import Network


class Entry(NamedTuple):
  """A row of `NETWORKS`.

  Attributes:
    framework: its name.
    make: makes the network.
    package: what has to be installed besides the library's own requirements, or None.
  """

  framework: str
  make: Callable[[], Network]
  package: str | None = None


_partial = functools.partial

NETWORKS: dict[str, Entry] = {
  "GPT": Entry("Flax NNX", _partial(gpt.gpt_nnx, scanned=False)),
  "GPT, scanned layers": Entry("Flax NNX", _partial(gpt.gpt_nnx, scanned=True)),
  "GPT in Linen": Entry("Flax Linen", _partial(gpt.gpt_linen, scanned=False)),
  "GPT in Linen, scanned layers": Entry("Flax Linen", _partial(gpt.gpt_linen, scanned=True)),
  "ViT": Entry("Flax NNX", vision.vit),
  "ResNet-50": Entry("Flax NNX", vision.resnet50),
  "MobileNet-V3": Entry("Flax NNX", vision.mobilenet_v3),
  "MLP-Mixer": Entry("Flax NNX", vision.mlp_mixer),
  "ConvNeXt-V2": Entry("Flax NNX", vision.convnext),
  "U-Net": Entry("Flax Linen", vision.unet),
  "GRU": Entry("Flax NNX", _partial(others.recurrent, nnx.GRUCell)),
  "LSTM": Entry("Flax NNX", _partial(others.recurrent, nnx.LSTMCell)),
  "Message passing": Entry("Flax NNX", others.message_passing),
  "MLP in Equinox": Entry("Equinox", others.equinox_mlp, "equinox"),
  "Transformer in Equinox": Entry("Equinox", others.equinox_transformer, "equinox"),
  "MLP in Haiku": Entry("Haiku", others.haiku_mlp, "haiku"),
}
