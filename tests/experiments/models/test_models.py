"""Models: layer shapes against the paper's networks, numerics, and the functional form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments import models

IMAGE_SHAPE = (8, 8, 3)

# One small variant of every architecture, for tests that run it.
TINY = {
  "convnet": {"widths": (4, 6)},
  "mlp": {"hidden": (12, 7)},
  "mobilenet_v3_large": {"blocks": ((5, 40, 16, True, True, 1),), "hidden": 12},
  "mobilenet_v3_small": {"blocks": ((3, 16, 24, False, False, 2),), "hidden": 8},
  "resnet18": {"stage_sizes": (1, 2), "width": 4},
  "resnet50": {"stage_sizes": (1,), "width": 4},
  "vit_b16": {"patch_size": 4, "depth": 1, "width": 12, "num_heads": 3, "mlp_width": 20},
  "wide_resnet22_2": {"depth": 10, "widen": 1},
}
# These have no batch statistics.
NORMALIZED = sorted(set(TINY) - {"mlp", "vit_b16"})


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
  """Nearly all the time goes to the compiler, and half of that to optimizations."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@functools.cache
def tiny(name, dtype=jnp.float32, **kwargs):
  """A tiny model in functional form; jitted, as running it layer by layer compiles each."""
  model = models.init(
    name,
    num_classes=5,
    image_shape=IMAGE_SHAPE,
    key=jax.random.key(0),
    dtype=dtype,
    **TINY[name],
    **kwargs,
  )
  # A head that starts at 0, as that of a vision transformer, shows nothing of what is below it.
  head = jax.random.normal(jax.random.key(2), model.params["head/kernel"].shape) / 4
  params = model.params | ({} if model.params["head/kernel"].any() else {"head/kernel": head})
  return model._replace(apply=jax.jit(model.apply, static_argnames="train"), params=params)


def images(batch_size=6, shape=IMAGE_SHAPE):
  return jax.random.normal(jax.random.key(7), (batch_size, *shape))


def param_shapes(name, **kwargs):
  """Parameter shapes of a full-size model, by path, without computing any parameter."""
  model = nnx.eval_shape(
    lambda: models.build(name, num_classes=10, image_shape=(32, 32, 3), rngs=nnx.Rngs(0), **kwargs)
  )
  flat = nnx.to_flat_state(nnx.state(model, nnx.Param))
  return {"/".join(map(str, path)): value.get_value().shape for path, value in flat}


def kernels(shapes):
  return {path: shape for path, shape in shapes.items() if path.endswith("/kernel")}


def test_resnet18_has_the_layers_of_the_paper():
  expected = {
    "conv1/kernel": (3, 3, 3, 64),
    "layer1/0/conv1/kernel": (3, 3, 64, 64),
    "layer1/0/conv2/kernel": (3, 3, 64, 64),
    "layer1/1/conv1/kernel": (3, 3, 64, 64),
    "layer1/1/conv2/kernel": (3, 3, 64, 64),
    "layer2/0/conv1/kernel": (3, 3, 64, 128),
    "layer2/0/conv2/kernel": (3, 3, 128, 128),
    "layer2/0/shortcut/kernel": (1, 1, 64, 128),
    "layer2/1/conv1/kernel": (3, 3, 128, 128),
    "layer2/1/conv2/kernel": (3, 3, 128, 128),
    "layer3/0/conv1/kernel": (3, 3, 128, 256),
    "layer3/0/conv2/kernel": (3, 3, 256, 256),
    "layer3/0/shortcut/kernel": (1, 1, 128, 256),
    "layer3/1/conv1/kernel": (3, 3, 256, 256),
    "layer3/1/conv2/kernel": (3, 3, 256, 256),
    "layer4/0/conv1/kernel": (3, 3, 256, 512),
    "layer4/0/conv2/kernel": (3, 3, 512, 512),
    "layer4/0/shortcut/kernel": (1, 1, 256, 512),
    "layer4/1/conv1/kernel": (3, 3, 512, 512),
    "layer4/1/conv2/kernel": (3, 3, 512, 512),
    "head/kernel": (512, 10),
  }
  shapes = param_shapes("resnet18")
  assert kernels(shapes) == expected
  assert len(expected) == 21
  assert sum(np.prod(shape) for shape in kernels(shapes).values()) == 11_164_352
  assert sum(np.prod(shape) for shape in shapes.values()) == 11_173_962


