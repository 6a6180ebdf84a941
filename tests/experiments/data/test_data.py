"""Data sets, their augmentation and the order of their examples."""

import os
import re
import shutil
import struct
import sys
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import array_cache, augment, cifar10, crops, dataset, tfds_folder
from tests.experiments.data.tfds_files import encode, write_data_set


def draw_images(num_images, height=32, width=32, channels=3, seed=0):
  shape = (num_images, height, width, channels)
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# ---- augmentation ------------------------------------------------------------------------------


def crop_flip_reference(images, indices, shifts, flips, padding):
  """Pads, crops and flips one image after the other."""
  batch = []
  for index, (down, right), flip in zip(indices, shifts, flips, strict=True):
    height, width, _ = images[index].shape
    padded = np.pad(images[index], ((padding, padding), (padding, padding), (0, 0)), "reflect")
    top, left = padding + down, padding + right
    crop = padded[top : top + height, left : left + width]
    batch.append(crop[:, ::-1] if flip else crop)
  return np.stack(batch)


def test_crop_flip_of_one_row():
  """Shifted right by 2 over the reflection at the border, then mirrored."""
  row = jnp.array([10, 11, 12, 13], jnp.uint8).reshape(1, 1, 4, 1)

  def crop(right, flip):
    shifts = jnp.array([[0, right]])
    return augment.gather_crop_flip(row, jnp.array([0]), shifts, jnp.array([flip])).ravel()

  np.testing.assert_array_equal(crop(0, False), [10, 11, 12, 13])
  np.testing.assert_array_equal(crop(2, False), [12, 13, 12, 11])
  np.testing.assert_array_equal(crop(2, True), [11, 12, 13, 12])
  np.testing.assert_array_equal(crop(-2, False), [12, 11, 10, 11])


@pytest.mark.parametrize("height, width", [(32, 32), (5, 9)])
def test_every_crop_and_flip_equals_the_reference(height, width):
  padding = 4
  images = draw_images(3, height, width)
  steps = range(-padding, padding + 1)
  shifts, flips = zip(
    *[((down, right), flip) for down in steps for right in steps for flip in (False, True)],
    strict=True,
  )
  indices = np.arange(len(flips)) % len(images)
  batch = jax.jit(augment.gather_crop_flip)(
    images, indices, np.array(shifts, np.int32), np.array(flips)
  )
  assert batch.dtype == jnp.uint8
  expected = crop_flip_reference(images, indices, shifts, flips, padding)
  np.testing.assert_array_equal(batch, expected)


def test_draws_cover_all_shifts_evenly():
  shifts, flips = augment.draw_crop_flip(jax.random.key(0), 9000, padding=4)
  for axis in range(2):
    values, counts = np.unique(shifts[:, axis], return_counts=True)
    np.testing.assert_array_equal(values, np.arange(-4, 5))
    assert counts.min() > 850 and counts.max() < 1150
  assert 0.47 < flips.mean() < 0.53
  # The two directions and the flip are drawn independently.
  drawn = np.column_stack([shifts, flips]).astype(float)
  assert np.abs(np.corrcoef(drawn, rowvar=False) - np.eye(3)).max() < 0.05


# ---- order of examples -------------------------------------------------------------------------


def test_an_epoch_visits_every_example_once():
  order = data.epoch_order(1000, seed=3, epoch=2)
  assert order.dtype == np.int32
  np.testing.assert_array_equal(np.sort(order), np.arange(1000))


def test_order_depends_on_seed_and_epoch_alone():
  first = data.epoch_order(100, 0, 0).copy()
  assert (first != data.epoch_order(100, 0, 1)).any()
  assert (first != data.epoch_order(100, 1, 0)).any()
  data.epoch_order.cache_clear()
  np.testing.assert_array_equal(first, data.epoch_order(100, 0, 0))
  # The same in every process and with every numpy: a run may be resumed elsewhere.
  np.testing.assert_array_equal(data.epoch_order(8, 42, 1), [4, 5, 3, 0, 2, 7, 1, 6])


