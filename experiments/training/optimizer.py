"""From a config to an optax optimizer and its learning rate."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from experiments.common.registry import choose


def learning_rate(
  config: ConfigDict, *, steps_per_epoch: float, total_steps: int
) -> optax.Schedule:
  """Learning rate by optimizer step: constant, cosine or stepwise, after a linear warm-up.

  Args:
    config: the `optimizer` section.
    steps_per_epoch: optimizer steps in an epoch; with accumulated gradients not a whole number.
    total_steps: of the run.

  Raises:
    ValueError: if the schedule's name is unknown, a rate or the weight decay is negative or not
      finite, or the cosine is shorter than the warm-up.
  """
  for name in ("learning_rate", "warmup_init", "weight_decay"):
    if not 0 <= config[name] < math.inf:
      raise ValueError(
        f"config.optimizer.{name} is {config[name]}; it must be 0 or more, and finite: optimizers "
        "go down the gradient by themselves."
      )
  if config.once_per_epoch:
    return _by_epoch(config, steps_per_epoch, total_steps)
  steps = lambda epochs: round(epochs * steps_per_epoch)
  peak, warmup = config.learning_rate, steps(config.warmup_epochs)
  schedules: dict[str, Callable[[], optax.Schedule]] = {
    "constant": lambda: optax.constant_schedule(peak),
    "cosine": lambda: optax.cosine_decay_schedule(
      peak, steps(config.cosine_epochs) or max(1, total_steps - warmup)
    ),
    "step": lambda: (
      optax.piecewise_constant_schedule(
        peak, {steps(epoch) - warmup: config.decay_factor for epoch in config.milestones_epochs}
      )
      if config.milestones_epochs
      else optax.exponential_decay(
        peak, max(1, steps(config.decay_epochs)), config.decay_factor, staircase=True
      )
    ),
  }
  schedule = choose(schedules, config.schedule, "config.optimizer.schedule")()
  if not warmup:
    return schedule
  rise = optax.linear_schedule(config.warmup_init, peak, warmup)
  return optax.join_schedules([rise, schedule], [warmup])


def _by_epoch(config: ConfigDict, steps_per_epoch: float, total_steps: int) -> optax.Schedule:
  """The rates of whole epochs, all counted from the start of the run.

  Source: the learning rate schedulers of SRigL's authors, whose cosine goes on where the warm-up
  of `w` epochs ends: in epoch `e` it is `(1 + cos(pi e / T)) / (1 + cos(pi (w - 1) / T))`.
  """
  num_epochs = math.ceil(total_steps / steps_per_epoch)
  warmup = round(config.warmup_epochs)
  period = config.cosine_epochs or num_epochs
  epochs = np.arange(max(num_epochs, warmup + 1))

  def cosine():
    if period <= abs(warmup - 1):
      raise ValueError(
        f"config.optimizer.cosine_epochs is {period:g} (0 means the whole run); once per epoch, "
        f"after a warm-up of {warmup} epochs, it must be more than {abs(warmup - 1)}."
      )
    angles = np.pi * np.minimum(epochs, period) / period
    return (1 + np.cos(angles)) / (1 + math.cos(math.pi * (warmup - 1) / period))

  def decay():
    milestones = config.milestones_epochs
    passed = [epochs >= epoch for epoch in milestones]
    decays = sum(passed, np.zeros(len(epochs))) if milestones else epochs // config.decay_epochs
    return config.decay_factor**decays

  factors = {"constant": lambda: np.ones(len(epochs)), "cosine": cosine, "step": decay}
  rates = config.learning_rate * choose(factors, config.schedule, "config.optimizer.schedule")()
  rates[:warmup] = np.linspace(config.warmup_init, config.learning_rate, warmup)
  # Less than a step early, so that rounding cannot make an epoch begin a step late.
  starts = np.ceil(epochs * steps_per_epoch - 1e-6).astype(np.int32)
  table = np.asarray(rates, np.float32)
  return lambda step: jnp.asarray(table)[jnp.searchsorted(starts, step, side="right") - 1]


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
  b1, b2 = config.betas
  rules: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: optax.chain(
      l2, optax.sgd(schedule, config.momentum or None, nesterov=config.nesterov)
    ),
    "adam": lambda: optax.chain(l2, optax.adam(schedule, b1, b2)),
    "adamw": lambda: optax.adamw(schedule, b1, b2, weight_decay=decay),
    # PyTorch's: eps is added to the root, and the rate scales the step, not the momentum;
    # `optax.rmsprop` has the latter the other way round.
    "rmsprop": lambda: optax.chain(
      l2,
      optax.scale_by_rms(config.rms_decay, config.rms_eps, eps_in_sqrt=False),
      optax.trace(config.momentum) if config.momentum else optax.identity(),
      optax.scale_by_learning_rate(schedule),
    ),
    "lion": lambda: optax.lion(schedule, weight_decay=decay),
  }
  rule = choose(rules, config.name, "config.optimizer.name")()
  if config.clip_norm:
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
  return rule
