"""What condensing a model did to it, layer by layer: records that print as a table."""

from typing import Any, NamedTuple

from srigl_jax.analysis.summary import format_table
from srigl_jax.condensed.flax_import import import_with_flax
from srigl_jax.layers import kernel_path, natural_key
from srigl_kernels import choose_backend

Model = Any  # an nnx.Module


class FoldedLayer(NamedTuple):
  """One layer of a `FoldingReport`.

  Attributes:
    path: of its kernel.
    num_inputs: inputs of a neuron before, window positions included.
    num_neurons: neurons before.
    inputs_left: inputs of a neuron now.
    neurons_left: neurons now.
    active_neurons: those of them that have weights; the others output a constant.
    fan_in: weights of each active neuron.
    backend: what computes the layer; None if it is dense.
  """

  path: str
  num_inputs: int
  num_neurons: int
  inputs_left: int
  neurons_left: int
  active_neurons: int
  fan_in: int
  backend: str | None


class FoldingReport(NamedTuple):
  """What was condensed and folded; `str()` is a table.

  Attributes:
    layers: every linear layer and convolution, in natural order of their paths.
    folded_norms: paths of the batch norms that are now part of the layer before them.
    norms: paths of the batch norms that are left.
  """

  layers: tuple[FoldedLayer, ...]
  folded_norms: tuple[str, ...]
  norms: tuple[str, ...]

  @property
  def folded_neurons(self) -> int:
    """Neurons that were removed."""
    return sum(x.num_neurons - x.neurons_left for x in self.layers)

  def __str__(self) -> str:
    columns = ["layer", "inputs", "neurons", "active", "fan-in", "runs on"]
    rows = [
      [
        x.path,
        f"{x.inputs_left} of {x.num_inputs}",
        f"{x.neurons_left} of {x.num_neurons}",
        str(x.active_neurons),
        str(x.fan_in),
        x.backend or "dense",
      ]
      for x in self.layers
    ]
    left = sum(x.neurons_left for x in self.layers)
    active = sum(x.active_neurons for x in self.layers)
    neurons = f"{left} of {left + self.folded_neurons}"
    num_norms = len(self.folded_norms) + len(self.norms)
    norms = f"\nbatch norms folded: {len(self.folded_norms)} of {num_norms}" if num_norms else ""
    return format_table(columns, rows, ["all layers", "", neurons, str(active), "", ""]) + norms


def folding_report(model: Model, condensed_model: Model) -> FoldingReport:
  """Compares a model with what `condense_model` made of it.

  Raises:
    ValueError: if they are no Flax NNX models, or not of the same modules.
  """
  flax = import_with_flax("nnx_layers")
  for name, given in (("model", model), ("condensed_model", condensed_model)):
    if not flax.is_model(given):
      raise ValueError(
        f"{name} is a {type(given).__name__}; it must be a Flax NNX model: folding_report(model, "
        "condense_model(model, masks, inputs))."
      )
  before, after = flax.find_modules(model), flax.find_modules(condensed_model)
  if lost := [path for path in before if path not in after]:
    raise ValueError(
      f"condensed_model has no {lost[0] or 'module'!r}, which model has: it must be what "
      "condense_model made of it."
    )
  layers, folded, norms = [], [], []
  for path in sorted(before, key=natural_key):
    old, new = before[path], after[path]
    if flax.is_folded_norm(new):
      folded.append(path)
    elif flax.can_fold_norm(old):
      norms.append(path)
    if type(old) not in flax.LAYERS:
      continue
    layout, module = flax.kernel_layout(old), flax.find_condensed(new).get("")
    if module is None:
      left = flax.kernel_layout(new)
      inputs, neurons, active, fan_in = left.num_inputs, *[left.num_neurons] * 2, left.num_inputs
    else:
      x = module.prepared.condensed
      inputs, neurons, active, fan_in = x.in_features, x.out_features, x.num_active, x.fan_in
    layers.append(
      FoldedLayer(
        path=kernel_path(path),
        num_inputs=layout.num_inputs,
        num_neurons=layout.num_neurons,
        inputs_left=inputs,
        neurons_left=neurons,
        active_neurons=active,
        fan_in=fan_in,
        backend=None if module is None else choose_backend(module.prepared)[0],
      )
    )
  return FoldingReport(tuple(layers), tuple(folded), tuple(norms))
