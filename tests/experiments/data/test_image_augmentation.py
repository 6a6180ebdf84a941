"""Crops and RandAugment on the host, mixup and CutMix on the device."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from experiments.data import crops, mixup, randaugment
from experiments.data.record_rng import below, between, record_rng
from tests.experiments.tiny import quick_compiler


@pytest.fixture(autouse=True, scope="module")
def compile_quickly():
  with quick_compiler():
    yield


def picture(width, height, seed=0):
  """Smooth random colours, as in a photograph, so that interpolation can be compared."""
  coarse = np.random.default_rng(seed).integers(40, 216, (6, 7, 3), np.uint8)
  return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def scripted(*numbers):
  """Gives these random numbers, one after the other."""
  return iter(numbers).__next__


def pixels(image):
  return np.asarray(image).astype(int)


# ---- random numbers ----------------------------------------------------------------------------


def test_draws_belong_to_the_record():
  draw = record_rng(42, 3, 1000)
  first = [draw() for _ in range(5)]
  again = record_rng(42, 3, 1000)
  assert first == [again() for _ in range(5)]
  # The same in every process and with every numpy: a run may be resumed elsewhere.
  np.testing.assert_allclose(first[:2], FIRST_DRAWS, rtol=0, atol=0)
  others = {record_rng(*key)() for key in [(41, 3, 1000), (42, 4, 1000), (42, 3, 1001)]}
  assert len(others | {first[0]}) == 4


FIRST_DRAWS = [0.2624652657405955, 0.041458962503888475]


def test_draws_are_uniform_and_records_independent():
  drawn = np.array([[f() for _ in range(3)] for f in (record_rng(0, 1, r) for r in range(4000))])
  assert drawn.min() >= 0 and drawn.max() < 1
  counts = np.stack([np.histogram(column, 10, (0, 1))[0] for column in drawn.T])
  assert counts.min() > 320 and counts.max() < 480
  shifted = np.column_stack([drawn[:-1], drawn[1:]])
  assert np.abs(np.corrcoef(shifted, rowvar=False) - np.eye(6)).max() < 0.06


def test_integers_and_ranges():
  assert [below(scripted(u), 4) for u in (0.0, 0.24, 0.25, 0.999)] == [0, 0, 1, 3]
  assert between(scripted(0.25), -1.0, 3.0) == 0.0


# ---- crops -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (144, 144), (1000, 201)])
@pytest.mark.parametrize("shorter", [256, 480])
def test_resized_crop_is_scaling_the_whole_image_and_then_cropping(size, shorter):
  image = picture(*size)
  numbers = (0.0 if shorter == 256 else 0.5, 0.3, 0.9)
  got = crops.resized_crop(image, scripted(*numbers), size=224)
  width, height = size
  scaled = shorter / min(size)
  expected_size = (
    (shorter, int(height * shorter / width))
    if width <= height
    else (int(width * shorter / height), shorter)
  )
  assert min(expected_size) == shorter and max(expected_size) == int(max(size) * scaled)
  whole = image.resize(expected_size, Image.Resampling.BILINEAR)
  left = int(0.3 * (expected_size[0] - 224 + 1))
  top = int(0.9 * (expected_size[1] - 224 + 1))
  expected = whole.crop((left, top, left + 224, top + 224))
  assert got.size == (224, 224)
  difference = np.abs(pixels(got) - pixels(expected))
  # Window and whole round differently, now and then.
  assert difference.max() <= 2 and np.mean(difference > 1) < 1e-3 and np.mean(difference > 0) < 0.1


@pytest.mark.parametrize("size", [(500, 375), (333, 500), (224, 224), (144, 216)])
def test_centre_crop_is_the_middle_of_the_scaled_image(size):
  image = picture(*size)
  width, height = size
  scale = 256 / min(size)
  whole = image.resize(
    (256, int(height * scale)) if width <= height else (int(width * scale), 256),
    Image.Resampling.BILINEAR,
  )
  left, top = round((whole.width - 224) / 2), round((whole.height - 224) / 2)
  expected = whole.crop((left, top, left + 224, top + 224))
  got = crops.centre_crop(image, size=224)
  assert np.abs(pixels(got) - pixels(expected)).max() <= 1


def test_random_resized_crop_cuts_what_was_drawn():
  image = picture(300, 200)
  area = 0.08 + 0.92 * 0.3
  shape = np.exp(np.log(3 / 4) + 2 * np.log(4 / 3) * 0.6)
  w, h = round(np.sqrt(60000 * area * shape)), round(np.sqrt(60000 * area / shape))
  left, top = int(0.7 * (300 - w + 1)), int(0.2 * (200 - h + 1))
  got = crops.random_resized_crop(image, scripted(0.3, 0.6, 0.7, 0.2), size=64)
  box = image.crop((left, top, left + w, top + h))
  np.testing.assert_array_equal(
    pixels(got), pixels(box.resize((64, 64), Image.Resampling.BILINEAR))
  )


@pytest.mark.parametrize(
  "size, middle", [((900, 20), (436, 0, 463, 20)), ((20, 900), (0, 436, 20, 463))]
)
def test_where_no_rectangle_fits_it_is_the_middle(size, middle):
  image = picture(*size)
  got = crops.random_resized_crop(image, lambda: 0.999, size=32)
  left, top, right, bottom = middle
  width, height = right - left, bottom - top
  assert max(width, height) == round(min(width, height) * 4 / 3)
  assert abs(left - (size[0] - right)) <= 1 and abs(top - (size[1] - bottom)) <= 1
  expected = image.crop(middle).resize((32, 32), Image.Resampling.BILINEAR)
  np.testing.assert_array_equal(pixels(got), pixels(expected))


@hypothesis.given(
  width=st.integers(1, 400), height=st.integers(1, 400), record=st.integers(0, 10**6)
)
@hypothesis.settings(max_examples=60)
def test_every_crop_of_every_image_has_the_size(width, height, record):
  image = Image.new("RGB", (width, height), (10, 20, 30))
  draw = record_rng(0, 0, record)
  for crop in (
    crops.resized_crop(image, draw, size=28, shorter_sides=(32, 60)),
    crops.random_resized_crop(image, draw, size=28),
    crops.centre_crop(image, size=28, shorter_side=32),
  ):
    assert crop.size == (28, 28)
    assert (np.asarray(crop) == [10, 20, 30]).all()  # nothing from outside of the image


def test_half_of_the_images_are_mirrored():
  image = picture(5, 4)
  np.testing.assert_array_equal(
    pixels(crops.random_flip(image, scripted(0.49))), pixels(image)[:, ::-1]
  )
  assert crops.random_flip(image, scripted(0.5)) is image


# ---- RandAugment -------------------------------------------------------------------------------

PICTURE = picture(40, 30, seed=3)


def affine(image, x_fn, y_fn):
  """Bilinear sampling at (x_fn, y_fn) of every pixel's centre, black where that is outside."""
  source = np.asarray(image).astype(float)
  height, width, _ = source.shape
  y, x = np.mgrid[:height, :width] + 0.5
  sx, sy = x_fn(x, y), y_fn(x, y)
  outside = (sx < 0) | (sx >= width) | (sy < 0) | (sy >= height)
  sx, sy = np.clip(sx - 0.5, 0, width - 1), np.clip(sy - 0.5, 0, height - 1)
  x0, y0 = np.floor(sx).astype(int), np.floor(sy).astype(int)
  x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
  fx, fy = (sx - x0)[..., None], (sy - y0)[..., None]
  top = source[y0, x0] * (1 - fx) + source[y0, x1] * fx
  bottom = source[y1, x0] * (1 - fx) + source[y1, x1] * fx
  return np.where(outside[..., None], 0, top * (1 - fy) + bottom * fy)


