"""Generates text: `python -m experiments.generate --workdir=DIR --prompt=TEXT`.

The run is one of a language model; `--model=FILE`, which experiments.export wrote, takes a
condensed network instead. The text that it was trained on is read for its tokens: `--data_dir`
says where it is, if it is not where the run's config says.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from flax import nnx

from experiments.common import cli
from experiments.data.text.corpus import Text
from experiments.deploy.exported import load_data, load_exported
from experiments.deploy.generation import generate
from experiments.training.load_run import load_run


def load(workdir: str, path: str, data_dir: str) -> tuple[nnx.Module, Text]:
  """The network of a run or of a file, and the text that it was trained on.

  Raises:
    ValueError: unless one of both is given, and is a language model.
  """
  if bool(workdir) == bool(path):
    raise ValueError("Give either --workdir, of a run, or --model, a file that was exported.")
  if workdir:
    trained = load_run(Path(workdir), data_dir=data_dir)
    config, model, data = trained.run.config, trained.model, trained.run.data
  else:
    exported = load_exported(Path(path))
    config, model = exported.config, exported.model
    data = load_data(exported, data_dir=data_dir)
  if not isinstance(data, Text):
    raise ValueError(
      f"{config.name!r} is a network of {config.task.name}, not of language_modelling."
    )
  return model, data


def main() -> int:
  """The command."""
  options: Any = flags.FLAGS
  model, data = load(options.workdir, options.model, options.data_dir)
  prompt = data.tokenizer.encode(options.prompt)
  since = time.perf_counter()
  tokens = generate(
    model, prompt, options.num_tokens, temperature=options.temperature, seed=options.seed
  )
  seconds = time.perf_counter() - since
  print(data.tokenizer.decode(np.concatenate([prompt, tokens])))
  print(f"\n{len(tokens)} tokens in {seconds:.1f} s, compilation included")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("workdir", "", "Directory of a run.")
  flags.DEFINE_string("model", "", "Instead: a file that experiments.export wrote.")
  flags.DEFINE_string("prompt", "\n", "What the text begins with.")
  flags.DEFINE_integer("num_tokens", 500, "Tokens to generate.", lower_bound=1)
  flags.DEFINE_float("temperature", 0.8, "0: always the likeliest.", lower_bound=0.0)
  flags.DEFINE_integer("seed", 0, "Of the choice of tokens.")
  flags.DEFINE_string("data_dir", "", "Folder of the text, if it is not where the config says.")
  cli.run(main)
