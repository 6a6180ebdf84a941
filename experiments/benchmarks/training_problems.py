"""What the training benchmark trains: a ResNet-18, a stand-in for ViT-B/16, ResNet-50's shapes."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax import Array

import srigl_jax as sx
from experiments import models

GAMMA_SAL = 0.3

Arrays = dict[str, Array]
Shapes = dict[str, tuple[int, ...]]


class Problem(NamedTuple):
  """Something to train.

  Attributes:
    name: for the table.
    loss_fn: `(params, model_state, inputs, labels) -> (loss, model_state)`.
    params: by path.
    model_state: batch statistics by path.
    batch: `(inputs, labels)`.
    inner: the optimizer.
    gamma_sal: see `srigl`.
  """

  name: str
  loss_fn: Callable[[Arrays, Arrays, Array, Array], tuple[Array, Arrays]]
  params: Arrays
  model_state: Arrays
  batch: tuple[Array, Array]
  inner: optax.GradientTransformation
  gamma_sal: float


def resnet18(batch_size: int, *, quick: bool) -> Problem:
  """The experiments' ResNet-18; `quick`: a shallow and narrow one."""
  size: dict[str, Any] = {"stage_sizes": (1,), "width": 8} if quick else {}
  apply, params, model_state = models.init(
    "resnet18", num_classes=10, image_shape=(32, 32, 3), key=jax.random.key(0), **size
  )

  def loss_fn(params, model_state, images, labels):
    logits, model_state = apply(params, model_state, images, train=True)
    return _cross_entropy(logits, labels), model_state

  images = jax.random.normal(jax.random.key(1), (batch_size, 32, 32, 3))
  batch = images, jnp.arange(batch_size) % 10
  l2 = optax.add_decayed_weights(5e-4)
  inner = optax.chain(l2, optax.sgd(1e-3, momentum=0.9, nesterov=True))
  name = f"ResNet-18, {batch_size} images"
  return Problem(name, loss_fn, params, model_state, batch, inner, GAMMA_SAL)


def vit(batch_size: int, *, quick: bool) -> Problem:
  """The stand-in for ViT-B/16 described above; `quick`: a shallow and narrow one."""
  dim, num_blocks, num_heads, num_patches = (32, 1, 2, 9) if quick else (768, 12, 12, 196)
  shapes: Shapes = {"conv_proj/kernel": (16, 16, 3, dim), "head/kernel": (dim, 1000)}
  for i in range(num_blocks):
    shapes[f"block{i}/attention_in/kernel"] = (dim, 3 * dim)
    shapes[f"block{i}/attention_out/kernel"] = (dim, dim)
    shapes[f"block{i}/mlp_in/kernel"] = (dim, 4 * dim)
    shapes[f"block{i}/mlp_out/kernel"] = (4 * dim, dim)
  norm = lambda x: jax.nn.standardize(x, axis=-1)

  def loss_fn(params, model_state, patches, labels):
    x = patches @ params["conv_proj/kernel"].reshape(-1, dim)
    for i in range(num_blocks):
      qkv = norm(x) @ params[f"block{i}/attention_in/kernel"]
      q, k, v = jnp.split(qkv.reshape(*x.shape[:2], 3 * num_heads, -1), 3, axis=2)
      attended = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
      x += attended @ params[f"block{i}/attention_out/kernel"]
      hidden = jax.nn.gelu(norm(x) @ params[f"block{i}/mlp_in/kernel"])
      x += hidden @ params[f"block{i}/mlp_out/kernel"]
    return _cross_entropy(norm(x).mean(1) @ params["head/kernel"], labels), model_state

  patches = jax.random.normal(jax.random.key(1), (batch_size, num_patches, 16 * 16 * 3))
  batch = patches, jnp.arange(batch_size)
  name = f"ViT-B/16 stand-in, {batch_size} images"
  return Problem(name, loss_fn, normal(shapes), {}, batch, optax.adamw(1e-4), 0.95)


def resnet50_shapes(*, quick: bool) -> Shapes:
  """Kernels of ResNet-50 (v1.5) by path: 25.5 M weights in 54 layers; `quick`: far fewer."""
  size: dict[str, Any] = {"stage_sizes": (1,), "width": 8, "num_classes": 10}
  size = size if quick else {"num_classes": 1000}
  make = lambda: models.build("resnet50", image_shape=(224, 224, 3), rngs=nnx.Rngs(0), **size)
  params = nnx.state(nnx.eval_shape(make), nnx.Param)
  return {path: layer.shape for path, layer in sx.allocate(params, density=1.0).layers.items()}


def normal(shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
  """Random kernels of variance 1 / fan-in."""
  keys = jax.random.split(jax.random.key(0), len(shapes))
  return {
    path: jax.random.normal(key, shape) * math.prod(shape[:-1]) ** -0.5
    for key, (path, shape) in zip(keys, shapes.items(), strict=True)
  }


def _cross_entropy(logits: Array, labels: Array) -> Array:
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