def rotated(image, degrees):
  """Counter-clockwise round the middle."""
  angle = np.radians(degrees)
  cx, cy = image.width / 2, image.height / 2
  c, s = np.cos(angle), np.sin(angle)
  return affine(
    image,
    lambda x, y: cx + c * (x - cx) - s * (y - cy),
    lambda x, y: cy + s * (x - cx) + c * (y - cy),
  )


def blend(image, other, amount):
  return np.clip(other + amount * (pixels(image) - other), 0, 255)


GREY = pixels(PICTURE) @ [0.299, 0.587, 0.114]
# Each operation at magnitude 9 of 30 with a positive sign, computed another way.
EXPECTED = {
  "identity": lambda image: pixels(image),
  "shear_x": lambda image: affine(image, lambda x, y: x + 0.09 * y, lambda x, y: y),
  "shear_y": lambda image: affine(image, lambda x, y: x, lambda x, y: y + 0.09 * x),
  "translate_x": lambda image: np.pad(pixels(image), ((0, 0), (5, 0), (0, 0)))[:, :-5],
  "translate_y": lambda image: np.pad(pixels(image), ((4, 0), (0, 0), (0, 0)))[:-4],
  "rotate": lambda image: rotated(image, 9.0),
  "brightness": lambda image: blend(image, 0, 1.27),
  "color": lambda image: blend(image, np.rint(GREY)[..., None], 1.27),
  "contrast": lambda image: blend(image, round(GREY.mean()), 1.27),
  "sharpness": lambda image: pixels(ImageEnhance.Sharpness(image).enhance(1.27)),
  "posterize": lambda image: pixels(image) & 0b11111110,
  "solarize": lambda image: np.where(pixels(image) < 178.5, pixels(image), 255 - pixels(image)),
  "autocontrast": lambda image: pixels(ImageOps.autocontrast(image)),
  "equalize": lambda image: pixels(ImageOps.equalize(image)),
}


