"""Times sparse convolutions against dense XLA: the layers of the CIFAR ResNet-18 at 90 %.

    PYTHONPATH=kernels python kernels/cpu/timing_conv.py --batch=1,64

Per layer: how often the network has it, microseconds of the median jitted call (of the fastest),
and how many times faster than dense that is; then the sums over the network. Inputs rotate, the
methods take turns, the dense layer has bias and activation as the sparse one has, and results are
checked before they are timed.
"""

import argparse
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from srigl_kernels import condensed_conv, cpu, make_condensed, prepare

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


def make_methods(layer, rng):
  """By name: the call to time."""
  _, _, channels, neurons, size, stride = LAYERS[layer]
  condensed, kernel, bias = make_layer(channels, neurons, size, rng)
  prepared = prepare(condensed, backend="cpu")
  padding = ((size // 2, size // 2),) * 2

  @jax.jit
  def dense(x, kernel, bias):
    y = lax.conv_general_dilated(
      x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(y + bias.reshape(1, 1, 1, -1))

  @jax.jit
  def sparse(x, layer):
    return condensed_conv(x, layer, strides=stride, padding=padding, activation="relu")

  return {"dense": lambda x: dense(x, kernel, bias), "sparse": lambda x: sparse(x, prepared)}


def time_calls(methods, xs, repeats):
  """Seconds of every call of every method, the methods taking turns."""
  times = {name: [] for name in methods}
  for turn in range(_ROUNDS):
    for name, call in methods.items():
      for i in range(2 + repeats):
        start = time.perf_counter()
        call(xs[i % len(xs)]).block_until_ready()
        if turn > 0 and i >= 2:
          times[name].append(time.perf_counter() - start)
  return times


def main():
  """Prints a line per batch size and layer."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--batch", default="1,64")
  parser.add_argument("--layer", default=",".join(LAYERS))
  args = parser.parse_args()
  threads, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
  print(f"jax {jax.__version__}, {cpu.isa()}, {threads} threads, load {load:.1f}")
  rng = np.random.default_rng(0)
  for batch in map(int, args.batch.split(",")):
    total = dict.fromkeys(("dense", "sparse"), 0.0)
    for layer in args.layer.split(","):
      count, size, channels, *_ = LAYERS[layer]
      methods = make_methods(layer, rng)
      shape = (_NUM_INPUTS, batch, size, size, channels)
      xs = list(jnp.asarray(rng.standard_normal(shape, dtype=np.float32)))
      np.testing.assert_allclose(*(call(xs[0]) for call in methods.values()), atol=1e-3)
      times = time_calls(methods, xs, repeats=12 if batch == 1 else 2)
      print(f"batch {batch:3d} {count} x {layer:14s}:", end="")
      for name, seconds in times.items():
        median = np.median(seconds)
        total[name] += count * median
        print(f"  {name} {median * 1e6:7.0f} ({min(seconds) * 1e6:.0f})", end="")
      dense, sparse = (times[name] for name in methods)
      print(f"  {np.median(dense) / np.median(sparse):.1f}x ({min(dense) / min(sparse):.1f}x)")
    print(
      f"batch {batch:3d} sum: {total['dense'] * 1e6:.0f} / {total['sparse'] * 1e6:.0f} us = "
      f"{total['dense'] / total['sparse']:.1f}x",
      flush=True,
    )


if __name__ == "__main__":
  main()
