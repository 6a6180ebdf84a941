"""ImageNet, ResNet-50: the paper's table (arXiv:2305.02299).

Published, not measured here: top-1 accuracy in percent, one seed, from the authors' notebooks
(dense 76.74):

| sparsity | RigL 1x | SRigL w/o ablation 1x | SRigL 1x | SRigL 2x | SRigL 5x |
|---|---|---|---|---|---|
| 80 | 74.98 | 74.83 | 75.01 | 76.53 | – |
| 90 | 72.81 | 72.65 | 72.71 | 74.76 | 76.26 |
| 95 | 69.66 | 68.83 | 69.18 | 71.52 | 73.68 |
| 99 | 51.47 | 48.74 | 51.55 | 55.34 | 59.06 |

`python -m experiments.train --config=configs/imagenet_resnet50.py --workdir=runs/resnet50`. What
follows a colon chooses a method and a length, `--config=configs/imagenet_resnet50.py:srigl-5x` or
`:rigl-2x`, and `:smoke` (or `:rigl-smoke`) is a few steps that need neither an accelerator nor more
than some hundred images. Another sparsity by `--config.method.sparsity=0.95`.

Expected on 8 GPUs: 2, 4 and 9 hours for 1x, 2x and 5x, if input keeps up. That is 131, 262 and 655
million images at 2,500 images/s on each GPU, about what an A100 trains a dense ResNet-50 at in
mixed precision (not measured here; a masked network costs the same). 20,000 images/s want 45
processes of input on as many cores (docs/scaling.md); with the 16 that are the default count with
5, 10 and 25 hours, or raise `--config.data.kwargs.num_workers`. In FLOPs, three forward passes of
8.19e9 each: 3.2e18 for 1x. 64 images of a batch lie on each GPU at a time, 128 in 5x; a smaller
`--config.data.batch_size` with more `--config.optimizer.accumulation_steps` takes less memory, as
does `--config.model.kwargs.remat`.

The authors' 1x batch is an eighth of RigL's 4096, so ΔT and the gradients averaged are eightfold;
5x has RigL's. There is no config of theirs for 2x: milestones are from a comment, the rest is 1x.
"""

from ml_collections import ConfigDict

from configs import base

LENGTHS = {
  "1x": {
    "data": {"batch_size": 512},
    "method": {"update_every_steps": 800, "grad_accumulation_steps": 8},
    "optimizer": {
      "learning_rate": 0.2,
      "warmup_epochs": 5.0,
      "milestones_epochs": (30, 70, 90),
    },
    "train": {"total_epochs": 256_000 / 2_502},  # steps over the full batches of an epoch
  },
  "2x": {
    "data": {"batch_size": 512},
    "method": {"update_every_steps": 800, "grad_accumulation_steps": 8},
    "optimizer": {
      "learning_rate": 0.2,
      "warmup_epochs": 10.0,
      "milestones_epochs": (60, 140, 180),
    },
    "train": {"total_epochs": 512_000 / 2_502},
  },
  "5x": {
    "data": {"batch_size": 1024},
    "method": {"update_every_steps": 100, "grad_accumulation_steps": 4},
    "optimizer": {
      "learning_rate": 1.6,
      "accumulation_steps": 4,  # to a batch of 4096
      "warmup_epochs": 25.0,
      "milestones_epochs": (150, 350, 450),
    },
    "train": {"total_epochs": 640_000 / 1_251},
  },
}
"""What differs between the lengths of training, by section."""


def get_config(argument: str = "srigl") -> ConfigDict:
  """The paper's hyper-parameters.

  Args:
    argument: a method of `base.get_config`, a length of `LENGTHS` and "smoke", each at most once,
      joined by hyphens; SRigL and 1x by default.
  """
  given = base.read_argument(argument, method=base.preset_names(), length=LENGTHS, size=("smoke",))
  method, length = given.get("method", "srigl"), given.get("length", "1x")
  config = base.get_config(method)
  config.name = f"ImageNet, ResNet-50, {method}, {length}"
  config.data.name = "imagenet2012"
  config.data.kwargs = ConfigDict({"image_size": 224, "num_workers": 16})
  config.model.name = "resnet50"
  config.model.dtype = "bfloat16"
  config.model.kwargs = ConfigDict({"remat": False})
  config.method.sparse_init = "srigl_reference"
  config.optimizer.weight_decay = 1e-4
  config.optimizer.schedule = "step"
  config.optimizer.decay_factor = 0.1
  config.optimizer.once_per_epoch = True
  config.optimizer.warmup_init = 1e-6
  config.train.label_smoothing = 0.1
  config.train.log_every_steps = 100
  for section, values in LENGTHS[length].items():
    config[section].update(values)
  if length == "5x":
    base.set_gamma_sal(config, 0.005)
  return smoke(config) if "size" in given else config


def smoke(config: ConfigDict) -> ConfigDict:
  """Shrinks an ImageNet config to 12 optimizer steps on a CPU, with topology updates at 4 and 8.

  Small images and batches of 16, no warm-up, a checkpoint after every 6 optimizer steps. The number
  of steps holds for a sample of 800 training images; of the whole data set it would be more.
  """
  optimizer, full_batch = config.optimizer, config.data.batch_size
  full_batch *= optimizer.accumulation_steps
  optimizer.accumulation_steps = min(2, optimizer.accumulation_steps)
  config.name = f"{config.name}, smoke"
  config.data.batch_size = 16
  config.data.kwargs.image_size = 64
  config.data.kwargs.num_workers = 2
  config.model.dtype = "float32"
  config.method.update_every_steps = 4
  config.method.grad_accumulation_steps = 2
  optimizer.learning_rate *= 16 * optimizer.accumulation_steps / full_batch
  optimizer.warmup_epochs = 0.0
  steps = 12 * optimizer.accumulation_steps
  config.train.total_epochs = steps / 50
  config.train.log_every_steps = 2 * optimizer.accumulation_steps
  config.train.eval_every_epochs = config.train.total_epochs
  config.train.eval_batch_size = 64
  config.train.checkpoint_every_epochs = config.train.total_epochs / 2
  return config