def test_these_are_the_operations():
  assert list(randaugment.OPERATIONS) == list(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_operation_equals_the_reference(name):
  operation = randaugment.OPERATIONS[name]
  index = list(EXPECTED).index(name)
  numbers = [(index + 0.5) / 14] + [0.7] * operation.is_signed
  got = randaugment.rand_augment(PICTURE, scripted(*numbers), num_operations=1)
  assert got.size == PICTURE.size and got.mode == "RGB"
  difference = np.abs(pixels(got) - EXPECTED[name](PICTURE))
  # Rounding makes a level or two; at the seam to the black outside a few pixels fall elsewhere.
  assert np.mean(difference > 2) < 0.01 if name == "rotate" else difference.max() <= 2
  changes = {"identity": 0, "posterize": 1, "sharpness": 1}
  assert np.abs(pixels(got) - pixels(PICTURE)).max() >= changes.get(name, 6)


@pytest.mark.parametrize("name", [n for n, op in randaugment.OPERATIONS.items() if op.is_signed])
def test_signs(name):
  """A small number negates: the mirror image of the operation, or less instead of more."""
  operation = randaugment.OPERATIONS[name]
  strength = operation.strength(0.3, *PICTURE.size)
  index = list(EXPECTED).index(name)
  got = randaugment.rand_augment(PICTURE, scripted((index + 0.5) / 14, 0.4), num_operations=1)
  np.testing.assert_array_equal(pixels(got), pixels(operation.apply(PICTURE, -strength)))
  opposite = operation.apply(PICTURE, strength)
  assert np.abs(pixels(got) - pixels(opposite)).max() > (1 if name == "sharpness" else 5)


def test_two_operations_come_one_after_the_other():
  got = randaugment.rand_augment(PICTURE, scripted(10.5 / 14, 13.5 / 14))
  posterized = ImageOps.posterize(PICTURE, 7)
  np.testing.assert_array_equal(pixels(got), pixels(ImageOps.equalize(posterized)))


@pytest.mark.parametrize("name", [n for n, op in randaugment.OPERATIONS.items() if op.is_signed])
def test_magnitude_0_changes_nothing(name):
  operation = randaugment.OPERATIONS[name]
  got = operation.apply(PICTURE, operation.strength(0.0, *PICTURE.size))
  np.testing.assert_array_equal(pixels(got), pixels(PICTURE))


# ---- mixup and CutMix --------------------------------------------------------------------------


def batch_of(size, height=12, width=9, classes=5, seed=0):
  generator = np.random.default_rng(seed)
  images = generator.standard_normal((size, height, width, 3)).astype(np.float32)
  return images, np.eye(classes, dtype=np.float32)[generator.integers(0, classes, size)]


def mix_reference(images, targets, weights):
  """In double precision, one image after the other."""
  images, targets, weights = (np.asarray(x, np.float64) for x in (images, targets, weights))
  mixed, mixed_targets = np.empty_like(images), np.empty_like(targets)
  for i in range(len(images)):
    partner = i + 1 if i % 2 == 0 else i - 1
    for y, x in np.ndindex(weights.shape):
      w = weights[y, x]
      mixed[i, y, x] = w * images[i, y, x] + (1 - w) * images[partner, y, x]
    share = weights.mean()
    mixed_targets[i] = share * targets[i] + (1 - share) * targets[partner]
  return mixed, mixed_targets


@pytest.mark.parametrize("alphas", [(0.2, 0.0), (0.0, 1.0), (0.2, 1.0)])
def test_batches_are_mixed_as_the_reference_mixes_them(alphas):
  images, targets = batch_of(6)
  mix = jax.jit(
    lambda key: mixup.random_mix(key, images, targets, mixup=alphas[0], cutmix=alphas[1])
  )
  kinds = set()
  for seed in range(8):
    mixed, mixed_targets = mix(jax.random.key(seed))
    assert mixed.dtype == mixed_targets.dtype == jnp.float32
    # The weights that were used, from the first pair.
    weights = (np.asarray(mixed)[0] - images[1]) / (images[0] - images[1])
    weights = np.median(weights, axis=-1)
    is_mixup = alphas[0] > 0 and np.ptp(weights) < 1e-3
    kinds.add("mixup" if is_mixup else "cutmix")
    weights = np.full_like(weights, np.median(weights)) if is_mixup else np.rint(weights)
    want, want_targets = mix_reference(images, targets, weights)
    np.testing.assert_allclose(mixed, want, atol=1e-4)
    np.testing.assert_allclose(mixed_targets, want_targets, atol=1e-4)
    np.testing.assert_allclose(mixed_targets.sum(-1), 1, rtol=1e-6)
  expected = {(0.2, 0.0): {"mixup"}, (0.0, 1.0): {"cutmix"}, (0.2, 1.0): {"mixup", "cutmix"}}
  assert kinds == expected[alphas]


def test_mixing_in_float64_is_exact():
  images, targets = batch_of(4)
  weights = np.random.default_rng(1).random((12, 9))
  with jax.enable_x64(True):
    mixed = mixup.mix(*(jnp.asarray(x, jnp.float64) for x in (images, targets, weights)))
  for got, want in zip(mixed, mix_reference(images, targets, weights), strict=True):
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=1e-14, atol=1e-14)