def test_orders_are_uniform():
  """Each example stands in the first place of about as many epochs as any other."""
  first = [data.epoch_order(4, 0, epoch)[0] for epoch in range(2000)]
  counts = np.bincount(first, minlength=4)
  assert counts.min() > 430 and counts.max() < 570


def test_batches_of_an_epoch_are_disjoint_and_drop_the_rest():
  batches = data.batch_indices(0, 3, batch_size=3, num_examples=11, seed=5)
  assert batches.shape == (3, 3)
  assert batches.dtype == np.int32
  assert len(np.unique(batches)) == 9
  np.testing.assert_array_equal(batches.ravel(), data.epoch_order(11, 5, 0)[:9])


@pytest.mark.parametrize("step", [0, 1, 2, 3, 4, 7, 29])
@pytest.mark.parametrize("num_steps", [0, 1, 5, 10])
def test_batches_do_not_depend_on_where_a_run_was_resumed(step, num_steps):
  whole = data.batch_indices(0, 50, 4, 14, seed=1)
  part = data.batch_indices(step, num_steps, 4, 14, seed=1)
  np.testing.assert_array_equal(part, whole[step : step + num_steps])


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"batch_size": 11}, "between 1 and the number of training examples, 10, got 11"),
    ({"batch_size": 0}, "got 0"),
    ({"step": -1}, "step=-1"),
    ({"num_steps": -2}, "num_steps=-2"),
    ({"seed": -1}, r"seed must lie in \[0, 2\*\*64\), got -1"),
  ],
)
def test_batch_indices_rejects(kwargs, message):
  valid = {"step": 0, "num_steps": 1, "batch_size": 5, "num_examples": 10, "seed": 0}
  with pytest.raises(ValueError, match=message):
    data.batch_indices(**(valid | kwargs))


def test_epoch_order_rejects_negative_epochs():
  with pytest.raises(ValueError, match="epoch must not be negative, got -1"):
    data.epoch_order(10, 0, -1)


# ---- data sets that need nothing from outside --------------------------------------------------


@pytest.fixture(scope="module", params=["digits", "synthetic"])
def bundled(request):
  return data.load(request.param)


def test_shapes_types_and_ranges(bundled):
  for images, labels in (
    (bundled.train_images, bundled.train_labels),
    (bundled.test_images, bundled.test_labels),
  ):
    assert images.dtype == np.uint8
    assert images.shape == (len(labels), *bundled.image_shape)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(np.unique(labels), np.arange(bundled.num_classes))
  batch = jax.jit(bundled.preprocess_fn)(bundled.train_images)
  assert batch.dtype == jnp.float32
  assert batch.min() == 0.0
  assert batch.max() == 1.0


def test_without_augmentation_training_sees_the_images_themselves(bundled):
  indices = jnp.array([5, 0, 5])
  batch = jax.jit(bundled.augment_fn)(jax.random.key(0), bundled.train_images, indices)
  expected = bundled.preprocess_fn(jnp.asarray(bundled.train_images)[indices])
  np.testing.assert_array_equal(batch, expected)


def test_loading_again_gives_the_same(bundled):
  again = data.load(bundled.name)
  np.testing.assert_array_equal(bundled.train_images, again.train_images)
  np.testing.assert_array_equal(bundled.test_labels, again.test_labels)


def test_digits_hold_out_a_quarter_of_each_class():
  digits = data.load("digits")
  assert digits.image_shape == (8, 8, 1)
  assert len(digits.train_labels) + len(digits.test_labels) == 1797
  train, test = np.bincount(digits.train_labels), np.bincount(digits.test_labels)
  np.testing.assert_allclose(test / (train + test), 0.25, atol=0.01)
  seen = {image.tobytes() for image in digits.train_images}
  assert not any(image.tobytes() in seen for image in digits.test_images)


def test_a_validation_part_of_the_training_images():
  """The same of every class and in every run; the test images are not looked at."""
  whole = data.load("synthetic", num_train=200, num_test=10)
  part = data.load("synthetic", num_train=200, num_test=10, validation_fraction=0.2)
  counts = np.bincount(whole.train_labels)
  np.testing.assert_array_equal(
    np.bincount(part.test_labels), np.maximum(1, np.round(0.2 * counts).astype(int))
  )
  images = lambda *arrays: sorted(image.tobytes() for array in arrays for image in array)
  assert images(part.train_images, part.test_images) == images(whole.train_images)
  again = data.load("synthetic", num_train=200, num_test=50, validation_fraction=0.2)
  np.testing.assert_array_equal(part.test_images, again.test_images)
  np.testing.assert_array_equal(part.test_labels, again.test_labels)


