"""Dynamic sparse training with structured sparsity (SRigL, arXiv:2305.02299) for JAX.

Shape letters in docstrings: `I` inputs of a neuron when dense, `N` neurons of a layer.
"""

from srigl_jax.allocation import Allocation, allocate
from srigl_jax.condense import condense, expand
from srigl_jax.condense_model import condense_model
from srigl_jax.evolution import LayerView, Topology, per_layer
from srigl_jax.flops import (
  layer_macs,
  relative_flops,
  sparsity_for_flops,
  total_macs,
  training_flops,
)
from srigl_jax.folding_report import FoldedLayer, FoldingReport, folding_report
from srigl_jax.initializers import init_sparse_weights
from srigl_jax.leaves import Axes, Layer, flax_axes
from srigl_jax.masks import apply_masks, init_masks
from srigl_jax.methods import rigl, set_, srigl, static_sparse
from srigl_jax.model_arrays import merge_condensed, split_condensed
from srigl_jax.rules import all_but, only
from srigl_jax.serialize import (
  CondensedFile,
  load_condensed,
  load_condensed_file,
  save_condensed,
)
from srigl_jax.state import SparseState, get_masks, get_state
from srigl_jax.summary import LayerSummary, Summary, summarize, warn_if_over_ablated
from srigl_jax.topology import rigl_update, set_update, srigl_update
from srigl_jax.transform import sparse_training
from srigl_kernels import (
  Condensed,
  Prepared,
  choose_backend,
  condensed_conv,
  condensed_matmul,
  prepare,
)

__all__ = [
  "Allocation",
  "Axes",
  "Condensed",
  "CondensedFile",
  "FoldedLayer",
  "FoldingReport",
  "Layer",
  "LayerSummary",
  "LayerView",
  "Prepared",
  "SparseState",
  "Summary",
  "Topology",
  "all_but",
  "allocate",
  "apply_masks",
  "choose_backend",
  "condense",
  "condense_model",
  "condensed_conv",
  "condensed_matmul",
  "expand",
  "flax_axes",
  "folding_report",
  "get_masks",
  "get_state",
  "init_masks",
  "init_sparse_weights",
  "layer_macs",
  "load_condensed",
  "load_condensed_file",
  "merge_condensed",
  "only",
  "per_layer",
  "prepare",
  "relative_flops",
  "rigl",
  "rigl_update",
  "save_condensed",
  "set_",
  "set_update",
  "sparse_training",
  "sparsity_for_flops",
  "split_condensed",
  "srigl",
  "srigl_update",
  "static_sparse",
  "summarize",
  "total_macs",
  "training_flops",
  "warn_if_over_ablated",
]
