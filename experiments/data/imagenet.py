"""ImageNet (ILSVRC-2012), streamed from TensorFlow Datasets without TensorFlow.

Images are cropped, mirrored and augmented on the host and go to the device as uint8; there they are
normalised and mixed, all as the authors do it.
"""

import functools
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from experiments.common.environment import available_cores
from experiments.common.registry import choose
from experiments.data import tfds_folder
from experiments.data.crops import centre_crop, random_flip, random_resized_crop, resized_crop
from experiments.data.dataset import scale
from experiments.data.mixup import random_mix
from experiments.data.randaugment import NUM_BINS, rand_augment
from experiments.data.record_rng import Draw
from experiments.data.records import Images, Repeated, open_records
from experiments.data.stream import ImageStream, Split

_MAX_IMAGE_SIZE = 4096
_NUM_CLASSES = 1000
_NUM_TRAIN, _NUM_TEST = 1_281_167, 50_000

# Mean and standard deviation of the training images in [0, 1], by channel.
_MEAN = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 1, 1, 3)
_STD = np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 1, 1, 3)


def _resize_crop(image: Image.Image, draw: Draw, *, size: int) -> Image.Image:
  return resized_crop(image, draw, size=size, shorter_sides=(_times(size, 8), _times(size, 15)))


CROPS: dict[str, Callable[..., Image.Image]] = {
  "resize_crop": _resize_crop,
  "random_resized_crop": random_resized_crop,
}
"""How training images are cropped: `(image, draw, *, size) -> image`."""


def load_imagenet2012(
  *,
  data_dir: str | None = None,
  image_size: int = 224,
  crop: str = "resize_crop",
  randaugment_magnitude: int = 0,
  mixup: float = 0.0,
  cutmix: float = 0.0,
  num_workers: int | None = None,
) -> ImageStream:
  """Opens ImageNet.

  The authors train ResNet-50 and MobileNet-V3 with the defaults and ViT-B/16 with
  `crop="random_resized_crop"`, `randaugment_magnitude=9`, `mixup=0.2` and `cutmix=1.0`. Training
  images are also mirrored at random; images to test on are scaled to a shorter side of 8/7 of the
  size (256 for 224) and cropped in the middle.

  Args:
    data_dir: folder of the TensorFlow Datasets. Default: the environment variable
      `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
    image_size: side of the images in pixels.
    crop: a key of `CROPS`. `"resize_crop"` scales the shorter side to 8/7 or 15/7 of the size (256
      or 480 for 224), at equal odds, before it crops.
    randaugment_magnitude: of two random operations, 0 to 30; 0: none.
    mixup: alpha of mixup; 0: none. If there is CutMix too, each batch has one or the other.
    cutmix: alpha of CutMix; 0: none.
    num_workers: processes that load images. They change how fast, not what is loaded. Default: one
      for each core but one; 0: none, a thread of this process does it.

  Raises:
    FileNotFoundError: if the data set is not in the folder.
    ValueError: if an argument is out of range, or the files are in a format that only TensorFlow
      reads.
  """
  recipe = _Recipe(image_size, crop, randaugment_magnitude, mixup, cutmix)
  recipe.check()
  num_workers = _num_workers(num_workers)
  folder = tfds_folder.find(tfds_folder.data_folder(data_dir), "imagenet2012", "ImageNet")
  _warn_of_few_cores(num_workers)
  train, test = open_records(folder)
  return _stream(
    "imagenet2012",
    recipe,
    Images(train, functools.partial(_augmented, recipe=recipe), _test_crop(image_size)),
    Images(test, functools.partial(_augmented, recipe=recipe), _test_crop(image_size)),
    num_workers,
  )


