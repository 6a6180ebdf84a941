"""Which processes there are: from flags, the environment, SLURM."""

import types

import pytest

from experiments.processes.cluster import check_devices, find_cluster
from experiments.processes.rendezvous import Cluster

NOTHING = {"coordinator": None, "num_processes": None, "process_id": None}
FLAGS = {"coordinator": "a:1", "num_processes": 3, "process_id": 2}
ENVIRONMENT = {
  "JAX_COORDINATOR_ADDRESS": "b:2",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "0",
}
SLURM = {
  "SLURM_JOB_ID": "4100",
  "SLURM_STEP_NUM_TASKS": "2",
  "SLURM_PROCID": "1",
  "SLURM_STEP_NODELIST": "gpu[003-010,012],login1",
}


def test_the_first_that_says_so_counts():
  assert find_cluster(NOTHING, {}) is None
  assert find_cluster(NOTHING, SLURM) == Cluster("gpu003:61444", 2, 1)
  assert find_cluster(NOTHING, SLURM | ENVIRONMENT) == Cluster("b:2", 4, 0)
  assert find_cluster(FLAGS, SLURM | ENVIRONMENT) == Cluster("a:1", 3, 2)


@pytest.mark.parametrize(
  "nodes, first",
  [("gpu7", "gpu7"), ("a,b", "a"), ("n[1,3]", "n1"), ("rack2-n[007-9]", "rack2-n007")],
)
def test_the_first_node_of_a_slurm_step(nodes, first):
  cluster = find_cluster(NOTHING, SLURM | {"SLURM_STEP_NODELIST": nodes})
  assert cluster.host == first


GPUS = {"SLURM_GPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}


@pytest.mark.parametrize("tasks", ["8", "8(x2)", "1,2(x3)"])
def test_slurm_tasks_that_would_share_their_gpus_are_refused(tasks):
  environ = SLURM | GPUS | {"SLURM_STEP_TASKS_PER_NODE": tasks}
  with pytest.raises(ValueError, match=r"all of its 8 GPUs.*--ntasks-per-node=1.*--gpus-per-task"):
    find_cluster(NOTHING, environ)


@pytest.mark.parametrize(
  "environ",
  [
    {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"} | GPUS,
    {"SLURM_STEP_TASKS_PER_NODE": "2"} | GPUS | {"CUDA_VISIBLE_DEVICES": "4,5,6,7"},
    {"SLURM_STEP_TASKS_PER_NODE": "2"},  # without GPUs
    GPUS,
  ],
)
def test_slurm_tasks_with_gpus_of_their_own(environ):
  assert find_cluster(NOTHING, SLURM | environ).num_processes == 2


def test_processes_need_the_same_number_of_devices():
  device = lambda process: types.SimpleNamespace(process_index=process)
  check_devices([device(i) for i in (0, 0, 1, 1)])
  check_devices([device(0)])
  with pytest.raises(ValueError, match=r"process 0 has 2, process 1 has 1\. One may have failed"):
    check_devices([device(i) for i in (0, 1, 0)])


def test_one_slurm_task_is_alone():
  assert find_cluster(NOTHING, SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) is None


def test_addresses():
  assert Cluster("[::1]:80", 1, 0)[:1] == ("[::1]:80",)
  assert (Cluster("[::1]:80", 1, 0).host, Cluster("[::1]:80", 1, 0).port) == ("::1", 80)


@pytest.mark.parametrize(
  "flags, environ, message",
  [
    (
      NOTHING | {"coordinator": "a:1"},
      {},
      "--coordinator given without --num_processes and --process_id",
    ),
    (NOTHING, {"JAX_PROCESS_ID": "1"}, "JAX_PROCESS_ID given without JAX_COORDINATOR_ADDRESS and"),
    (FLAGS | {"process_id": 3}, {}, r"--process_id is 3 and --num_processes 3; .* from 0"),
    (FLAGS | {"coordinator": "a"}, {}, r"--coordinator is 'a'; it must be host:port"),
    (NOTHING, ENVIRONMENT | {"JAX_NUM_PROCESSES": "x"}, r"JAX_NUM_PROCESSES is 'x'; .* integer"),
  ],
)
def test_what_makes_no_sense(flags, environ, message):
  with pytest.raises(ValueError, match=message):
    find_cluster(flags, environ)
