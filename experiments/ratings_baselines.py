"""What popularity and EASE make of a file of ratings: bars for `configs/movielens.py`.

    python -m experiments.ratings_baselines --data_dir=runs/movielens

Ranked are all items that a user has not seen, as the config's task does. EASE's l2 is chosen on the
validation items.
"""

from pathlib import Path
from typing import Any

from absl import flags

from experiments.common import cli
from experiments.common.environment import command_line, environment
from experiments.common.files import write_json
from experiments.common.markdown import markdown_table
from experiments.data.ratings.baselines import ease, hit_rate, ndcg, popularity, ranks
from experiments.data.ratings.dataset import Interactions, load


def main() -> int:
  """The command."""
  options: Any = flags.FLAGS
  read = lambda held_out: load(
    "ratings",
    data_dir=options.data_dir or None,
    path=options.path,
    min_rating=options.min_rating,
    held_out=held_out,
  )
  validation, test = read("validation"), read("test")
  values = [float(l2) if l2.replace(".", "", 1).isdigit() else 0 for l2 in options.l2]
  if not values or min(values) <= 0:
    raise ValueError(f"--l2 is {','.join(options.l2)!r}; give numbers above 0, such as 100,500.")
  choices = {l2: ndcg(ranks(validation, ease(validation, l2=l2))) for l2 in values}
  best = max(choices, key=lambda l2: choices[l2])
  rows = [
    _row("popularity", test, popularity(test)),
    _row(f"EASE, l2 = {best:g}", test, ease(test, l2=best)),
  ]
  header = ["recommender", "NDCG@10 (%)", "HR@10 (%)"]
  shown = [[name, f"{100 * gain:.2f}", f"{100 * hits:.2f}"] for name, gain, hits in rows]
  table = markdown_table(header, shown, align="lrr")
  print(
    f"{test.num_train:,} users, {test.num_items:,} items, {len(test.seen.items):,} ratings to "
    f"learn from, {test.num_test:,} items to find\n{table}"
  )
  if options.out:
    write_json(
      Path(options.out),
      {
        "command": command_line("experiments.ratings_baselines"),
        "environment": environment(),
        "table": table,
        "validation_ndcg_by_l2": choices,
        "rows": [{"name": name, "ndcg_at_10": gain, "hr_at_10": hits} for name, gain, hits in rows],
      },
    )
  return 0


def _row(name: str, data: Interactions, scores: Any) -> tuple[str, float, float]:
  found = ranks(data, scores)
  return name, ndcg(found), hit_rate(found)


if __name__ == "__main__":
  flags.DEFINE_string("data_dir", "", "Folder of the file of ratings.")
  flags.DEFINE_string("path", "ratings.tsv", "Its name.")
  flags.DEFINE_float("min_rating", 0.0, "Ratings below are as if they were not there.")
  flags.DEFINE_list("l2", ["50", "100", "200", "500", "1000"], "To choose from for EASE.")
  flags.DEFINE_string("out", "", "JSON file of the results.")
  cli.run(main)
