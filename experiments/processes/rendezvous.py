"""Waiting until all processes of a run are there, with a message that names those that are not.

JAX aborts the process if one of them does not come, and says neither which nor what to do. So all
report to process 0 on the coordinator's port before it hands the port over to JAX.
"""

import collections
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

_RETRY_SECONDS = 0.2
_ANSWER_SECONDS = 10.0  # that process 0 may need for its answer when its time is up
_LONGEST_LINE = 10_000


class Cluster(NamedTuple):
  """The processes of a run.

  Attributes:
    coordinator: `host:port` at which the others reach process 0.
    num_processes: how many there are.
    process_id: which of them this is, from 0.
  """

  coordinator: str
  num_processes: int
  process_id: int

  @property
  def host(self) -> str:
    """Where process 0 is."""
    return self.coordinator.rpartition(":")[0].strip("[]")

  @property
  def port(self) -> int:
    """The port that process 0 listens on."""
    return int(self.coordinator.rpartition(":")[2])


def wait_for_all(cluster: Cluster, *, timeout_s: float) -> int:
  """Returns when every process of the cluster has called this.

  Returns:
    How many of them are on this host.

  Raises:
    TimeoutError: in every process that is there, if others are not within the time; it names them.
    ValueError: if two processes have the same number, or they are told of different totals.
  """
  deadline = time.monotonic() + timeout_s
  if cluster.process_id == 0:
    return _gather(cluster, deadline, timeout_s)
  return _report_until_answered(cluster, deadline, timeout_s)


def _gather(cluster: Cluster, deadline: float, timeout_s: float) -> int:
  """Waits for the others and tells them how it went."""
  hosts = {0: socket.gethostname()}
  with contextlib.ExitStack() as stack:
    server = stack.enter_context(_listen(cluster.port))
    connections: list[tuple[socket.socket, str]] = []
    problem = ""
    while not problem and len(hosts) < cluster.num_processes:
      server.settimeout(max(0.001, deadline - time.monotonic()))
      try:
        connection = stack.enter_context(server.accept()[0])
      except TimeoutError:
        problem = _missing(cluster, hosts, timeout_s)
        break
      connection.settimeout(max(0.001, min(5.0, deadline - time.monotonic())))
      caller = _receive(connection)
      if not {"process_id", "num_processes", "host"} <= caller.keys():
        continue  # whoever that was
      connections.append((connection, caller["host"]))
      problem = _refusal(cluster, hosts, caller)
      hosts[caller["process_id"]] = caller["host"]
    on_host = collections.Counter(hosts.values())
    for connection, host in connections:
      _send(connection, {"problem": problem, "on_this_host": on_host[host]})
  _raise(problem)
  return on_host[hosts[0]]


def _report_until_answered(cluster: Cluster, deadline: float, timeout_s: float) -> int:
  """Reports to process 0 and waits for its word."""
  error = "no time"
  while time.monotonic() < deadline:
    answer, error = _report(cluster, deadline)
    if "problem" in answer:
      _raise(answer["problem"])
      return int(answer["on_this_host"])
    time.sleep(_RETRY_SECONDS)
  raise TimeoutError(
    f"Process 0 is missing: nothing answered at {cluster.coordinator} within {timeout_s:g} s "
    f"({error}). Start it with the same --num_processes and --process_id=0, check that "
    f"--coordinator is its address and that port {cluster.port} is open between the hosts, or "
    "raise --start_timeout_s."
  )


def _report(cluster: Cluster, deadline: float) -> tuple[dict[str, Any], str]:
  """What process 0 answers, empty if it does not; and why it does not."""
  me = {
    "process_id": cluster.process_id,
    "num_processes": cluster.num_processes,
    "host": socket.gethostname(),
  }
  address = cluster.host, cluster.port
  try:
    with socket.create_connection(address, max(0.001, deadline - time.monotonic())) as connection:
      _send(connection, me)
      connection.settimeout(max(0.001, deadline - time.monotonic()) + _ANSWER_SECONDS)
      return _receive(connection), "it went away without a word"
  except OSError as error:
    return {}, str(error)


def _refusal(cluster: Cluster, hosts: dict[int, str], caller: dict[str, Any]) -> str:
  """What is wrong with a process that has reported; empty if nothing is."""
  number, host = caller["process_id"], caller["host"]
  if caller["num_processes"] != cluster.num_processes:
    return (
      f"value: process {number} on {host} was started with --num_processes="
      f"{caller['num_processes']}, process 0 on {hosts[0]} with {cluster.num_processes}: give all "
      "the same."
    )
  if number in hosts:
    return (
      f"value: two processes were started with --process_id={number}, on {hosts[number]} and on "
      f"{host}: give each a number of its own, 0 to {cluster.num_processes - 1}."
    )
  return ""


def _missing(cluster: Cluster, hosts: dict[int, str], timeout_s: float) -> str:
  absent = [str(i) for i in range(cluster.num_processes) if i not in hosts]
  present = ", ".join(f"{i} on {hosts[i]}" for i in sorted(hosts))
  return (
    f"time: {len(absent)} of {cluster.num_processes} processes did not start within "
    f"{timeout_s:g} s. Missing: {', '.join(absent)}. Here: {present}. Look for the missing ones "
    f"where they should run; they must reach {cluster.coordinator} and be given the same "
    "--num_processes. If they only take long, raise --start_timeout_s."
  )


def _raise(problem: str) -> None:
  """Raises what a problem is; does nothing if there is none."""
  kind, _, text = problem.partition(": ")
  if kind:
    raise TimeoutError(text) if kind == "time" else ValueError(text)


@contextlib.contextmanager
def _listen(port: int) -> Iterator[socket.socket]:
  """A listening socket on all addresses."""
  both = socket.has_dualstack_ipv6()
  address, family = ("::", socket.AF_INET6) if both else ("", socket.AF_INET)
  try:
    server = socket.create_server((address, port), family=family, dualstack_ipv6=both)
  except OSError as error:
    raise OSError(
      f"Process 0 cannot listen on port {port} ({error.strerror}): another run on this host may be "
      "using it. Give another --coordinator to all processes."
    ) from error
  with server:
    yield server


def _send(connection: socket.socket, value: dict[str, Any]) -> None:
  with contextlib.suppress(OSError):  # it has gone; it will be missed later
    connection.sendall(json.dumps(value).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
  """A line of JSON; an empty dict if it was none."""
  with connection.makefile("rb") as lines:
    try:
      value = json.loads(lines.readline(_LONGEST_LINE))
    except (ValueError, TimeoutError):
      return {}
  return value if isinstance(value, dict) else {}
