"""CIFAR-10, read from TensorFlow Datasets without TensorFlow, or from one packed file.

The images are decoded once, into a cache that later runs read in a fraction of a second.
"""

import functools
import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import array_cache, packed_images, tfds_folder
from experiments.data.augment import draw_crop_flip, gather_crop_flip
from experiments.data.crops import decode
from experiments.data.dataset import Dataset, scale

_PADDING = 4
_IMAGE_SHAPE = (32, 32, 3)
_SPLITS = ("train", "test")
_DECODE_CHUNK = 500
_PACKED = "cifar10.npz.xz"

# Mean and standard deviation of the training images in [0, 1], by channel.
_MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32).reshape(1, 1, 1, 3)
_STD = np.array([0.2470, 0.2435, 0.2616], np.float32).reshape(1, 1, 1, 3)

_logger = logging.getLogger(__name__)


def load_cifar10(
  *,
  data_dir: str | None = None,
  normalize: bool = False,
  cache_dir: str | None = None,
) -> Dataset:
  """Loads CIFAR-10; training batches are reflect-padded by 4, cropped at random and mirrored.

  Args:
    data_dir: folder of the TensorFlow Datasets, or of what `pack_cifar10` wrote. Default: the
      environment variable `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.
    normalize: also subtract the mean of each channel and divide by its standard deviation. The
      paper's experiments leave the images in `[0, 1]`.
    cache_dir: folder of the decoded images. Default: `$XDG_CACHE_HOME/srigl_jax`, else
      `~/.cache/srigl_jax`. A folder that cannot be used costs a warning and the decoding.

  Raises:
    FileNotFoundError: if the data set is not in the folder.
    ValueError: if it is there in a format that only TensorFlow reads, or damaged: naming the file.
  """
  packed = tfds_folder.data_folder(data_dir) / _PACKED
  if packed.exists():
    name, files = "packed", [packed]
    decode_fn = functools.partial(_unpack, packed)
  else:
    source = tfds_folder.find(packed.parent, "cifar10", "CIFAR-10")
    name, files = source.name, [path for path in source.iterdir() if path.is_file()]
    decode_fn = functools.partial(_decode, source)
  folder = Path(cache_dir) if cache_dir is not None else array_cache.default_cache_dir()
  digest = array_cache.fingerprint(files)
  arrays = array_cache.cached(folder / f"cifar10-{name}-{digest}.npz", decode_fn)
  preprocess_fn = functools.partial(_preprocess, normalize=normalize)
  return Dataset(
    name="cifar10",
    **arrays,
    num_classes=10,
    preprocess_fn=preprocess_fn,
    augment_fn=functools.partial(_augment, normalize=normalize),
  )


def pack_cifar10(directory: Path, *, data_dir: str | None = None) -> Path:
  """Packs the data set into a file of 20 MB in `directory`, for machines without its reader.

  Args:
    directory: exists; `load_cifar10(data_dir=directory)` reads it there.
    data_dir: folder of the TensorFlow Datasets, as for `load_cifar10`.

  Raises:
    FileNotFoundError: if the data set is not in the folder.
  """
  # Imported here: it takes most of a second.
  import tensorflow_datasets as tfds

  source = tfds_folder.find(tfds_folder.data_folder(data_dir), "cifar10", "CIFAR-10")
  encoded = {"image": tfds.decode.SkipDecoding()}
  _, sources = tfds_folder.open_splits(source, "cifar10", dict.fromkeys(_SPLITS, encoded))
  splits = {}
  for split, examples in sources.items():
    found = [examples[i] for i in range(len(examples))]
    splits[split] = [e["image"] for e in found], [int(e["label"]) for e in found]
  path = directory / _PACKED
  packed_images.pack(splits, path)
  return path


def _unpack(packed: Path) -> array_cache.Arrays:
  """As `packed_images.unpack`, naming the file if it is damaged."""
  with tfds_folder.naming(str(packed), "If it is damaged, copy it again, or pack it again."):
    arrays = packed_images.unpack(packed)
    for split in _SPLITS:
      shape = arrays[f"{split}_images"].shape
      if shape[1:] != _IMAGE_SHAPE or arrays[f"{split}_labels"].shape != shape[:1]:
        raise ValueError(f"its images of {split} have the shape {shape}")
  return arrays


def _decode(source: Path) -> array_cache.Arrays:
  """Decodes all images of both splits, some 200 microseconds each.

  Raises:
    ValueError: if they cannot be read, naming the files of the split.
  """
  # Imported here: nobody pays for it who has the images in the cache.
  import rich.console
  import rich.progress
  import tensorflow_datasets as tfds

  encoded = {"image": tfds.decode.SkipDecoding()}
  _, sources = tfds_folder.open_splits(source, "cifar10", dict.fromkeys(_SPLITS, encoded))
  total = sum(len(examples) for examples in sources.values())
  _logger.info("decoding %d CIFAR-10 images, once", total)
  arrays: array_cache.Arrays = {}
  console = rich.console.Console(stderr=True)
  with rich.progress.Progress(console=console, transient=True) as progress:
    task = progress.add_task("Decoding CIFAR-10", total=total)
    for split, examples in sources.items():
      images = np.empty((len(examples), *_IMAGE_SHAPE), np.uint8)
      labels = np.empty(len(examples), np.int32)
      for start in range(0, len(examples), _DECODE_CHUNK):
        stop = min(start + _DECODE_CHUNK, len(examples))
        with tfds_folder.naming(tfds_folder.files_of(source, split), tfds_folder.ADVICE):
          for i, example in enumerate(examples.__getitems__(range(start, stop)), start):
            images[i] = _pixels(example["image"], i)
            labels[i] = example["label"]
        progress.advance(task, stop - start)
      arrays[f"{split}_images"] = images
      arrays[f"{split}_labels"] = labels
  return arrays


def _pixels(encoded: bytes, record: int) -> np.ndarray:
  """An image as `[32, 32, 3]` uint8; another size is refused, which assigning would repeat."""
  try:
    image = np.asarray(decode(encoded))
  except Exception as error:  # PIL has many for damaged files
    raise ValueError(f"record {record} is not an image that can be used: {error}") from error
  if image.shape != _IMAGE_SHAPE:
    raise ValueError(f"record {record} is an image of shape {image.shape}, not {_IMAGE_SHAPE}")
  return image


def _preprocess(images: jax.Array, *, normalize: bool) -> jax.Array:
  """Maps uint8 images to `[0, 1]`, or to mean 0 and variance 1 per channel."""
  batch = scale(images)
  return (batch - jnp.asarray(_MEAN)) / jnp.asarray(_STD) if normalize else batch


def _augment(
  key: jax.Array, images: jax.Array, indices: jax.Array, *, normalize: bool
) -> jax.Array:
  """Gathers, crops, mirrors and preprocesses one batch."""
  shifts, flips = draw_crop_flip(key, indices.shape[0], padding=_PADDING)
  return _preprocess(gather_crop_flip(images, indices, shifts, flips), normalize=normalize)
