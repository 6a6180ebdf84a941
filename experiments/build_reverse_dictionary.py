"""Builds the reverse dictionary: `python -m experiments.build_reverse_dictionary --out=FOLDER`.

From WordNet and GCIDE (apt-get install wordnet-base dict-gcide), as files in the format of the
Extreme Classification Repository, for `configs/reverse_dictionary.py`. The split is a function of
`--seed` and of the two dictionaries.
"""

from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import cli
from experiments.data.text.dictd import read_dictd
from experiments.data.xmc.reverse_dictionary import (
  most_defined,
  read_gcide,
  read_wordnet,
  split,
  write_xmc,
)


def main() -> int:
  """The command."""
  options: Any = flags.FLAGS
  out = Path(options.out)
  if (out / "train.txt").exists() and not options.overwrite:
    raise ValueError(f"{out} holds a data set: give another --out, or --overwrite to replace it.")
  wordnet = read_wordnet(options.wordnet or None)
  gcide = read_gcide(read_dictd("gcide", options.gcide or None))
  if options.num_words:
    wordnet, gcide = most_defined(wordnet, gcide, options.num_words)
  made = split(wordnet, gcide, num_test=options.num_test, seed=options.seed)
  sizes = write_xmc(made, out)
  print(
    f"{len(gcide):,} definitions of GCIDE, {len(wordnet):,} glosses of WordNet\n"
    + ", ".join(f"{size:,} {name}" for name, size in sizes.items())
    + f"\nin {out}"
  )
  return 0


if __name__ == "__main__":
  flags.DEFINE_string("out", None, "Folder to write.", required=True)
  flags.DEFINE_string("wordnet", "", "Folder of data.noun and so on, if not /usr/share/wordnet.")
  flags.DEFINE_string("gcide", "", "Folder of gcide.dict.dz, if not /usr/share/dictd.")
  flags.DEFINE_integer(
    "num_words", 0, "Keep the words with the most definitions; 0: all.", lower_bound=0
  )
  flags.DEFINE_integer("num_test", 5000, "Glosses to hold out.", lower_bound=1)
  flags.DEFINE_integer("seed", 0, "Of the split.", lower_bound=0)
  flags.DEFINE_bool("overwrite", False, "Replace what is in the folder.")
  cli.run(main)
