"""The roll call of the processes of a run, each played by a thread."""

import contextlib
import socket
import threading
import time

from experiments.processes.rendezvous import Cluster, wait_for_all


def free_port():
  with contextlib.closing(socket.socket()) as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


def play(numbers, total, *, timeout_s=20.0, coordinator=None, totals=None):
  """What each of these processes raises; None for those that go on."""
  coordinator = coordinator or f"127.0.0.1:{free_port()}"
  outcomes = [None] * len(numbers)

  def run(i):
    cluster = Cluster(coordinator, (totals or {}).get(numbers[i], total), numbers[i])
    try:
      wait_for_all(cluster, timeout_s=timeout_s)
    except Exception as error:
      outcomes[i] = error

  threads = [threading.Thread(target=run, args=(i,)) for i in range(len(numbers))]
  for thread in threads:
    thread.start()
    time.sleep(0.01)
  for thread in threads:
    thread.join(60)
  return outcomes


def test_all_are_there():
  assert play([0], 1) == [None]
  assert play([2, 1, 0, 3], 4) == [None] * 4  # those that come before process 0 wait for it


def test_everyone_that_is_there_hears_who_is_missing():
  outcomes = play([0, 2], 4, timeout_s=1.0)
  host = socket.gethostname()
  for error in outcomes:
    assert isinstance(error, TimeoutError)
    assert "2 of 4 processes did not start within 1 s. Missing: 1, 3." in str(error)
    assert f"Here: 0 on {host}, 2 on {host}." in str(error)
    assert "--start_timeout_s" in str(error)


def test_without_process_0():
  (error,) = play([1], 2, timeout_s=0.5)
  assert isinstance(error, TimeoutError)
  assert "Process 0 is missing: nothing answered at 127.0.0.1:" in str(error)
  assert "refused" in str(error)


def test_two_of_one_number():
  outcomes = play([0, 1, 1], 3, timeout_s=10.0)
  assert all(isinstance(error, ValueError) for error in outcomes)
  assert all("two processes were started with --process_id=1" in str(e) for e in outcomes)


def test_different_totals():
  outcomes = play([0, 1], 2, totals={1: 3})
  assert all("--num_processes=3" in str(error) and "with 2" in str(error) for error in outcomes)


def test_strangers_do_not_count():
  """A port scanner, say."""
  port = free_port()
  coordinator = f"127.0.0.1:{port}"
  first = threading.Thread(
    target=wait_for_all, args=(Cluster(coordinator, 2, 0),), kwargs={"timeout_s": 20.0}
  )
  first.start()
  for line in (b"GET / HTTP/1.1\r\n", b"[]\n", b"{}\n", b""):
    with _connected(port) as stranger:
      stranger.sendall(line)
  assert first.is_alive()
  assert play([1], 2, coordinator=coordinator) == [None]
  first.join(60)
  assert not first.is_alive()


def _connected(port):
  """A connection to a server that is about to start."""
  for _ in range(1000):
    with contextlib.suppress(OSError):
      return socket.create_connection(("127.0.0.1", port), 1)
    time.sleep(0.01)
  raise AssertionError("it does not listen")


def test_a_port_in_use():
  with contextlib.closing(socket.create_server(("", 0))) as other:
    port = other.getsockname()[1]
    (error,) = play([0], 2, coordinator=f"127.0.0.1:{port}")
  assert f"cannot listen on port {port}" in str(error)
