"""What leaves are taken for, in trees as the frameworks and public models have them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_jax import axes
from srigl_jax.layers import Axes
from srigl_jax.leaves.judge import judge
from srigl_jax.leaves.specs import LeafSpec, leaf_specs

DENSE, EMBEDDING, POSITION, NORM = "dense", "embedding", "position table", "norm"


def judged(shapes, **kwargs):
  return judge({p: LeafSpec(shape, np.dtype("float32")) for p, shape in shapes.items()}, **kwargs)


@pytest.mark.parametrize(
  ("path", "leaf", "expected"),
  [
    ("a/kernel", jnp.ones((2, 3)), True),
    ("a/kernel", jnp.ones((2, 3), jnp.bfloat16), True),
    ("3", jnp.ones((2, 3)), True),
    ("w", np.ones((2, 3), np.float32), True),
    ("w", jax.ShapeDtypeStruct((2, 3), jnp.float32), True),
    ("a/kernel", jnp.ones((2, 3), jnp.int32), False),
    ("a/kernel", jnp.ones(3), False),
    ("query/bias", jnp.ones((2, 3)), False),
    ("norm/scale", jnp.ones((1, 3)), False),
    ("embed/embedding", jnp.ones((2, 3)), False),
    ("pos_embedding", jnp.ones((1, 2, 3)), False),
    ("posembed_input/pos_embedding", jnp.ones((1, 2, 3)), False),
    ("cls", jnp.ones((1, 1, 3)), False),
    ("cls_token", jnp.ones((1, 1, 3)), False),
    ("embedding/kernel", jnp.ones((2, 3)), True),
    ("cls/kernel", jnp.ones((2, 3)), True),
  ],
)
def test_what_is_a_layer(path, leaf, expected):
  assert (judge(leaf_specs({path: leaf}))[path].layer is not None) == expected


@pytest.mark.parametrize(
  ("path", "shape", "kind"),
  [
    ("embed/embeddings", (50, 48), EMBEDDING),  # Haiku, Keras
    ("wte", (50, 48), EMBEDDING),
    ("transformer/wte/weight", (50, 48), EMBEDDING),
    ("embed/W_E", (50, 48), EMBEDDING),
    ("embeddings/token_type_embeddings/weight", (2, 48), EMBEDDING),
    ("token_type_table", (2, 48), EMBEDDING),
    ("tok_emb", (50, 48), EMBEDDING),
    ("model/embed_tokens/weight", (50, 48), EMBEDDING),  # Llama
    ("ssm/A_log", (32, 16), "scale"),
    ("object_queries", (10, 16), "token"),
    ("quantizer/codebook", (50, 48), EMBEDDING),
    ("wpe", (32, 48), POSITION),
    ("wpe/weight", (32, 48), POSITION),
    ("pos_table", (1, 32, 48), POSITION),
    ("encoder/absolute_pos_embed", (1, 32, 48), POSITION),
    ("relative_position_bias_table", (169, 12), POSITION),
    ("attn/rel_pos_h", (27, 16), POSITION),
    ("relative_attention_bias/weight", (32, 8), POSITION),
    ("norm/weight", (3, 4), NORM),
    ("LayerNorm_0/w", (3, 4), NORM),
    ("ln_f/g", (8, 4), NORM),
    ("grn/gamma", (1, 1, 1, 16), NORM),
    ("GRN_0/beta", (1, 1, 1, 16), NORM),
    ("batch_norm/offset", (1, 1, 1, 16), NORM),
    ("block/layer_scale/alpha", (16, 1, 1), "scale"),
    ("temperature", (1, 1, 1, 8), "scale"),
    ("q/lora_a", (8, 2), "adapter"),
    ("q_proj/lora_B/default/weight", (8, 2), "adapter"),
    ("dense/lora/lora_b", (2, 8), "adapter"),
    ("block/adapter/down/kernel", (8, 2), "adapter"),
    ("prompts", (4, 8), "adapter"),
    ("q/LoRA_A", (8, 2), "adapter"),
    ("lora/q/b", (2, 8), "adapter"),
    ("LoRAParam_0/a", (8, 2), "adapter"),
    ("block/adapter_down/kernel", (8, 2), "adapter"),
    ("attn/prefix_k", (4, 8), "adapter"),
    ("mask_token", (1, 1, 8), "token"),
    ("latent_array", (4, 8), "token"),
    ("inducing_points", (4, 8), "token"),
    ("attn/rpe", (13, 8), POSITION),
    ("kv_cache", (2, 16, 2, 8), "state"),
    ("attn/cache/k", (2, 16, 2, 8), "state"),
    ("ema/dense/kernel", (8, 16), "state"),
    ("mixer/conv_state", (2, 16, 4), "state"),
    ("rnn/initial_hidden", (2, 16), "state"),
    ("moco/queue", (128, 16), "state"),
    ("ema", (8, 16), "statistic"),
    ("norm_stats/mean", (4, 16), "statistic"),
    ("vq/cluster_size", (4, 16), "statistic"),
    ("rope/freqs", (64, 16), "table"),
    ("freqs_cis", (64, 16), "table"),
    ("sin_cos", (64, 16), "table"),
    ("crf/transitions", (9, 9), "table"),
    ("causal_mask", (64, 64), "table"),
    ("user_factors", (50, 16), EMBEDDING),
    ("policy/log_sigma", (4, 16), "scale"),
    # Layers, though their names have something of the above.
    ("lora_dense/kernel", (8, 8), DENSE),
    ("lora/base_module/kernel", (8, 8), DENSE),
    ("lora/kernel", (8, 8), DENSE),  # nnx.LoRALinear
    ("ada_ln/w", (8, 48), DENSE),
    ("embed_in/kernel", (8, 8), DENSE),
    ("unembed/W_U", (8, 50), DENSE),
    ("position_wise_ffn/w", (8, 32), DENSE),
    ("token_mixing/kernel", (8, 8), DENSE),
    ("norm_out/linear/kernel", (8, 8), DENSE),
    ("patch_embed/kernel", (4, 4, 3, 8), "convolution"),
    ("policy/mean/kernel", (8, 16), DENSE),
    ("policy/mean/w", (8, 16), DENSE),
    ("state_proj/kernel", (8, 16), DENSE),
    ("W_state", (8, 16), DENSE),
    ("dense/kernel/mean", (8, 16), DENSE),
    ("memory/kernel", (8, 16), DENSE),
    ("moments/dense/kernel", (8, 16), DENSE),
  ],
)
def test_kinds_by_name(path, shape, kind):
  leaf = judged({path: shape})[path]
  assert (leaf.kind, leaf.doubt) == (kind, "")


BESIDE = [
  # kernel, bias: neurons, spatial, stack
  ("fused/kernel", (8, 3, 2, 4), "fused/bias", (3, 2, 4), Axes((1, 2, 3))),
  ("einsum/kernel", (8, 2, 4), "einsum/bias", (2, 4), Axes((1, 2))),
  ("a/weight", (10, 32), "a/bias", (10,), Axes((0,))),
  ("a/weight", (32, 10), "a/bias", (10,), Axes((1,))),  # GPT-2's Conv1D
  ("a/weight", (8, 4, 3, 3), "a/bias", (8, 1, 1), Axes((0,), (2, 3))),
  ("W1", (10, 32), "b1", (10,), Axes((0,))),
  ("0/0", (10, 32), "0/1", (10,), Axes((0,))),  # [(w, b), ...], y = w @ x
  ("0/0", (32, 10), "0/1", (10,), Axes((1,))),
  ("conv/kernel", (5, 64, 32), "conv/bias", (32,), Axes((2,), (0,))),
  ("a/kernel", (5, 64, 32), "a/bias", (5, 32), Axes((2,), stack=(0,))),
  ("a/query/kernel", (5, 8, 2, 4), "a/query/bias", (5, 2, 4), Axes((2, 3), stack=(0,))),
  ("conv2d_transpose/kernel", (3, 3, 6, 5), "conv2d_transpose/bias", (6,), Axes((2,), (0, 1))),
  ("ConvTranspose_0/kernel", (3, 3, 6, 5), "ConvTranspose_0/bias", (5,), Axes((3,), (0, 1))),
  ("depthwise_conv2d/kernel", (3, 3, 4, 2), "depthwise_conv2d/bias", (8,), Axes((2, 3), (0, 1))),
]


@pytest.mark.parametrize(("kernel", "shape", "bias", "bias_shape", "expected"), BESIDE)
def test_the_bias_beside_a_kernel_tells_its_axes(kernel, shape, bias, bias_shape, expected):
  leaves = judged({kernel: shape, bias: bias_shape})
  assert leaves[kernel].layer.axes == expected
  assert not leaves[kernel].doubt and leaves[bias].kind == "bias"


def test_leaves_of_one_name_have_one_layout():
  leaves = judged({"a/weight": (8, 8), "a/bias": (8,), "b/weight": (4, 8), "b/bias": (4,)})
  assert [leaves[f"{name}/weight"].layer.axes.neurons for name in "ab"] == [(0,), (0,)]
  assert not leaves["a/weight"].doubt


@pytest.mark.parametrize(
  ("path", "shape", "message"),
  [
    ("a/kernel", (5, 64, 64), r"'a/kernel' .*window of 5, .* stack of 5 .*axes\.stacked\('a/kern"),
    ("a/kernel", (32, 3, 4, 8), r"window of 32×3, .*32 inputs → 96 .*neurons=\(1, 2, 3\)"),
    ("a/weight", (8, 8), r"may as well be dense.*axes=sx\.axes\.flax.*axes=sx\.axes\.equinox"),
    ("layers/up/kernel", (3, 64, 256), r"stack of 3 layers.*window of 3.*axes=sx\.axes\.flax"),
  ],
)
def test_what_cannot_be_told_is_doubted(path, shape, message):
  assert re.search(message, judged({path: shape})[path].doubt)


def test_what_lies_in_a_stacked_module_is_a_stack():
  layer = {
    "up/kernel": (3, 8, 16), "norm/scale": (3, 8), "attn/query/kernel": (3, 8, 2, 4),
    "attn/out/kernel": (3, 2, 4, 8), "conv/kernel": (3, 3, 3, 8, 8), "pos": (3, 7, 8),
  }  # fmt: skip
  leaves = judged({f"body/{path}": shape for path, shape in layer.items()})
  found = {path: leaves[f"body/{path}"] for path in layer}
  assert not any(leaf.doubt for leaf in leaves.values())
  assert found["norm/scale"].kind == NORM and found["pos"].kind == POSITION
  assert found["up/kernel"].layer.axes == Axes((2,), stack=(0,))
  assert found["attn/query/kernel"].layer.axes == Axes((2, 3), stack=(0,))
  assert found["attn/out/kernel"].layer.axes == Axes((3,), stack=(0,))
  assert found["conv/kernel"].layer.axes == Axes((4,), (1, 2), (0,))
  assert found["attn/out/kernel"].kind == "3 × attention out"


def test_a_stack_along_the_second_axis_is_doubted():
  shapes = {"dec/query/kernel": (16, 3, 32), "dec/norm/scale": (16, 3), "head/kernel": (16, 9)}
  leaves = judged(shapes)
  assert re.search(r"axes=sx\.axes\.stacked\('\^dec/', axis=1\)", leaves["dec/query/kernel"].doubt)
  assert leaves["dec/norm/scale"].kind == NORM and not leaves["head/kernel"].doubt


@pytest.mark.parametrize(
  ("path", "shape", "expected"),
  [
    ("attn/q_einsum/w", (4, 16, 8), Axes((0, 2))),
    ("attn/kv_einsum/w", (2, 2, 16, 8), Axes((0, 1, 3))),  # no window of 2×2
    ("attn/attn_vec_einsum/w", (4, 8, 16), Axes((2,))),
  ],
)
def test_projections_of_gemma(path, shape, expected):
  leaf = judged({path: shape})[path]
  assert (leaf.layer.axes, leaf.doubt) == (expected, "")


def test_neurons_on_both_sides_of_the_inputs_are_doubted_as_a_stack():
  one_layer = lambda path, shape: Axes(neurons=(0, 2))
  doubt = judged({"layers/up/kernel": (3, 64, 256)}, axes=one_layer)["layers/up/kernel"].doubt
  assert re.search(r"768 neurons, as `axes` says.* not 3 layers .*axes\.stacked\('layers/up", doubt)


def test_experts_are_stacks():
  leaf = judged({"moe/experts/wi": (4, 8, 16), "moe/router/kernel": (8, 4)})["moe/experts/wi"]
  assert (leaf.layer.axes, leaf.doubt) == (Axes((2,), stack=(0,)), "")


@pytest.mark.parametrize(
  ("preset", "path", "shape", "expected"),
  [
    (axes.flax, "a/kernel", (5, 64, 32), Axes((2,), (0,))),
    (axes.equinox, "a/kernel", (32, 64, 5), Axes((0,), (2,))),
    (axes.haiku, "conv2_d_transpose/w", (3, 3, 6, 5), Axes((2,), (0, 1))),
    (axes.haiku, "conv2_d/w", (3, 3, 6, 5), Axes((3,), (0, 1))),
    (axes.keras, "separable_conv2d/depthwise_kernel", (3, 3, 4, 2), Axes((2, 3), (0, 1))),
    (axes.keras, "mha/attention_output/kernel", (2, 3, 6), Axes((2,))),
    (axes.keras, "mha/query/kernel", (6, 2, 3), Axes((1, 2))),
    (axes.keras, "einsum_dense_1/kernel", (6, 7, 2), Axes((1, 2))),
    (axes.stacked("^a/"), "a/kernel", (5, 64, 32), Axes((2,), stack=(0,))),
    (axes.stacked("^a/", axis=1), "a/kernel", (64, 5, 32), Axes((2,), stack=(1,))),
    (axes.stacked("a", base=axes.equinox), "a/w", (5, 64, 32), Axes((1,), stack=(0,))),
    (axes.stacked("a"), "a/query/kernel", (5, 8, 2, 4), Axes((2, 3), stack=(0,))),
    (axes.at({"^a": Axes((1, 2))}), "a/kernel", (5, 64, 32), Axes((1, 2))),
  ],
)
def test_what_is_given_is_taken(preset, path, shape, expected):
  leaf = judged({path: shape}, axes=preset)[path]
  assert (leaf.layer.axes, leaf.doubt) == (expected, "")


def test_a_stack_of_vectors_is_no_layer():
  leaf = judged({"a/skip": (5, 64)}, axes=axes.stacked("^a/"))["a/skip"]
  assert (leaf.kind, leaf.layer) == ("vector", None)


def test_a_pattern_of_axes_that_fits_nothing_is_an_error():
  with pytest.raises(ValueError, match=r"axes names 'blocks', which fits no leaf .*: a/kernel"):
    judged({"a/kernel": (2, 3)}, axes=axes.stacked("blocks"))


def test_axes_that_a_bias_contradicts_are_doubted():
  shapes = {"a/kernel": (8, 3, 2, 4), "a/bias": (3, 2, 4), "b/weight": (10, 32), "b/bias": (10,)}
  doubts = {p: leaf.doubt for p, leaf in judged(shapes, axes=axes.flax).items() if leaf.doubt}
  assert re.search(r"as `axes` says, but 'a/bias' .*24 neurons .*\(1, 2, 3\)", doubts["a/kernel"])
  assert re.search(r"'b/bias' beside it .*axes=sx\.axes\.equinox", doubts["b/weight"])
  right = axes.at({"^a": Axes((-3, -2, -1))}, base=axes.equinox)
  assert not any(leaf.doubt for leaf in judged(shapes, axes=right).values())


@pytest.mark.parametrize("given", ["equinox", Axes((0,))])
def test_axes_of_no_known_kind_are_an_error(given):
  with pytest.raises(ValueError, match=r"axes is .*such as sx\.axes\.flax"):
    judged({"a/kernel": (2, 3)}, axes=given)
