"""Checksums of trees of arrays."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.workdir.checksums import checksums, differing, from_json, signature, to_json

TREE = {
  "a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)},
  "c": (jnp.zeros((), jnp.int32), jnp.ones(3, jnp.bfloat16)),
  "d": np.zeros((0, 2), bool),
}


def changed(path, value):
  found = checksums(TREE | {path: value})
  return differing(found, checksums(TREE))


def test_the_same_tree_differs_nowhere():
  assert list(checksums(TREE)) == ["a/b", "c/0", "c/1", "d"]
  assert not differing(checksums(TREE), checksums(TREE))
  assert not differing(signature(TREE), checksums(TREE))  # nothing is known of the bytes


def test_every_kind_of_difference_is_named():
  a = TREE["a"]["b"]
  assert changed("a", {"b": np.where(a == 4, 5, a)}) == ["a/b"]
  assert changed("a", {"b": np.where(a == 0, np.float32(-0.0), a)}) == ["a/b"]  # bits count
  assert changed("a", {"b": a.T}) == ["a/b"]
  assert changed("a", {"b": a.view(np.int32)}) == ["a/b"]
  assert changed("a", {}) == ["a/b"]
  assert changed("e", a) == ["e"]
  assert changed("c", (jnp.ones((), jnp.int32), jnp.zeros(3, jnp.bfloat16))) == ["c/0", "c/1"]


def test_the_layout_in_memory_does_not_matter():
  a = TREE["a"]["b"]
  assert not changed("a", {"b": np.asfortranarray(a)})


def test_known_digest():
  """SHA-256 of the bytes "abc", from FIPS 180-2."""
  digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
  assert checksums({"x": np.frombuffer(b"abc", np.uint8)})["x"].sha256 == digest


def test_they_survive_a_json_file():
  found = checksums(TREE)
  assert from_json(json.loads(json.dumps(to_json(found)))) == found


@pytest.mark.parametrize("value", [{"a": 1}, {"a": ["float32", [2]]}, [1], {"a": [1, 2, 3]}])
def test_a_damaged_list_is_a_value_error(value):
  with pytest.raises(ValueError, match="list of checksums"):
    from_json(value)
