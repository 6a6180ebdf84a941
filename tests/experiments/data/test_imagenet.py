"""ImageNet from files: what is read, what is done to it, what is said when it cannot be."""

import io
import os
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import data
from experiments.data import imagenet, tfds_folder
from experiments.data.stream import ProcessShard
from tests.experiments.data.tfds_files import encode, write_data_set
from tests.experiments.tiny import devices, quick_compiler

SIZES = [(40, 30), (30, 40), (25, 25), (90, 20), (21, 33)]


def picture(i):
  """A photograph of one of several sizes, `[H, W, 3]` uint8."""
  coarse = np.random.default_rng(i).integers(0, 256, (5, 6, 3), np.uint8)
  return np.asarray(Image.fromarray(coarse).resize(SIZES[i % len(SIZES)], Image.Resampling.BICUBIC))


def files(count, first=0):
  """Name, file and label of some records, every kind of file that ImageNet has among them."""
  written = []
  for i in range(first, first + count):
    image, options = picture(i), {"quality": 90}
    kind = "JPEG"
    if i % 7 == 3:
      kind, options = "PNG", {}
    elif i % 7 == 4:
      image = image[:, :, 0]  # grey
    elif i % 7 == 5:
      image = Image.fromarray(image).convert("CMYK")
    written.append((f"n{i:04d}.JPEG", encode(image, kind, **options), (37 * i) % 1000))
  return written


def write_imagenet(data_dir, train, test, version="5.1.0", **kwargs):
  write_data_set(
    data_dir / "imagenet2012" / version,
    {"train": train, "validation": test},
    id_name="file_name",
    image_shape=(-1, -1, 3),
    num_classes=1000,
    **kwargs,
  )


@pytest.fixture(scope="module")
def small_imagenet(tmp_path_factory):
  """A folder with 29 training and 11 validation images, and these records."""
  data_dir = tmp_path_factory.mktemp("tfds")
  train, test = files(29), files(11, first=100)
  write_imagenet(data_dir, train, test)
  return data_dir, train, test


def load(data_dir, **kwargs):
  return data.load("imagenet2012", data_dir=str(data_dir), **({"num_workers": 0} | kwargs))


# ---- reading -----------------------------------------------------------------------------------


def test_it_is_read_without_tensorflow(small_imagenet, monkeypatch):
  data_dir, train, test = small_imagenet
  monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
  images = data.load("imagenet2012", num_workers=0, image_size=16)
  assert "tensorflow" not in sys.modules
  assert (images.num_train, images.num_test, images.num_classes) == (29, 11, 1000)
  assert images.image_shape == (16, 16, 3)
  (batch,) = images.train_batches(0, 1, batch_size=29, seed=0)
  order = data.epoch_order(29, 0, 0)
  np.testing.assert_array_equal(batch["label"], [train[i][2] for i in order])
  batches = list(images.test_batches(batch_size=4))
  labels = np.concatenate([batch["label"] for batch in batches])
  np.testing.assert_array_equal(labels[:11], [label for _, _, label in test])


