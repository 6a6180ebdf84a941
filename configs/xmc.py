"""Any data set of the Extreme Classification Repository (Amazon-670K and the like).

    python -m experiments.train --config=configs/xmc.py:quick --workdir=runs/xmc
    python -m experiments.train --config=configs/xmc.py --config.data.data_dir=DIR --workdir=runs/a

The folder holds a bag of words with a header (`train.txt`, `test.txt`; other names by
`--config.data.kwargs.train=...`) or raw text (`trn.json.gz`, `tst.json.gz`).
`config.data.kwargs.a` and `b` are the data set's propensities: 0.55 and 1.5 but for Amazon (0.6,
2.6) and Wikipedia (0.5, 0.4).

The network is that of `configs/reverse_dictionary.py`: what follows a colon chooses a method.
`:quick` needs no files: 2,000 made-up labels, seconds.
"""

from ml_collections import ConfigDict

from configs import base, reverse_dictionary


def get_config(argument: str = "srigl") -> ConfigDict:
  """Fan-in 32 of 512; binary cross-entropy, as examples have several labels.

  Args:
    argument: a method of `base.get_config` and "quick", each at most once, joined by hyphens;
      SRigL by default.
  """
  given = base.read_argument(argument, method=base.preset_names(), size=("quick",))
  method = given.get("method", "srigl")
  config = reverse_dictionary.get_config(method)
  config.name = f"extreme classification, {method}"
  config.data.batch_size = 64
  config.data.kwargs.max_features = 256
  config.model.kwargs.loss = "binary"
  config.train.total_epochs = 5.0
  if "size" in given:
    config.name += ", quick"
    config.data.name = "synthetic_labels"
    config.data.kwargs = ConfigDict({"num_labels": 2000, "num_train": 8000, "num_test": 500})
    config.model.kwargs.width = 128
    config.model.kwargs.loss = "softmax"
    config.method.sparsity = 0.75
    config.method.update_every_steps = 50
    config.optimizer.learning_rate = 1e-2
    config.train.total_epochs = 8.0
  return config
