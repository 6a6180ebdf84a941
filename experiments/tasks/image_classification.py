"""Images `[B, H, W, C]`, each of one class: the task of the paper."""

import jax
import jax.numpy as jnp
import optax

from experiments import data, models
from experiments.tasks.task import Task
from experiments.workdir.scores import ACCURACY


def image_classification(*, label_smoothing: float = 0.0) -> Task:
  """The task.

  Args:
    label_smoothing: share of a target that is spread over all classes in training.
  """

  def loss(logits, targets):
    smooth = optax.smooth_labels(targets, label_smoothing)
    value = optax.safe_softmax_cross_entropy(logits, smooth).mean()
    is_correct = logits.argmax(-1) == targets.argmax(-1)
    return value, {"accuracy": is_correct.sum(dtype=jnp.float32)}

  return Task(
    load=data.load,
    shapes=lambda data: {"num_classes": data.num_classes, "image_shape": data.image_shape},
    build=models.build,
    inputs=lambda shapes, size: jax.ShapeDtypeStruct((size, *shapes["image_shape"]), jnp.float32),
    pipeline=data.make_input_pipeline,
    loss=loss,
    train_metrics=("accuracy",),
    test_sums=_test_sums,
    score=ACCURACY,
    unit="images",
  )


def _test_sums(logits, labels, valid):
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  loss = jnp.where(valid, loss, 0).sum()
  correct = ((logits.argmax(-1) == labels) & valid).sum(dtype=jnp.float32)
  return {"loss": loss, "accuracy": correct}
