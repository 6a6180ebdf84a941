"""Masks that never change: random ones, or those of another run."""

from collections.abc import Mapping

import optax
from jax import Array

from srigl_jax.allocation import Distribution
from srigl_jax.arguments import ARRAYS, check_by_path
from srigl_jax.layer_filters import LayerFilter
from srigl_jax.layers import AxesFn
from srigl_jax.structures import Structure
from srigl_jax.transform import sparse_training


def static_sparse(
  inner: optax.GradientTransformation,
  *,
  sparsity: float | None = None,
  distribution: Distribution = "erk",
  density: float | None = None,
  fan_in: int | Mapping[str, int] | None = None,
  structure: Structure | str = "unstructured",
  sparse: LayerFilter = True,
  axes: AxesFn | None = None,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """A random mask that never changes. Arguments as for `srigl`; structures as for `allocate`."""
  return sparse_training(
    inner,
    None,
    structure=structure,
    sparsity=sparsity,
    distribution=distribution,
    density=density,
    fan_in=fan_in,
    sparse=sparse,
    axes=axes,
    seed=seed,
  )


def fixed_masks(
  inner: optax.GradientTransformation,
  masks: Mapping[str, Array],
  *,
  axes: AxesFn | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Given masks that never change: those of a trained network, on new weights.

  Trained so, networks fall short of those that found the masks in training: the static mask
  conundrum.

  Args:
    inner: the optimizer to wrap.
    masks: bool arrays by path, as from `get_masks`; layers without one are dense.
    axes: see `srigl`.

  Raises:
    ValueError: on `init` if a mask's path is no leaf's, or its shape is not the leaf's.

  Source: Evci et al., The Difficulty of Training Sparse Neural Networks (arXiv:1906.10732).
  """
  check_by_path("masks", masks, ARRAYS, "bool arrays, from get_masks(opt_state)")
  return sparse_training(inner, None, initial=masks, axes=axes)
