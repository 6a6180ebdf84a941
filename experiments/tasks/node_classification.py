"""Nodes of a graph, each of one class."""

import functools

import jax
import jax.numpy as jnp

from experiments import models
from experiments.data.graphs.dataset import Neighbourhood, graph_pipeline
from experiments.data.graphs.wordnet import load
from experiments.models.graph_sage import GraphSage
from experiments.tasks.image_classification import image_classification
from experiments.tasks.task import Task

GRAPH_NETWORKS = {"graph_sage": GraphSage}
"""Networks by name: from a `Neighbourhood` to `[B, num_classes]` float32 logits."""


def node_classification(*, label_smoothing: float = 0.0) -> Task:
  """The task: image classification's loss and score, accuracy, of other data and networks.

  Args:
    label_smoothing: share of a target that is spread over all classes in training.
  """

  def shapes(data):
    return {
      "num_features": data.features.shape[1],
      "num_relations": data.num_relations,
      "num_classes": data.num_classes,
      "neighbours": data.neighbours,
    }

  def inputs(shapes, size):
    around = [shapes["neighbours"][:hop] for hop in range(len(shapes["neighbours"]) + 1)]
    struct = jax.ShapeDtypeStruct
    return Neighbourhood(
      tuple(struct((size, *s, shapes["num_features"]), jnp.float16) for s in around),
      tuple(struct((size, *s), jnp.int32) for s in around[1:]),
    )

  names = ("num_features", "num_relations", "num_classes", "neighbours")
  return image_classification(label_smoothing=label_smoothing)._replace(
    load=load,
    shapes=shapes,
    build=functools.partial(models.construct, GRAPH_NETWORKS, names),
    inputs=inputs,
    pipeline=graph_pipeline,
    unit="nodes",
  )
