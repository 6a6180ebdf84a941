"""A run killed by SIGKILL at a random moment resumes bit for bit."""

import pytest

from tests.prove_resume import prove


@pytest.mark.slow
@pytest.mark.parametrize(
  ("steps_per_dispatch", "engine"), [(1, "masked"), (20, "masked"), (20, "condensed")]
)
def test_killed_run_resumes_bit_for_bit(tmp_path, steps_per_dispatch, engine):
  arguments = [
    "--config=configs/digits.py",
    "--config.train.total_epochs=400.0",
    f"--config.train.steps_per_dispatch={steps_per_dispatch}",
    f"--config.method.engine={engine}",
  ]
  assert prove(arguments, tmp_path) == 0
