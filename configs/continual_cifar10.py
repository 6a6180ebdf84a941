"""Continual learning: CIFAR-10 as five tasks of two classes, or digits under five permutations.

Every task allocates connections by dynamic sparse training and keeps them (docs/continual.md); 80 %
sparsity with all of them by default. A small convolutional network without normalisations, 2
epochs of each task's 10,000 images.

    python -m experiments.train --config=configs/continual_cifar10.py:quick --workdir=runs/continual
    python -m experiments.continual --workdir=runs/continual

What follows a colon chooses a method, `:dense`; `:digits`, the permuted digits with an MLP; and
`:quick`, two thirds of the training: `:continual_rigl-digits-quick`. Other images that are held in
memory: `--config.data.name=NAME`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "continual") -> ConfigDict:
  """Five tasks, at 80 % sparsity in the end.

  Args:
    argument: a method of `base.get_config`, "digits" and "quick", each at most once, joined by
      hyphens; `continual`, by default, is SRigL without ablation in each task.
  """
  given = base.read_argument(
    argument, method=base.preset_names(), data=("digits",), size=("quick",)
  )
  method = given.get("method", "continual")
  config = base.get_config(method)
  config.name = f"CIFAR-10 in five tasks, {method}"
  config.task.name = "continual_classification"
  config.task.kwargs = ConfigDict({"scenario": "task", "joint": False})
  config.data.name = "cifar10"
  config.data.kwargs = ConfigDict({"num_tasks": 5, "split": "classes"})
  config.data.batch_size = 100
  config.model.name = "convnet"
  config.model.kwargs = ConfigDict({"widths": (32, 64, 128), "convs_per_stage": 1, "norm": False})
  config.method.sparsity = 0.8
  config.method.distribution = "uniform"  # the other would keep the ends of it dense
  config.method.never_ablate = ()
  config.method.update_every_steps = 20
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 2e-3
  config.optimizer.weight_decay = 0.0
  config.optimizer.schedule = "constant"
  config.train.total_epochs = 3.0  # of each task: 300 steps
  config.train.log_every_steps = 100
  config.train.eval_every_epochs = 0.6  # at the end of each task
  config.train.checkpoint_every_epochs = 3.0
  if "data" in given:
    config.name = f"five permutations of digits, {method}"
    config.data.name = "digits"
    config.data.kwargs.split = "permutations"
    config.data.batch_size = 64
    config.model.name = "mlp"
    config.model.kwargs = ConfigDict({"hidden": (256, 256)})
    config.train.total_epochs = 20.0  # of each task
    config.train.eval_every_epochs = 4.0
    config.train.checkpoint_every_epochs = 20.0
  if "size" in given:
    config.name += ", quick"
    config.train.total_epochs *= 2 / 3
    config.train.eval_every_epochs *= 2 / 3
  return config
