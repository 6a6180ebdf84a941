"""What is trained: networks, batch sizes and sparsities, with the targets that they are held to."""

from typing import NamedTuple

UPDATE_EVERY = 100
"""Steps between topology updates (ΔT)."""


class Case(NamedTuple):
  """A network to train.

  Attributes:
    name: for the tables.
    kind: `"mlp"`, layers in a row with ReLU between them, or one of `vit`, `head` and `resnet18`.
    sizes: inputs, then neurons of each layer; of an `mlp` or a `head`.
    batch: rows, or images.
    sparsity: of every layer; the fan-in is rounded. ResNet-18: of all, divided by ERK.
    threads: cores that every engine has; 0: all.
    xla_flags: `XLA_FLAGS` of the engines that use XLA.
  """

  name: str
  kind: str
  sizes: tuple[int, ...] = ()
  batch: int = 128
  sparsity: float = 0.9
  threads: int = 0
  xla_flags: str = ""

  @property
  def layers(self) -> dict[str, tuple[int, int]]:
    """Inputs and neurons of the linear layers by name."""
    if self.kind == "vit":
      return {"qkv": (768, 2304), "out": (768, 768), "up": (768, 3072), "down": (3072, 768)}
    pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
    return {f"fc{i}": pair for i, pair in enumerate(pairs)}

  @property
  def num_weights(self) -> int:
    """Weights of the linear layers when dense."""
    return sum(i * n for i, n in self.layers.values())

  def fan_in(self, num_inputs: int) -> int:
    """Connections of a neuron in a layer of so many inputs."""
    return max(1, round(num_inputs * (1 - self.sparsity)))


class Target(NamedTuple):
  """What a case is held to: how many times faster than others, at least."""

  case: Case
  dense: float | None = None
  sparselab: float | None = None


# Of what jax's CPU backend leaves to its library YNN, sums alone: YNN's convolutions run on one
# thread in some shapes, and XLA's own sums, those of batch norms, would take half of a step.
_CONVOLUTIONS = "--xla_cpu_experimental_ynn_fusion_type=reduce"


def mlp(width: int, batch: int, sparsity: float = 0.9, threads: int = 0, depth: int = 3) -> Case:
  """Layers of the same width."""
  name = f"MLP {depth} × {width}, {100 * sparsity:g} %, batch {batch}"
  name += f", {threads} thread{'s' * (threads > 1)}" if threads else ""
  return Case(name, "mlp", (width,) * (depth + 1), batch, sparsity, threads)


def head(num_labels: int) -> Case:
  """One layer of 768 inputs and a fan-in of 32, as of extreme classification."""
  name = f"768 → {num_labels:,} outputs, fan-in 32, batch 64"
  return Case(name, "head", (768, num_labels), 64, 1 - 32 / 768)


TARGETS = (
  Target(mlp(4096, 64), dense=7.0, sparselab=3.0),
  Target(mlp(4096, 256), dense=6.0, sparselab=4.0),
  Target(mlp(2048, 128), dense=7.0),
  Target(mlp(1024, 128, 0.95), dense=7.0),
  Target(Case("ViT-B/16 block's linear layers, 1,576 tokens", "vit", batch=1576), dense=4.0),
  Target(
    Case("CIFAR ResNet-18, batch 128", "resnet18", batch=128, xla_flags=_CONVOLUTIONS), dense=2.0
  ),
)
HEAD = head(670_091)
HEAD_PEAK_BYTES = 1.5e9
UPDATE_AT_MOST = 0.05  # of a step, spread over UPDATE_EVERY of them
STATE_AT_MOST = 0.12  # of dense


def grids(cores: int) -> dict[str, dict[float, Case]]:
  """One quantity varied at a time around an MLP of 3 × 2048, 90 % sparse, at batch 128.

  `labels` is of heads.
  """
  threads = sorted(
    {1, *(2**i for i in range(1, cores.bit_length())), cores} & set(range(cores + 1))
  )
  return {
    "width": {n: mlp(n, 128) for n in (512, 1024, 2048, 4096, 8192, 16384)},
    "sparsity": {
      s: mlp(2048, 128, s) for s in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
    },
    "batch": {n: mlp(2048, n) for n in (1, 4, 16, 64, 128, 256, 512, 1024, 2048)},
    "threads": {n: mlp(2048, 128, threads=n) for n in threads},
    "labels": {n: head(n) for n in (30_000, 131_073, 670_091, 3_000_000)},
  }
