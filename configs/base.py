"""Every field of a run with its default; a config calls `get_config` and changes what differs.

Fields with a unit end in it. `train.total_epochs` and the like are turned into steps when the data
set is known.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict, config_dict

from experiments.training.method_plan import preset, preset_names

__all__ = ["get_config", "preset_names", "read_argument", "set_gamma_sal"]


def read_argument(argument: str, **kinds: Iterable[str]) -> dict[str, str]:
  """What a config's argument chooses, `--config=configs/NAME.py:WORD-WORD`.

  Args:
    argument: words joined by hyphens, in any order.
    **kinds: the words there are, by what they choose.

  Returns:
    The words that were given, by what they choose.

  Raises:
    ValueError: if a word is unknown, or two of them choose the same thing.
  """
  chosen: dict[str, str] = {}
  for word in argument.split("-"):
    kind = next((kind for kind, words in kinds.items() if word in words), None)
    if kind is None:
      listed = "; ".join(", ".join(words) for words in kinds.values())
      raise ValueError(f"There is no {' or '.join(kinds)} {word!r} here: give one of {listed}.")
    if kind in chosen:
      raise ValueError(f"{argument!r} chooses two {kind}s, {chosen[kind]} and {word}: drop one.")
    chosen[kind] = word
  return chosen


def set_gamma_sal(config: ConfigDict, gamma_sal: float) -> None:
  """Sets γ_sal if the method is SRigL with ablation; others have none, or 0 on purpose."""
  if config.method.name == "srigl" and config.method.kwargs.gamma_sal:
    config.method.kwargs.gamma_sal = gamma_sal


def get_config(method: str = "srigl") -> ConfigDict:
  """90 % sparsity on the built-in handwritten digits with an MLP.

  Args:
    method: what `--config=configs/NAME.py:METHOD` chooses: a key of
      `experiments.training.methods.METHODS` or of its `PRESETS`.

  Raises:
    ValueError: if there is no such method.
  """
  return ConfigDict(
    {
      "name": "base",  # for people: title of the report
      "seed": 0,  # of weights, masks, batch order and augmentation
      "task": {
        "name": "image_classification",  # a key of experiments.tasks.TASKS; docs/add/task.md
        "kwargs": {},  # further arguments of the task
      },
      "data": {
        "name": "digits",  # a data set of the task; of images: a key of experiments.data.DATASETS
        "data_dir": "",  # TFDS folder; empty: $TFDS_DATA_DIR, else ~/tensorflow_datasets
        "batch_size": 128,  # of all devices together
        "validation_fraction": 0.0,  # of the training images: tested on in place of the test images
        "kwargs": {},  # further arguments of the loader
      },
      "model": {
        "name": "mlp",  # a network of the task; of images: a key of experiments.models.MODELS
        "dtype": "float32",  # of the computation: float32 or bfloat16 (weights stay float32)
        "kwargs": {},  # further arguments of the constructor
        "init_from": "",  # work directory of a run whose last weights to start from; empty: random
      },
      "method": {
        "name": "srigl",  # a key of experiments.training.methods.METHODS; docs/methods.md
        "engine": "masked",  # or condensed (srigl, set, static): values and indices, never a mask
        "track_explored": False,  # condensed: keep a bit for each weight, for the ITOP rate
        "sparsity": 0.9,  # of all layers together; nm_srigl and sr_ste go by kwargs n and m
        "relative_flops": config_dict.placeholder(float),  # of dense ones, in place of sparsity
        "distribution": "erk",  # erk or uniform
        "dense": (),  # layers kept dense: presets or regular expressions, srigl_jax.layer_filters
        "never_ablate": ("head",),  # the same, of layers that keep all neurons
        "update_every_steps": 100,  # ΔT
        "update_until_fraction": 0.75,  # T_end as a fraction of all steps
        "drop_fraction": 0.3,  # initial, cosine to 0
        "grad_accumulation_steps": 1,  # gradients that a growth score averages
        "sparse_init": "he_normal",  # a scheme of init_sparse_weights; empty: the model's, masked
        **preset(method),  # with its kwargs: further arguments of the method's function
      },
      "optimizer": {
        "name": "sgd",  # sgd, adam, adamw, rmsprop or lion
        "learning_rate": 0.1,
        "momentum": 0.9,  # sgd and rmsprop
        "nesterov": True,  # sgd
        "betas": (0.9, 0.999),  # adam and adamw
        "rms_decay": 0.9,  # rmsprop: of the average square
        "rms_eps": 0.0316,  # rmsprop: added to its root
        "weight_decay": 5e-4,  # L2 in the gradient; decoupled for adamw and lion
        "clip_norm": 0.0,  # of the masked gradients; 0: no clipping
        "accumulation_steps": 1,  # batches whose gradients make one optimizer step
        "schedule": "cosine",  # constant, cosine or step
        "once_per_epoch": False,  # the rate changes only between epochs, as the authors' does
        "warmup_epochs": 0.0,
        "warmup_init": 0.0,  # the rate that the warm-up starts at
        "cosine_epochs": 0.0,  # cosine: until it is 0; 0: to the end of the run
        "decay_epochs": 77.0,  # step: how often to decay
        "milestones_epochs": (),  # step: when to decay instead, from the start of the run
        "decay_factor": 0.2,  # step: by how much
      },
      "train": {
        "total_epochs": 10.0,
        "label_smoothing": 0.0,
        "sync_batch_norm": False,  # batch statistics over all devices instead of each one's share
        "steps_per_dispatch": 0,  # steps in one call of the device; 0: what suits it
        "log_every_steps": 50,
        "eval_every_epochs": 1.0,
        "eval_batch_size": 1000,
        "checkpoint_every_epochs": 1.0,
        "keep_checkpoints": 2,  # the latest, besides the best
        "wandb_project": "",  # of Weights & Biases, if it is installed; empty: none
      },
    }
  )
