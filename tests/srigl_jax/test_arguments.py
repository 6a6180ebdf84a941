"""Arguments of the wrong kind: every one is told what was given and what it must be."""

import jax
import jax.numpy as jnp
import optax
import pytest

import srigl_jax as sx
from srigl_kernels import choose_backend, conv_probe, sparse_linear

PARAMS = {"a": {"kernel": jnp.ones((8, 8))}, "head": {"kernel": jnp.ones((8, 4))}}
BAD = (None, {"a": [1]}, jnp.ones((3, 3)), [1, 2], 3, object())
SGD = optax.sgd(0.1)
CALLS = {
  "fixed_masks": lambda bad: sx.fixed_masks(SGD, bad),
  "apply_masks": lambda bad: sx.apply_masks(PARAMS, bad),
  "summarize": lambda bad: sx.summarize(PARAMS, bad),
  "init_masks": lambda bad: sx.init_masks(jax.random.key(0), bad),
  "init_patterns": lambda bad: sx.init_patterns(jax.random.key(0), bad),
  "init_condensed_weights": lambda bad: sx.init_condensed_weights(jax.random.key(0), bad),
  "condensed_srigl": lambda bad: sx.condensed_srigl(SGD, update_until=5).init(PARAMS, bad),
  "condensed_value_and_grad": sx.condensed_value_and_grad,
  "condensed_optimizer": lambda bad: sx.condensed_optimizer(bad, bad),
  "sparsify": lambda bad: sx.sparsify(bad, sparsity=0.5),
  "sparse_layers": sx.sparse_layers,
  "condense_trained": sx.condense_trained,
  "condense_model": lambda bad: sx.condense_model(bad, {}),
  "condense_linen": lambda bad: sx.condense_linen(bad, {}, {}),
  "condense_equinox": lambda bad: sx.condense_equinox(bad, {}),
  "folding_report": lambda bad: sx.folding_report(bad, bad),
  "split_condensed": sx.split_condensed,
  "merge_condensed": lambda bad: sx.merge_condensed(bad, {}, {}),
  "save_condensed": lambda bad: sx.save_condensed("never_written", bad),
  "expand": sx.expand,
  "prepare": sx.prepare,
  "choose_backend": choose_backend,
  "condensed_matmul": lambda bad: sx.condensed_matmul(jnp.ones((2, 8)), bad),
  "condensed_conv": lambda bad: sx.condensed_conv(jnp.ones((2, 8, 8, 1)), bad),
  "sparse_linear": lambda bad: sparse_linear(jnp.ones((2, 8)), jnp.ones(8), bad),
  "conv_probe": lambda bad: conv_probe(jnp.ones((2, 8, 8, 1)), bad),
  "pattern_mask": sx.pattern_mask,
  "to_condensed": lambda bad: sx.to_condensed(jnp.ones(8), bad),
  "sr_ste": sx.sr_ste,
  "srigl": lambda bad: sx.srigl(bad, sparsity=0.5, update_until=5),
  "plan": lambda bad: sx.plan(PARAMS, bad) if bad is not None else sx.plan(None),
  "per_layer": sx.per_layer,
  "total_macs": lambda bad: sx.total_macs(bad, PARAMS),
  "relative_flops": lambda bad: sx.relative_flops(bad, {}),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_wrong_is_told(name):
  for bad in BAD:
    with pytest.raises(ValueError, match=r"(is|takes|not|holds|needed|must|no) "):
      CALLS[name](bad)
