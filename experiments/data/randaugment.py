"""RandAugment (arXiv:1909.13719): a few random operations of one strength, on the host."""

from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageEnhance, ImageOps

from experiments.data.record_rng import Draw, below

NUM_BINS = 31
"""Magnitudes are 0 to 30; 0 leaves the image as it is, except for operations without a strength."""

_BILINEAR = Image.Resampling.BILINEAR


class Operation(NamedTuple):
  """One way to change an image.

  Attributes:
    apply: `(image, strength) -> image`.
    strength: `(level, width, height) -> strength`, for levels from 0 to 1.
    is_signed: whether the strength is negated for every other image.
  """

  apply: Callable[[Image.Image, float], Image.Image]
  strength: Callable[[float, int, int], float] = lambda level, width, height: 0.0
  is_signed: bool = False


def rand_augment(
  image: Image.Image, draw: Draw, *, magnitude: int = 9, num_operations: int = 2
) -> Image.Image:
  """Applies random operations of `OPERATIONS`, each as likely as the others, one after the other.

  Args:
    image: in RGB.
    draw: random numbers.
    magnitude: from 0 to `NUM_BINS - 1`.
    num_operations: how many.

  Returns:
    An image of the same size. What moves in from outside is black.

  Source: torchvision's `RandAugment` with bilinear interpolation, as the authors train ViT.
  """
  operations = list(OPERATIONS.values())
  for _ in range(num_operations):
    operation = operations[below(draw, len(operations))]
    strength = operation.strength(magnitude / (NUM_BINS - 1), *image.size)
    if operation.is_signed and draw() < 0.5:
      strength = -strength
    image = operation.apply(image, strength)
  return image


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
  """Takes the pixel at `(x, y)` from `(a x + b y + c, d x + e y + f)`."""
  return image.transform(image.size, Image.Transform.AFFINE, matrix, _BILINEAR)


def _scaled(maximum: float) -> Callable[[float, int, int], float]:
  return lambda level, width, height: level * maximum


def _enhance(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
  """More of something, or less: `1 + strength` times as much as there is."""
  return Operation(lambda image, s: kind(image).enhance(1 + s), _scaled(0.9), is_signed=True)


_SHIFT = 150 / 331  # the largest shift, as a share of the image

OPERATIONS = {
  "identity": Operation(lambda image, s: image),
  "shear_x": Operation(lambda image, s: _affine(image, 1, s, 0, 0, 1, 0), _scaled(0.3), True),
  "shear_y": Operation(lambda image, s: _affine(image, 1, 0, 0, s, 1, 0), _scaled(0.3), True),
  "translate_x": Operation(
    lambda image, s: _affine(image, 1, 0, -int(s), 0, 1, 0),
    lambda level, width, height: level * _SHIFT * width,
    is_signed=True,
  ),
  "translate_y": Operation(
    lambda image, s: _affine(image, 1, 0, 0, 0, 1, -int(s)),
    lambda level, width, height: level * _SHIFT * height,
    is_signed=True,
  ),
  "rotate": Operation(lambda image, s: image.rotate(s, _BILINEAR), _scaled(30.0), is_signed=True),
  "brightness": _enhance(ImageEnhance.Brightness),
  "color": _enhance(ImageEnhance.Color),
  "contrast": _enhance(ImageEnhance.Contrast),
  "sharpness": _enhance(ImageEnhance.Sharpness),
  "posterize": Operation(
    lambda image, s: ImageOps.posterize(image, int(s)),
    lambda level, width, height: 8 - round(4 * level),  # bits that are kept
  ),
  "solarize": Operation(
    lambda image, s: ImageOps.solarize(image, s),  # type: ignore[arg-type]
    lambda level, width, height: 255 * (1 - level),  # from where on colours are inverted
  ),
  "autocontrast": Operation(lambda image, s: ImageOps.autocontrast(image)),
  "equalize": Operation(lambda image, s: ImageOps.equalize(image)),
}
"""The operations by name, 14 of them."""