def load_synthetic_imagenet(
  *,
  data_dir: str | None = None,
  image_size: int = 224,
  crop: str = "resize_crop",
  randaugment_magnitude: int = 0,
  mixup: float = 0.0,
  cutmix: float = 0.0,
  num_workers: int | None = None,
  num_train: int = _NUM_TRAIN,
  num_test: int = _NUM_TEST,
  num_different: int = 64,
) -> ImageStream:
  """Noise in the shape of ImageNet, to measure training without reading and decoding.

  A few images are made once and repeated. It takes the arguments of `load_imagenet2012`, so that
  a config only has to change the name; mixing is done as there, and what concerns reading, cropping
  and workers is checked and not used (copying an image takes less than passing it on).

  Args:
    data_dir: unused, nothing is read.
    image_size: side of the images in pixels.
    crop: checked and unused, like the next.
    randaugment_magnitude: see `load_imagenet2012`.
    mixup: alpha of mixup.
    cutmix: alpha of CutMix.
    num_workers: checked and unused: copying an image takes less than passing it on.
    num_train: number of training images.
    num_test: number of test images.
    num_different: how many of them differ.
  """
  del data_dir
  recipe = _Recipe(image_size, crop, randaugment_magnitude, mixup, cutmix)
  recipe.check()
  _num_workers(num_workers)
  sizes = {"num_train": num_train, "num_test": num_test, "num_different": num_different}
  for name, value in sizes.items():
    if value < 1:
      raise ValueError(f"{name} is {value}; it must be 1 or more.")
  if num_different > 2**31 // (3 * image_size**2):
    raise ValueError(
      f"num_different is {num_different}: so many images of {image_size} pixels a side are more "
      "than 2 GiB."
    )
  shape = (num_different, image_size, image_size, 3)
  noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  train, test = (Repeated(noise, n, _NUM_CLASSES) for n in (num_train, num_test))
  return _stream("synthetic_imagenet", recipe, train, test, 0)


class _Recipe(NamedTuple):
  """What is done to training images; see `load_imagenet2012`."""

  image_size: int
  crop: str
  randaugment_magnitude: int
  mixup: float
  cutmix: float

  def check(self) -> None:
    """Refuses what is out of range."""
    choose(CROPS, self.crop, "crop")
    if self.image_size < 1:
      raise ValueError(f"image_size is {self.image_size}; it must be 1 or more.")
    if self.image_size > _MAX_IMAGE_SIZE:
      raise ValueError(f"image_size is {self.image_size}; it must be at most {_MAX_IMAGE_SIZE}.")
    if not 0 <= self.randaugment_magnitude < NUM_BINS:
      raise ValueError(
        f"randaugment_magnitude is {self.randaugment_magnitude}; it must lie in 0..{NUM_BINS - 1}."
      )
    for name in ("mixup", "cutmix"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 (none) or more.")


def _augmented(image: Image.Image, draw: Draw, *, recipe: _Recipe) -> Image.Image:
  """Crops, mirrors and augments a training image."""
  image = CROPS[recipe.crop](image, draw, size=recipe.image_size)
  image = random_flip(image, draw)
  if recipe.randaugment_magnitude:
    image = rand_augment(image, draw, magnitude=recipe.randaugment_magnitude)
  return image


def _test_crop(size: int) -> Callable[[Image.Image], Image.Image]:
  return functools.partial(centre_crop, size=size, shorter_side=_times(size, 8))


def _times(size: int, sevenths: int) -> int:
  """Lengths go with the size of the images: 256 and 480 for 224."""
  return round(size * sevenths / 7)


def _stream(name: str, recipe: _Recipe, train: Split, test: Split, num_workers: int) -> ImageStream:
  return ImageStream(
    name=name,
    train=train,
    test=test,
    num_classes=_NUM_CLASSES,
    image_shape=(recipe.image_size, recipe.image_size, 3),
    preprocess_fn=normalize,
    augment_fn=functools.partial(_mixed, mixup=recipe.mixup, cutmix=recipe.cutmix),
    num_workers=num_workers,
  )


def normalize(images: jax.Array) -> jax.Array:
  """Maps uint8 images to mean 0 and variance 1 by channel, on average over ImageNet."""
  return (scale(images) - jnp.asarray(_MEAN)) / jnp.asarray(_STD)


def _mixed(
  key: jax.Array, images: jax.Array, labels: jax.Array, *, mixup: float, cutmix: float
) -> tuple[jax.Array, jax.Array]:
  """Normalises a batch and mixes it; see `ImageStream.augment_fn`."""
  targets = jax.nn.one_hot(labels, _NUM_CLASSES)
  return random_mix(key, normalize(images), targets, mixup=mixup, cutmix=cutmix)


def _num_workers(asked: int | None) -> int:
  """The number of worker processes."""
  if asked is None:
    return max(1, len(available_cores()) - 1)
  if asked < 0:
    raise ValueError(f"num_workers is {asked}; it must be 0 (no processes) or more.")
  return asked


def _warn_of_few_cores(num_workers: int) -> None:
  if num_workers > (cores := len(available_cores())):
    warnings.warn(
      f"num_workers is {num_workers}, but this process may use {cores} of the machine's cores: "
      "images may come slowly. Under SLURM, srun gives a task one core unless --cpus-per-task is "
      "given to srun itself.",
      stacklevel=3,
    )
