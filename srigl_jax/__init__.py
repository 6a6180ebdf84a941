"""Dynamic sparse training with structured sparsity (SRigL, arXiv:2305.02299) for JAX.

The names of this module are the public ones; all others may change without notice.
Shape letters in docstrings: `I` inputs of a neuron when dense, `N` neurons of a layer.
"""

from srigl_jax import axes
from srigl_jax.allocation import Allocation, allocate
from srigl_jax.analysis.flops import (
  mean_flops,
  relative_flops,
  sparsity_for_flops,
  training_flops,
)
from srigl_jax.analysis.macs import layer_macs, total_macs
from srigl_jax.analysis.plan import LeafPlan, Plan, plan
from srigl_jax.analysis.summary import LayerSummary, Summary, summarize, warn_if_over_ablated
from srigl_jax.condensed.condense import condense, expand
from srigl_jax.condensed.condense_equinox import CondensedEquinox, condense_equinox
from srigl_jax.condensed.condense_linen import CondensedLinen, condense_linen
from srigl_jax.condensed.condense_model import condense_model
from srigl_jax.condensed.folding_report import FoldedLayer, FoldingReport, folding_report
from srigl_jax.condensed.model_arrays import merge_condensed, split_condensed
from srigl_jax.condensed.quantize import QuantizationReport, QuantizedLayer, quantize_model
from srigl_jax.condensed.serialize import (
  CondensedFile,
  load_condensed,
  load_condensed_file,
  save_condensed,
)
from srigl_jax.condensed_training.init import init_condensed_weights, init_patterns
from srigl_jax.condensed_training.methods import (
  condensed_set,
  condensed_srigl,
  condensed_static,
)
from srigl_jax.condensed_training.sparsify import (
  condense_trained,
  condensed_optimizer,
  condensed_value_and_grad,
  sparse_layers,
  sparsify,
)
from srigl_jax.condensed_training.transform import CondensedTraining, CondensedTrainingState
from srigl_jax.condensed_training.tree import pattern_mask, to_condensed
from srigl_jax.exact_counts import truncated_count
from srigl_jax.export.c_file import CExport, export_c
from srigl_jax.export.onnx_file import export_onnx
from srigl_jax.initializers import init_sparse_weights
from srigl_jax.layer_filters import all_but, only
from srigl_jax.layer_views import LayerView, per_layer
from srigl_jax.layers import Axes, Layer, flax_axes, from_matrix, to_matrix
from srigl_jax.mask_updates import MaskUpdater
from srigl_jax.masks import Masks, apply_masks, init_masks
from srigl_jax.methods.continual import Owners, continual_sparse, task_masks
from srigl_jax.methods.lottery import Rounds, lottery_ticket
from srigl_jax.methods.nm_srigl import nm_srigl
from srigl_jax.methods.prune_pretrained import prune_pretrained, prune_to_fan_in
from srigl_jax.methods.pruning import (
  global_magnitude_masks,
  gradual_magnitude_pruning,
  one_shot_pruning,
)
from srigl_jax.methods.rigl import rigl, rigl_update, set_, set_update
from srigl_jax.methods.snfs import snfs, snfs_update
from srigl_jax.methods.sr_ste import sr_ste
from srigl_jax.methods.srigl import srigl, srigl_update
from srigl_jax.methods.static import fixed_masks, static_sparse
from srigl_jax.programs.fuse import fuse
from srigl_jax.state import SparseState, get_masks, get_state
from srigl_jax.structures import ConstantFanIn, Unstructured
from srigl_jax.topk import ranking_key, topk_mask, topk_mask_per_column
from srigl_jax.transform import sparse_training
from srigl_kernels import (
  Condensed,
  Pattern,
  Prepared,
  choose_backend,
  condensed_conv,
  condensed_matmul,
  conv_probe,
  prepare,
  sparse_conv,
  sparse_linear,
)

__version__ = "0.2.0"  # as in pyproject.toml

__all__ = [
  "Allocation",
  "Axes",
  "CExport",
  "Condensed",
  "CondensedEquinox",
  "CondensedFile",
  "CondensedLinen",
  "CondensedTraining",
  "CondensedTrainingState",
  "ConstantFanIn",
  "FoldedLayer",
  "FoldingReport",
  "Layer",
  "LayerSummary",
  "LayerView",
  "LeafPlan",
  "MaskUpdater",
  "Masks",
  "Owners",
  "Pattern",
  "Plan",
  "Prepared",
  "QuantizationReport",
  "QuantizedLayer",
  "Rounds",
  "SparseState",
  "Summary",
  "Unstructured",
  "all_but",
  "allocate",
  "apply_masks",
  "axes",
  "choose_backend",
  "condense",
  "condense_equinox",
  "condense_linen",
  "condense_model",
  "condense_trained",
  "condensed_conv",
  "condensed_matmul",
  "condensed_optimizer",
  "condensed_set",
  "condensed_srigl",
  "condensed_static",
  "condensed_value_and_grad",
  "continual_sparse",
  "conv_probe",
  "expand",
  "export_c",
  "export_onnx",
  "fixed_masks",
  "flax_axes",
  "folding_report",
  "from_matrix",
  "fuse",
  "get_masks",
  "get_state",
  "global_magnitude_masks",
  "gradual_magnitude_pruning",
  "init_condensed_weights",
  "init_masks",
  "init_patterns",
  "init_sparse_weights",
  "layer_macs",
  "load_condensed",
  "load_condensed_file",
  "lottery_ticket",
  "mean_flops",
  "merge_condensed",
  "nm_srigl",
  "one_shot_pruning",
  "only",
  "pattern_mask",
  "per_layer",
  "plan",
  "prepare",
  "prune_pretrained",
  "prune_to_fan_in",
  "quantize_model",
  "ranking_key",
  "relative_flops",
  "rigl",
  "rigl_update",
  "save_condensed",
  "set_",
  "set_update",
  "snfs",
  "snfs_update",
  "sparse_conv",
  "sparse_layers",
  "sparse_linear",
  "sparse_training",
  "sparsify",
  "sparsity_for_flops",
  "split_condensed",
  "sr_ste",
  "srigl",
  "srigl_update",
  "static_sparse",
  "summarize",
  "task_masks",
  "to_condensed",
  "to_matrix",
  "topk_mask",
  "topk_mask_per_column",
  "total_macs",
  "training_flops",
  "truncated_count",
  "warn_if_over_ablated",
]
