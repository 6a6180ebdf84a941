"""Networks as people have them: each trains sparsely, and is exported as what it was."""

import importlib.util

import numpy as np
import pytest

import srigl_jax as sx
from experiments.benchmarks.networks.gpt import LAYERS
from experiments.benchmarks.networks.network import dense_twin, train
from experiments.benchmarks.networks.registry import NETWORKS

IN_DEFAULT_SUITE = ("MLP in Haiku",)
STEPS, UPDATE_EVERY = 24, 8


def cases():
  for name, entry in NETWORKS.items():
    missing = entry.package and importlib.util.find_spec(entry.package) is None
    marks = [pytest.mark.skipif(bool(missing), reason=f"{entry.package} is not installed")]
    marks += [] if name in IN_DEFAULT_SUITE else [pytest.mark.slow, pytest.mark.networks]
    yield pytest.param(name, marks=marks, id=name)


@pytest.fixture(scope="module")
def trained():
  """Networks and what training made of them, by name; each is trained once."""
  made = {}

  def make(name):
    if name not in made:
      network = NETWORKS[name].make()
      made[name] = network, train(network, steps=STEPS, update_every=UPDATE_EVERY)
    return made[name]

  return make


@pytest.mark.parametrize("name", list(cases()))
def test_a_network_trains_and_is_exported(trained, name):
  network, result = trained(name)
  history = result.history
  changes = [
    step + 1
    for step in range(1, STEPS)
    if any((history[step][path] != history[step - 1][path]).any() for path in result.masks)
  ]
  assert changes == [UPDATE_EVERY, 2 * UPDATE_EVERY]
  assert np.isfinite(result.losses).all() and result.losses[-1] < result.losses[0]

  kwargs = {key: x for key, x in network.kwargs.items() if key in ("axes", "sparse")}
  summary = sx.summarize(network.params, result.masks, **kwargs)
  assert any(layer.is_sparse for layer in summary.layers)
  for layer in summary.layers:
    assert 1 <= layer.min_fan_in == layer.max_fan_in, layer.path
  assert 0.2 < summary.density < 0.32

  inputs = network.inputs(3)
  expected = np.asarray(dense_twin(network, result)(inputs))
  found = network.condense(result.params, result.state, result.masks, inputs)(inputs)
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.networks
@pytest.mark.parametrize(
  ("scanned", "unrolled", "blocks"),
  [
    ("GPT, scanned layers", "GPT", "blocks/{}/"),
    ("GPT in Linen, scanned layers", "GPT in Linen", "blocks_{}/"),
  ],
)
def test_scanned_layers_have_the_masks_of_the_network_unrolled(trained, scanned, unrolled, blocks):
  stacked, masks = (trained(name)[1].history for name in (scanned, unrolled))
  for now, expected in zip(stacked, masks, strict=True):
    assert len(expected) == LAYERS * len(now)
    for path, mask in now.items():
      for i in range(LAYERS):
        one = expected[path.replace("blocks/", blocks.format(i))]
        np.testing.assert_array_equal(mask[i], one, err_msg=path)
