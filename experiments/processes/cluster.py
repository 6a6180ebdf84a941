"""Joining the other processes of a run, on this host or on others.

The flags `--coordinator=HOST:PORT --num_processes=N --process_id=I` say which there are, or the
environment: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`. Else JAX finds them,
as `jax.distributed.initialize` does: SLURM, Open MPI, Cloud TPU, Kubernetes, and mpi4py if asked by
name. If there are none, the process is alone.
"""

import collections
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import flags
from jax._src.clusters import ClusterEnv  # no public name gives away what JAX has found

from experiments.processes.rendezvous import Cluster, wait_for_all

flags.disclaim_key_flags()  # those defined here are the command's: its --help lists them
_EXPLICIT = ("coordinator", "num_processes", "process_id")


class Found(NamedTuple):
  """The processes of a run, and which devices this one is to use.

  Attributes:
    cluster: the processes.
    device_ids: of those of this host, should it have several processes; None for all.
  """

  cluster: Cluster
  device_ids: Sequence[int] | None


def define_flags() -> None:
  """Defines the flags of a command that may run in several processes."""
  default = os.environ.get
  flags.DEFINE_string(
    "coordinator",
    default("JAX_COORDINATOR_ADDRESS"),
    "host:port of process 0, the same in all processes.",
  )
  flags.DEFINE_integer("num_processes", default("JAX_NUM_PROCESSES"), "How many train together.")
  flags.DEFINE_integer("process_id", default("JAX_PROCESS_ID"), "Which of them this is, from 0.")
  flags.DEFINE_string(
    "cluster",
    "auto",
    "How to find the others without these: auto, none, or a method of jax.distributed by name.",
  )
  flags.DEFINE_float("start_timeout_s", 300.0, "How long to wait for the others to start.")
  flags.DEFINE_integer("processes", 0, "Start so many processes on this machine, on loopback.")
  flags.DEFINE_integer("devices_per_process", 0, "With --processes: virtual CPU devices of each.")


def is_process_0() -> bool:
  """Whether this is process 0, which alone writes records and reports."""
  return jax.process_index() == 0


def join(values: Mapping[str, Any]) -> None:
  """Joins the other processes if there are any; to be called before JAX is used.

  Args:
    values: of the flags, by name.

  Raises:
    ValueError: if what is said about the processes does not make sense, or they cannot share a
      batch evenly.
    TimeoutError: if some do not start in time; it names them.
  """
  timeout = values["start_timeout_s"]
  # It would catch SIGTERM in our place, and forget one that comes before training starts.
  jax.config.update("jax_enable_preemption_service", False)
  found = find_cluster(values)
  if found is None:
    return
  on_this_host = wait_for_all(found.cluster, timeout_s=timeout)
  # A process alone on its host uses all devices; so does one that sees a single GPU anyway.
  one_visible = re.fullmatch(r"[^,]+", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
  jax.distributed.initialize(
    *found.cluster,
    local_device_ids=None if on_this_host == 1 or one_visible else found.device_ids,
    cluster_detection_method="deactivate",
    initialization_timeout=max(30, int(timeout)),
  )
  check_devices(jax.devices())


def find_cluster(values: Mapping[str, Any]) -> Found | None:
  """The processes that flags or the environment speak of; None if there is only this one.

  Args:
    values: of the flags, by name.

  Raises:
    ValueError: if something is missing or makes no sense.
  """
  device_ids = None
  coordinator, count, number = explicit = [values[name] for name in _EXPLICIT]
  if explicit == [None] * 3 and values["cluster"] != "none":
    method = None if values["cluster"] == "auto" else values["cluster"]
    coordinator, count, number, device_ids = ClusterEnv.auto_detect_unset_distributed_params(
      None, None, None, None, method, int(values["start_timeout_s"])
    )
    if method and count is None:
      raise ValueError(
        f"--cluster is {method!r}, which JAX does not find here: give auto, none, or one of "
        f"{', '.join(sorted(env.name for env in ClusterEnv._cluster_types if env.name))}."
      )
  elif None in explicit and any(value is not None for value in explicit):
    absent = [f"--{name}" for name, value in zip(_EXPLICIT, explicit, strict=True) if value is None]
    raise ValueError(
      f"Of --coordinator, --num_processes and --process_id {' and '.join(absent)} "
      f"{'is' if len(absent) == 1 else 'are'} not given: each process needs all three."
    )
  if count is None or (count == 1 and number == 0):
    return None
  if not re.fullmatch(r".+:\d+", coordinator):
    raise ValueError(f"--coordinator is {coordinator!r}; it must be host:port.")
  if not 0 <= number < count:
    raise ValueError(
      f"--process_id is {number} and --num_processes {count}; processes are numbered from 0."
    )
  return Found(Cluster(coordinator, count, number), device_ids)


def check_devices(devices: Sequence[jax.Device]) -> None:
  """Raises a ValueError if processes have different numbers of all these devices.

  Each gets as much of a batch as the others, which its devices share.
  """
  counts = collections.Counter(device.process_index for device in devices)
  if len(set(counts.values())) > 1:
    listed = ", ".join(f"process {i} has {counts[i]}" for i in sorted(counts))
    raise ValueError(
      f"All processes need the same number of devices, but {listed}. One may have failed, or be "
      "hidden by CUDA_VISIBLE_DEVICES; leave out that host, or let the others use fewer."
    )
