"""Graphs, and batches of nodes with sampled neighbourhoods.

A batch has some nodes, some neighbours of each, some of theirs, and so on: as many hops as the
network has layers (GraphSAGE, Hamilton et al. 2017). So a step costs the same in a graph of any
size.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data.input_pipeline import InputPipeline, memory_pipeline


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
  """A graph of `N` nodes and `E` edges from a node to its neighbours, in compressed sparse rows.

  Attributes:
    features: `[N, F]` float16.
    starts: `[N + 1]` int32, where the edges of each node begin.
    targets: `[E]` int32, the neighbours.
    relations: `[E]` int32, the kind of each edge.
    labels: `[N]` int32.
    train: `[A]` int32, nodes whose labels are learned.
    test: `[M]` int32, nodes to be tested on.
    num_relations: kinds of edges.
    num_classes: kinds of nodes.
    neighbours: how many are sampled at each hop.
  """

  features: np.ndarray
  starts: np.ndarray
  targets: np.ndarray
  relations: np.ndarray
  labels: np.ndarray
  train: np.ndarray
  test: np.ndarray
  num_relations: int
  num_classes: int
  neighbours: tuple[int, ...]

  @property
  def num_train(self) -> int:
    """Number of nodes whose labels are learned."""
    return len(self.train)

  @property
  def num_test(self) -> int:
    """Number of nodes to be tested on."""
    return len(self.test)


class Neighbourhood(NamedTuple):
  """Nodes with what was sampled around them; `S1, ..., Sh` neighbours at hop `h`.

  Attributes:
    features: float16, `[B, F]` of the nodes, then `[B, S1, F]`, `[B, S1, S2, F]`, ...
    relations: int32 kinds of the edges that led there, `[B, S1]`, `[B, S1, S2]`, ...;
      `num_relations` if there was none.
  """

  features: tuple[Any, ...]
  relations: tuple[Any, ...]


def check_neighbours(neighbours: tuple[int, ...]) -> tuple[int, ...]:
  """Refuses numbers of neighbours that are none; returns them."""
  if not neighbours or min(neighbours) < 1:
    raise ValueError(
      f"config.data.kwargs.neighbours is {tuple(neighbours)}; give how many to sample at each hop, "
      "such as (8, 4), one hop or more."
    )
  return tuple(neighbours)


def split_nodes(number: int, *, seed: int, held_out: str) -> tuple[np.ndarray, np.ndarray]:
  """Nodes to learn from and to be tested on, int32.

  Args:
    number: of nodes.
    seed: of the split; not that of a run.
    held_out: `"test"`, a tenth of the nodes, learning from all others; or `"validation"`, another
      tenth, to choose settings by, learning from what neither has.

  Raises:
    ValueError: if `held_out` is unknown, or there are too few nodes.
  """
  if held_out not in ("test", "validation"):
    raise ValueError(
      f"config.data.kwargs.held_out is {held_out!r}; it must be one of test, validation."
    )
  if number < 10:
    raise ValueError(f"A graph of {number} nodes is too small to be split: it takes 10.")
  order, tenth = np.random.default_rng(seed).permutation(number).astype(np.int32), number // 10
  if held_out == "test":
    return np.sort(order[tenth:]), np.sort(order[:tenth])
  return np.sort(order[2 * tenth :]), np.sort(order[tenth : 2 * tenth])


def neighbourhood(
  device_data: dict[str, Any], key: jax.Array, node: jax.Array, graph: Graph
) -> Neighbourhood:
  """What is sampled around a node, with replacement; without axis `B`.

  Args:
    device_data: of `graph_pipeline`.
    key: of the sample.
    node: `[]` int32.
    graph: for its sizes.
  """
  starts, targets, kinds, table = (
    jnp.asarray(device_data[name]) for name in ("starts", "targets", "relations", "features")
  )
  features, relations = [table[node]], []
  for hop, count in enumerate(graph.neighbours):
    first = starts[node]
    degree = (starts[node + 1] - first)[..., None]
    drawn = jax.random.uniform(jax.random.fold_in(key, hop), (*node.shape, count))
    place = first[..., None] + jnp.minimum((drawn * degree).astype(jnp.int32), degree - 1)
    place = jnp.where(degree > 0, place, 0)
    relations.append(jnp.where(degree > 0, kinds[place], graph.num_relations))
    node = targets[place]
    features.append(table[node])
  return Neighbourhood(tuple(features), tuple(relations))


def graph_pipeline(
  data: Graph, *, batch_size: int, eval_batch_size: int, seed: int
) -> InputPipeline:
  """Batches of nodes: inputs `Neighbourhood`, targets as those of images.

  That is one-hot labels `[B, num_classes]` float32 in training and labels `[B]` int32 in tests.
  In training neighbours are sampled anew in every step, in tests always the same.

  Args:
    data: the graph.
    batch_size: nodes of a training step, in all processes together.
    eval_batch_size: nodes of a test batch, in all processes together.
    seed: of the order and of sampling.
  """
  around = lambda device_data: lambda key, node: neighbourhood(device_data, key, node, data)

  def train_examples(keys, device_data, index):
    nodes = jnp.asarray(device_data["train"])[index]
    labels = jnp.asarray(device_data["labels"])[nodes]
    return jax.vmap(around(device_data))(keys, nodes), jax.nn.one_hot(labels, data.num_classes)

  def test_examples(device_data, index):
    nodes = jnp.asarray(device_data["test"])[index]
    keys = jax.vmap(lambda node: jax.random.fold_in(jax.random.key(0), node))(nodes)
    labels = jnp.asarray(device_data["labels"])[nodes]
    return jax.vmap(around(device_data))(keys, nodes), labels

  names = ("features", "starts", "targets", "relations", "labels", "train", "test")
  return memory_pipeline(
    num_train=data.num_train,
    num_test=data.num_test,
    device_data={name: getattr(data, name) for name in names},
    train_examples=train_examples,
    test_examples=test_examples,
    batch_size=batch_size,
    eval_batch_size=eval_batch_size,
    seed=seed,
  )
