"""Very many labels: files, metrics, a head in blocks, and the reverse dictionary."""

import gzip
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import reverse_dictionary, xmc
from experiments.data.text.dictd import Dictd
from experiments.data.xmc.dataset import load, make_synthetic, xmc_pipeline
from experiments.data.xmc.reverse_dictionary import (
  Definition,
  most_defined,
  read_gcide,
  read_wordnet,
  split,
  write_xmc,
)
from experiments.models.label_blocks import BagOfWords, Labelled
from experiments.tasks.extreme_classification import extreme_classification
from experiments.training.loop import train
from tests.experiments.tiny import devices, quick_compiler

TRAIN = "3 4 5\n0,2 1:0.5 3:2\n4 0:1\n1,2,3 2:1 1:3\n"
TEST = "1 4 5\n2 3:1\n"


def write(folder, train=TRAIN, test=TEST):
  (folder / "train.txt").write_text(train)
  (folder / "test.txt").write_text(test)
  return load("files", data_dir=str(folder))


def test_bags_of_words_are_read(tmp_path):
  data = write(tmp_path)
  assert (data.num_features, data.num_labels, data.num_train, data.num_test) == (4, 5, 3, 1)
  assert (data.max_features, data.max_labels) == (2, 3)
  features, weights = data.train.features.padded(np.array([2, 1]), 2, 0)
  assert features.tolist() == [[2, 1], [0, 0]] and weights.tolist() == [[1, 3], [1, 0]]
  features, weights = data.train.features.padded(np.array([0]), 1, 0)
  assert features.tolist() == [[3]] and weights.tolist() == [[2]]  # the largest value
  c = (np.log(3) - 1) * 2.5**0.55
  expected = 1 + c * (np.array([1, 1, 2, 1, 1]) + 1.5) ** -0.55
  np.testing.assert_allclose(data.inverse_propensities, expected, rtol=1e-6)


def test_raw_text_is_read(tmp_path):
  for name, target in (("trn", [0, 7]), ("tst", [3])):
    record = {"uid": "a", "title": "Sparse nets", "content": "of few", "target_ind": target}
    with gzip.open(tmp_path / f"{name}.json.gz", "wt") as file:
      file.write(json.dumps(record) + "\n")
  files = {"train": "trn.json.gz", "test": "tst.json.gz"}
  data = load("files", data_dir=str(tmp_path), **files)
  assert data.num_labels == 8 and data.max_features == 4
  assert data.train.labels.items.tolist() == [0, 7]


@pytest.mark.parametrize(
  "train, test, match",
  [
    ("0,1 2:1\n", TEST, "where a bag of words has three numbers"),
    (TRAIN.replace("3 4 5", "4 4 5"), TEST, "says that it has 4 examples, but has 3"),
    (TRAIN.replace("3:2", "4:2"), TEST, r"line 2, has feature 4; they lie in 0\.\.3"),
    (TRAIN.replace("0,2", "0,5"), TEST, r"line 2, has label 5; they lie in 0\.\.4"),
    (TRAIN.replace("3:2", "3:x"), TEST, "line 2, is no example"),
    (TRAIN, TEST.replace("1 4 5", "1 4 6"), "not of one data set"),
  ],
)
def test_damaged_files_are_refused(tmp_path, train, test, match):
  with pytest.raises(ValueError, match=match):
    write(tmp_path, train, test)


def test_missing_files_and_unknown_arguments_say_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"build_reverse_dictionary.*config\.data\.data_dir"):
    load("files", data_dir=str(tmp_path))
  with pytest.raises(ValueError, match=r"'num_lables'.*Did you mean 'num_labels'"):
    load("synthetic_labels", num_lables=3)
  with pytest.raises(ValueError, match="one of files, synthetic_labels"):
    load("amazon", data_dir=str(tmp_path))
  with pytest.raises(ValueError, match=r"label_smoothing is 0\.1"):
    extreme_classification(label_smoothing=0.1)


def inputs_of(labels):
  features = jax.random.randint(jax.random.key(1), (len(labels), 3), 0, 9)
  weights = jnp.ones(features.shape)
  return {"features": features, "weights": weights, "labels": jnp.asarray(labels)}


