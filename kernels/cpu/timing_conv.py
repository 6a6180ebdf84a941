"""Times sparse convolutions against dense XLA: the layers of the CIFAR ResNet-18 at 90 %.

    PYTHONPATH=kernels python kernels/cpu/timing_conv.py --batch=1,64

Per layer: how often the network has it, microseconds of the median jitted call (of the fastest;
mean processor time of a call, all threads together), and how many times faster than dense that
is; then the sums over the network, and the network
itself in one jitted call: batch normalisation folded, stem and head dense in both. Inputs rotate,
the methods take turns, the dense layers have bias and activation as the sparse ones have, and
results are checked before they are timed.

XLA's default runs some convolutions on one thread, as processor time tells. For a dense network
that uses all of them, time with XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= too.
"""

import argparse
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srigl_kernels import condensed_conv, make_condensed, prepare
from srigl_kernels.backends.cpu import library

# name: (how often, size of the image, channels, neurons, kernel, stride)
LAYERS = {
  "64": (4, 32, 64, 64, 3, 1),
  "64-128 /2": (1, 32, 64, 128, 3, 2),
  "64-128 1x1 /2": (1, 32, 64, 128, 1, 2),
  "128": (3, 16, 128, 128, 3, 1),
  "128-256 /2": (1, 16, 128, 256, 3, 2),
  "128-256 1x1 /2": (1, 16, 128, 256, 1, 2),
  "256": (3, 8, 256, 256, 3, 1),
  "256-512 /2": (1, 8, 256, 512, 3, 2),
  "256-512 1x1 /2": (1, 8, 256, 512, 1, 2),
  "512": (3, 4, 512, 512, 3, 1),
}
_DENSITY = 0.1
_NUM_INPUTS = 4
_ROUNDS = 9


def make_layer(channels, neurons, size, rng):
  """A random layer and its dense kernel."""
  num_inputs = size * size * channels
  fan_in = max(1, round(_DENSITY * num_inputs))
  indices = np.sort(rng.random((neurons, num_inputs)).argsort(1)[:, :fan_in], 1)
  values = rng.standard_normal((neurons, fan_in), dtype=np.float32) / np.float32(np.sqrt(fan_in))
  bias = rng.standard_normal(neurons, dtype=np.float32)
  shape = (size, size, channels, neurons)
  kernel = np.zeros((num_inputs, neurons), np.float32)
  kernel[indices, np.arange(neurons)[:, None]] = values
  condensed = make_condensed(values, indices, np.arange(neurons), bias, kernel_shape=shape)
  return condensed, jnp.asarray(kernel.reshape(shape)), jnp.asarray(bias)


