"""A sparse Flax Linen model made ready to run."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax import Array

from srigl_jax.condensed.condense import axes_advice, condense
from srigl_jax.condensed.flax_import import import_with_flax
from srigl_jax.condensed.stacked import condense_stack, prepare_stack
from srigl_jax.condensed.transposed_padding import dilations
from srigl_jax.layers import Axes, check_paths
from srigl_jax.programs.fuse import fuse
from srigl_kernels import Condensed, Prepared, prepare


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class CondensedLinen:
  """A Linen module with its variables, layers condensed; `condense_linen` makes one.

  A pytree, called as the module is: `model(x)`, `jax.jit(lambda model, x: model(x))(model, x)`.

  Attributes:
    variables: the collections that the module had. In the place of a condensed kernel stands its
      `Prepared`, and its bias is gone.
    module: the Linen module, in a holder that compares by identity.
  """

  variables: dict[str, Any]
  module: "_Static" = dataclasses.field(metadata={"static": True})

  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """`module.apply(variables, *args, **kwargs)`."""
    linen = import_with_flax("linen_layers")
    run = fuse(functools.partial(linen.apply, self.module.value))
    return run(self.variables, *args, **kwargs)


class _Static:
  """Something that need not be hashable, as static data of a pytree."""

  def __init__(self, value: Any):
    self.value = value


def condense_linen(
  module: Any,
  variables: Mapping[str, Any],
  masks: Mapping[str, Array],
  *inputs: Any,
  backend: str | Sequence[str] = "auto",
  **kwargs: Any,
) -> CondensedLinen:
  """A Linen model in which every sparse layer is condensed, for inference.

  Layers are swapped and nothing else changes: to have batch norms and the constants of ablated
  neurons folded as well, use `condense_model` on an NNX model. Layers that `nn.scan` stacked along
  the first axis get the fan-in and number of neurons of the largest, by weights of 0, and run under
  the same scan.

  Args:
    module: an `nn.Module`. Its `nn.Dense`, `nn.DenseGeneral` (attention projections), `nn.Conv`
      and `nn.ConvTranspose` layers can be condensed.
    variables: as `module.init` returned them and training changed them, or the parameters alone.
      Kernels are 0 off their mask.
    masks: bool arrays by path, as `get_masks` gives them, of either tree.
    *inputs: an example of what the module is called with, arrays or `jax.ShapeDtypeStruct`s: the
      module is traced to find its layers.
    backend: what layers are prepared for; see `srigl_jax.prepare`.
    **kwargs: of the call, such as `train=False`, `rngs=` or `method=`.

  Returns:
    A callable pytree. `split_condensed` takes it apart for a file, and `merge_condensed` builds it
    again from the module.

  Raises:
    ValueError: if a mask's path is no parameter's or its owner cannot be condensed, or the active
      neurons of a layer have different fan-ins. Messages name the path.
  """
  linen = import_with_flax("linen_layers")
  if not linen.is_module(module):
    raise ValueError(
      f"condense_linen takes a Flax Linen module, not {type(module).__name__}: condense_model is "
      "for Flax NNX models, condense_equinox for Equinox modules."
    )
  variables = linen.unbox(variables)
  variables = dict(variables) if "params" in variables else {"params": variables}
  params = linen.flatten(variables["params"])
  masks = {path.removeprefix("params/"): mask for path, mask in masks.items()}
  check_paths(masks, params, name="masks")
  run = lambda: module.apply(variables, *inputs, **kwargs)
  owners = linen.find_layers(run, {*masks})
  for path, mask in masks.items():
    layers = _condense(linen, path, params, mask, owners.get(path))
    groups = _groups(owners[path])
    if isinstance(layers, list):
      params[path] = prepare_stack(layers, backend, feature_group_count=groups)
    else:
      params[path] = prepare(
        layers, backend=backend, feature_group_count=groups, **dilations(owners[path])
      )
    params.pop(_bias_of(path), None)
  return CondensedLinen({**variables, "params": linen.nest(params)}, _Static(module))


def _condense(
  linen: Any, path: str, params: Mapping[str, Any], mask: Any, owner: Any
) -> Condensed | list[Condensed]:
  """The layer in condensed form, or the layers of a stack."""
  reason = (
    "no layer that owns it is called: its module computes with it by itself, or is not called"
    if owner is None
    else linen.why_not(owner, params[path].ndim)
  )
  if reason is not None:
    raise ValueError(
      f"Layer {path!r} cannot be condensed: {reason}. Leave it out of `masks` (the layer then "
      "stays dense), or use a plain layer."
    )
  axes = linen.neuron_axes(owner, params[path].ndim)
  is_stack = params[path].ndim > linen.own_rank(owner)
  cast = lambda layer: dataclasses.replace(
    layer, values=layer.values.astype(owner.dtype or layer.values.dtype)
  )
  kernel, bias = params[path], params.get(_bias_of(path))
  try:
    if is_stack:
      return [cast(x) for x in condense_stack(kernel, mask, bias, Axes(axes, stack=(0,)))]
    return cast(condense(kernel, mask, bias, axes=Axes(axes)))
  except ValueError as error:
    advice = axes_advice(mask, axes)
    raise ValueError(f"Layer {path!r} cannot be condensed: {error}{advice}") from error


def _groups(owner: Any) -> int:
  return getattr(owner, "feature_group_count", 1)


def _bias_of(path: str) -> str:
  return path.removesuffix("kernel") + "bias"


def split(model: CondensedLinen) -> tuple[dict[str, Condensed], dict[str, Array]]:
  """See `srigl_jax.split_condensed`; names are paths in `variables`."""
  leaves = import_with_flax("linen_layers").flatten(model.variables)
  layers = {path: x.condensed for path, x in leaves.items() if isinstance(x, Prepared)}
  return layers, {path: x for path, x in leaves.items() if path not in layers}


def merge(module: Any, layers: Mapping[str, Condensed], arrays: Mapping[str, Any], backend: Any):
  """See `srigl_jax.merge_condensed`."""
  linen = import_with_flax("linen_layers")
  if not linen.is_module(module):
    raise ValueError(
      f"merge_condensed takes the dense model, of Flax NNX, Flax Linen or Equinox, not a "
      f"{type(module).__name__}."
    )
  twice = sorted({*layers} & {*arrays})
  if twice:
    raise ValueError(f"{twice[0]!r} is in `layers` and in `arrays`: give it once.")
  prepared = {path: prepare(layer, backend=backend) for path, layer in layers.items()}
  return CondensedLinen(linen.nest({**prepared, **arrays}), _Static(module))
