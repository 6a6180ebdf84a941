"""Text, each token to be predicted from those before it."""

import functools

import jax
import jax.numpy as jnp
import optax

from experiments import models
from experiments.data.text.corpus import load_text, text_pipeline
from experiments.models.gpt import GPT
from experiments.tasks.task import Task
from experiments.workdir.scores import Score

LANGUAGE_MODELS = {"gpt": GPT}
"""Networks by name: from `[B, T]` int32 tokens to `[B, T, vocab_size]` float32 logits."""


def language_modelling(*, label_smoothing: float = 0.0) -> Task:
  """The task; its score is the nats that a character takes, whatever the tokens are.

  Args:
    label_smoothing: share of a target that is spread over all tokens in training.
  """

  def loss(logits, targets):
    tokens = targets["tokens"]
    if label_smoothing:
      smooth = optax.smooth_labels(jax.nn.one_hot(tokens, logits.shape[-1]), label_smoothing)
      value = optax.softmax_cross_entropy(logits, smooth).mean()
    else:
      value = optax.softmax_cross_entropy_with_integer_labels(logits, tokens).mean()
    return value, {"accuracy": _accuracy(logits, tokens).sum()}

  return Task(
    load=load_text,
    shapes=lambda data: {"vocab_size": len(data.tokenizer.lengths), "length": data.length},
    build=functools.partial(models.construct, LANGUAGE_MODELS, ("vocab_size", "length")),
    inputs=lambda shapes, size: jax.ShapeDtypeStruct((size, shapes["length"]), jnp.int32),
    pipeline=text_pipeline,
    loss=loss,
    train_metrics=("accuracy",),
    test_sums=_test_sums,
    score=Score("nats_per_char", "loss, nats per character", lower_is_better=True),
    unit="windows",
    finish=_finish,
  )


def _accuracy(logits, tokens):
  """Share of a window's tokens that were likeliest, `[B]` float32."""
  return (logits.argmax(-1) == tokens).mean(-1, dtype=jnp.float32)


def _test_sums(logits, targets, valid):
  tokens = targets["tokens"]
  nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
  total = lambda x: jnp.where(valid, x, 0).sum(dtype=jnp.float32)
  return {
    "loss": total(nats.mean(-1)),
    "accuracy": total(_accuracy(logits, tokens)),
    "nats": total(nats.sum(-1)),
    "chars": total(targets["chars"]),
  }


def _finish(means):
  values = {name: float(means[name]) for name in ("loss", "accuracy")}
  if "chars" in means:
    values["nats_per_char"] = float(means["nats"] / means["chars"])
  return values