def test_wide_resnet22_2_has_the_layers_of_the_paper():
  expected = {"conv1/kernel": (3, 3, 3, 16), "head/kernel": (128, 10)}
  for stage, (before, width) in enumerate([(16, 32), (32, 64), (64, 128)], 1):
    expected[f"layer{stage}/0/shortcut/kernel"] = (1, 1, before, width)
    for block in range(3):
      expected[f"layer{stage}/{block}/conv1/kernel"] = (3, 3, before, width)
      expected[f"layer{stage}/{block}/conv2/kernel"] = (3, 3, width, width)
      before = width
  shapes = param_shapes("wide_resnet22_2")
  assert kernels(shapes) == expected
  assert len(expected) == 23
  # Kernels, then scale and bias of two normalisations per block and a last one, then the head's
  # bias.
  num_kernels = sum(np.prod(shape) for shape in expected.values())
  norms = 16 + 5 * 32 + 32 + 5 * 64 + 64 + 5 * 128 + 128
  assert sum(np.prod(shape) for shape in shapes.values()) == num_kernels + 2 * norms + 10


def test_convnet_and_mlp_paths():
  assert kernels(param_shapes("convnet")) == {
    "blocks/0/conv/kernel": (3, 3, 3, 32),
    "blocks/1/conv/kernel": (3, 3, 32, 32),
    "blocks/2/conv/kernel": (3, 3, 32, 64),
    "blocks/3/conv/kernel": (3, 3, 64, 64),
    "blocks/4/conv/kernel": (3, 3, 64, 128),
    "blocks/5/conv/kernel": (3, 3, 128, 128),
    "head/kernel": (128, 10),
  }
  assert param_shapes("mlp") == {
    "hidden/0/kernel": (3072, 256),
    "hidden/0/bias": (256,),
    "hidden/1/kernel": (256, 256),
    "hidden/1/bias": (256,),
    "head/kernel": (256, 10),
    "head/bias": (10,),
  }


def test_every_model_has_a_tiny_variant():
  assert TINY.keys() == models.MODELS.keys()


@pytest.mark.parametrize("name", TINY)
def test_forward(name):
  apply, params, model_state = tiny(name)
  logits, new_state = apply(params, model_state, images(), train=False)
  assert logits.shape == (6, 5)
  assert logits.dtype == jnp.float32
  assert all(value.dtype == jnp.float32 for value in (params | model_state).values())
  assert np.isfinite(logits).all()
  # Evaluation neither depends on the rest of the batch nor touches the statistics.
  other, _ = apply(params, model_state, images().at[1:].add(1.0), train=False)
  np.testing.assert_array_equal(other[0], logits[0])
  assert new_state.keys() == model_state.keys()
  for path, value in model_state.items():
    np.testing.assert_array_equal(new_state[path], value)


@pytest.mark.parametrize("name", NORMALIZED)
def test_training_updates_the_batch_statistics(name):
  apply, params, model_state = tiny(name)
  key = jax.random.key(1)
  _, new_state = apply(params, model_state, images(), train=True, rngs=key)
  assert new_state.keys() == model_state.keys()
  for path, value in model_state.items():
    assert new_state[path].dtype == jnp.float32
    assert (new_state[path] != value).any(), path


