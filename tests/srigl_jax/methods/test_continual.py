"""Tasks that keep their connections: what is reserved never changes, what is free is divided."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import srigl_jax as sx
from tests import helpers

TASKS, STEPS = 3, 6
MAKE = {"num_tasks": TASKS, "steps_per_task": STEPS, "update_every": 2, "update_until": 5}


def network():
  key = jax.random.key(0)
  return {
    "hidden": {"kernel": jax.random.normal(key, (24, 16)), "bias": jnp.zeros(16)},
    "head": {"kernel": jax.random.normal(key, (16, 6)), "bias": jnp.zeros(6)},
  }


def history(**kwargs):
  """Weights, owners and masks after every step of all tasks."""
  inner = optax.adamw(0.05, weight_decay=0.1)
  tx = sx.continual_sparse(inner, **{"sparsity": 0.5, **MAKE, **kwargs})
  run = helpers.Training(tx, network())
  found = [(run.params, run.state)]
  found += [(now.params, now.state) for now in run.run(TASKS * STEPS)]
  assert run.traces == 1
  return found


@pytest.fixture(scope="module")
def constant():
  return history()


def arrays(tree):
  return {path: np.asarray(x) for path, x in tree.items()}


def kernels(params):
  return {f"{name}/kernel": np.asarray(layer["kernel"]) for name, layer in params.items()}


def test_reserved_weights_are_the_same_bits_ever_after(constant):
  for task in range(TASKS):
    then, state = constant[(task + 1) * STEPS]
    masks = arrays(sx.task_masks(state, task))
    for params, later in constant[(task + 1) * STEPS :]:
      for path, mask in masks.items():
        np.testing.assert_array_equal(kernels(params)[path][mask], kernels(then)[path][mask])
        np.testing.assert_array_equal(np.asarray(sx.task_masks(later, task)[path]), mask)
        assert np.asarray(later.masks[path])[mask].all()


def test_each_task_gets_its_own_part_of_free_connections(constant):
  owners = arrays(constant[-1][1].extra.owners)
  masks = arrays(sx.get_masks(constant[-1][1]))
  budgets = sx.allocate(network(), 0.5).budgets
  for path, mask in masks.items():
    owner = np.where(mask & (owners[path] < 0), TASKS - 1, owners[path])
    per_task = [(owner == task).sum(0) for task in range(TASKS)]
    fan_in = budgets[path] // mask.shape[1]
    if path.startswith("head"):  # a task connects its own outputs only
      assert [sorted(set(counts)) for counts in per_task] == [[0, fan_in]] * TASKS
      assert all((counts[2 * t : 2 * t + 2] == fan_in).all() for t, counts in enumerate(per_task))
    else:
      assert all((counts == fan_in // TASKS).all() for counts in per_task)
    assert mask.sum() <= budgets[path]
    assert set(mask.sum(0)) == {TASKS * (fan_in // TASKS)} or path.startswith("head")


def test_a_task_moves_its_connections_and_starts_with_new_weights(constant):
  moved = lambda a, b: any((a[path] != b[path]).any() for path in a)
  masks = [arrays(state.masks) for _, state in constant]
  at = [i for i in range(1, len(masks)) if moved(masks[i - 1], masks[i])]
  assert {2, 7, 8, 13, 14} <= set(at) <= {2, 4, 7, 8, 10, 13, 14, 16}
  for params, state in constant:
    helpers.assert_zero_off_mask(params, arrays(state.masks))
  for task in (1, 2):
    (before, old), (after, new) = constant[task * STEPS], constant[task * STEPS + 1]
    np.testing.assert_array_equal(after["hidden"]["bias"], before["hidden"]["bias"])
    for path, mask in arrays(new.masks).items():
      drawn = mask & ~np.asarray(old.masks[path])
      assert drawn.any() and (kernels(after)[path][drawn] != 0).all()
    assert int(new.extra.task) == task
    assert not any(x.any() for x in jax.tree.leaves(new.inner_state[0].mu))


def test_dense_parameters_learn_in_the_first_task_alone(constant):
  bias = [np.asarray(params["hidden"]["bias"]) for params, _ in constant]
  assert (bias[STEPS] != bias[0]).any()
  assert all((b == bias[STEPS]).all() for b in bias[STEPS:])


@pytest.mark.slow
@pytest.mark.parametrize("growth", ["gradient", "random"])
def test_unstructured_tasks_keep_their_budgets(growth):
  found = history(structure="unstructured", growth=growth, distribution="uniform")
  masks, owners = arrays(found[-1][1].masks), arrays(found[-1][1].extra.owners)
  for path, mask in masks.items():
    counts = [(owners[path] == task).sum() for task in range(TASKS - 1)]
    counts.append((mask & (owners[path] < 0)).sum())
    assert set(counts) == {mask.size // 2 // TASKS}


def test_what_cannot_be_divided_is_refused():
  make = lambda **kwargs: sx.continual_sparse(optax.sgd(0.1), **{"sparsity": 0.5, **MAKE, **kwargs})
  for changes, match in [
    ({"num_tasks": 4}, "6 neurons, which 4 tasks cannot divide"),
    ({"sparsity": 0.9}, "fewer than one for each of 3 tasks"),
    ({"sparse": sx.all_but("head")}, "'head/kernel' is dense"),
  ]:
    with pytest.raises(ValueError, match=match):
      make(**changes).init(network())
  for changes, match in [
    ({"growth": "magnitude"}, "growth is 'magnitude'"),
    ({"update_until": 7}, "T_end within a task"),
    ({"num_tasks": 0}, "num_tasks is 0"),
    ({"structure": "constant_fan_in:group_size=2"}, "without blocks or groups"),
    ({"sparse_init": "he"}, "scheme is 'he'"),
  ]:
    with pytest.raises(ValueError, match=match):
      make(**changes)
  with pytest.raises(ValueError, match="no owners"):
    sx.task_masks(helpers.rigl(optax.sgd(0.1)).init(helpers.params()), 0)


def test_a_layer_that_would_be_dense_is_divided_too():
  tx = sx.continual_sparse(optax.sgd(0.1), **{"sparsity": 0.05, **MAKE}, outputs=False)
  masks = tx.init(network()).masks
  assert masks.keys() == {"hidden/kernel", "head/kernel"}
  assert set(np.asarray(masks["head/kernel"]).sum(0)) == {5}
