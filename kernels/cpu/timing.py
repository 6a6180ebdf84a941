"""Times the native kernels against dense XLA: whole jitted calls, interleaved in one run.

    PYTHONPATH=kernels python kernels/cpu/timing.py
    PYTHONPATH=kernels taskset -c 0 python kernels/cpu/timing.py --isa=avx512,avx2 --batch=1,64

Per case and method: microseconds of the median call (of the fastest), and how many times faster
than dense that is. Inputs rotate; results are checked before they are timed.
"""

import argparse
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from srigl_kernels import cpu

# (inputs, neurons, active neurons, fan-in): the feed-forward layers of ViT-B/16 at 90 %.
LAYERS = {"up": (768, 3072, 1145, 206), "down": (3072, 768, 768, 307)}
_NUM_INPUTS = 4
_ROUNDS = 15
_WARM_UP = 5


def make_layer(num_inputs, num_neurons, num_active, fan_in, rng):
  """Random values, indices and active neurons of a layer, and its dense kernel."""
  values = rng.standard_normal((num_active, fan_in), dtype=np.float32)
  columns = [rng.choice(num_inputs, fan_in, replace=False) for _ in range(num_active)]
  indices = np.sort(np.array(columns, np.int32), axis=1)
  active = np.sort(rng.choice(num_neurons, num_active, replace=False)).astype(np.int32)
  kernel = np.zeros((num_inputs, num_neurons), np.float32)
  kernel[indices, active[:, None]] = values
  return values, indices, active, kernel


def time_case(methods, xs, repeats):
  """Seconds of every call of every method, the methods taking turns."""
  times = {name: [] for name in methods}
  for turn in range(_ROUNDS + 1):
    for name, (prepare, call) in methods.items():
      prepare()
      for i in range(_WARM_UP + repeats):
        x = xs[i % len(xs)]
        start = time.perf_counter()
        call(x).block_until_ready()
        if turn > 0 and i >= _WARM_UP:
          times[name].append(time.perf_counter() - start)
  return times


def make_methods(layer, isas, rng):
  """By name: what to do before a round, and the call to time."""
  num_inputs, num_neurons = LAYERS[layer][:2]
  *condensed, kernel = make_layer(*LAYERS[layer], rng)
  kernel = jnp.asarray(kernel)
  bias = jnp.asarray(rng.standard_normal(num_neurons, dtype=np.float32))
  dense = jax.jit(lambda x, kernel, bias: jnp.dot(x, kernel) + bias[None])
  sparse = jax.jit(cpu.matmul)
  methods = {"dense": (lambda: None, lambda x: dense(x, kernel, bias))}
  for isa in isas:
    cpu.set_isa(isa)
    packed = cpu.pack(*condensed, num_inputs, num_neurons)
    methods[isa] = (
      functools.partial(cpu.set_isa, isa),
      lambda x, packed=packed: sparse(x, packed, bias),
    )
  return methods


def check(methods, x):
  """Raises when a method's result differs from the dense one."""
  want = methods["dense"][1](x)
  for prepare, call in methods.values():
    prepare()
    np.testing.assert_allclose(call(x), want, atol=1e-3)


def main():
  """Prints a line per layer and batch size."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--isa", default=cpu.isa(), help="CPU targets, separated by commas")
  parser.add_argument("--batch", default="1,16,64,256")
  parser.add_argument("--layer", default=",".join(LAYERS))
  args = parser.parse_args()
  load = os.getloadavg()[0]
  print(f"jax {jax.__version__}, {len(os.sched_getaffinity(0))} threads, load {load:.1f}")
  rng = np.random.default_rng(0)
  for layer in args.layer.split(","):
    num_inputs, num_neurons = LAYERS[layer][:2]
    methods = make_methods(layer, args.isa.split(","), rng)
    for batch in map(int, args.batch.split(",")):
      shape = (_NUM_INPUTS, batch, num_inputs)
      xs = list(jnp.asarray(rng.standard_normal(shape, dtype=np.float32)))
      check(methods, xs[0])
      times = time_case(methods, xs, repeats=20 if batch <= 16 else 4)
      print(f"{num_inputs}->{num_neurons} batch {batch:4d}:", end="")
      dense_median, dense_fastest = np.median(times["dense"]), min(times["dense"])
      for name, seconds in times.items():
        median, fastest = np.median(seconds), min(seconds)
        print(f"  {name} {median * 1e6:.1f} ({fastest * 1e6:.1f})", end="")
        if name != "dense":
          print(f" = {dense_median / median:.1f}x ({dense_fastest / fastest:.1f}x)", end="")
      print(flush=True)


if __name__ == "__main__":
  main()
