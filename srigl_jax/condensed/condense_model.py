"""A sparse Flax NNX model made ready to run: condensed layers, and nothing that is constant."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax import Array

from srigl_jax.condensed.condense import axes_advice
from srigl_jax.condensed.constant_folding import Folded, fold
from srigl_jax.condensed.flax_import import import_with_flax
from srigl_jax.layers import check_paths, kernel_path
from srigl_kernels import Condensed

Model = Any  # an nnx.Module; Flax is not needed by the rest of the library


def condense_model(
  model: Model,
  masks: Mapping[str, Array],
  inputs: Any = None,
  *,
  backend: str | Sequence[str] = "auto",
  call: Callable[..., Any] | None = None,
  gradients: bool = False,
  dtype: str | None = None,
) -> Model:
  """A model in which every sparse layer is condensed, for inference or to be fine-tuned.

  Without `inputs` layers are swapped for condensed modules and nothing else changes. With `inputs`
  the model is traced, and what need not be computed is removed, exactly up to rounding:

  - A batch norm directly behind a linear layer or convolution, dense or sparse, becomes part of it.
  - Constants of ablated neurons (and of neurons that read nothing but constants) move into the
    biases of the layers that read them, if only element-wise functions and poolings lie between;
    the neurons are removed. A convolution that pads with zeros takes only the constant 0.
  - Channels that no neuron has a weight for are removed.

  What a tensor's other readers need stays: channels that are flattened with positions, normalised
  over (layer norm), added to anything with other channels, or returned. A layer that is called
  more than once is swapped and otherwise left alone. If the model's own code depends on numbers
  of channels, a warning says so and no neurons are removed. Where folding takes different numbers
  of weights from a layer's neurons, their fan-in becomes the largest one left: the others get
  weights of 0 for inputs that they do not read.

  Under `jax.jit` the activation and the residual that follow a condensed layer are applied by its
  kernel, as `srigl_jax.fuse` describes: calls of the model are traced and rewritten. With `call`,
  or for other methods of the model, wrap what calls it in `srigl_jax.fuse`.

  Layers that `nnx.vmap` or `nnx.scan` stacked along the first axis of their kernels become a stack
  of condensed layers, swapped and otherwise left alone. One program runs them all, so they get the
  fan-in and the number of neurons of the largest, by weights of 0.

  Args:
    model: an `nnx.Module`; it is left as it is.
    masks: bool arrays by path, as `get_masks` gives them. Kernels are 0 off their mask.
    inputs: an example batch, an array or `jax.ShapeDtypeStruct`, or a tuple of several
      arguments. The first axis is the batch and of any size; the model is folded for inputs of
      these other sizes.
    backend: what layers are prepared for; see `srigl_jax.prepare`.
    call: `(model, *inputs) -> outputs`, how the model is called in inference, if not by
      `model(*inputs)` after `model.eval()`.
    gradients: makes values and biases of the condensed layers `nnx.Param`s, `kernel` `[A, K]` and
      `bias` `[N]`, for any optimizer: the model is fine-tuned on its fixed pattern, layers that
      shared a kernel each by itself. It is slower in inference: once trained,
      `merge_condensed(dense_model, *split_condensed(model))` is not.
    dtype: what the products of condensed layers are of: `"float32"`, `"bfloat16"`, `"int8"` or
      `"int8_weights"`, as for `srigl_jax.prepare`; None for what the layers compute in.

  Returns:
    A new model, as after `model.eval()`; `model.train()` brings back dropout. Condensed modules
    hold their arrays in variables of a type of their own, so `nnx.split`, `nnx.jit` and checkpoints
    work as usual; without `inputs` derivatives, too.
    `jax.export` refuses calls of the native kernels unless it is told of them:
    `export(jax.jit(lambda x: model(x)), disabled_checks=[DisabledSafetyCheck.custom_call(name),
    ...])` for the names `srigl_condensed_matmul` and `srigl_condensed_conv`. The process that runs
    the file must have loaded them before, as `srigl_kernels.BACKENDS["cpu"].is_available()` does.
    What is condensed with `backend="xla"` needs neither.

  Raises:
    ValueError: if a mask's path is no kernel's, the kernel's owner cannot be condensed, or the
      active neurons of a layer have different fan-ins. Messages name the path.

  Source: the folding follows from the ablation of SRigL (arXiv:2305.02299), whose authors' code
  condenses single layers and leaves constants where they are.
  """
  flax = import_with_flax("nnx_layers")
  if not flax.is_model(model):
    raise ValueError(_what_to_do(model))
  model = flax.for_inference(model)
  modules = flax.find_modules(model)
  owners = _find_owners(flax, modules, masks)
  sharing = flax.find_sharing(modules)
  for path in list(owners):  # whatever holds the same kernel computes with the same mask
    for other in sorted(sharing.get(path, ())):
      if flax.holds_kernel_of(modules[other], modules[path]) and other not in owners:
        owners.append(other)
        masks = {**masks, kernel_path(other): masks[kernel_path(path)]}
  condensed = {p: _condense(flax, modules[p], masks[kernel_path(p)], p) for p in owners}
  make = functools.partial(
    flax.make_condensed_module, backend=backend, gradients=gradients, dtype=dtype
  )
  if inputs is None:
    result = _rebuild(flax, model, condensed, Folded({}, {}, set()), make)
  else:
    arguments = inputs if isinstance(inputs, tuple) else (inputs,)
    stacks = {path for path, x in modules.items() if flax.is_stack(x)}
    may_change = {*modules} - ({*sharing} - {*condensed}) - stacks
    result = _fold(flax, model, masks, condensed, may_change, arguments, call, make)
  return result if gradients else import_with_flax("nnx_fused").with_fused_call(result)


def _what_to_do(model: Any) -> str:
  """Why something cannot be condensed as a whole, and what can be done instead."""
  kinds = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(model).__mro__}
  if any(name.startswith("flax.linen.") for name in kinds):
    instead = "a Flax Linen module is condensed by condense_linen(module, variables, masks, inputs)"
  elif any(name.startswith("equinox.") for name in kinds):
    instead = "an Equinox module is condensed by condense_equinox(model, masks)"
  else:
    instead = (
      "layers of other networks are condensed one by one, by condense(kernel, mask, bias) and "
      "condensed_matmul or condensed_conv, as docs/condensed.md shows for Haiku, Keras and plain "
      "functions"
    )
  return f"condense_model takes a Flax NNX model, not {type(model).__name__}: {instead}."


def _find_owners(flax: Any, modules: Mapping[str, Any], masks: Mapping[str, Any]) -> list[str]:
  """Paths of the modules whose kernels are masked, all of which can be condensed."""
  kernels = [kernel_path(path) for path, x in modules.items() if hasattr(x, "kernel")]
  check_paths(masks, kernels, name="masks")
  owners = [name.removesuffix("kernel").removesuffix("/") for name in masks]
  for path in owners:
    reason = flax.why_not_condensable(modules[path], stacks_too=True)
    if reason is not None:
      raise ValueError(
        f"Layer {path!r} of type {type(modules[path]).__name__} cannot be condensed: {reason}. "
        f"Leave {kernel_path(path)!r} out of `masks` (the layer then stays dense), or use a plain "
        "layer."
      )
  return owners


def _condense(flax: Any, module: Any, mask: Any, path: str) -> Condensed | list[Condensed]:
  try:
    return flax.condense_layer(module, mask)
  except ValueError as error:
    advice = axes_advice(mask, flax.kernel_layout(module).neuron_axes)
    raise ValueError(f"Layer {path!r} cannot be condensed: {error}{advice}") from error


def _fold(flax, model, masks, condensed, may_change, inputs, call, make) -> Model:
  """The model with condensed modules, and without what need not be computed."""
  tracing = import_with_flax("nnx_trace")
  traced = tracing.trace(model, inputs, call)
  stacks = {path for path, x in condensed.items() if isinstance(x, list)}
  hidden = sorted(traced.exposed & {*condensed} - stacks)  # a scan takes stacks apart by itself
  if hidden:
    raise ValueError(
      f"The model reads or changes the variables of layer {hidden[0]!r} by itself, but a condensed "
      f"layer has none: leave {kernel_path(hidden[0])!r} out of `masks`."
    )
  modules = flax.find_modules(model)
  free = {path: modules[path] for path in (traced.marked - traced.exposed) & may_change}
  norms = {path: flax.read_norm(x) for path, x in free.items() if flax.can_fold_norm(x)}
  layers = {
    path: flax.read_layer(x, masks.get(kernel_path(path)))
    for path, x in free.items()
    if path not in norms
  }

  looped = traced.jaxpr.in_loops()

  def rebuild(layers):
    folded = fold(traced.jaxpr, traced.scalars, layers, norms)
    return _rebuild(flax, flax.clone(model), condensed, folded, make, looped)

  result = rebuild(layers)
  try:
    after = tracing.trace(result, inputs, call)
    if after.output == traced.output and _same(after.jaxpr, traced.jaxpr):
      return result
    reason = "it then computes something else"
  except (AssertionError, IndexError, TypeError, ValueError) as error:
    reason = f"it then fails: {error}"
  warnings.warn(
    "No neurons were removed, because the model's own code depends on their number "
    f"({reason}). Ablated neurons are skipped, but their constants are computed with.",
    stacklevel=3,
  )
  return rebuild({k: dataclasses.replace(x, can_shrink=False) for k, x in layers.items()})


def _same(a: Any, b: Any) -> bool:
  """Whether two programs compute the same but for shapes."""
  return a.fingerprint() == b.fingerprint()


def _rebuild(flax, model, condensed, folded, make, looped=frozenset()) -> Model:
  """The model with its layers replaced by what `fold` made of them; changes it."""
  modules = flax.find_modules(model)
  condensed = dict(condensed)
  for path, weights in folded.layers.items():
    if path in condensed:
      condensed[path] = flax.condense_weights(modules[path], weights)
    else:
      flax.write_layer(modules[path], weights)
  for path, keep in folded.norms.items():
    flax.shrink_norm(modules[path], keep)
  new = {path: flax.folded_norm(modules[path]) for path in folded.folded_norms}
  new |= {path: make(modules[path], x, in_loop=path in looped) for path, x in condensed.items()}
  return flax.swap(model, new)