@pytest.mark.parametrize(
  ("name", "kwargs", "message"),
  [
    ("synthetic", {"validation_fraction": 1.0}, "validation_fraction is 1.0; it must be 0"),
    ("synthetic", {"validation_fraction": -0.1}, "validation_fraction is -0.1; it must be 0"),
    ("synthetic", {"validation_fraction": 0.999}, "of class 0 none would be left"),
    ("synthetic_imagenet", {"validation_fraction": 0.1}, "held in memory"),
  ],
)
def test_what_cannot_be_held_out(name, kwargs, message):
  with pytest.raises(ValueError, match=message):
    data.load(name, **kwargs)


def test_synthetic_is_learnable_and_takes_any_shape():
  synthetic = data.load(
    "synthetic", image_shape=(5, 7, 2), num_classes=3, num_train=90, num_test=30
  )
  assert synthetic.image_shape == (5, 7, 2)
  means = np.stack(
    [synthetic.train_images[synthetic.train_labels == label].mean(0) for label in range(3)]
  )
  distances = ((synthetic.test_images[:, None] - means) ** 2).sum((2, 3, 4))
  np.testing.assert_array_equal(distances.argmin(1), synthetic.test_labels)
  other = data.load("synthetic", image_shape=(5, 7, 2), num_train=90, num_test=30, seed=1)
  assert (other.train_images != synthetic.train_images).any()


@pytest.mark.parametrize(
  "name, message",
  [
    ("cifar", "data set name is 'cifar'; it must be one of cifar10, .* Did you mean 'cifar10'"),
    ("zzz", "data set name is 'zzz'; .* digits, imagenet2012, synthetic, synthetic_imagenet.$"),
  ],
)
def test_load_rejects_unknown_names(name, message):
  with pytest.raises(ValueError, match=message):
    data.load(name)


def test_scale():
  scaled = dataset.scale(jnp.array([0, 51, 255], jnp.uint8))
  np.testing.assert_allclose(scaled, [0, 0.2, 1], rtol=1e-6)


# ---- the cache ---------------------------------------------------------------------------------


def compute():
  return {"a": np.arange(6, dtype=np.uint8).reshape(2, 3), "b": np.ones(2, np.int32)}


def refuse():
  raise AssertionError("computed although the cache was there")


def assert_computed(arrays):
  assert arrays.keys() == compute().keys()
  for name, array in compute().items():
    np.testing.assert_array_equal(arrays[name], array)
    assert arrays[name].dtype == array.dtype


def test_cache_is_written_once_and_then_read(tmp_path):
  path = tmp_path / "not" / "yet" / "file.npz"
  assert_computed(array_cache.cached(path, compute))
  assert [file.name for file in path.parent.iterdir()] == ["file.npz"]
  assert_computed(array_cache.cached(path, refuse))


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "garbage"])
def test_damaged_cache_is_replaced(tmp_path, damage):
  path = tmp_path / "file.npz"
  array_cache.cached(path, compute)
  content = bytearray(path.read_bytes())
  if damage == "flip":
    content[content.index(compute()["a"].tobytes())] ^= 1
  damaged = {"truncate": content[:100], "flip": content, "empty": b"", "garbage": b"x" * 50}
  path.write_bytes(damaged[damage])
  with pytest.warns(UserWarning, match="cannot read the cache"):
    assert_computed(array_cache.cached(path, compute))
  assert_computed(array_cache.cached(path, refuse))


def test_unusable_cache_folder_costs_a_warning(tmp_path):
  (tmp_path / "file").touch()
  with pytest.warns(UserWarning, match="cannot write the cache"):
    assert_computed(array_cache.cached(tmp_path / "file" / "below.npz", compute))


