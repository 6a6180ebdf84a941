"""Layers in condensed form seen as what they stand for: dense shapes, masks, condensed layers."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import Array

from srigl_jax.arguments import check_kind
from srigl_jax.layers import Axes, from_matrix, make_layer
from srigl_jax.leaves.specs import LeafSpec, leaf_specs
from srigl_kernels.format import Condensed, make_condensed
from srigl_kernels.pattern import Pattern


def dense_shapes(params: Any, patterns: Mapping[str, Pattern]) -> dict[str, LeafSpec]:
  """The parameters by path without their values, sparse layers of the shape of the dense kernel."""
  specs = leaf_specs(params)
  own = lambda path: patterns[path].kernel_shape if path in patterns else specs[path].shape
  return {path: dataclasses.replace(spec, shape=own(path)) for path, spec in specs.items()}


def pattern_mask(pattern: Pattern) -> Array:
  """The mask of a concrete pattern, bool of the dense kernel's shape."""
  check_kind("pattern", pattern, Pattern, "a Pattern, from init_patterns(key, allocation)")
  layer = make_layer("kernel", pattern.kernel_shape, lambda *_: Axes(pattern.neuron_axes))
  rows, active = _rows(pattern, pattern.indices)
  mask = np.zeros((layer.dense_fan_in, layer.num_neurons), bool)
  mask[rows, active[:, None]] = True
  return from_matrix(jax.numpy.asarray(mask), layer)


def to_condensed(values: Any, pattern: Pattern, bias: Any = None) -> Condensed:
  """The layer as it is saved and run: without unused entries, validated.

  Args:
    values: `[C]` float32 or bfloat16; concrete, as the pattern.
    pattern: of the layer.
    bias: of the neurons' shape, or None.
  """
  check_kind("pattern", pattern, Pattern, "a Pattern, from init_patterns(key, allocation)")
  rows, active = _rows(pattern, pattern.indices)
  return make_condensed(
    _rows(pattern, values)[0],
    rows,
    active,
    None if bias is None else np.asarray(bias).reshape(-1),
    kernel_shape=pattern.kernel_shape,
    neuron_axes=pattern.neuron_axes,
  )


def _rows(pattern: Pattern, stored: Any) -> tuple[np.ndarray, np.ndarray]:
  """What is stored of each active neuron, `[A, K]`, and these neurons."""
  num_active, fan_in = (int(n) for n in pattern.sizes)
  rows = np.asarray(stored)[: num_active * fan_in].reshape(num_active, fan_in)
  return rows, np.asarray(pattern.active)[:num_active]
