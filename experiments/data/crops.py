"""Decoding images and cutting windows out of them, on the host.

All functions work on PIL images in RGB. Interpolation is bilinear and anti-aliased, as PIL does it.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from experiments.data.record_rng import Draw, below, between

_ATTEMPTS = 10


def decode(encoded: bytes) -> Image.Image:
  """Decodes an image of any format and colour space into RGB of 8 bits.

  Raises:
    OSError: if that is not an image, or not all of one.
    ValueError: if its numbers have no known range: 32 bits or floating point.
  """
  with Image.open(io.BytesIO(encoded)) as image:
    return _to_8_bits(image).convert("RGB")


def _to_8_bits(image: Image.Image) -> Image.Image:
  """An image whose grey levels have 16 bits, scaled; Pillow would turn all from 256 up to white."""
  if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
    levels = np.asarray(image).astype(np.uint32)  # whichever byte comes first in it
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8))
  if image.mode in ("I", "F"):
    raise ValueError(
      f"it has numbers of Pillow's mode {image.mode!r}, of no known range: save it with 16 bits"
    )
  return image


def random_flip(image: Image.Image, draw: Draw) -> Image.Image:
  """Mirrors every other image."""
  return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw() < 0.5 else image


def random_resized_crop(
  image: Image.Image,
  draw: Draw,
  *,
  size: int,
  scale: tuple[float, float] = (0.08, 1.0),
  ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Image.Image:
  """Cuts out a rectangle of random area and shape and scales it to a square.

  Args:
    image: `[H, W]` in RGB.
    draw: random numbers.
    size: side of the result in pixels.
    scale: range of the share of the image's area, uniform.
    ratio: range of width / height, uniform in its logarithm.

  Returns:
    `[size, size]`. Where ten rectangles did not fit into the image, it is the largest one in the
    middle whose shape is allowed.

  Source: torchvision's `RandomResizedCrop`, which the authors train ViT with.
  """
  width, height = image.size
  for _ in range(_ATTEMPTS):
    area = width * height * between(draw, *scale)
    shape = math.exp(between(draw, math.log(ratio[0]), math.log(ratio[1])))
    w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
    if 0 < w <= width and 0 < h <= height:
      left, top = below(draw, width - w + 1), below(draw, height - h + 1)
      break
  else:
    w, h = width, height
    if width / height < ratio[0]:
      h = round(width / ratio[0])
    elif width / height > ratio[1]:
      w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
  window = image.crop((left, top, left + w, top + h))
  return window.resize((size, size), Image.Resampling.BILINEAR)


def resized_crop(
  image: Image.Image, draw: Draw, *, size: int, shorter_sides: Sequence[int] = (256, 480)
) -> Image.Image:
  """Scales the image's shorter side to one of some lengths and cuts out a square anywhere.

  Args:
    image: `[H, W]` in RGB.
    draw: random numbers.
    size: side of the result in pixels.
    shorter_sides: the lengths, none less than `size`; each as likely as the others.

  Returns:
    `[size, size]`.

  Source: the authors' code for ResNet-50 and MobileNet-V3.
  """
  scaled = _scaled(image.size, shorter_sides[below(draw, len(shorter_sides))])
  left, top = below(draw, scaled[0] - size + 1), below(draw, scaled[1] - size + 1)
  return _window(image, scaled, left, top, size)


def centre_crop(image: Image.Image, *, size: int, shorter_side: int = 256) -> Image.Image:
  """Scales the image's shorter side to a length, at least `size`, and cuts out its middle."""
  scaled = _scaled(image.size, shorter_side)
  left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
  return _window(image, scaled, left, top, size)


def _scaled(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
  """Width and height once the shorter of them is `shorter_side`; the other is rounded down."""
  width, height = size
  if width <= height:
    return shorter_side, int(shorter_side * height / width)
  return int(shorter_side * width / height), shorter_side


def _window(
  image: Image.Image, scaled: tuple[int, int], left: int, top: int, size: int
) -> Image.Image:
  """The square at `(left, top)` of the scaled image, of which nothing else is computed."""
  (width, height), (scaled_width, scaled_height) = image.size, scaled
  x, y = width / scaled_width, height / scaled_height
  right, bottom = min((left + size) * x, width), min((top + size) * y, height)
  box = (left * x, top * y, right, bottom)
  return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