def test_interrupted_computation_leaves_nothing_behind(tmp_path):
  def interrupted():
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    array_cache.cached(tmp_path / "file.npz", interrupted)
  assert not list(tmp_path.iterdir())


def test_fingerprint_sees_name_size_and_time(tmp_path):
  path = tmp_path / "a"
  path.write_bytes(b"12")
  os.utime(path, ns=(1, 1))
  before = array_cache.fingerprint([path])
  assert before == array_cache.fingerprint([path])
  os.utime(path, ns=(1, 2))
  later = array_cache.fingerprint([path])
  path.write_bytes(b"123")
  os.utime(path, ns=(1, 2))
  longer = array_cache.fingerprint([path])
  renamed = array_cache.fingerprint([path.rename(tmp_path / "b")])
  assert len({before, later, longer, renamed}) == 4


def test_default_cache_dir(monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
  assert array_cache.default_cache_dir() == Path("/somewhere/srigl_jax")
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert array_cache.default_cache_dir() == Path("~/.cache/srigl_jax")


# ---- CIFAR-10 ----------------------------------------------------------------------------------


def write_cifar10(folder, train, test, file_format="array_record"):
  """Writes what TensorFlow Datasets writes: losslessly compressed images in ArrayRecord files."""
  splits = {
    split: [
      (f"{split}_{i}", encode(image, "PNG"), label)
      for i, (image, label) in enumerate(zip(images, labels, strict=True))
    ]
    for split, (images, labels) in {"train": train, "test": test}.items()
  }
  write_data_set(
    folder, splits, id_name="id", image_shape=(32, 32, 3), num_classes=10, file_format=file_format
  )


@pytest.fixture(scope="module")
def small_cifar10(tmp_path_factory):
  """A folder with 23 training and 7 test images, and these."""
  data_dir = tmp_path_factory.mktemp("tfds")
  train = draw_images(23, seed=1), np.arange(23) % 10
  test = draw_images(7, seed=2), np.arange(7)
  write_cifar10(data_dir / "cifar10" / "3.0.2", train, test)
  return data_dir, train, test


def test_cifar10_is_read_without_tensorflow(small_cifar10, tmp_path, monkeypatch):
  data_dir, train, test = small_cifar10
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  monkeypatch.setattr(cifar10, "_DECODE_CHUNK", 5)
  loaded = data.load("cifar10", cache_dir=str(tmp_path))
  assert "tensorflow" not in sys.modules
  assert loaded.num_classes == 10
  assert loaded.image_shape == (32, 32, 3)
  assert loaded.train_labels.dtype == np.int32
  np.testing.assert_array_equal(loaded.train_images, train[0])
  np.testing.assert_array_equal(loaded.train_labels, train[1])
  np.testing.assert_array_equal(loaded.test_images, test[0])
  np.testing.assert_array_equal(loaded.test_labels, test[1])


def test_cifar10_is_decoded_once(small_cifar10, tmp_path, monkeypatch):
  data_dir, train, _ = small_cifar10
  arguments = {"data_dir": str(data_dir), "cache_dir": str(tmp_path)}
  data.load("cifar10", **arguments)
  assert len(list(tmp_path.iterdir())) == 1
  with monkeypatch.context() as patch:
    patch.setattr(cifar10, "_decode", lambda source: refuse())
    again = data.load("cifar10", **arguments)
  np.testing.assert_array_equal(again.train_images, train[0])
  # Another version of the source, another file.
  os.utime(data_dir / "cifar10" / "3.0.2" / "features.json")
  data.load("cifar10", **arguments)
  assert len(list(tmp_path.iterdir())) == 2


def test_cifar10_takes_the_newest_finished_version(small_cifar10, tmp_path):
  _, train, test = small_cifar10
  for version in ("3.0.2", "3.0.10", "9.9.9.incompleteABC"):
    write_cifar10(tmp_path / "cifar10" / version, train, test)
  assert tfds_folder.find(tmp_path, "cifar10", "CIFAR-10").name == "3.0.10"


@pytest.mark.parametrize("normalize", [False, True])
def test_cifar10_augmentation_equals_the_reference(small_cifar10, tmp_path, normalize):
  data_dir, (images, _), _ = small_cifar10
  loaded = data.load(
    "cifar10", data_dir=str(data_dir), cache_dir=str(tmp_path), normalize=normalize
  )
  key, indices = jax.random.key(3), np.array([4, 4, 0, 22, 7, 9], np.int32)
  batch = jax.jit(loaded.augment_fn)(key, images, indices)
  assert batch.dtype == jnp.float32
  shifts, flips = map(np.asarray, augment.draw_crop_flip(key, len(indices), padding=4))
  expected = crop_flip_reference(images, indices, shifts, flips, 4) / 255
  evaluated = images[indices] / 255
  if normalize:
    mean, std = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
    expected, evaluated = (expected - mean) / std, (evaluated - mean) / std
  np.testing.assert_allclose(batch, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    jax.jit(loaded.preprocess_fn)(images[indices]), evaluated, rtol=1e-5, atol=1e-6
  )


def test_missing_cifar10_says_what_to_do(tmp_path, monkeypatch):
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "from_environment"))
  with pytest.raises(FileNotFoundError) as error:
    data.load("cifar10")
  message = str(error.value)
  assert f"no CIFAR-10 in {tmp_path / 'from_environment'}" in message
  for hint in ("--config.data.data_dir=", "TFDS_DATA_DIR=", "array_record", "tensorflow "):
    assert hint in message
  # The argument goes before the environment, and the home directory comes last.
  with pytest.raises(FileNotFoundError, match="no CIFAR-10 in /from_argument"):
    data.load("cifar10", data_dir="/from_argument")
  monkeypatch.delenv("TFDS_DATA_DIR")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  with pytest.raises(FileNotFoundError, match=r"home/tensorflow_datasets"):
    data.load("cifar10")


