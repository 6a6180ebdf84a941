"""Which examples stand in the batch of a step, as a function of the seed and the step alone.

No iterator, hence no iterator state: a run resumed at any step sees the data that it would have
seen without the interruption.
"""

import functools

import numpy as np


@functools.lru_cache(maxsize=32)
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
  """Permutes the examples for one epoch.

  The order sorts by raw Philox output. Numpy promises to keep that stream from version to version,
  which it does not for `Generator.permutation`.

  Args:
    num_examples: length of the permutation, at least 0.
    seed: of the run, `0 <= seed < 2**64`.
    epoch: counted from 0.

  Returns:
    `[num_examples]` int32, a permutation; not writable, as it is cached.

  Raises:
    ValueError: if an argument is negative or the seed is too large.
  """
  for argument, value in (("num_examples", num_examples), ("epoch", epoch)):
    if value < 0:
      raise ValueError(f"{argument} must not be negative, got {value}.")
  if not 0 <= seed < 2**64:
    raise ValueError(f"seed must lie in [0, 2**64), got {seed}.")
  philox = np.random.Philox(key=np.array([seed, epoch], np.uint64))
  order = np.argsort(philox.random_raw(num_examples), kind="stable").astype(np.int32)
  order.flags.writeable = False
  return order


def batch_indices(
  step: int, num_steps: int, batch_size: int, num_examples: int, seed: int
) -> np.ndarray:
  """Selects the examples of some consecutive steps.

  Each epoch visits the examples in a new order; the last, partial batch of an epoch is dropped.

  Args:
    step: the first of the steps, counted from 0 over the whole run.
    num_steps: how many steps.
    batch_size: examples per step.
    num_examples: size of the training set.
    seed: of the run, `0 <= seed < 2**64`.

  Returns:
    `[num_steps, batch_size]` int32.

  Raises:
    ValueError: if no full batch fits into an epoch, or an argument is negative.
  """
  if step < 0 or num_steps < 0:
    raise ValueError(
      f"step and num_steps must not be negative, got step={step} and num_steps={num_steps}."
    )
  if not 1 <= batch_size <= num_examples:
    raise ValueError(
      "batch_size must lie between 1 and the number of training examples, "
      f"{num_examples}, got {batch_size}."
    )
  steps_per_epoch = num_examples // batch_size
  indices = np.empty((num_steps, batch_size), np.int32)
  done = 0
  while done < num_steps:
    epoch, first = divmod(step + done, steps_per_epoch)
    count = min(steps_per_epoch - first, num_steps - done)
    order = epoch_order(num_examples, seed, epoch)
    examples = order[first * batch_size : (first + count) * batch_size]
    indices[done : done + count] = examples.reshape(count, batch_size)
    done += count
  return indices
