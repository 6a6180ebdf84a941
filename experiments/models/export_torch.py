"""Weights for PyTorch: `import_torch` in reverse, with zeros for the weights that are missing.

Where PyTorch is, the file is loaded by

```python
from safetensors.torch import load_file

model.load_state_dict(load_file("model.safetensors"))
```

into the network that the names are of: torchvision's `resnet50`, `vit_b_16` and `mobilenet_v3_*`,
the SRigL authors' `resnet18` and `wide_resnet22`, and for `mlp` and `convnet` one of our names.
What a linear layer reads of a flattened image of several channels has the channels last, as here.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from experiments.common.registry import choose
from experiments.models.import_torch import MODULE_NAMES, source_of
from srigl_jax.condensed.whole_file import write_whole

_COUNTER = "num_batches_tracked"
_NAMES = MODULE_NAMES | dict.fromkeys(
  ("mlp", "convnet"), lambda module, modules: module.replace("/", ".")
)


def to_state_dict(arrays: Mapping[str, np.ndarray], *, name: str) -> dict[str, np.ndarray]:
  """A network's arrays as a PyTorch `state_dict`, dense.

  Args:
    arrays: parameters and batch statistics by our paths, floating.
    name: of the model, a key of `MODELS`.

  Returns:
    Contiguous float32 arrays by PyTorch's names, in its layouts, and the counters of its batch
    norms, int64 zeros; `import_torch` reads it.

  Raises:
    ValueError: if there is no mapping for the model.
  """
  module_name = choose(_NAMES, name, "the model to export")
  modules = {path.rpartition("/")[0] for path in arrays}
  state: dict[str, np.ndarray] = {}
  thirds: dict[str, dict[int, np.ndarray]] = {}
  for path, array in arrays.items():
    source = source_of(path, modules, module_name)
    x = np.asarray(array, np.float32)
    if path.endswith("kernel"):
      x = x.transpose(x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))
    if source.third is None:
      state[source.key] = np.ascontiguousarray(x)
    else:
      thirds.setdefault(source.key, {})[source.third] = x
    if source.key.endswith("running_mean"):
      counter = source.key.removesuffix("running_mean") + _COUNTER
      state[counter] = np.zeros((), np.int64)
  state |= {key: np.concatenate([x[i] for i in range(3)]) for key, x in thirds.items()}
  return {key: np.asarray(state[key], order="C") for key in sorted(state)}  # as safetensors asks


def write_state_dict(path: Path, state: Mapping[str, np.ndarray]) -> None:
  """Writes a `state_dict` in safetensors format: complete under its name, or not at all."""
  path.parent.mkdir(parents=True, exist_ok=True)
  write_whole(path, save(dict(state), metadata={"format": "pt"}))
