"""Times the native kernels against dense XLA: whole jitted calls, interleaved in one run.

    PYTHONPATH=kernels python kernels/cpu/timing.py
    PYTHONPATH=kernels taskset -c 0 python kernels/cpu/timing.py --isa=avx512,avx2 --batch=1,64
    PYTHONPATH=kernels python kernels/cpu/timing.py --gradients --batch=64,256

Per case and method: microseconds of the median call (of the fastest round), and how many times
faster than dense that is: the median over rounds of the ratio within a round. Inputs rotate;
results are checked before they are timed. `empty` is a jitted call that adds two numbers, `bias`
the kernel's call of a layer of these sizes without active neurons: what is above the latter is the
product. With `--gradients` what training calls: the product with values that change, and the
gradients in x and in the values.
"""

import argparse
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from srigl_kernels import make_condensed
from srigl_kernels.backends.cpu import gradients, library
from srigl_kernels.backends.cpu import matmul as products

# (inputs, neurons, active neurons, fan-in): the feed-forward layers of ViT-B/16 at 90 %.
LAYERS = {"up": (768, 3072, 1145, 206), "down": (3072, 768, 768, 307)}
_FLOORS = ("empty", "bias")  # what takes part, but computes something else
_NUM_INPUTS = 4
_ROUNDS = 15
_WARM_UP = 5


def make_layer(num_inputs, num_neurons, num_active, fan_in, rng):
  """Random values, indices and active neurons of a layer, and its dense kernel."""
  values = rng.standard_normal((num_active, fan_in), dtype=np.float32)
  columns = [rng.choice(num_inputs, fan_in, replace=False) for _ in range(num_active)]
  indices = np.sort(np.array(columns, np.int32).reshape(num_active, fan_in), axis=1)
  active = np.sort(rng.choice(num_neurons, num_active, replace=False)).astype(np.int32)
  kernel = np.zeros((num_inputs, num_neurons), np.float32)
  kernel[indices, active[:, None]] = values
  return values, indices, active, kernel


def time_case(methods, xs, repeats):
  """Seconds of the median call of every round and method, the methods taking turns."""
  times = {name: [] for name in methods}
  for turn in range(_ROUNDS + 1):
    for name, (prepare, call) in methods.items():
      prepare()
      calls = []
      for i in range(_WARM_UP + repeats):
        arguments = xs[i % len(xs)]
        start = time.perf_counter()
        call(*arguments).block_until_ready()
        calls.append(time.perf_counter() - start)
      if turn > 0:
        times[name].append(np.median(calls[_WARM_UP:]))
  return times


def make_methods(layer, isas, rng):
  """By name: what to do before a round, and the call to time."""
  num_inputs, num_neurons = LAYERS[layer][:2]
  *condensed, kernel = make_layer(*LAYERS[layer], rng)
  kernel = jnp.asarray(kernel)
  bias = jnp.asarray(rng.standard_normal(num_neurons, dtype=np.float32))
  dense = jax.jit(lambda x, kernel, bias: jnp.dot(x, kernel) + bias[None])
  sparse = jax.jit(products.matmul)
  empty = jax.jit(lambda x: x[0, 0] + 1)
  no_neurons = make_layer(num_inputs, num_neurons, 0, 0, rng)[:3]
  methods = {
    "dense": (lambda: None, lambda x: dense(x, kernel, bias)),
    "empty": (lambda: None, empty),
  }
  packed_bias = products.pack(*no_neurons, num_inputs, num_neurons)
  methods["bias"] = (lambda: None, lambda x: sparse(x, packed_bias, bias))
  for isa in isas:
    library.set_isa(isa)
    packed = products.pack(*condensed, num_inputs, num_neurons)
    methods[isa] = (
      functools.partial(library.set_isa, isa),
      lambda x, packed=packed: sparse(x, packed, bias),
    )
  return methods


