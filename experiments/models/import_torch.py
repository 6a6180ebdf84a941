"""Weights of PyTorch checkpoints: of torchvision's networks and of those of SRigL's authors.

PyTorch itself is not needed. A checkpoint becomes a file that can be read here by, where it is,

```python
import torch
from safetensors.torch import save_file

state = torch.load("best-checkpoint.pt.tar", map_location="cpu", weights_only=False)["model"]
save_file({key: value.contiguous() for key, value in state.items()}, "model.safetensors")
```

(torchvision's own files hold the state itself, without `["model"]`), or by `numpy.savez`. A weight
that a sparse network lacks is 0 in such a checkpoint, so `weight != 0` is its mask.

| here | PyTorch | what changes |
|---|---|---|
| `kernel` of a convolution | `weight` | OIHW → HWIO |
| `kernel` of a linear layer | `weight` | transposed |
| `scale`, `bias` | `weight`, `bias` | |
| `mean`, `var` | `running_mean`, `running_var` | |
| `attention/{query,key,value}` | `self_attention.in_proj_{weight,bias}` | a third of the rows |

Names of modules are in the functions below. `num_batches_tracked` is left out, as is the prefix
`module.` of distributed training; the names `mlp.linear_1` and `mlp.linear_2` of older
torchvisions are known.
"""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from experiments.common.registry import choose
from experiments.models.functional import Arrays, FunctionalModel

_LEAVES = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
_PROJECTIONS = ("query", "key", "value")  # in the order of the rows of in_proj


class Source(NamedTuple):
  """Where an array comes from: a key of the checkpoint, and which third of its rows, if not all."""

  key: str
  third: int | None = None


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
  """The arrays of a `.safetensors` or `.npz` file by name.

  Raises:
    ValueError: if the file is of neither kind.
    FileNotFoundError: if there is none.
  """
  path = Path(path)
  if path.suffix == ".safetensors":
    return load_file(path)
  if path.suffix == ".npz":
    with np.load(path, allow_pickle=False) as arrays:
      return dict(arrays)
  raise ValueError(
    f"{path} is neither a .safetensors nor a .npz file. Convert a PyTorch checkpoint as "
    "experiments/models/import_torch.py says."
  )


def import_torch(
  model: FunctionalModel, state_dict: Mapping[str, np.ndarray], *, name: str
) -> FunctionalModel:
  """The model with the weights and statistics of a PyTorch checkpoint.

  Args:
    model: from `models.init(name, ...)`; of its arrays only paths and shapes count.
    state_dict: arrays by PyTorch's names, as `read_state_dict` gives them; floating.
    name: of the model, a key of `MODELS`.

  Returns:
    The same function with float32 arrays.

  Raises:
    ValueError: if there is no mapping for the model, or any key is missing, left over or of another
      shape or type than the model's; all of them are listed.
  """
  module_name = choose(MODULE_NAMES, name, "the model to import")
  given = _normalized(state_dict)
  modules = {path.rpartition("/")[0] for path in (*model.params, *model.model_state)}
  used: set[str] = set()
  faults: list[str] = []

  def convert(path: str, shape: tuple[int, ...]) -> np.ndarray | None:
    key, third = source_of(path, modules, module_name)
    used.add(key)
    if key not in given:
      faults.append(f"{key} is missing (it becomes {path})")
      return None
    rows = 1 if third is None else 3
    array, wanted = given[key], _torch_shape(path, shape)
    wanted = (rows * wanted[0], *wanted[1:])
    if array.shape != wanted or not jnp.issubdtype(array.dtype, jnp.floating):
      faults.append(f"{key} is {array.dtype} {array.shape}, not floating {wanted}")
      return None
    part = np.split(array, rows)[third or 0].astype(np.float32)
    return np.ascontiguousarray(_to_flax(part)) if path.endswith("kernel") else part

  params = {path: convert(path, leaf.shape) for path, leaf in model.params.items()}
  stats = {path: convert(path, leaf.shape) for path, leaf in model.model_state.items()}
  faults = sorted(set(faults)) + [f"{key} belongs nowhere" for key in sorted(given.keys() - used)]
  if faults:
    raise ValueError(
      f"The checkpoint does not fit {name} ({len(faults)} keys):\n  " + "\n  ".join(faults)
    )
  return model._replace(params=_as_arrays(params), model_state=_as_arrays(stats))


def _as_arrays(converted: Mapping[str, np.ndarray | None]) -> Arrays:
  return {path: jnp.asarray(array) for path, array in converted.items()}


