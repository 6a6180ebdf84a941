"""Flax NNX models that train in condensed form; Flax is imported when one is asked for."""

from collections.abc import Callable, Sequence
from typing import Any

from srigl_jax.arguments import check_callable
from srigl_jax.condensed.flax_import import import_with_flax
from srigl_jax.condensed_training.transform import CondensedTraining, Signals

Model = Any  # an nnx.Module


def sparsify(
  model: Model | Callable[[], Model],
  *,
  seed: int = 0,
  scheme: str = "he_normal",
  **sparsity_kwargs: Any,
) -> Model:
  """A model whose sparse layers are in condensed form from the start.

  Dense kernels are never made: a model may be given whose kernels would not fit into memory.

  Args:
    model: a function of no arguments that makes the `nnx.Module`, random state and all
      (`lambda: Net(rngs=nnx.Rngs(0))`); it is traced for its shapes, and run without its sparse
      kernels. Or a module, whose sparse kernels are dropped.
    seed: of patterns and weights: those of `init_masks(key, ...)` with `key = jax.random.key(seed)`
      and `init_sparse_weights(jax.random.fold_in(key, L), ...)`, L the number of sparse layers.
    scheme: of the sparse layers' weights; see `init_sparse_weights`.
    **sparsity_kwargs: `sparsity`, `distribution`, `fan_in`, `sparse` and so on; see `allocate`.

  Returns:
    A new model. Its `nnx.Linear`, `nnx.LinearGeneral` (attention projections) and `nnx.Conv`
    layers that are sparse have a `kernel` `[C]` of values, under the path of the dense kernel.

  Raises:
    ValueError: if a layer that would be sparse cannot train in condensed form, or as `allocate`.
  """
  nnx_models = import_with_flax("nnx_models", "condensed_training")
  return nnx_models.sparsify(model, seed, scheme, **sparsity_kwargs)


def condensed_value_and_grad(
  loss_fn: Callable[..., Any], *, has_aux: bool = False
) -> Callable[..., Any]:
  """`nnx.value_and_grad` for a model from `sparsify`.

  Args:
    loss_fn: `(model, *args) -> loss`, or `(loss, aux)`. Each sparse layer is called once.
    has_aux: whether it returns `(loss, aux)`.

  Returns:
    `(model, *args) -> (loss or (loss, aux), grads)`; `grads.params` are the gradients of the
    parameters, `grads.signals` what a topology update forms dense gradients from. Other state of
    the model, such as a batch norm's, is updated in place.
  """
  check_callable("loss_fn", loss_fn, "a function (model, *args) -> loss")
  return import_with_flax("nnx_modules", "condensed_training").value_and_grad(
    loss_fn, has_aux=has_aux
  )


def condensed_optimizer(model: Model, tx: CondensedTraining, signals: Signals | None = None) -> Any:
  """`nnx.Optimizer` for a model from `sparsify`.

  Args:
    model: the model.
    tx: `condensed_srigl(...)` or another.
    signals: `grads.signals` of a batch of all devices, or their shapes, as
      `nnx.eval_shape(condensed_value_and_grad(loss_fn), model, *batch)[1].signals` has them; needed
      if the gradients of several batches score growth.

  Returns:
    An object with `update(model, grads)`, of `grads` from `condensed_value_and_grad`.
  """
  return import_with_flax("nnx_modules", "condensed_training").CondensedOptimizer(
    model, tx, signals
  )


def sparse_layers(model: Model) -> dict[str, Any]:
  """The layers of a model from `sparsify` that train in condensed form, by their kernels' paths.

  Each has a `kernel` (values), a `pattern` and a `bias`, variables all: `get_value()` is the array,
  or the `Pattern`.
  """
  return import_with_flax("nnx_modules", "condensed_training").sparse_layers(model)


def condense_trained(model: Model, *, backend: str | Sequence[str] = "auto") -> Model:
  """A model from `sparsify` made ready for inference, without a dense kernel on the way.

  Args:
    model: the model; it is left as it is.
    backend: what layers are prepared for; see `prepare`.

  Returns:
    A new model of condensed layers, as `condense_model` makes without `inputs`.
  """
  return import_with_flax("nnx_models", "condensed_training").condense(model, backend)