@pytest.mark.parametrize("loss", ["softmax", "binary"])
def test_blocks_say_what_all_logits_say(loss):
  shapes = {"num_features": 9, "num_labels": 11, "max_features": 3, "max_labels": 2}
  model = BagOfWords(4, (5,), 3, loss, rngs=nnx.Rngs(0), **shapes)
  x = inputs_of([[2, 7], [10, 11], [11, 11]])  # 11: none
  h = model._encode(x)
  logits = np.concatenate([np.asarray(layer(h)) for layer in model.head], -1).astype(np.float64)
  own = [[2, 7], [10], []]
  log_sum = np.log(np.exp(logits).sum(-1))
  expected = {
    "softmax": [log_sum[i] - logits[i, own[i]].mean() if own[i] else 0.0 for i in range(3)],
    "binary": [np.log1p(np.exp(z)).sum() - z[own[i]].sum() for i, z in enumerate(logits)],
  }[loss]
  with quick_compiler():
    found = nnx.jit(lambda model, x: model(x))(model, x)
  np.testing.assert_allclose(found.loss, expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_array_equal(found.labels, np.argsort(-logits, -1)[:, :5])
  ranks = [1 + (logits[i] > logits[i, own[i]].max()).sum() for i in range(2)]
  assert found.rank.tolist() == [*ranks, 12]


def test_metrics_by_hand():
  task = extreme_classification()
  outputs = Labelled(
    jnp.array([1.0, 3.0, 9.0]),
    jnp.array([[4, 0, 2, 1, 3], [1, 0, 2, 3, 4], [0, 1, 2, 3, 4]]),
    jnp.array([1, 4, 1]),
  )
  targets = {
    "labels": jnp.array([[4, 1], [3, 5], [0, 5]]),
    "inverse": jnp.array([[2.0, 8.0], [3.0, 0.0], [1.0, 0.0]]),
  }
  valid = jnp.array([True, True, False])
  sums = task.test_sums(outputs, targets, valid)
  found = task.finish({name: np.asarray(total) / 2 for name, total in sums.items()})
  assert found["loss"] == 2
  assert found["precision_at_1"] == 0.5
  assert found["precision_at_5"] == pytest.approx((2 + 1) / 5 / 2)
  assert found["psp_at_1"] == pytest.approx(2 / (8 + 3))
  assert found["psp_at_5"] == pytest.approx((2 + 8 + 3) / (10 + 3))
  assert (found["accuracy_at_10"], found["median_rank"]) == (1.0, 1.0)


def test_batches_have_every_test_example_once():
  data = make_synthetic(num_labels=7, num_features=9, num_train=12, num_test=5)
  pipeline = xmc_pipeline(data, batch_size=4, eval_batch_size=3, seed=0)
  (batch,) = pipeline.train_batches(0, 1)
  assert batch["labels"].shape == (4, 1) and batch["weights"].max() == 1
  seen = [b["labels"][b["valid"], 0] for b in pipeline.test_batches()]
  np.testing.assert_array_equal(np.concatenate(seen), data.test.labels.items)


WORDNET = """\
  1 a licence
00001740 03 n 02 big_cat 0 tiger(a) 0 000 | a large wild animal with stripes; "he saw a tiger"
00001741 03 n 01 oak 0 000 | a tree with acorns and hard wood
"""
ENTRY = """\
Tiger \\Ti"ger\\, n. [OE. tigre.]
   1. A very fierce beast of Asia (Felis tigris), striped black. "In the
      jungle." --Kipling.
      [1913 Webster]

   2. a large wild animal with stripes
      [WordNet 1.5]
"""


def dictionaries(tmp_path):
  for part in ("noun", "verb", "adj", "adv"):
    (tmp_path / f"data.{part}").write_text(WORDNET if part == "noun" else "  1 nothing\n")
  text = ENTRY.encode()
  return read_wordnet(str(tmp_path)), read_gcide(Dictd("gcide", text, [("Tiger", 0, len(text))]))


def test_definitions_are_read_without_what_is_not_theirs(tmp_path):
  wordnet, gcide = dictionaries(tmp_path)
  assert wordnet[0].words == ("big cat", "tiger")
  assert wordnet[0].text == ("a", "large", "wild", "animal", "with", "stripes")
  assert [one.words for one in gcide] == [("tiger",)]
  assert gcide[0].text == ("a", "very", "fierce", "beast", "of", "asia", "striped", "black")
  with pytest.raises(FileNotFoundError, match="apt-get install wordnet-base"):
    read_wordnet(str(tmp_path / "nowhere"))


def test_no_definition_is_on_both_sides(tmp_path):
  wordnet, gcide = dictionaries(tmp_path)
  made = split(wordnet, [*gcide, Definition(("x",), wordnet[0].text)], num_test=1, seed=3)
  assert made.test == [Definition(("tiger",), wordnet[0].text)]
  assert {one.words for one in made.train} == {("tiger",), ("oak",)}
  assert most_defined(wordnet, gcide, 1) == (
    [wordnet[0]._replace(words=("tiger",))],
    gcide,
  )
  alike = Definition(("tiger",), (*wordnet[0].text, "black"))
  with pytest.raises(ValueError, match="Of 2 glosses 0 can be held out, not 1"):
    split(wordnet, [alike], num_test=1, seed=0)
  sizes = write_xmc(made, tmp_path / "out", fewest=1)
  data = load("files", data_dir=str(tmp_path / "out"))
  assert (data.num_train, data.num_test, data.num_labels) == (2, 1, sizes["labels"]) == (2, 1, 2)
  words = (tmp_path / "out" / "labels.txt").read_text().split()
  assert [words[i] for i in data.test.labels.items] == ["tiger"]


@pytest.mark.slow
def test_both_engines_train_the_same_head(tmp_path):
  results = []
  for engine in ("masked", "condensed"):
    config = xmc.get_config("quick")
    config.method.engine = engine
    with devices(1):
      results.append(train(config, tmp_path / engine))
  one, other = (r["score"] for r in results)
  assert one["name"] == "precision_at_1" and one["last"] > 0.2
  assert other["last"] == pytest.approx(one["last"], abs=0.02)


@pytest.mark.slow
def test_quick_trains_on_files(tmp_path):
  random = np.random.default_rng(0)
  for name, number in (("train", 2560), ("test", 100)):
    lines = [f"{number} 35 300"]
    for label in random.integers(0, 300, number):
      lines.append(f"{label} {label % 20}:1 {20 + label // 20}:1")
    (tmp_path / f"{name}.txt").write_text("\n".join(lines) + "\n")
  config = reverse_dictionary.get_config("quick")
  config.data.data_dir = str(tmp_path)
  config.optimizer.learning_rate = 1e-2
  config.train.total_epochs = 10.0
  config.train.eval_every_epochs = 10.0
  results = train(config, tmp_path / "run")
  assert results["engine"] == "condensed" and results["score"]["last"] > 0.1  # chance: 0.003


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs a process's peak of memory")
def test_670091_labels_train_within_one_and_a_half_gigabytes(tmp_path):
  """A whole run: compilation, steps, a topology update, a test and a checkpoint."""
  process = subprocess.Popen(
    [
      *(sys.executable, "-m", "experiments.train", "--config=configs/xmc.py:quick"),
      "--config.data.kwargs.num_labels=670091",
      "--config.model.kwargs.width=512",
      "--config.model.kwargs.num_blocks=8",
      "--config.method.sparsity=0.9375",
      "--config.method.update_every_steps=14",
      "--config.train.total_epochs=0.24",
      f"--workdir={tmp_path}",
    ],
    env=os.environ | {"XLA_FLAGS": "", "NPROC": ""},  # one device, the compiler as it is
  )
  _, status, usage = os.wait4(process.pid, 0)
  assert status == 0 and (tmp_path / "results.json").exists()
  assert usage.ru_maxrss * (1024 if sys.platform == "linux" else 1) < 1.5e9