def _normalized(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The keys as today's torchvision writes them without distributed training."""
  wrapped = all(key.startswith("module.") for key in state_dict)
  arrays = {}
  for key, array in state_dict.items():
    key = key.removeprefix("module.") if wrapped else key
    key = key.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3.")
    if not key.endswith(".num_batches_tracked"):
      arrays[key] = np.asarray(array)
  return arrays


def source_of(path: str, modules: Collection[str], module_name: "ModuleName") -> Source:
  """Where one of our arrays stands in PyTorch; `export_torch` goes the other way."""
  module, _, leaf = path.rpartition("/")
  if not module:  # the parameters of a vision transformer itself
    return Source({"pos_embedding": "encoder.pos_embedding"}.get(leaf, leaf))
  leaf = "weight" if leaf == "kernel" else _LEAVES[leaf]
  parent, _, last = module.rpartition("/")
  if parent.endswith("attention") and last in _PROJECTIONS:
    return Source(f"{module_name(parent, modules)}.in_proj_{leaf}", _PROJECTIONS.index(last))
  return Source(f"{module_name(module, modules)}.{leaf}")


def _torch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape that a leaf of ours has in PyTorch."""
  return (shape[-1], shape[-2], *shape[:-2]) if path.endswith("kernel") else shape


def _to_flax(weight: np.ndarray) -> np.ndarray:
  """(out, in, *window) → (*window, in, out)."""
  return weight.transpose(*range(2, weight.ndim), 1, 0)


ModuleName = Callable[[str, Collection[str]], str]
"""From the path of a module of ours, and the paths of all, to PyTorch's name of it."""


def _by_rules(*rules: tuple[str, str]) -> ModuleName:
  """A naming by regular expressions, applied in order; then `/` becomes `.`."""

  def module_name(module: str, modules: Collection[str]) -> str:
    del modules
    for pattern, replacement in rules:
      module = re.sub(pattern, replacement, module)
    return module.replace("/", ".")

  return module_name


def _mobilenet_v3(module: str, modules: Collection[str]) -> str:
  """A block of torchvision's is a list of the parts that it has."""
  num_blocks = 1 + max(int(m.split("/")[1]) for m in modules if m.startswith("blocks/"))
  ends = {
    "conv1": "features.0.0",
    "bn1": "features.0.1",
    "conv_last": f"features.{num_blocks + 1}.0",
    "bn_last": f"features.{num_blocks + 1}.1",
    "hidden": "classifier.0",
    "head": "classifier.3",
  }
  if module in ends:
    return ends[module]
  _, block, part, *inner = module.split("/")
  probes = {"expand": "expand", "depthwise": "depthwise", "se": "se/fc1", "project": "project"}
  there = [kind for kind, probe in probes.items() if f"blocks/{block}/{probe}" in modules]
  start = f"features.{int(block) + 1}.block.{there.index(part.removesuffix('_bn'))}"
  last = inner[0] if inner else str(int(part.endswith("_bn")))
  return f"{start}.{last}"


MODULE_NAMES: dict[str, ModuleName] = {
  # torchvision.models.resnet50
  "resnet50": _by_rules(
    (r"^head$", "fc"), (r"/shortcut_bn$", "/downsample/1"), (r"/shortcut$", "/downsample/0")
  ),
  # torchvision.models.vit_b_16
  "vit_b16": _by_rules(
    (r"^head$", "heads/head"),
    (r"^ln$", "encoder/ln"),
    (r"^blocks/(\d+)", r"encoder/layers/encoder_layer_\1"),
    (r"/ln(\d)$", r"/ln_\1"),
    (r"/attention/out$", "/self_attention/out_proj"),
    (r"/attention$", "/self_attention"),
    (r"/mlp/up$", "/mlp/0"),
    (r"/mlp/down$", "/mlp/3"),
  ),
  # torchvision.models.mobilenet_v3_small, mobilenet_v3_large
  "mobilenet_v3_small": _mobilenet_v3,
  "mobilenet_v3_large": _mobilenet_v3,
  # rigl_torch/models/resnet.py of calgaryml/condensed-sparsity
  "resnet18": _by_rules(
    (r"^head$", "linear"), (r"/shortcut_bn$", "/shortcut/1"), (r"/shortcut$", "/shortcut/0")
  ),
  # rigl_torch/models/wide_resnet.py
  "wide_resnet22_2": _by_rules(
    (r"^head$", "fc"),
    (r"^bn$", "bn1"),
    (r"^layer(\d+)/", r"block\1/layer/"),
    (r"/shortcut$", "/convShortcut"),
  ),
}