def test_validation_images_are_scaled_and_cropped_in_the_middle(small_imagenet):
  _, _, test = small_imagenet
  images = load(small_imagenet[0], image_size=14)
  (batch,) = images.test_batches(batch_size=11)
  assert batch["valid"].all()
  for got, (_, encoded, _) in zip(batch["image"], test, strict=True):
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    width, height = image.size
    short = min(width, height)  # to 16 = 14 · 256 / 224
    scaled = image.resize((16 * width // short, 16 * height // short), Image.Resampling.BILINEAR)
    left, top = round((scaled.width - 14) / 2), round((scaled.height - 14) / 2)
    want = np.asarray(scaled.crop((left, top, left + 14, top + 14))).astype(int)
    assert np.abs(got - want).max() <= 2


@pytest.mark.parametrize(
  "kwargs",
  [
    {},
    {"crop": "random_resized_crop", "randaugment_magnitude": 9, "mixup": 0.2, "cutmix": 1.0},
  ],
)
def test_training_images_differ_from_epoch_to_epoch_and_nothing_else(small_imagenet, kwargs):
  images = load(small_imagenet[0], image_size=14, **kwargs)

  def epoch(number):
    (batch,) = images.train_batches(number, number + 1, batch_size=29, seed=0)
    back = np.argsort(data.epoch_order(29, 0, number))
    return batch["image"][back], batch["label"][back]

  (first, labels), (second, same_labels) = epoch(0), epoch(1)
  np.testing.assert_array_equal(labels, same_labels)
  assert np.mean((first != second).any((1, 2, 3))) > 0.9
  np.testing.assert_array_equal(epoch(0)[0], first)


def test_recipes_differ(small_imagenet):
  def first(**kwargs):
    return next(
      load(small_imagenet[0], image_size=14, **kwargs).train_batches(0, 1, batch_size=16, seed=0)
    )["image"]

  plain = first()
  assert (plain != first(crop="random_resized_crop")).any()
  assert (plain != first(randaugment_magnitude=9)).any()
  np.testing.assert_array_equal(plain, first(mixup=0.2, cutmix=1.0))  # on the device only


def test_processes_and_workers_read_the_same(small_imagenet):
  data_dir = small_imagenet[0]
  kwargs = {"batch_size": 8, "seed": 2}
  want = list(load(data_dir, image_size=14).train_batches(1, 6, **kwargs))
  workers = load(data_dir, image_size=14, num_workers=2)
  for got, whole in zip(workers.train_batches(1, 6, **kwargs), want, strict=True):
    np.testing.assert_array_equal(got["image"], whole["image"])
  second = load(data_dir, image_size=14).train_batches(1, 6, **kwargs, shard=ProcessShard(1, 2))
  for got, whole in zip(second, want, strict=True):
    np.testing.assert_array_equal(got["image"], whole["image"][4:])


# ---- on the device -----------------------------------------------------------------------------


def test_images_are_normalised(small_imagenet):
  images = load(small_imagenet[0], image_size=14)
  (batch,) = images.test_batches(batch_size=11)
  got = jax.jit(images.preprocess_fn)(batch["image"])
  assert got.dtype == jnp.float32
  want = (batch["image"] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_without_mixing_training_sees_the_images_and_their_labels(small_imagenet):
  images = load(small_imagenet[0], image_size=14)
  batch = next(images.train_batches(0, 1, batch_size=9, seed=0))
  inputs, targets = jax.jit(images.augment_fn)(jax.random.key(0), batch["image"], batch["label"])
  np.testing.assert_allclose(inputs, images.preprocess_fn(batch["image"]), atol=1e-6)
  assert targets.shape == (9, 1000)
  np.testing.assert_array_equal(np.argmax(targets, -1), batch["label"])
  np.testing.assert_array_equal(np.sum(targets, -1), 1)


def test_with_mixing_targets_are_of_two_classes(small_imagenet):
  images = load(small_imagenet[0], image_size=14, mixup=0.2, cutmix=1.0)
  batch = next(images.train_batches(0, 1, batch_size=8, seed=0))
  _, targets = jax.jit(images.augment_fn)(jax.random.key(1), batch["image"], batch["label"])
  np.testing.assert_allclose(targets.sum(-1), 1, rtol=1e-6)
  for i, target in enumerate(np.asarray(targets)):
    assert set(np.flatnonzero(target)) <= {batch["label"][i], batch["label"][i ^ 1]}


@pytest.mark.parametrize("count", [2, 8])
def test_devices_see_together_what_one_would(small_imagenet, count):
  """Mixing included: a run goes on alike on another number of devices."""
  images = load(small_imagenet[0], image_size=14, mixup=0.2, cutmix=1.0)
  pipeline = data.make_input_pipeline(images, batch_size=16, eval_batch_size=16, seed=0)
  (batch,) = pipeline.train_batches(3, 4)
  key = jax.random.key(4)

  def inputs(num_devices):
    with devices(num_devices), quick_compiler():
      run = jax.pmap(lambda batch: pipeline.train_inputs(key, key, (), batch))
      outputs = run(data.put_on_devices(batch))
      return [np.asarray(x).reshape(16, *x.shape[2:]) for x in outputs]

  for got, want in zip(inputs(count), inputs(1), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-6)


# ---- what goes wrong ---------------------------------------------------------------------------


def test_missing_imagenet_says_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError) as error:
    load(tmp_path)
  message = str(error.value)
  assert f"no ImageNet in {tmp_path}" in message
  for hint in ("--config.data.data_dir=", "array_record", "ILSVRC2012_img_train.tar", "manual"):
    assert hint in message


def test_another_format_is_refused(tmp_path):
  write_imagenet(tmp_path, files(1), files(1), file_format="tfrecord")
  with pytest.raises(ValueError, match="it has to be array_record") as error:
    load(tmp_path)
  assert "'imagenet2012'" in str(error.value)


def test_the_newest_finished_version_is_taken(tmp_path):
  for version in ("5.0.0", "5.1.0", "6.0.0.incompleteABC"):
    write_imagenet(tmp_path, files(1), files(1), version=version)
  assert tfds_folder.find(tmp_path, "imagenet2012", "ImageNet").name == "5.1.0"


@pytest.mark.parametrize(
  "damage, num_workers", [("truncated", 0), ("no image", 0), ("truncated", 1)]
)
def test_damaged_images_are_named(tmp_path, damage, num_workers):
  train = files(6)
  name, encoded, label = train[2]
  train[2] = name, encoded[: len(encoded) // 2] if damage == "truncated" else b"x" * 99, label
  write_imagenet(tmp_path, train, files(1))
  images = load(tmp_path, image_size=14, num_workers=num_workers)
  batches = images.train_batches(0, 1, batch_size=6, seed=0)
  with pytest.raises(ValueError, match=r"Record 2 of the split 'train' in .*, n0002.JPEG, is not"):
    list(batches)


def test_damaged_files_are_named(tmp_path):
  write_imagenet(tmp_path, files(6), files(1))
  (path,) = (tmp_path / "imagenet2012" / "5.1.0").glob("*-train.*")
  content = bytearray(path.read_bytes())
  content[content.index(b"JFIF") + 300] ^= 255  # in the first image; the file has checksums
  path.write_bytes(content)
  images = load(tmp_path, image_size=14)
  with pytest.raises(ValueError, match=r"Record \d of the split 'train' in .* cannot be read"):
    list(images.train_batches(0, 1, batch_size=6, seed=0))


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"crop": "resize"}, "crop is 'resize'; it must be one of .* Did you mean 'resize_crop'"),
    ({"image_size": 0}, "image_size is 0; it must be 1 or more"),
    ({"randaugment_magnitude": 31}, r"randaugment_magnitude is 31; it must lie in 0\.\.30"),
    ({"mixup": -0.1}, "mixup is -0.1"),
    ({"cutmix": -1.0}, "cutmix is -1.0"),
    ({"num_workers": -1}, "num_workers is -1"),
    ({"workers": 1}, "config.data.kwargs of .* has 'workers'; .* Did you mean 'num_workers'"),
  ],
)
@pytest.mark.parametrize("name", ["imagenet2012", "synthetic_imagenet"])
def test_arguments_are_checked(name, kwargs, message, small_imagenet):
  with pytest.raises(ValueError, match=message):
    data.load(name, data_dir=str(small_imagenet[0]), **kwargs)


