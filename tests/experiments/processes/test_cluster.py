"""Which processes there are: from flags, or as JAX finds them."""

import types

import jax
import pytest

from experiments.processes import cluster
from experiments.processes.cluster import Found, check_devices, find_cluster
from experiments.processes.rendezvous import Cluster

NOTHING = {
  "coordinator": None,
  "num_processes": None,
  "process_id": None,
  "cluster": "auto",
  "start_timeout_s": 1.0,
}
FLAGS = NOTHING | {"coordinator": "a:1", "num_processes": 3, "process_id": 2}
SLURM = {
  "SLURM_JOB_ID": "4100",
  "SLURM_NTASKS": "2",
  "SLURM_PROCID": "1",
  "SLURM_LOCALID": "1",
  "SLURM_STEP_NODELIST": "gpu[003-010,012],login1",
}


@pytest.fixture
def slurm(monkeypatch):
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)


def test_without_anything_a_process_is_alone():
  assert find_cluster(NOTHING) is None


def test_flags_come_before_what_jax_finds(slurm):
  assert find_cluster(FLAGS) == Found(Cluster("a:1", 3, 2), None)
  assert find_cluster(NOTHING | {"cluster": "none"}) is None


def test_jax_finds_the_tasks_of_slurm(slurm):
  expected = Found(Cluster("gpu003:61444", 2, 1), [1])
  assert find_cluster(NOTHING) == find_cluster(NOTHING | {"cluster": "slurm"}) == expected


def test_one_slurm_task_is_alone(slurm, monkeypatch):
  monkeypatch.setenv("SLURM_NTASKS", "1")
  monkeypatch.setenv("SLURM_PROCID", "0")
  assert find_cluster(NOTHING) is None


@pytest.mark.parametrize(
  "on_this_host, visible, expected",
  [
    (1, "0,1,2,3", None),  # one task for each node takes all of its GPUs
    (4, "0,1,2,3", [1]),  # several take one each
    (4, "2", None),  # of those that see no other there is nothing to choose
  ],
)
def test_tasks_of_one_node_divide_its_gpus(slurm, monkeypatch, on_this_host, visible, expected):
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
  monkeypatch.setattr(cluster, "wait_for_all", lambda found, timeout_s: on_this_host)
  given = {}
  join = lambda *where, **kwargs: given.update(kwargs, where=where)
  monkeypatch.setattr(jax.distributed, "initialize", join)
  monkeypatch.setattr(jax.config, "update", lambda name, value: None)
  cluster.join(NOTHING)
  assert given["where"] == ("gpu003:61444", 2, 1)
  assert given["local_device_ids"] == expected


def test_processes_need_the_same_number_of_devices():
  device = lambda process: types.SimpleNamespace(process_index=process)
  check_devices([device(i) for i in (0, 0, 1, 1)])
  check_devices([device(0)])
  with pytest.raises(ValueError, match=r"process 0 has 2, process 1 has 1\. One may have failed"):
    check_devices([device(i) for i in (0, 1, 0)])


def test_addresses():
  assert Cluster("[::1]:80", 1, 0)[:1] == ("[::1]:80",)
  assert (Cluster("[::1]:80", 1, 0).host, Cluster("[::1]:80", 1, 0).port) == ("::1", 80)


@pytest.mark.parametrize(
  "flags, message",
  [
    ({"coordinator": "a:1"}, "--num_processes and --process_id are not given"),
    (FLAGS | {"process_id": None}, "--process_id is not given: each process needs all three"),
    (FLAGS | {"process_id": 3}, r"--process_id is 3 and --num_processes 3; .* from 0"),
    (FLAGS | {"coordinator": "a"}, r"--coordinator is 'a'; it must be host:port"),
    ({"cluster": "slrum"}, r"--cluster is 'slrum', which JAX does not find here: .*slurm"),
  ],
)
def test_what_makes_no_sense(flags, message):
  with pytest.raises(ValueError, match=message):
    find_cluster(NOTHING | flags)
