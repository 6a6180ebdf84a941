"""Arrays that are slow to compute, kept in a file.

A cache is a convenience: where it cannot be read or written, a warning says so and the arrays are
computed.
"""

import hashlib
import os
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

Arrays = dict[str, np.ndarray]


def default_cache_dir() -> Path:
  """Returns `$XDG_CACHE_HOME/srigl_jax`, or `~/.cache/srigl_jax`."""
  return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "srigl_jax"


def fingerprint(paths: Iterable[Path]) -> str:
  """Digests names, sizes and modification times of files; their content is not read."""
  digest = hashlib.sha256()
  for path in sorted(paths):
    stat = path.stat()
    digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
  return digest.hexdigest()[:16]


def cached(path: Path, compute_fn: Callable[[], Arrays]) -> Arrays:
  """Reads arrays from a file, or computes them and writes it.

  Args:
    path: the file, an uncompressed `.npz`; "~" stands for the home directory. Its name must change
      with whatever `compute_fn` depends on.
    compute_fn: computes the arrays by name.
  """
  try:
    path = path.expanduser()
    # The zip container has a checksum of each array: a damaged file is found out here.
    with np.load(path, allow_pickle=False) as file:
      return dict(file)
  except (FileNotFoundError, NotADirectoryError):
    pass
  except (OSError, RuntimeError, ValueError, EOFError, zipfile.BadZipFile) as error:
    warnings.warn(f"cannot read the cache {path}: {error}. Reading the source.", stacklevel=2)
  arrays = compute_fn()
  try:
    _write(path, arrays)
  except OSError as error:
    warnings.warn(f"cannot write the cache {path}: {error}. Going on.", stacklevel=2)
  return arrays


def _write(path: Path, arrays: Arrays) -> None:
  """Writes a file beside the final one and renames it, so that no reader sees half of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".part")
  try:
    with os.fdopen(descriptor, "wb") as file:
      np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(name, path)
  except BaseException:
    os.unlink(name)
    raise