# ---- synthetic images --------------------------------------------------------------------------


def test_synthetic_images_stand_in_for_the_real_ones():
  images = data.load(
    "synthetic_imagenet", image_size=16, mixup=0.2, cutmix=1.0, num_workers=8, num_different=5
  )
  assert (images.num_train, images.num_test, images.num_classes) == (1_281_167, 50_000, 1000)
  assert images.num_workers == 0
  (batch,) = images.train_batches(2500, 2501, batch_size=512, seed=0)
  assert batch["image"].shape == (512, 16, 16, 3) and batch["image"].dtype == np.uint8
  assert len(np.unique(batch["image"].reshape(512, -1), axis=0)) == 5
  order = data.epoch_order(1_281_167, 0, 0)[2500 * 512 : 2501 * 512]
  np.testing.assert_array_equal(batch["label"], order % 1000)
  key = jax.random.key(0)
  inputs, targets = jax.eval_shape(images.augment_fn, key, batch["image"], batch["label"])
  assert inputs.shape == (512, 16, 16, 3) and targets.shape == (512, 1000)
  small = data.load("synthetic_imagenet", image_size=8, num_train=10, num_test=7)
  assert sum(int(batch["valid"].sum()) for batch in small.test_batches(batch_size=4)) == 7


@pytest.mark.parametrize("name", ["num_train", "num_test", "num_different"])
def test_synthetic_numbers_are_checked(name):
  with pytest.raises(ValueError, match=f"{name} is 0; it must be 1 or more"):
    data.load("synthetic_imagenet", image_size=8, **{name: 0})


def test_the_usual_number_of_workers_leaves_a_core(monkeypatch):
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
  assert imagenet._num_workers(None) == 5
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
  assert imagenet._num_workers(None) == 1


def test_more_workers_than_cores_are_warned_of(small_imagenet, monkeypatch):
  """As where SLURM binds a task to one core; they may still be right, so they are not refused."""
  monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0}, raising=False)
  with pytest.warns(UserWarning, match=r"num_workers is 2, but .* use 1 .* --cpus-per-task"):
    assert load(small_imagenet[0], image_size=14, num_workers=2).num_workers == 2
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    load(small_imagenet[0], image_size=14, num_workers=1)


# ---- the real thing ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample():
  data_dir = os.environ.get("TFDS_DATA_DIR")
  if not data_dir:
    pytest.skip("TFDS_DATA_DIR is not set")
  if not (Path(data_dir) / "imagenet2012").is_dir():
    pytest.skip(f"no imagenet2012 in TFDS_DATA_DIR={data_dir}")
  images = data.load("imagenet2012", num_workers=0)
  if images.num_train > 10_000:
    pytest.skip("TFDS_DATA_DIR has all of ImageNet, which takes hours to go through")
  return images


@pytest.mark.parametrize("num_devices", [1, 3, 8])
def test_every_real_validation_image_counts_once(sample, num_devices):
  """As many devices share a batch of about 60: padded to whole batches of whole shares."""
  share = -(-60 // num_devices)
  count, labels = 0, []
  for batch in sample.test_batches(batch_size=share * num_devices):
    assert batch["image"].shape == (share * num_devices, 224, 224, 3)
    count += int(batch["valid"].reshape(num_devices, share).sum(1).sum())
    labels.extend(batch["label"][batch["valid"]])
  assert count == sample.num_test
  assert labels == [sample.test.records[i].label for i in range(sample.num_test)]


@pytest.mark.slow
def test_real_images_have_imagenets_colours(sample):
  (batch,) = sample.train_batches(0, 1, batch_size=200, seed=0)
  pixels = np.asarray(sample.preprocess_fn(batch["image"]), np.float64)
  assert np.abs(pixels.mean((0, 1, 2))).max() < 0.3
  assert np.abs(pixels.std((0, 1, 2)) - 1).max() < 0.3