def test_kinds_come_at_equal_odds_and_shares_follow_the_beta_distribution():
  """A white image mixed with a black one shows the weights."""
  images, targets = jnp.zeros((2, 8, 8, 3)).at[0].set(1.0), jnp.eye(2)
  mix = lambda key: mixup.random_mix(key, images, targets, mixup=0.2, cutmix=1.0)
  mixed, mixed_targets = jax.jit(jax.vmap(mix))(jax.random.split(jax.random.key(0), 1500))
  weights = np.asarray(mixed[:, 0, :, :, 0], np.float64)
  np.testing.assert_allclose(mixed_targets[:, 0, 0], weights.mean((1, 2)), rtol=1e-5, atol=1e-6)
  is_mixup = (np.ptp(weights, axis=(1, 2)) == 0) & (weights[:, 0, 0] != 1)
  # CutMix whose rectangle has no pixel counts as neither.
  assert 0.45 < is_mixup.mean() < 0.55
  shares = weights[is_mixup, 0, 0]
  # Mean 1/2 and variance 1 / (4 (2 alpha + 1)), shares that round to 1 being left out.
  assert abs(shares.mean() - 0.5) < 0.06
  assert abs(shares.var() - 1 / 5.6) < 0.03


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_rectangles(share):
  """Of the image's shape, of the share's area, anywhere, and cut off at the rim."""
  height, width = 60, 30
  keys = jax.random.split(jax.random.key(2), 3000)
  inside = jax.jit(jax.vmap(lambda key: mixup.rectangle(key, share, height, width)))(keys)
  inside = np.asarray(inside)
  rows, columns = inside.any(2), inside.any(1)
  np.testing.assert_array_equal(inside, rows[:, :, None] & columns[:, None, :])
  for occupied, length in ((rows, height), (columns, width)):
    half = int(np.sqrt(np.float32(1 - share)) * np.float32(0.5) * length)
    assert occupied.sum(1).max() == 2 * half
    # Each pixel is covered by as many centres as are at most that far away.
    pixel, centre = np.arange(length)[:, None], np.arange(length)[None, :]
    covered = ((pixel >= centre - half) & (pixel < centre + half)).mean(1)
    np.testing.assert_allclose(occupied.mean(0), covered, atol=0.04)


def test_devices_mix_as_one_would():
  """Pairs stay together: halves of the batch mixed by the same key are the mixed batch's halves."""
  images, targets = batch_of(8)
  key = jax.random.key(3)
  mix = jax.jit(lambda x, y: mixup.random_mix(key, x, y, mixup=0.2, cutmix=1.0))
  whole = mix(images, targets)
  halves = [mix(images[part], targets[part]) for part in (slice(0, 4), slice(4, 8))]
  for got, want in zip(map(jnp.concatenate, zip(*halves, strict=True)), whole, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_no_mixing_changes_nothing():
  images, targets = batch_of(3)
  mixed = mixup.random_mix(jax.random.key(0), images, targets, mixup=0.0, cutmix=0.0)
  assert mixed[0] is images and mixed[1] is targets


def test_odd_batches_cannot_be_mixed():
  with pytest.raises(ValueError, match=r"in pairs, but a device got 3 .* multiple of twice"):
    mixup.random_mix(jax.random.key(0), *batch_of(3), mixup=0.2, cutmix=0.0)