def test_batch_norm_moves_a_tenth_of_the_way():
  apply, params, model_state = tiny("convnet")
  x = images()
  _, new_state = apply(params, model_state, x, train=True)
  convolved = jax.lax.conv_general_dilated(
    x,
    params["blocks/0/conv/kernel"],
    (1, 1),
    ((1, 1), (1, 1)),
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
  )
  mean, variance = convolved.mean((0, 1, 2)), convolved.var((0, 1, 2))
  np.testing.assert_allclose(new_state["blocks/0/bn/mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(new_state["blocks/0/bn/var"], 0.9 + 0.1 * variance, rtol=1e-4)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_bfloat16_computes_in_bfloat16_and_keeps_float32(name, train):
  key = jax.random.key(1)
  apply, params, model_state = tiny(name)
  exact, exact_state = apply(params, model_state, images(), train=train, rngs=key)
  apply, *_ = tiny(name, jnp.bfloat16)
  logits, new_state = apply(params, model_state, images(), train=train, rngs=key)
  assert logits.dtype == jnp.float32
  assert all(value.dtype == jnp.float32 for value in new_state.values())
  # Two to three significant digits, accumulated over a few layers.
  scale = np.abs(exact).max()
  error = np.abs(logits - exact).max() / scale
  assert 0 < error < 0.1
  for path, value in exact_state.items():
    np.testing.assert_allclose(new_state[path], value, rtol=0.05, atol=0.05, err_msg=path)


def test_bfloat16_statistics_are_computed_in_float32():
  """A mean of 0.1 times 2049 is no bfloat16 number; rounded statistics would show."""
  norm = models.layers.batch_norm(1, rngs=nnx.Rngs(0))
  x = jnp.array([2048.0, 2064.0, 2048.0, 2048.0], jnp.bfloat16).reshape(4, 1)
  y = models.layers.normalize(norm, x, train=True)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(norm.mean[...], [205.2], rtol=1e-6)
  np.testing.assert_allclose(norm.var[...], [0.9 + 0.1 * 48.0], rtol=1e-5)
  evaluated = models.layers.normalize(norm, x, train=False)
  expected = (np.asarray(x, np.float32) - 205.2) / np.sqrt(5.7 + 1e-5)
  np.testing.assert_array_equal(evaluated, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("name", TINY)
def test_gradients_reach_every_parameter(name):
  apply, params, model_state = tiny(name)
  key = jax.random.key(1)

  @jax.jit
  def gradient(params, model_state, x, labels, key):
    def loss_fn(params):
      logits, new_state = apply(params, model_state, x, train=True, rngs=key)
      chosen = jnp.take_along_axis(nnx.log_softmax(logits), labels[:, None], 1)
      return -chosen.mean(), new_state

    return jax.grad(loss_fn, has_aux=True)(params)

  grads, _ = gradient(params, model_state, images(), jnp.arange(6) % 5, key)
  assert grads.keys() == params.keys()
  for path, grad in grads.items():
    assert grad.shape == params[path].shape
    assert np.isfinite(grad).all(), path
    assert (grad != 0).any(), path


@pytest.mark.parametrize("name", TINY)
def test_scan_equals_a_loop(name):
  apply, params, model_state = tiny(name)
  batches = images(8).reshape(2, 4, *IMAGE_SHAPE)
  keys = jax.random.split(jax.random.key(1), 2)

  def step(model_state, inputs):
    x, key = inputs
    logits, model_state = apply(params, model_state, x, train=True, rngs=key)
    return model_state, logits

  scanned_state, scanned = jax.lax.scan(step, model_state, (batches, keys))
  for i in range(2):
    model_state, logits = step(model_state, (batches[i], keys[i]))
    np.testing.assert_allclose(scanned[i], logits, rtol=1e-4, atol=1e-5)
  for path, value in model_state.items():
    np.testing.assert_allclose(scanned_state[path], value, rtol=1e-4, atol=1e-5)


def test_pmap():
  apply, params, model_state = tiny("resnet18")
  step = jax.pmap(
    lambda params, model_state, x: apply(params, model_state, x, train=True),
    axis_name="batch",
    in_axes=(None, None, 0),
    devices=jax.local_devices()[:1],
  )
  logits, new_state = step(params, model_state, images()[None])
  expected, expected_state = apply(params, model_state, images(), train=True)
  np.testing.assert_allclose(logits[0], expected, rtol=1e-4, atol=1e-5)
  for path, value in expected_state.items():
    np.testing.assert_allclose(new_state[path][0], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["convnet", "mlp"])
def test_jitted_init_equals_eager_init(name):
  """The functional form of a model built layer by layer has the same bits and the same output."""
  model = models.build(
    name, num_classes=5, image_shape=IMAGE_SHAPE, rngs=nnx.Rngs(jax.random.key(0)), **TINY[name]
  )
  eager, jitted = models.functional(model), tiny(name)
  assert eager.params.keys() == jitted.params.keys()
  assert eager.model_state.keys() == jitted.model_state.keys()
  for path, value in (eager.params | eager.model_state).items():
    np.testing.assert_array_equal((jitted.params | jitted.model_state)[path], value)
  logits, _ = jitted.apply(jitted.params, jitted.model_state, images(), train=False)
  called = nnx.jit(lambda model, x: model(x))(model, images())
  np.testing.assert_allclose(logits, called, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", TINY)
def test_parameters_and_batch_statistics_are_the_only_state(name):
  model = nnx.eval_shape(
    lambda: models.build(
      name, num_classes=5, image_shape=IMAGE_SHAPE, rngs=nnx.Rngs(0), **TINY[name]
    )
  )
  _, params, statistics, rest = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
  assert not jax.tree.leaves(rest)
  assert jax.tree.leaves(params)
  assert bool(jax.tree.leaves(statistics)) == (name in NORMALIZED)


def test_functional_rejects_other_state():
  class Stateful(nnx.Module):
    def __init__(self):
      self.dropout = nnx.Dropout(0.5, rngs=nnx.Rngs(0))

  with pytest.raises(ValueError, match=r"neither: dropout/rngs/"):
    models.functional(Stateful())


def test_apply_outside_of_jit():
  """It leaves the model alone, and takes an `nnx.Rngs` in place of a key."""

  class Layer(nnx.Module):
    def __init__(self):
      self.dropout = nnx.Dropout(0.5)
      self.bn = nnx.BatchNorm(4, rngs=nnx.Rngs(0))

    def __call__(self, x, *, train, rngs):
      x = self.dropout(x, deterministic=not train, rngs=rngs)
      return self.bn(x, use_running_average=not train)

  model, x = Layer(), jnp.ones((8, 4))
  apply, params, model_state = models.functional(model)
  by_key, new_state = apply(params, model_state, x, train=True, rngs=jax.random.key(3))
  by_rngs, _ = apply(params, model_state, x, train=True, rngs=nnx.Rngs(jax.random.key(3)))
  np.testing.assert_array_equal(by_key, by_rngs)
  assert (new_state["bn/mean"] != 0).all()
  np.testing.assert_array_equal(model.bn.mean[...], np.zeros(4))


def test_strides_halve_the_resolution_as_in_pytorch():
  """A strided 3×3 convolution pads one on each side: position 0 sees inputs -1, 0, 1."""
  conv = models.layers.conv(1, 1, 3, stride=2, dtype=jnp.float32, rngs=nnx.Rngs(0))
  conv.kernel[...] = jnp.ones((3, 3, 1, 1))
  x = jnp.zeros((1, 4, 4, 1)).at[0, 0, 0, 0].set(1.0)
  np.testing.assert_array_equal(conv(x)[0, :, :, 0], [[1, 0], [0, 0]])
  x = jnp.zeros((1, 4, 4, 1)).at[0, 3, 3, 0].set(1.0)
  np.testing.assert_array_equal(conv(x)[0, :, :, 0], [[0, 0], [0, 1]])


def test_convolutions_are_he_normal_by_fan_out():
  kernel = models.layers.conv(64, 16, 3, dtype=jnp.float32, rngs=nnx.Rngs(0)).kernel[...]
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 16)), rtol=0.03)


def test_wide_resnet_dropout():
  apply, params, model_state = tiny("wide_resnet22_2")
  x = images()

  def logits(seed):
    return apply(params, model_state, x, train=True, rngs=jax.random.key(seed))[0]

  np.testing.assert_array_equal(logits(0), logits(0))
  assert (logits(0) != logits(1)).any()
  with pytest.raises(ValueError, match=r"dropout_rate=0\.3 needs random numbers"):
    apply(params, model_state, x, train=True)
  model = functools.partial(
    models.WideResNet, 10, 1, num_classes=5, image_shape=IMAGE_SHAPE, dropout_rate=0.0
  )
  nnx.eval_shape(lambda: model(rngs=nnx.Rngs(0))(x, train=True))  # does not ask for any


def test_wide_resnet_shortcuts_only_where_widths_change():
  shapes = param_shapes("wide_resnet22_2", widen=1, depth=10)
  assert [path for path in shapes if "shortcut" in path] == [
    "layer2/0/shortcut/kernel",
    "layer3/0/shortcut/kernel",
  ]


@pytest.mark.parametrize("depth", [4, 21])
def test_wide_resnet_rejects_impossible_depths(depth):
  with pytest.raises(ValueError, match=rf"6 \* n \+ 4 .* got {depth}"):
    tiny_kwargs = {"num_classes": 5, "image_shape": IMAGE_SHAPE, "rngs": nnx.Rngs(0)}
    models.WideResNet(depth, **tiny_kwargs)


@pytest.mark.parametrize(
  "kwargs, message",
  [
    ({"name": "resnet81"}, "model name is 'resnet81'; .*mlp.* Did you mean 'resnet18'"),
    ({"name": "zzz"}, "model name is 'zzz'; it must be one of convnet"),
    ({"num_classes": 0}, "num_classes must be at least 1, got 0"),
    ({"image_shape": (8, 8)}, r"three positive sizes .* got \(8, 8\)"),
    ({"image_shape": (8, 8, 0)}, r"three positive sizes .* got \(8, 8, 0\)"),
    ({"dtype": "float16"}, "float32, bfloat16, got float16"),
  ],
)
def test_build_rejects(kwargs, message):
  valid = {"name": "mlp", "num_classes": 5, "image_shape": IMAGE_SHAPE}
  with pytest.raises(ValueError, match=message):
    models.build(**(valid | kwargs), rngs=nnx.Rngs(0))


def test_build_takes_what_a_config_file_gives():
  """JSON has lists for tuples and strings for types."""
  model = models.build(
    "mlp", num_classes=5, image_shape=[8, 8, 3], dtype="bfloat16", hidden=[3], rngs=nnx.Rngs(0)
  )
  assert model(images()).shape == (6, 5)
