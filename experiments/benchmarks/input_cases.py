"""What the input benchmark reads and trains: streams, with enlarged images, and a training step."""

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from experiments import data, models
from experiments.data.crops import decode
from experiments.data.records import Encoded, Images, Records
from experiments.data.stream import ImageStream

_NUM_ENLARGED = 64  # images that differ
_QUALITY = 95  # of the enlarged images' JPEG

Step = Callable[[dict[str, jax.Array]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Enlarged(Records):
  """Records whose images are replaced by enlarged ones; reading still takes its time.

  Attributes:
    images: the enlarged images, which the records share.
  """

  images: list[bytes]

  def __getitem__(self, record: int) -> Encoded:
    return super().__getitem__(record)._replace(image=self.images[record % len(self.images)])


def enlarge(encoded: bytes, shorter_side: int) -> bytes:
  """An image file whose shorter side has so many pixels."""
  image = decode(encoded)
  scale = shorter_side / min(image.size)
  buffer = io.BytesIO()
  width, height = image.size
  image = image.resize((round(scale * width), round(scale * height)))
  image.save(buffer, "JPEG", quality=_QUALITY)
  return buffer.getvalue()


def open_stream(name: str, shorter_side: int, **kwargs: Any) -> ImageStream:
  """Opens the data set, its training images enlarged if wanted.

  Raises:
    ValueError: if it is not streamed, or has no image files to enlarge.
  """
  stream = data.load(name, **kwargs)
  if not isinstance(stream, ImageStream):
    raise ValueError(f"{name!r} is held in memory, there is nothing to wait for: name a stream.")
  if not shorter_side:
    return stream
  if not isinstance(stream.train, Images):
    raise ValueError(f"--shorter_side enlarges image files, which {name!r} does not have.")
  records = stream.train.records
  images = [
    enlarge(records[i].image, shorter_side) for i in range(min(_NUM_ENLARGED, len(records)))
  ]
  enlarged = Enlarged(records.source, records.split, records.folder, images)
  return dataclasses.replace(stream, train=dataclasses.replace(stream.train, records=enlarged))


def model_step(stream: ImageStream, name: str, **kwargs: Any) -> Step:
  """The training step of a network with SGD, on all local devices."""
  apply, params, model_state = models.init(
    name,
    num_classes=stream.num_classes,
    image_shape=stream.image_shape,
    key=jax.random.key(0),
    **kwargs,
  )

  def loss_fn(params, model_state, key, batch):
    inputs, targets = stream.augment_fn(key, batch["image"], batch["label"])
    logits, model_state = apply(params, model_state, inputs, train=True, rngs=key)
    return optax.safe_softmax_cross_entropy(logits, targets).mean(), model_state

  def step_fn(params, model_state, key, batch):
    grads, model_state = jax.grad(loss_fn, has_aux=True)(params, model_state, key, batch)
    grads, model_state = jax.lax.pmean((grads, model_state), "devices")
    return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), model_state

  run = jax.pmap(
    step_fn,
    axis_name="devices",
    in_axes=(None, None, None, 0),
    out_axes=None,
    donate_argnums=(0, 1),
  )
  state = jax.tree.map(jnp.copy, (params, model_state))

  def step(batch):
    nonlocal state
    state = run(*state, jax.random.key(0), batch)
    return state

  return step
