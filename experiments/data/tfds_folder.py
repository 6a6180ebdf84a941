"""Finding prepared TensorFlow Datasets, and saying how to prepare what is not there.

Reading them needs no TensorFlow as long as they are ArrayRecord files.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

_HOW_TO_GET = """\
Name the folder that holds {name}/ by --config.data.data_dir=DIR or TFDS_DATA_DIR=DIR.
To prepare it, use an environment of its own: preparing needs TensorFlow, reading does not.
{first}  python -m venv tfds-env
  tfds-env/bin/pip install tensorflow tensorflow-datasets array_record importlib_resources
  tfds-env/bin/python -c "import tensorflow_datasets as tfds; tfds.builder('{name}', \
data_dir='DIR', file_format='array_record').download_and_prepare()\""""

ADVICE = "If it is damaged, copy the data set again, or prepare it again."
"""What to do about files that cannot be read."""

# What no program can fetch.
_FIRST = {
  "imagenet2012": """\
Its archives have to be fetched by hand, with an account of https://image-net.org: put
ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar into DIR/downloads/manual/.
"""
}


def data_folder(data_dir: str | None) -> Path:
  """Chooses the folder: the argument, else `TFDS_DATA_DIR`, else `~/tensorflow_datasets`.

  Raises:
    ValueError: if it is an address such as gs://..., which the files cannot be read from.
  """
  folder = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
  if "://" in folder:
    raise ValueError(
      f"The folder of data sets is {folder!r}; it must be a directory that is mounted here. Copy "
      "the data set to a disk (reading it at random from a mounted bucket is slow)."
    )
  return Path(folder).expanduser()


def how_to_get(name: str) -> str:
  """Instructions for a data set, with DIR for the folder."""
  return _HOW_TO_GET.format(name=name, first=_FIRST.get(name, ""))


def find(data_dir: Path, name: str, title: str) -> Path:
  """Finds the newest version of a data set; an unfinished one has another kind of name.

  Args:
    data_dir: the folder of all data sets.
    name: of the data set there.
    title: its name for people.

  Returns:
    The folder of the version.

  Raises:
    FileNotFoundError: if there is none, saying how to get it.
  """
  versions = [
    info.parent
    for info in data_dir.glob(f"{name}/*.*.*/dataset_info.json")
    if re.fullmatch(r"\d+\.\d+\.\d+", info.parent.name)
  ]
  if not versions:
    raise FileNotFoundError(
      f"no {title} in {data_dir}: there is no {name}/VERSION/dataset_info.json.\n{how_to_get(name)}"
    )
  return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])


@contextlib.contextmanager
def naming(files: str, advice: str) -> Iterator[None]:
  """Turns whatever a reader raises inside into a ValueError that names the files.

  Readers have errors of many kinds, and most of them do not say which file they are about.

  Args:
    files: in a few words, at the beginning of the sentence.
    advice: what to do about it, a sentence.

  Raises:
    ValueError: if anything is raised but a ValueError that names them already, or a MemoryError.
  """
  try:
    yield
  except MemoryError:
    raise
  except Exception as error:
    if isinstance(error, ValueError) and str(error).startswith(files):
      raise
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    raise ValueError(f"{files} cannot be read: {reason}. {advice}") from error


def files_of(folder: Path, split: str) -> str:
  """The files of a split, for messages."""
  names = sorted(path.name for path in folder.glob(f"*-{split}.*"))
  shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
  return f"The split {split!r} in {folder} ({shown or 'which has no file there'})"


def open_splits(folder: Path, name: str, splits: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
  """Opens splits for random access.

  Args:
    folder: from `find`.
    name: of the data set, for the message.
    splits: the decoders of each split by its name, None for the usual ones.

  Returns:
    The builder, and a data source of each split. They can be pickled.

  Raises:
    ValueError: if the files are not ArrayRecord, which alone can be read without TensorFlow, or are
      damaged.
  """
  # Imported here: it takes most of a second, which not every run has to pay.
  import tensorflow_datasets as tfds

  with naming(f"What describes {folder} (dataset_info.json, features.json)", ADVICE):
    builder = tfds.builder_from_directory(folder)
  sources = {}
  for split, decoders in splits.items():
    with naming(files_of(folder, split), ADVICE):
      try:
        sources[split] = builder.as_data_source(split, decoders=decoders)
        len(sources[split])  # opens the files
      except NotImplementedError:
        break
  else:
    return builder, sources
  raise ValueError(
    f"{folder} is in a format that only TensorFlow reads; it has to be array_record.\n"
    f"{how_to_get(name)}"
  )