def test_a_bucket_is_no_folder(monkeypatch):
  """As a path its address would be that of a directory here."""
  with pytest.raises(ValueError, match=r"'gs://bucket/tfds'; it must be .* mounted"):
    data.load("cifar10", data_dir="gs://bucket/tfds")
  monkeypatch.setenv("TFDS_DATA_DIR", "s3://bucket/tfds")
  with pytest.raises(ValueError, match=r"'s3://bucket/tfds'"):
    data.load("imagenet2012")


def test_cifar10_in_another_format_is_refused(small_cifar10, tmp_path):
  _, train, test = small_cifar10
  write_cifar10(tmp_path / "cifar10" / "3.0.2", train, test, file_format="tfrecord")
  with pytest.raises(ValueError, match="it has to be array_record") as error:
    data.load("cifar10", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))
  assert "download_and_prepare" in str(error.value)


def flip(content):
  """Other bytes in an image, or in the middle of what holds none in the open."""
  at = content.find(b"IDAT") + 20 if b"IDAT" in content else len(content) // 2
  return content[:at] + bytes(x ^ 255 for x in content[at : at + 40]) + content[at + 40 :]


DAMAGE = {
  "truncated": lambda content: content[: len(content) // 2],
  "empty": lambda content: b"",
  "noise": lambda content: bytes(len(content)),
  "flipped": flip,
}


@pytest.mark.parametrize("damage", [*DAMAGE, "lost"])
@pytest.mark.parametrize("what", ["-train.", "-test.", "dataset_info.json", "features.json"])
def test_damaged_cifar10_names_the_file_and_the_cure(small_cifar10, tmp_path, what, damage):
  shutil.copytree(small_cifar10[0], tmp_path / "data")
  (path,) = (p for p in (tmp_path / "data" / "cifar10" / "3.0.2").iterdir() if what in p.name)
  if damage == "lost":
    path.unlink()
  else:
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
  said = re.escape(path.name) if damage != "lost" or "json" in what else what.strip("-.")
  wanted = rf"{said}.*(copy the data set again|to prepare it)"
  with pytest.raises((ValueError, FileNotFoundError), match=f"(?is){wanted}"):
    data.load("cifar10", data_dir=str(tmp_path / "data"), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_packed_cifar10_names_the_file_and_the_cure(small_cifar10, tmp_path, damage):
  path = cifar10.pack_cifar10(tmp_path, data_dir=str(small_cifar10[0]))
  path.write_bytes(DAMAGE[damage](path.read_bytes()))
  with pytest.raises(ValueError, match=rf"{re.escape(str(path))} cannot be read: .*pack it again"):
    data.load("cifar10", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("image", [np.zeros((16, 32, 3), np.uint8), b"no image", b""])
def test_an_image_of_cifar10_that_is_none_is_named(tmp_path, image):
  record = ("a", encode(image, "PNG") if isinstance(image, np.ndarray) else image, 0)
  write_data_set(
    tmp_path / "cifar10" / "3.0.2",
    {"train": [record], "test": [record]},
    id_name="id",
    image_shape=(32, 32, 3),
    num_classes=10,
  )
  with pytest.raises(ValueError, match=r"cifar10-train\.array.* record 0 is .*copy the data set"):
    data.load("cifar10", data_dir=str(tmp_path), cache_dir=str(tmp_path / "cache"))


# ---- images of other depths --------------------------------------------------------------------

LEVELS = np.array([[0, 128, 129, 257], [32767, 32768, 65406, 65535]], np.uint16)


def png_of(levels):
  """A PNG of 16 bits a channel, which Pillow does not write of colours."""
  height, width, channels = levels.shape
  chunk = lambda kind, content: (
    struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
  )
  head = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
  rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in levels)
  body = chunk(b"IDAT", zlib.compress(rows))
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_is_scaled(channels):
  image = crops.decode(png_of(np.repeat(LEVELS[..., None], channels, 2)))
  assert image.mode == "RGB"
  wanted = np.repeat(np.rint(LEVELS / 257)[..., None], 3, 2)
  assert np.abs(np.asarray(image) - wanted).max() <= (0 if channels == 1 else 1)


def test_a_tiff_of_16_bits_is_scaled():
  image = crops.decode(encode(Image.fromarray(LEVELS), "TIFF"))
  np.testing.assert_array_equal(np.asarray(image)[..., 0], np.rint(LEVELS / 257))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_numbers_of_no_known_range_are_refused(dtype):
  with pytest.raises(ValueError, match="no known range"):
    crops.decode(encode(Image.fromarray(LEVELS.astype(dtype)), "TIFF"))


@pytest.fixture
def real_cifar10():
  """Its folder."""
  data_dir = os.environ.get("TFDS_DATA_DIR")
  if not data_dir:
    pytest.skip("TFDS_DATA_DIR is not set")
  if not (Path(data_dir) / "cifar10").is_dir():
    pytest.skip(f"no cifar10 in TFDS_DATA_DIR={data_dir}")
  return Path(data_dir)


def test_the_first_of_real_cifar10(real_cifar10):
  tfds = pytest.importorskip("tensorflow_datasets")
  source = tfds_folder.find(real_cifar10, "cifar10", "CIFAR-10")
  encoded = {"image": tfds.decode.SkipDecoding()}
  _, splits = tfds_folder.open_splits(source, "cifar10", {"train": encoded, "test": encoded})
  assert {name: len(examples) for name, examples in splits.items()} == {
    "train": 50_000,
    "test": 10_000,
  }
  for examples in splits.values():
    found = examples.__getitems__(range(500))
    images = np.stack([crops.decode(example["image"]) for example in found])
    assert images.shape == (500, 32, 32, 3)
    np.testing.assert_allclose(images.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=0.02)
    assert (np.bincount([example["label"] for example in found], minlength=10) > 25).all()


@pytest.mark.slow  # decodes for a quarter of a minute
def test_real_cifar10(real_cifar10):
  loaded = data.load("cifar10")
  assert loaded.train_images.shape == (50_000, 32, 32, 3)
  assert loaded.test_images.shape == (10_000, 32, 32, 3)
  np.testing.assert_array_equal(np.bincount(loaded.train_labels), np.full(10, 5000))
  np.testing.assert_array_equal(np.bincount(loaded.test_labels), np.full(10, 1000))
  mean = loaded.train_images.mean((0, 1, 2)) / 255
  np.testing.assert_allclose(mean, [0.4914, 0.4822, 0.4465], atol=0.005)
