"""Signals as requests to stop."""

import os
import signal
import threading

import pytest

from experiments.processes.signals import watch_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_noted_and_no_more(number):
  before = signal.getsignal(number)
  with watch_signals() as received:
    assert received() == 0
    os.kill(os.getpid(), number)
    assert received() == number
  assert signal.getsignal(number) is before


def test_a_second_signal_acts_as_usual():
  # What runs in a shell's background is born with SIGINT ignored.
  before = signal.signal(signal.SIGINT, signal.default_int_handler)
  try:
    with watch_signals() as received, pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGTERM)
      assert received() == signal.SIGTERM
      os.kill(os.getpid(), signal.SIGINT)
  finally:
    signal.signal(signal.SIGINT, before)


def test_handlers_come_back_after_an_error():
  before = signal.getsignal(signal.SIGINT)
  with pytest.raises(RuntimeError), watch_signals():
    raise RuntimeError
  assert signal.getsignal(signal.SIGINT) is before


def test_outside_of_the_main_thread_there_is_nothing_to_watch():
  found = []

  def watch():
    with watch_signals() as received:
      found.append(received())

  thread = threading.Thread(target=watch)
  thread.start()
  thread.join()
  assert found == [0]
