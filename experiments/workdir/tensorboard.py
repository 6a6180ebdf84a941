"""Numbers for TensorBoard, in its format and written as they come.

The writers of TensorBoard's libraries hand events to a thread by a short queue. Once the file
system has failed that thread, whoever adds to the queue waits for ever.
"""

import os
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.summary import scalar

from experiments.common.files import Appender


class TensorBoardWriter:
  """An event file of its own for each session of a run."""

  def __init__(self, directory: Path, *, step: int):
    """Opens a file for a run that goes on from `step`."""
    # The time alone would not tell apart what is started twice in a second.
    name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.{step}"
    self._file = Appender(directory / name)
    self._write(Event(file_version="brain.Event:2"))
    if step:  # TensorBoard forgets what an interrupted run wrote after it
      self._write(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))

  def show(self, values: Mapping[str, float | None], step: int) -> None:
    """Shows numbers by name; None is passed over."""
    known = {name: value for name, value in values.items() if value is not None}
    found = [part for name, value in known.items() for part in scalar(name, value).value]
    self._write(Event(step=step, summary=Summary(value=found)))

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _write(self, event: Event) -> None:
    """Appends an event: its length, itself, and a checksum of each."""
    event.wall_time = time.time()
    content = event.SerializeToString()
    length = struct.pack("<Q", len(content))
    checksums = (struct.pack("<I", masked_crc32c(part)) for part in (length, content))
    self._file.write(length + next(checksums) + content + next(checksums))
