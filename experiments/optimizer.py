"""From a config to an optax optimizer and its learning rate."""

from collections.abc import Callable

import optax
from ml_collections import ConfigDict

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
