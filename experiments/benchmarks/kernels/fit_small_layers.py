"""Fits `srigl_kernels.cost_model.SMALL`: what small layers cost within a program.

A call of JAX takes longer than the product of a small layer, and what surrounds a product is fused
with a dense one but not with native code. So what is timed is a program of residual blocks,
`x + down(relu(up(x * scale)))`, and the time is given to its products in equal parts: the rest of a
block counts as a part of their calls.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from experiments.benchmarks.kernels.fit_cost_model import Measured, fit_all, rates_row
from experiments.benchmarks.kernels.layers import Shape, random_layer
from experiments.benchmarks.timing import seconds, take_turns
from experiments.common.progress import progress
from srigl_kernels import BACKENDS, Prepared, condensed_matmul, cost_model, prepare
from srigl_kernels.backends.cpu import library

_SHAPES = ((12, 24), (16, 48), (24, 24), (32, 64), (64, 64), (64, 256), (128, 128), (256, 512))
_SPARSITIES = (0.5, 0.7, 0.9)
_ROWS = (1, 4, 8, 12, 16, 32, 64, 256)
_BLOCKS = 4
_ROUNDS, _SPEND, _MOST = 21, 1e-3, 50  # seconds and calls in a row, for one time


def measure() -> Measured:
  """Least seconds of a product by backend, in programs of small layers with a quarter ablated."""
  measured: Measured = {}
  cells = [(shape, s, rows) for shape in _SHAPES for s in _SPARSITIES for rows in _ROWS]
  with progress("fit", step=0, total_steps=len(cells)) as show:
    for i, ((narrow, wide), sparsity, rows) in enumerate(cells):
      up, down = (
        Shape(narrow, wide, 3 * wide // 4),
        Shape(wide, narrow, 3 * narrow // 4),
      )
      layers = [
        random_layer(f"{shape}{block}", shape, sparsity).condensed
        for shape in (up, down)
        for block in range(_BLOCKS)
      ]
      x = jax.random.normal(jax.random.key(0), (rows, narrow))
      timers = {name: _timer(layers, name, x) for name in _backends()}
      sizes = cost_model.Sizes(*up, layers[0].fan_in)  # the products of both have the same terms
      for name, times in take_turns(timers, rounds=_ROUNDS).items():
        one = min(times) / len(layers)  # whatever disturbs such calls makes them longer
        measured.setdefault(name, []).append((sizes, rows, one))
      show(i + 1)
  return measured


def _backends() -> list[str]:
  """Keys of `cost_model.SMALL` that can be measured here."""
  return [
    "dense",
    "structured",
    *([f"cpu {library.isa()}"] if BACKENDS["cpu"].is_available() else []),
  ]


def _timer(layers: Sequence[Any], name: str, x: jax.Array) -> Callable[[], float]:
  """What times the program on a backend, per call."""
  prepared = [prepare(layer, backend=name.split()[0]) for layer in layers]
  program = jax.jit(functools.partial(_blocks, prepared[:_BLOCKS], prepared[_BLOCKS:]))
  jax.block_until_ready(program(x))
  calls = min(_MOST, max(1, round(_SPEND / seconds(lambda: program(x)))))
  return lambda: seconds(lambda: [program(x) for _ in range(calls)]) / calls


def _blocks(ups: Sequence[Prepared], downs: Sequence[Prepared], x: jax.Array) -> jax.Array:
  for up, down in zip(ups, downs, strict=True):
    x = x + condensed_matmul(jax.nn.relu(condensed_matmul(0.1 * x, up)), down)
  return x


def report(measured: Measured) -> str:
  """The rows of `cost_model.SMALL`, how well they fit, and what a choice by them loses."""
  fitted, smooth = fit_all(measured)
  rows = [rates_row(name, rates, smooth[name]) for name, rates in fitted.items()]
  losses = []
  for i, (sizes, batch, dense) in enumerate(measured["dense"]):

    def expected(name: str) -> float:
      terms = cost_model.terms(name, sizes, batch)  # noqa: B023
      seconds = sum(a * b for a, b in zip(fitted[name], terms, strict=True))
      return seconds * (1 if name == "dense" else cost_model.LEAST_GAIN)

    chosen = min(fitted, key=expected)
    losses.append((measured[chosen][i][2] / dense, chosen, tuple(sizes), batch))
  over = sum(loss > 1.1 for loss, *_ in losses)
  loss, *worst = max(losses)
  choice = f"over 1.10 of dense in {over} of {len(losses)} layers; worst {loss:.2f} with {worst}"
  return "\n".join(["SMALL: dict[str, Rates] = {", *rows, "}", choice])
