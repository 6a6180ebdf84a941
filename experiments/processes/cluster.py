"""Joining the other processes of a run, on this host or on others.

Which processes there are is taken from the first of these that says so:

1. the flags `--coordinator=HOST:PORT --num_processes=N --process_id=I`;
2. the environment: `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES`, `JAX_PROCESS_ID`;
3. SLURM, if `srun` has started more than one task;
4. with `--cluster=auto`, what JAX finds out itself (Cloud TPU pods, GKE, Open MPI).

Otherwise the process is alone.
"""

import collections
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import flags

from experiments.processes.rendezvous import Cluster, wait_for_all

_VARIABLES = {
  "coordinator": "JAX_COORDINATOR_ADDRESS",
  "num_processes": "JAX_NUM_PROCESSES",
  "process_id": "JAX_PROCESS_ID",
}


def define_flags() -> None:
  """Defines the flags of a command that may run in several processes."""
  flags.DEFINE_string("coordinator", None, "host:port of process 0, the same in all processes.")
  flags.DEFINE_integer("num_processes", None, "How many processes train together.")
  flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")
  flags.DEFINE_enum("cluster", "", ["", "auto"], "auto: let JAX find the other processes.")
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
  cluster = find_cluster(values, os.environ)
  if cluster is None:
    if values["cluster"] == "auto":
      jax.distributed.initialize(initialization_timeout=int(timeout))
      check_devices(jax.devices())
    return
  wait_for_all(cluster, timeout_s=timeout)
  jax.distributed.initialize(
    cluster.coordinator,
    cluster.num_processes,
    cluster.process_id,
    cluster_detection_method="deactivate",
    initialization_timeout=max(30, int(timeout)),
  )
  check_devices(jax.devices())


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


def find_cluster(values: Mapping[str, Any], environ: Mapping[str, str]) -> Cluster | None:
  """The processes that flags or the environment speak of; None if there is only this one.

  Args:
    values: of the flags, by name.
    environ: the environment.

  Raises:
    ValueError: if something is missing or makes no sense.
  """
  given = {name: values[name] for name in _VARIABLES}
  source = {name: f"--{name}" for name in _VARIABLES}
  if all(value is None for value in given.values()):
    given = {name: environ.get(variable) for name, variable in _VARIABLES.items()}
    source = _VARIABLES
  if all(value is None for value in given.values()):
    return _slurm(environ)
  if absent := [source[name] for name, value in given.items() if value is None]:
    raise ValueError(
      f"{', '.join(source[n] for n in given if given[n] is not None)} given without "
      f"{' and '.join(absent)}: each process needs all three."
    )
  count, number = _integer(given, source, "num_processes"), _integer(given, source, "process_id")
  coordinator = str(given["coordinator"])
  if not re.fullmatch(r".+:\d+", coordinator):
    raise ValueError(f"{source['coordinator']} is {coordinator!r}; it must be host:port.")
  if not 0 <= number < count:
    raise ValueError(
      f"{source['process_id']} is {number} and {source['num_processes']} {count}; processes are "
      "numbered from 0."
    )
  return Cluster(coordinator, count, number)


def _integer(given: Mapping[str, Any], source: Mapping[str, str], name: str) -> int:
  try:
    return int(given[name])
  except ValueError as error:
    raise ValueError(f"{source[name]} is {given[name]!r}; it must be an integer.") from error


def _slurm(environ: Mapping[str, str]) -> Cluster | None:
  """The tasks of a step of SLURM; process 0 is on its first node."""
  count = int(environ.get("SLURM_STEP_NUM_TASKS", 1))
  if count < 2:
    return None
  _check_slurm_gpus(environ)
  # "gpu7", "gpu[003-010,012],login1": the first name, its prefix and its first number.
  match = re.match(r"([^,\[]+)(?:\[(\d+))?", environ["SLURM_STEP_NODELIST"])
  assert match, environ["SLURM_STEP_NODELIST"]
  port = 61440 + int(environ["SLURM_JOB_ID"]) % 4096  # jobs that share a node rarely share it
  host = match[1] + (match[2] or "")
  return Cluster(f"{host}:{port}", count, int(environ["SLURM_PROCID"]))


def _check_slurm_gpus(environ: Mapping[str, str]) -> None:
  """Raises a ValueError if several tasks would take the same GPUs."""
  # "8", "8(x4)", "2,1(x3)"
  tasks = re.findall(r"(?:^|,)(\d+)", environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
  visible = [gpu for gpu in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]
  if not visible or str(len(visible)) != environ.get("SLURM_GPUS_ON_NODE"):
    return
  if (most := max(map(int, tasks), default=1)) > 1:
    raise ValueError(
      f"SLURM has started {most} tasks on a node, and each sees all of its {len(visible)} GPUs. "
      "Start one task on each node (--ntasks-per-node=1), which uses them all, or give each task "
      "its own (--gpus-per-task=1)."
    )