def dense_conv(x, layer, *, stride, activation):
  """The dense twin: `layer` is kernel and bias."""
  kernel, bias = layer
  padding = ((kernel.shape[0] // 2,) * 2,) * 2
  y = lax.conv_general_dilated(
    x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  y = y + bias.reshape(1, 1, 1, -1)
  return jax.nn.relu(y) if activation else y


def sparse_conv(x, layer, *, stride, activation):
  """One call: `layer` is prepared."""
  padding = layer.condensed.kernel_shape[0] // 2
  return condensed_conv(x, layer, strides=stride, padding=padding, activation=activation)


def make_methods(layer, rng):
  """By name: the call to time."""
  _, _, channels, neurons, size, stride = LAYERS[layer]
  condensed, kernel, bias = make_layer(channels, neurons, size, rng)
  prepared = prepare(condensed, backend="cpu")
  dense = jax.jit(functools.partial(dense_conv, stride=stride, activation="relu"))
  sparse = jax.jit(functools.partial(sparse_conv, stride=stride, activation="relu"))
  return {"dense": lambda x: dense(x, (kernel, bias)), "sparse": lambda x: sparse(x, prepared)}


def network(conv, layers, stem, head, x):
  """The ResNet-18: `layers` are three lists of each block's layers, shortcuts None where none."""
  x = dense_conv(x, stem, stride=1, activation="relu")
  for i, (first, second, shortcut) in enumerate(layers):
    stride = 2 if i in (2, 4, 6) else 1
    y = conv(x, first, stride=stride, activation="relu")
    y = conv(y, second, stride=1, activation=None)
    if shortcut is not None:
      x = conv(x, shortcut, stride=stride, activation=None)
    x = jax.nn.relu(x + y)
  return x.mean((1, 2)) @ head


def make_network(rng):
  """By name: the call of the whole network to time."""
  dense, sparse = [], []
  for i in range(8):
    width = 64 * 2 ** (i // 2)
    before = width // 2 if i in (2, 4, 6) else width
    shapes = [(before, width, 3), (width, width, 3), (before, width, 1)]
    block = [make_layer(*shape, rng) for shape in shapes[: 3 if before != width else 2]]
    none = [None] * (3 - len(block))
    dense.append([(kernel, bias) for _, kernel, bias in block] + none)
    sparse.append([prepare(condensed, backend="cpu") for condensed, _, _ in block] + none)
  stem = (
    jnp.asarray(rng.standard_normal((3, 3, 3, 64), dtype=np.float32)) / 5,
    jnp.zeros(64, jnp.float32),
  )
  head = jnp.asarray(rng.standard_normal((512, 10), dtype=np.float32)) / 20
  methods = {}
  for name, conv, layers in (("dense", dense_conv, dense), ("sparse", sparse_conv, sparse)):
    call = jax.jit(functools.partial(network, conv))
    methods[name] = functools.partial(call, layers, stem, head)
  return methods


def summary(seconds):
  """Median and fastest call, mean processor time."""
  wall, processor = seconds.T
  return np.array([np.median(wall), wall.min(), processor.mean()])


def report(title, dense, sparse):
  """One line of a comparison of summaries."""
  print(f"{title:30s}", end="")
  for name, seconds in (("dense", dense), ("sparse", sparse)):
    median, fastest, processor = seconds * 1e6
    print(f"  {name} {median:7.0f} ({fastest:.0f}; {processor:.0f})", end="")
  median, fastest, processor = dense / sparse
  print(f"  {median:.1f}x ({fastest:.1f}x; {processor:.1f}x)", flush=True)


def time_calls(methods, xs, repeats):
  """Seconds and processor seconds `[calls, 2]` of every method, the methods taking turns."""
  times = {name: [] for name in methods}
  for turn in range(_ROUNDS):
    for name, call in methods.items():
      for i in range(2 + repeats):
        start, processor = time.perf_counter(), time.process_time()
        call(xs[i % len(xs)]).block_until_ready()
        elapsed = time.perf_counter() - start, time.process_time() - processor
        if turn > 0 and i >= 2:
          times[name].append(elapsed)
  return {name: np.array(seconds) for name, seconds in times.items()}


def main():
  """Prints a line per batch size and layer."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batch", default="1,64")
  parser.add_argument("--layer", default=",".join(LAYERS))
  args = parser.parse_args()
  threads, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
  print(f"jax {jax.__version__}, {library.isa()}, {threads} threads, load {load:.1f}")
  rng = np.random.default_rng(0)
  for batch in map(int, args.batch.split(",")):
    total = np.zeros((2, 3))
    repeats = 12 if batch <= 4 else 2
    for layer in filter(None, args.layer.split(",")):
      count, size, channels, *_ = LAYERS[layer]
      methods = make_methods(layer, rng)
      shape = (_NUM_INPUTS, batch, size, size, channels)
      xs = list(jnp.asarray(rng.standard_normal(shape, dtype=np.float32)))
      np.testing.assert_allclose(*(call(xs[0]) for call in methods.values()), atol=1e-3)
      each = [summary(seconds) for seconds in time_calls(methods, xs, repeats).values()]
      report(f"batch {batch} {count} x {layer}", *each)
      total += count * np.array(each)
    if args.layer:
      report(f"batch {batch} sum of layers", *total)
    methods = make_network(rng)
    shape = (_NUM_INPUTS, batch, 32, 32, 3)
    xs = list(jnp.asarray(rng.standard_normal(shape, dtype=np.float32)))
    np.testing.assert_allclose(*(call(xs[0]) for call in methods.values()), rtol=1e-3, atol=1e-3)
    times = time_calls(methods, xs, repeats).values()
    report(f"batch {batch} network", *map(summary, times))


if __name__ == "__main__":
  main()
