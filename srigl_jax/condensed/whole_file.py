"""Files that are complete under their names, or not there."""

import os
import tempfile
from pathlib import Path


def write_whole(path: Path, data: bytes) -> None:
  """Writes a file beside its place and renames it there: what was there stays until then.

  Args:
    path: the file; its folder exists. A link of this name is replaced, not followed.
    data: what it shall hold.

  Raises:
    OSError: if it cannot be written.
  """
  handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
  try:
    with os.fdopen(handle, "wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(beside, 0o666 & ~mask)  # mkstemp's own are private
    os.replace(beside, path)
  except BaseException:
    os.unlink(beside)
    raise
