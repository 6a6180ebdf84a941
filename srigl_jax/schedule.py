"""When the topology is updated, how much of it, and which gradients score the growth.

`step` counts finished optimizer steps, as optax does. The functions take Python numbers (the
drop fraction in double) or, where it makes sense, traced ones.
"""

import math


def cosine_drop_fraction(step: int, initial: float, update_until: int) -> float:
  """Drop fraction after `step` optimizer steps: `initial / 2 * (1 + cos(pi * step / T_end))`.

  Args:
    step: optimizer steps done, the current one included; the first update comes at ΔT, not at 0.
    initial: drop fraction at step 0 (the papers' alpha, 0.3).
    update_until: T_end, where it reaches 0.

  Source: RigL (arXiv:1911.11134), section 3 (2), after Dettmers & Zettlemoyer 2019.
  """
  return initial / 2 * (1 + math.cos(step * math.pi / update_until))


def is_update_step(step, update_every: int, update_until: int):
  """Whether the topology is updated once `step` steps are done: every ΔT before T_end."""
  return (step % update_every == 0) & (step < update_until)


def accumulates_gradient(steps_done, update_every: int, update_until: int, num_steps: int):
  """Whether a gradient counts toward the next update's growth score.

  Args:
    steps_done: optimizer steps done before this gradient's own.
    update_every: ΔT.
    update_until: T_end.
    num_steps: how many gradients a score averages: the last ones up to that of the update's step.
  """
  in_window = update_every - steps_done % update_every <= num_steps
  return in_window & (steps_done < update_until)


def num_updates(update_every: int, update_until: int) -> int:
  """Number of topology updates of a whole run."""
  return max(0, (update_until - 1) // update_every)
