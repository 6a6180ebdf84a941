"""A character model of English: a decoder-only transformer on the text of a dictionary.

GCIDE, the GNU Collaborative International Dictionary of English, is 40 million characters
(apt-get install dict-gcide; elsewhere `--config.data.data_dir=FOLDER`). 10.7 million parameters:
6 blocks of 384, 6 heads, windows of 256 characters, head and embedding tied; 2,000 steps. Attention
projections and MLPs are sparse, 90 % by default, each layer alike.

    python -m experiments.train --config=configs/gpt_gcide.py:quick --workdir=runs/gpt_quick
    python -m experiments.generate --workdir=runs/gpt_quick --prompt=Sparse

What follows a colon chooses a method, `:rigl`, and a size: `:quick` (3 blocks of 96, windows of
96 characters, 1,000 steps: minutes on two cores) or `:rigl-quick`. Any other text:
`--config.data.name=text --config.data.kwargs.path=FILE`; byte pairs, by the package `tokenizers`:
`--config.data.kwargs.tokenizer=byte_pairs`. `--config.method.engine=condensed` needs blocks that
are not stacked: `--config.model.kwargs.scan=False`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "srigl") -> ConfigDict:
  """The network at 90 % sparsity.

  Args:
    argument: a method of `base.get_config` and "quick", each at most once, joined by hyphens;
      SRigL by default.
  """
  given = base.read_argument(argument, method=base.preset_names(), size=("quick",))
  method = given.get("method", "srigl")
  config = base.get_config(method)
  config.name = f"GCIDE, GPT, {method}"
  config.task.name = "language_modelling"
  config.data.name = "gcide"
  config.data.batch_size = 32
  config.data.kwargs = ConfigDict(
    {
      "length": 256,
      "test_chars": 200_000,
      "tokenizer": "characters",
      "vocab_size": 2048,  # of byte pairs
      "path": "",  # of config.data.name "text"
    }
  )
  config.model.name = "gpt"
  config.model.kwargs = ConfigDict(
    {"depth": 6, "width": 384, "num_heads": 6, "mlp_width": 1536, "scan": True}
  )
  config.method.distribution = "uniform"
  config.method.never_ablate = ()
  base.set_gamma_sal(config, 0.3)
  config.optimizer.name = "adamw"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 0.1
  config.optimizer.betas = (0.9, 0.99)
  config.optimizer.clip_norm = 1.0
  config.optimizer.warmup_epochs = 0.02
  config.train.total_epochs = 0.412  # 2,000 steps
  config.train.log_every_steps = 50
  config.train.eval_every_epochs = 0.0412
  config.train.eval_batch_size = 64
  config.train.checkpoint_every_epochs = 0.0412
  if "size" in given:
    config.name += ", quick"
    config.data.batch_size = 24
    config.data.kwargs.length = 96
    config.data.kwargs.test_chars = 50_000
    config.model.kwargs = ConfigDict(
      {"depth": 3, "width": 96, "num_heads": 3, "mlp_width": 384, "scan": True}
    )
    config.method.update_every_steps = 25
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_epochs = 0.003
    config.train.total_epochs = 0.058  # 1,000 steps
    config.train.eval_every_epochs = 0.0145
    config.train.eval_batch_size = 128
    config.train.checkpoint_every_epochs = 0.058
  return config
