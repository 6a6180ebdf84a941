"""What the tests of the harness share: one device, one finished run."""

import pytest

from experiments.training.loop import train
from tests.experiments.tiny import devices, tiny_config


@pytest.fixture
def one_device():
  """Seven of the eight virtual devices would only cost time."""
  with devices(1):
    yield


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
  """The directory and the results of `tiny_config()` trained to the end; not to be changed."""
  workdir = tmp_path_factory.mktemp("finished")
  with devices(1):
    results = train(tiny_config(), workdir)
  return workdir, results
