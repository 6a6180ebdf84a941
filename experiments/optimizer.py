"""From a config to an optax optimizer with sparse training round it."""

from collections.abc import Callable
from typing import Any

import optax
from ml_collections import ConfigDict

import srigl_jax as sx
from experiments.registry import choose


def learning_rate(
  config: ConfigDict, *, steps_per_epoch: float, total_steps: int
) -> optax.Schedule:
  """Learning rate by optimizer step: constant, cosine to 0, or stepwise, after a linear warm-up.

  Args:
    config: the `optimizer` section.
    steps_per_epoch: optimizer steps in an epoch; with accumulated gradients not a whole number.
    total_steps: of the run.

  Raises:
    ValueError: if the schedule's name is unknown.
  """
  peak = config.learning_rate
  warmup = round(config.warmup_epochs * steps_per_epoch)
  after = max(1, total_steps - warmup)
  schedules: dict[str, Callable[[], optax.Schedule]] = {
    "constant": lambda: optax.constant_schedule(peak),
    "cosine": lambda: optax.cosine_decay_schedule(peak, after),
    "step": lambda: optax.exponential_decay(
      peak,
      max(1, round(config.decay_epochs * steps_per_epoch)),
      config.decay_factor,
      staircase=True,
    ),
  }
  schedule = choose(schedules, config.schedule, "config.optimizer.schedule")()
  if not warmup:
    return schedule
  return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), schedule], [warmup])


def make_optimizer(config: ConfigDict, schedule: optax.Schedule) -> optax.GradientTransformation:
  """The inner optimizer: clipping (of masked gradients, as the reference does), decay, the rule.

  Args:
    config: the `optimizer` section.
    schedule: learning rate by optimizer step.

  Raises:
    ValueError: if the optimizer's name is unknown.
  """
  decay = config.weight_decay
  l2 = optax.add_decayed_weights(decay)
  rules: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.chain(
      l2, optax.sgd(schedule, config.momentum or None, nesterov=config.nesterov)
    ),
    "adam": lambda: optax.chain(l2, optax.adam(schedule)),
    "adamw": lambda: optax.adamw(schedule, weight_decay=decay),
    "rmsprop": lambda: optax.chain(
      l2,
      optax.rmsprop(  # eps as PyTorch's users of this value have it, added to the root
        schedule, decay=0.9, eps=0.0316, eps_in_sqrt=False, momentum=config.momentum or None
      ),
    ),
    "lion": lambda: optax.lion(schedule, weight_decay=decay),
  }
  rule = choose(rules, config.name, "config.optimizer.name")()
  if config.clip_norm:
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
  return rule


def make_method(
  config: ConfigDict, inner: optax.GradientTransformation, *, total_steps: int, seed: int
) -> optax.GradientTransformationExtraArgs:
  """Wraps the inner optimizer in the config's method.

  Args:
    config: the `method` section.
    inner: the optimizer.
    total_steps: optimizer steps of the run.
    seed: of masks and random growth.

  Raises:
    ValueError: if the method's name is unknown or a setting is out of range.
  """
  how_sparse: dict[str, Any] = {
    "sparse": sx.all_but(*config.dense) if config.dense else True,
    "seed": seed,
  }
  if config.fan_in is None:
    how_sparse |= {"sparsity": config.sparsity, "distribution": config.distribution}
  elif config.name in ("rigl", "set"):
    raise ValueError(
      f"config.method.fan_in is {config.fan_in}, but {config.name} is unstructured: its neurons "
      "have no fan-in of their own. Use config.method.sparsity, or method srigl or static."
    )
  else:
    how_sparse["fan_in"] = config.fan_in
  when = {
    "update_every": config.update_every_steps,
    "update_until": int(config.update_until_fraction * total_steps),
    "drop_fraction": config.drop_fraction,
  }
  by_gradient = {**when, "grad_accumulation_steps": config.grad_accumulation_steps}
  methods: dict[str, Callable[[], optax.GradientTransformationExtraArgs]] = {
    "dense": lambda: optax.with_extra_args_support(inner),
    "static": lambda: sx.static_sparse(inner, structure=config.structure, **how_sparse),
    "set": lambda: sx.set_(inner, **when, **how_sparse),
    "rigl": lambda: sx.rigl(inner, **by_gradient, **how_sparse),
    "srigl": lambda: sx.srigl(
      inner,
      gamma_sal=config.gamma_sal if config.ablation else 0,
      salient_base=config.salient_base,
      ablate=sx.all_but(*config.never_ablate),
      **by_gradient,
      **how_sparse,
    ),
  }
  return choose(methods, config.name, "config.method.name")()
