"""Images of one task after the other: what is learnt last must not undo what was learnt first."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import models
from experiments.data.continual import SCENARIOS, load_tasks, tasks_pipeline
from experiments.tasks.task import Task
from experiments.workdir.scores import Score

_NEVER = -1e9  # a logit of a class that cannot be meant


def continual_classification(
  *, label_smoothing: float = 0.0, scenario: str = "task", joint: bool = False
) -> Task:
  """The task; its score is the mean of the accuracies on all tasks, also those still to come.

  Recorded are that, as `average_accuracy`, and `accuracy_0`, `accuracy_1`, ... of the tasks: those
  of the tests at the tasks' ends are the rows of the accuracy matrix. In training the classes of
  the present task alone compete.

  Args:
    label_smoothing: must be 0.
    scenario: what a test is told of an image. `"task"`: its task, which decides the classes that
      can be meant and, if the method keeps connections by task, which are used; `"head"`: the same
      for the classes, with the whole network; `"class"`: nothing, all classes compete.
    joint: whether all tasks are learnt at once, as an upper bar.

  Raises:
    ValueError: if an argument is out of range.
  """
  if label_smoothing or scenario not in SCENARIOS:
    raise ValueError(
      f"config.train.label_smoothing is {label_smoothing} and config.task.kwargs.scenario "
      f"{scenario!r}; they must be 0, and one of {', '.join(SCENARIOS)}."
    )

  def loss_of(logits, targets):
    masked = jnp.where(targets["classes"], logits, _NEVER)
    losses = optax.softmax_cross_entropy_with_integer_labels(masked, targets["label"])
    return losses, masked.argmax(-1) == targets["label"]

  def loss(logits, targets):
    losses, is_correct = loss_of(logits, targets)
    return losses.mean(), {"accuracy": is_correct.sum(dtype=jnp.float32)}

  def test_sums(logits, targets, valid):
    losses, is_correct = loss_of(logits, targets)
    task, counts = targets["task"], jnp.zeros(logits.shape[-1], jnp.float32)
    per_task = lambda x: counts.at[task].add(jnp.where(valid, x, 0).astype(jnp.float32))
    total = jnp.where(valid, losses, 0).sum()
    return {"loss": total, "correct": per_task(is_correct), "examples": per_task(1)}

  return Task(
    load=load_tasks,
    shapes=lambda tasks: {"num_classes": tasks.num_classes, "image_shape": tasks.image_shape},
    build=models.build,
    inputs=lambda shapes, size: jax.ShapeDtypeStruct((size, *shapes["image_shape"]), jnp.float32),
    pipeline=functools.partial(tasks_pipeline, scenario=scenario),
    loss=loss,
    train_metrics=("accuracy",),
    test_sums=test_sums,
    score=Score("average_accuracy", "accuracy, mean of tasks", percent=True),
    unit="images",
    finish=_finish,
    stages=lambda tasks: 1 if joint else tasks.num_tasks,
  )


def _finish(means):
  values = {name: float(means[name]) for name in ("loss", "accuracy") if name in means}
  if "examples" not in means:
    return values
  seen = means["examples"] > 0  # there are no more tasks than classes
  accuracies = means["correct"][seen] / means["examples"][seen]
  values |= {f"accuracy_{task}": float(x) for task, x in enumerate(accuracies)}
  return values | {"average_accuracy": float(np.mean(accuracies))}
