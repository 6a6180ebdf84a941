"""A run killed by SIGKILL at a random moment resumes bit for bit."""

import pytest

from tests.prove_resume import prove


@pytest.mark.slow
@pytest.mark.parametrize("steps_per_dispatch", [1, 20])
def test_killed_run_resumes_bit_for_bit(tmp_path, steps_per_dispatch):
  arguments = [
    "--config=configs/digits.py",
    "--config.train.total_epochs=400.0",
    f"--config.train.steps_per_dispatch={steps_per_dispatch}",
  ]
  assert prove(arguments, tmp_path) == 0
