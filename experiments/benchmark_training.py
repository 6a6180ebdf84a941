"""The overhead of sparse training: `python -m experiments.benchmark_training [--quick]`.

Each number is a ratio to a baseline that does the same work in the same run: times are taken in
turns (`experiments.benchmarks.timing`), results are checked first. Everything is float32.

- Training steps: forward, backward and optimizer, with `srigl` (sparsity 0.9, Erdős–Rényi-Kernel)
  wrapped around the optimizer against the optimizer alone, two programs that donate their state.
  The networks are the experiments' ResNet-18 (SGD with Nesterov momentum and weight decay) and a
  stand-in for ViT-B/16 (AdamW): its 50 matrices in pre-norm blocks with softmax attention and
  GELU, without biases, norm parameters, class token and position embedding.
- The same with the topology update that every 100th step does: (99 ordinary steps and 1 with an
  update) / 100, from the times of both.
- The optimizer without forward and backward, for information: nothing hides what `srigl` reads
  and writes besides, the masks above all.
- A topology update of ResNet-50's kernels against the same update by sorting, the way sparse
  training is mostly written in JAX. The baselines share the formulation of `srigl_update` (four
  selections per layer, one of which both trims and fills the neurons) and differ in how they
  select: "argsort" ranks by `jnp.argsort` and scatters the first k into a mask, the usual way;
  "sort" takes the threshold from one `jnp.sort` of the magnitudes' bit patterns, the fastest that
  we know for a traced k (`lax.top_k` wants a bound on k; on CPU it is as fast at 4 % of a layer and
  slower above). Inputs have no ties, and all masks must be equal.
"""

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from jax import Array

import srigl_jax as sx
from experiments.benchmarks.comparison import Comparison, compare, comparison_table, results
from experiments.benchmarks.sorting_update import ARGSORT, SORT, sorting_update
from experiments.benchmarks.timing import interleave
from experiments.benchmarks.training_problems import (
  GAMMA_SAL,
  Arrays,
  Problem,
  Shapes,
  normal,
  resnet18,
  resnet50_shapes,
  vit,
)
from experiments.common import cli
from experiments.common.environment import command_line
from experiments.common.files import RESULTS, write_json

_OUT = RESULTS / "benchmark_training.json"
_UPDATE_EVERY = 100
_DROP_FRACTION = 0.25  # of the topology updates by themselves; exact in float32


class Trainer:
  """Training steps, or the optimizer's part of them, and the state that they carry along."""

  def __init__(self, problem: Problem, tx: optax.GradientTransformation, params: Arrays):
    """Starts from copies of the arrays, which the steps donate."""
    tx = optax.with_extra_args_support(tx)
    params, model_state = jax.tree.map(jnp.copy, (params, problem.model_state))
    self.params, self._model_state, self.opt_state = params, model_state, tx.init(params)
    self._batch = problem.batch

    def optimize(params, opt_state, grads):
      updates, opt_state = tx.update(grads, opt_state, params)
      return optax.apply_updates(params, updates), opt_state

    def step(params, model_state, opt_state, batch):
      loss_fn = lambda p: problem.loss_fn(p, model_state, *batch)
      grads, model_state = jax.grad(loss_fn, has_aux=True)(params)
      params, opt_state = optimize(params, opt_state, grads)
      return params, model_state, opt_state

    self._optimize = jax.jit(optimize, donate_argnums=(0, 1))
    self._step = jax.jit(step, donate_argnums=(0, 1, 2))

  def step(self) -> Any:
    """Does one training step."""
    self.params, self._model_state, self.opt_state = self._step(
      self.params, self._model_state, self.opt_state, self._batch
    )
    return self.params, self.opt_state

  def optimize(self, grads: Arrays) -> Any:
    """Does one step of the optimizer with given gradients."""
    self.params, self.opt_state = self._optimize(self.params, self.opt_state, grads)
    return self.params, self.opt_state

  def after(self, steps_done: int) -> "Trainer":
    """Sets the steps that sparse training takes to be done, which decides what the next one is."""
    self.opt_state = self.opt_state._replace(step=jnp.asarray(steps_done, jnp.int32))
    return self


def training_rows(problem: Problem, *, repeats: int) -> Iterator[Comparison]:
  """The rows of one problem: training steps, then the optimizer alone."""
  sparse_tx = sx.srigl(
    problem.inner,
    sparsity=0.9,
    update_every=_UPDATE_EVERY,
    update_until=100 * _UPDATE_EVERY,
    gamma_sal=problem.gamma_sal,
  )
  params = sx.apply_masks(problem.params, sx.get_masks(sparse_tx.init(problem.params)))
  bare, sparse = Trainer(problem, problem.inner, params), Trainer(problem, sparse_tx, params)
  grads = normal({path: leaf.shape for path, leaf in params.items()})
  _check_optimizers(bare, sparse, grads)

  steps = {
    "bare": bare.step,
    "srigl": lambda: sparse.after(0).step(),
    "srigl with update": lambda: sparse.after(_UPDATE_EVERY - 1).step(),
  }
  optimizers = {
    "bare": lambda: bare.optimize(grads),
    "srigl": lambda: sparse.after(0).optimize(grads),
    "srigl with update": lambda: sparse.after(_UPDATE_EVERY - 1).optimize(grads),
  }
  for what, candidates, limits in (
    ("training step", steps, (1.03, 1.05)),
    ("optimizer alone", optimizers, (None, None)),
  ):
    name = f"{problem.name}: {what}"
    times = interleave(name, candidates, repeats=repeats)
    yield compare(name, times, "srigl", "bare", at_most=limits[0])
    base, ordinary, update = (np.asarray(times[candidate]) for candidate in candidates)
    mean = ((_UPDATE_EVERY - 1) * ordinary + update) / _UPDATE_EVERY
    name += f", update every {_UPDATE_EVERY} steps"
    yield Comparison(name, list(mean / base), times, at_most=limits[1])


