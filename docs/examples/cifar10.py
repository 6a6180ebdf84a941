# %% [markdown]
# # SRigL on CIFAR-10, in one file
#
# A small convolutional network that is 90 % sparse from the first step to the last, from imports to
# a file with its condensed form. Only the library is used, with Flax, optax and numpy.
#
# Measured: nothing yet. <!-- measured -->
#
# CIFAR-10 is read with TensorFlow Datasets (without TensorFlow) from `$TFDS_DATA_DIR`, else from
# `~/tensorflow_datasets`: `tfds build cifar10 --file_format=array_record` puts it there.

# %%
import math
import os
import time
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import srigl_jax as sx

OUT = "cifar10.safetensors"

# %% [markdown]
# ## Data
# Images stay uint8 in memory; a batch is cropped and mirrored on the device.


# %%
def load(split):
  """Images `[N, 32, 32, 3]` uint8 and labels `[N]` int32."""
  import tensorflow_datasets as tfds

  folder = os.environ.get("TFDS_DATA_DIR")
  source = tfds.data_source("cifar10", split=split, data_dir=folder, download=False)
  examples = [source[i] for i in range(len(source))]
  labels = np.array([example["label"] for example in examples], np.int32)
  return np.stack([example["image"] for example in examples]), labels


def augment(key, images):
  """Pads by 4, crops at random, mirrors half of the images; float32 in [0, 1]."""
  shift_key, flip_key = jax.random.split(key)
  height, width, channels = images.shape[1:]
  padded = jnp.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)), mode="reflect")
  shifts = jax.random.randint(shift_key, (len(images), 2), 0, 9)
  crop = lambda image, at: jax.lax.dynamic_slice(image, (*at, 0), (height, width, channels))
  images = jax.vmap(crop)(padded, shifts)
  flip = jax.random.bernoulli(flip_key, shape=(len(images), 1, 1, 1))
  return jnp.where(flip, images[:, :, ::-1], images) / 255.0


# %% [markdown]
# ## Network
# An ordinary Flax model, unaware of sparsity. `head` is named like a classifier, so that none of
# its neurons is ever ablated.


# %%
class ConvNet(nnx.Module):
  """Convolution, batch norm and ReLU, each halving the image; then a mean over positions."""

  def __init__(self, widths, channels, num_classes, rngs):
    sizes = [channels, *widths]
    self.convs = nnx.List(
      nnx.Conv(n, m, (3, 3), strides=1 if i == 0 else 2, use_bias=False, rngs=rngs)
      for i, (n, m) in enumerate(pairwise(sizes))
    )
    self.norms = nnx.List(nnx.BatchNorm(m, rngs=rngs) for m in widths)
    self.head = nnx.Linear(widths[-1], num_classes, rngs=rngs)

  def __call__(self, x, train=False):
    """Logits of images `[B, H, W, C]`."""
    for conv, norm in zip(self.convs, self.norms, strict=True):
      x = nnx.relu(norm(conv(x), use_running_average=not train))
    return self.head(x.mean((1, 2)))


@nnx.jit(donate_argnums=(0, 1))
def train_step(model, optimizer, key, images, labels):
  """One step of the wrapped optimizer: it moves the weights and, every ΔT steps, the topology."""

  def loss_fn(model):
    logits = model(augment(key, images), train=True)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  loss, grads = nnx.value_and_grad(loss_fn)(model)
  optimizer.update(model, grads)  # plain, dense gradients: they decide what grows
  return loss


def accuracy(model, images, labels, batch=500):
  """Share of the images that are classified as labelled."""
  predict = nnx.jit(lambda model, images: model(images / 255.0).argmax(-1))
  batches = range(0, len(images), batch)
  found = [predict(model, images[i : i + batch]) for i in batches]
  return float(np.mean(np.concatenate(found) == labels))


# %% [markdown]
# ## Training
# The wrapper and `apply_masks` make it sparse, nothing else does. Then the trained network is
# condensed, saved, loaded and evaluated.


# %%
def main(train, test, *, sparsity=0.9, epochs=15, batch=128, widths=(32, 64, 128, 256), out=OUT):
  """Trains, condenses and saves the network; returns its test accuracy."""
  images, labels = train
  steps_per_epoch = len(images) // batch
  steps = epochs * steps_per_epoch
  model = ConvNet(widths, images.shape[-1], int(labels.max()) + 1, nnx.Rngs(0))
  sgd = optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9, nesterov=True)
  inner = optax.chain(optax.add_decayed_weights(5e-4), sgd)
  delta_t = min(100, math.ceil(steps / 10))
  tx = sx.srigl(inner, sparsity=sparsity, update_every=delta_t, update_until=steps * 3 // 4)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  params = nnx.state(model, nnx.Param)
  nnx.update(model, sx.apply_masks(params, sx.get_masks(optimizer.opt_state)))  # start sparse

  key, shuffle, start = jax.random.key(0), np.random.default_rng(0), time.perf_counter()
  for epoch in range(epochs):
    order = shuffle.permutation(len(images))[: steps_per_epoch * batch]
    for step, at in enumerate(order.reshape(-1, batch), epoch * steps_per_epoch):
      step_key = jax.random.fold_in(key, step)
      loss = train_step(model, optimizer, step_key, images[at], labels[at])
    print(
      f"epoch {epoch + 1:2d}  loss {loss:.3f}  test accuracy {100 * accuracy(model, *test):.2f} %"
      f"  {time.perf_counter() - start:.0f} s"
    )

  masks = sx.get_masks(optimizer.opt_state)
  print(sx.summarize(nnx.state(model, nnx.Param), masks))
  condensed = sx.condense_model(model, masks, jnp.zeros((1, *images.shape[1:])))
  layers, arrays = sx.split_condensed(condensed)
  sx.save_condensed(out, layers, {"model": "ConvNet", "widths": list(widths)}, arrays=arrays)
  file = sx.load_condensed_file(out)
  loaded = sx.merge_condensed(model, file.layers, file.arrays)
  score = accuracy(loaded, *test)
  print(f"{out}: {os.path.getsize(out) / 1e3:.0f} kB, test accuracy {100 * score:.2f} %")
  return score


if __name__ == "__main__":
  main(load("train"), load("test"))
