r"""The reverse dictionary (Hill et al. 2016): a definition in, its word out, among 236,148.

A bag of words, an embedding of 1024, and a head in condensed form with 32 connections for each
word: of a wide embedding few connections are enough (docs/extreme_classification.md).
The data set is built from WordNet and GCIDE (apt-get install wordnet-base dict-gcide):

    python -m experiments.build_reverse_dictionary --out=runs/words --num_words=5000 --num_test=2000
    python -m experiments.train --config=configs/reverse_dictionary.py:quick \
      --config.data.data_dir=runs/words --workdir=runs/reverse

Without `--num_words` all words are there. What follows a colon chooses a method, `:static`, and a
size: `:quick` (3 epochs, of 5,000 words some two minutes on two cores) or `:static-quick`. SRigL
and SET train in condensed form, and with `--config.method.engine=condensed` so does a static
constant fan-in; `dense`, `rigl` and others have dense heads, with masks. An intermediate
layer: `--config.model.kwargs.hidden=1024,`.
"""

from ml_collections import ConfigDict

from configs import base

_CONDENSED = ("srigl", "srigl_no_ablation", "set")


def get_config(argument: str = "srigl") -> ConfigDict:
  """Fan-in 32 of 1024.

  Args:
    argument: a method of `base.get_config` and "quick", each at most once, joined by hyphens;
      SRigL by default.
  """
  given = base.read_argument(argument, method=base.preset_names(), size=("quick",))
  method = given.get("method", "srigl")
  config = base.get_config(method)
  config.name = f"reverse dictionary, {method}"
  config.task.name = "extreme_classification"
  config.data.name = "files"
  config.data.batch_size = 256
  config.data.kwargs = ConfigDict(
    {"train": "train.txt", "test": "test.txt", "max_features": 64, "a": 0.55, "b": 1.5}
  )
  config.model.name = "bag_of_words"
  config.model.kwargs = ConfigDict(
    {"width": 1024, "hidden": (), "num_blocks": 4, "loss": "softmax"}
  )
  if method in _CONDENSED:
    config.method.engine = "condensed"
  config.method.sparsity = 0.96875
  config.method.distribution = "uniform"
  config.method.never_ablate = ("^head/",)
  # About half an epoch, as `quick` has.
  config.method.update_every_steps = 500
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 1e-2
  config.optimizer.weight_decay = 0.0
  config.train.total_epochs = 2.0
  config.train.steps_per_dispatch = 10
  config.train.eval_batch_size = 100
  config.train.eval_every_epochs = 1.0
  if "size" in given:
    config.name += ", quick"
    config.method.update_every_steps = 100
    config.train.total_epochs = 3.0
  return config