def _check_optimizers(bare: Trainer, sparse: Trainer, grads: Arrays) -> None:
  """Takes one step with each and one with an update, and looks at what they did.

  Raises:
    RuntimeError: if the sparse step is not the bare one on the active weights and 0 elsewhere, or
      an update leaves neurons of different fan-in.
  """
  masks = jax.device_get(sx.get_masks(sparse.opt_state))
  bare.optimize(grads)
  sparse.after(0).optimize(grads)
  for path, leaf in sparse.params.items():
    want = np.where(masks.get(path, True), bare.params[path], 0)
    if not np.allclose(leaf, want, rtol=1e-4, atol=1e-7):
      raise RuntimeError(f"The sparse optimizer's step differs from the bare one's in {path!r}.")
  sparse.after(_UPDATE_EVERY - 1).optimize(grads)
  for path, mask in jax.device_get(sx.get_masks(sparse.opt_state)).items():
    fan_ins = mask.reshape(-1, mask.shape[-1]).sum(0)
    if len({0, *fan_ins}) != 2 or np.any(np.asarray(sparse.params[path])[~mask]):
      raise RuntimeError(f"The topology update left {path!r} without constant fan-in.")


def update_rows(shapes: Shapes, *, repeats: int) -> Iterator[Comparison]:
  """The rows of topology updates, by themselves."""
  layers = {path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()}
  allocation = sx.allocate(layers, 0.9)
  masks = sx.init_masks(jax.random.key(1), allocation)
  weights, grads = (
    {path: _distinct(seed, mask.shape) for path, mask in masks.items()} for seed in (0, 1)
  )
  weights = sx.apply_masks(weights, masks)
  gamma_sal = {path: 0.0 if path.startswith("head") else GAMMA_SAL for path in masks}

  def updates(update_fn, **kwargs):
    """All layers' update, compiled; and how long compiling took."""

    def update(weights, grads, masks):
      return {
        path: update_fn(
          weights[path],
          grads[path],
          mask,
          budget=allocation.budgets[path],
          gamma_sal=gamma_sal[path],
          **kwargs,
        )
        for path, mask in masks.items()
      }

    start = time.perf_counter()
    compiled = jax.jit(update).lower(weights, grads, masks).compile()
    return lambda: compiled(weights, grads, masks), time.perf_counter() - start

  srigl, srigl_compile = updates(sx.srigl_update, drop_fraction=_DROP_FRACTION)
  num_weights = sum(mask.size for mask in masks.values())
  what = f"update of {len(masks)} layers, {num_weights / 1e6:.3g} M weights"
  # A baseline that ranks takes half a minute for ResNet-50: fewer rounds.
  for baseline, select, rounds in (
    ("sort", SORT, repeats),
    ("argsort", ARGSORT, max(3, repeats // 3)),
  ):
    by_sorting, baseline_compile = updates(
      sorting_update, select=select, drop_fraction=_DROP_FRACTION
    )
    _check_masks(srigl(), by_sorting(), baseline)
    name = f"{baseline} / srigl: {what}"
    times = interleave(name, {baseline: by_sorting, "srigl": srigl}, repeats=rounds)
    yield compare(name, times, baseline, "srigl", at_least=3.0)
    times = {baseline: [baseline_compile], "srigl": [srigl_compile]}
    yield compare(f"{baseline} / srigl: compiling that", times, baseline, "srigl")


def _distinct(seed: int, shape: tuple[int, ...]) -> Array:
  """Floats of random sign and of random, but all different magnitudes."""
  size = math.prod(shape)
  order, sign = jax.random.split(jax.random.fold_in(jax.random.key(seed), size))
  magnitudes = (1.0 + jax.random.permutation(order, size)) * 2.0**-24
  return (magnitudes * jax.random.rademacher(sign, (size,))).reshape(shape)


def _check_masks(masks: Arrays, baselines: Arrays, baseline: str) -> None:
  different = [path for path, mask in masks.items() if not np.array_equal(mask, baselines[path])]
  if different:
    raise RuntimeError(f"The update by {baseline} gives other masks in {', '.join(different)}.")


def main() -> None:
  """The command."""
  options = flags.FLAGS
  repeats = options.repeats or (2 if options.quick else 10)
  sections = {
    "resnet18": lambda: training_rows(
      resnet18(4 if options.quick else options.batch_size, quick=options.quick), repeats=repeats
    ),
    "vit": lambda: training_rows(vit(8, quick=options.quick), repeats=repeats),
    "update": lambda: update_rows(resnet50_shapes(quick=options.quick), repeats=repeats),
  }
  rows: list[Comparison] = []
  for name in options.only or sections:
    for row in sections[name]():
      rows.append(row._replace(at_most=None, at_least=None) if options.quick else row)
    jax.clear_caches()
  print(comparison_table(rows))
  complete = not options.quick and not options.only
  if path := options.out or (complete and _OUT):
    write_json(Path(path), results(rows, command_line("experiments.benchmark_training")))
    print(f"results: {path}")


if __name__ == "__main__":
  flags.DEFINE_string("out", None, f"JSON file of the results; {_OUT} for a whole run.")
  flags.DEFINE_bool("quick", False, "Tiny shapes, to see that it works; the numbers say nothing.")
  flags.DEFINE_integer("batch_size", 64, "Images of a ResNet-18 step.", lower_bound=1)
  flags.DEFINE_integer("repeats", None, "Rounds; 10 by default.", lower_bound=1)
  flags.DEFINE_multi_enum("only", None, ["resnet18", "vit", "update"], "Sections; all by default.")
  cli.run(main)
