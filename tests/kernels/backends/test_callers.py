"""Calls of several threads at once, which share the cores and help each other with their tasks."""

import os
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srigl_kernels import condensed_conv, condensed_matmul, make_condensed, prepare
from srigl_kernels.backends.cpu import library

pytestmark = pytest.mark.skipif(
  not library.is_available(), reason="the native library is not built"
)

CALLERS, CALLS = 6, 120


def layer(kernel_shape, fan_in, dtype, seed):
  """Large enough to be shared out among threads at batch 1."""
  rng = np.random.default_rng(seed)
  num_inputs, num_neurons = int(np.prod(kernel_shape[:-1])), kernel_shape[-1]
  columns = np.sort(rng.random((num_neurons, num_inputs)).argsort(axis=1)[:, :fan_in], axis=1)
  values = jnp.asarray(rng.normal(size=columns.shape), jnp.float32)
  bias = jnp.asarray(rng.normal(size=num_neurons), jnp.float32)
  condensed = make_condensed(
    values, columns, np.arange(num_neurons), bias, kernel_shape=kernel_shape
  )
  return prepare(condensed, backend="cpu", dtype=dtype)


def inputs(*shape):
  return jnp.asarray(np.random.default_rng(shape[0]).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def calls():
  """Of which weights are shared out, or rows; in several precisions, all with scratch memory."""
  linear = {dtype: layer((2048, 2048), 300, dtype, 0) for dtype in ("float32", "bfloat16", "int8")}
  conv = {dtype: layer((3, 3, 32, 64), 70, dtype, 1) for dtype in ("float32", "int8")}
  multiply = jax.jit(lambda x, weights: condensed_matmul(x, weights, activation="relu"))
  convolve = jax.jit(condensed_conv)
  found = [(multiply, inputs(n, 2048), one) for one in linear.values() for n in (1, 30, 70)]
  return found + [(convolve, inputs(2, 14, 14, 32), one) for one in conv.values()]


def cores_of_threads():
  """Those that each thread of the process may use."""
  if sys.platform != "linux":
    return set()
  threads = Path("/proc/self/task").iterdir()
  return {frozenset(os.sched_getaffinity(int(thread.name))) for thread in threads}


def test_callers_at_once_get_what_each_gets_alone(calls):
  alone = [np.asarray(function(*arguments)) for function, *arguments in calls]
  together, wrong, cores = threading.Barrier(CALLERS), [], cores_of_threads()

  def run(caller):
    together.wait()
    for i in np.random.default_rng(caller).integers(len(calls), size=CALLS):
      function, *arguments = calls[i]
      if not np.array_equal(np.asarray(function(*arguments)), alone[i]):
        wrong.append(i)

  threads = [threading.Thread(target=run, args=(caller,)) for caller in range(CALLERS)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
  assert cores_of_threads() == cores