def make_gradients(layer, isas, rng):
  """By what is computed, the methods that do; each call takes x and the gradient in y."""
  num_inputs, num_neurons = LAYERS[layer][:2]
  values, indices, active, kernel = make_layer(*LAYERS[layer], rng)
  condensed = make_condensed(values, indices, active, kernel_shape=(num_inputs, num_neurons))
  kernel, pattern = jnp.asarray(kernel), gradients.pack(condensed)
  packed = jax.jit(gradients.with_values)(pattern, condensed.values)
  calls = {
    "product": (
      lambda x, g, kernel: x @ kernel,
      lambda x, g, condensed, pattern: products.matmul(x, packed),
    ),
    "product of new values": (
      lambda x, g, kernel: x @ kernel,
      lambda x, g, condensed, pattern: products.matmul(
        x, gradients.with_values(pattern, condensed.values)
      ),
    ),
    "dx": (
      lambda x, g, kernel: g @ kernel.T,
      lambda x, g, condensed, pattern: gradients.input_gradient(g, condensed, pattern),
    ),
    "dvalues": (
      lambda x, g, kernel: x.T @ g,
      lambda x, g, condensed, pattern: gradients.values_gradient(g, x, condensed, pattern),
    ),
  }
  cases = {}
  for name, (dense, sparse) in calls.items():
    dense, sparse = jax.jit(dense), jax.jit(sparse)
    cases[name] = {"dense": (lambda: None, lambda x, g, f=dense: f(x, g, kernel))}
    for isa in isas:
      cases[name][isa] = (
        functools.partial(library.set_isa, isa),
        lambda x, g, f=sparse: f(x, g, condensed, pattern),
      )
  pick = jax.jit(lambda dkernel: dkernel[condensed.indices.astype(int), condensed.active[:, None]])
  return cases, {"dvalues": pick}


def check(methods, arguments, pick=lambda y: y):
  """Raises when a method's result differs from the dense one, or from what is picked of it."""
  want = pick(methods["dense"][1](*arguments))
  for name, (prepare, call) in methods.items():
    prepare()
    if name not in ("dense", *_FLOORS):
      np.testing.assert_allclose(call(*arguments), want, atol=1e-3)


def report(title, times):
  """Prints a line."""
  print(f"{title}:", end="")
  for name, seconds in times.items():
    print(f"  {name} {np.median(seconds) * 1e6:.1f} ({min(seconds) * 1e6:.1f})", end="")
    if name not in ("dense", *_FLOORS):
      print(f" = {np.median(np.divide(times['dense'], seconds)):.1f}x", end="")
  print(flush=True)


def main():
  """Prints a line per layer, batch size and, with `--gradients`, what is computed."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--isa", default=library.isa(), help="CPU targets, separated by commas")
  parser.add_argument("--batch", default="1,16,64,256")
  parser.add_argument("--layer", default=",".join(LAYERS))
  parser.add_argument("--gradients", action="store_true", help="time what training calls")
  args = parser.parse_args()
  load = os.getloadavg()[0]
  print(f"jax {jax.__version__}, {len(os.sched_getaffinity(0))} threads, load {load:.1f}")
  rng = np.random.default_rng(0)
  for layer in args.layer.split(","):
    sizes, isas = LAYERS[layer][:2], args.isa.split(",")
    if args.gradients:
      cases, picks = make_gradients(layer, isas, rng)
    else:
      cases, picks = {"": make_methods(layer, isas, rng)}, {}
    for batch in map(int, args.batch.split(",")):
      kinds = sizes if args.gradients else sizes[:1]
      arrays = [rng.standard_normal((_NUM_INPUTS, batch, n), dtype=np.float32) for n in kinds]
      inputs = list(zip(*map(list, map(jnp.asarray, arrays)), strict=True))
      for name, methods in cases.items():
        check(methods, inputs[0], picks.get(name, lambda y: y))
        times = time_case(methods, inputs, repeats=20 if batch <= 16 else 4)
        report(f"{sizes[0]}->{sizes[1]} batch {batch:4d} {name}".rstrip(), times)


if __name__ == "__main__":
  main()
