import jax
import numpy as np
import pytest

from srigl_jax import schedule


@pytest.mark.parametrize(
  ("step", "expected"), [(0, 0.3), (25, 0.15 * (1 + np.sqrt(0.5))), (50, 0.15), (100, 0.0)]
)
def test_cosine(step, expected):
  got = schedule.cosine_drop_fraction(step, 0.3, 100)
  assert isinstance(got, float)
  assert got == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
  ("every", "until", "expected"),
  [
    (100, 350, [100, 200, 300]),
    (100, 300, [100, 200]),  # none at the end itself
    (1, 3, [1, 2]),
    (7, 7, []),
    (7, 8, [7]),
    (5, 0, []),
  ],
)
def test_update_steps(every, until, expected):
  steps = [t for t in range(1, 401) if schedule.is_update_step(t, every, until)]
  assert steps == expected
  assert schedule.num_updates(every, until) == len(expected)
  traced = jax.jit(lambda t: schedule.is_update_step(t, every, until))(np.arange(1, 401))
  np.testing.assert_array_equal(np.flatnonzero(traced) + 1, expected)


@pytest.mark.parametrize(
  ("every", "until", "num_steps", "expected"),
  [
    # Steps 0 ... 11 done before; the updates come once 4 and 8 are done, not at 12.
    (4, 11, 1, [3, 7]),
    (4, 11, 2, [2, 3, 6, 7, 10]),
    (4, 11, 4, list(range(11))),
    (3, 5, 2, [1, 2, 4]),
  ],
)
def test_accumulation_window(every, until, num_steps, expected):
  counts = lambda t: schedule.accumulates_gradient(t, every, until, num_steps)
  assert [t for t in range(12) if counts(t)] == expected
  np.testing.assert_array_equal(np.flatnonzero(jax.jit(counts)(np.arange(12))), expected)
