import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import pickle
import re
import resource
import stat
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from srigl_jax.condensed import serialize
from srigl_jax.condensed.serialize import load_condensed, save_condensed
from srigl_kernels import BACKENDS, make_condensed, prepare
from srigl_kernels.precision import convert
from srigl_kernels.problems import PROBLEMS, make_problem

METADATA = {"config": {"sparsity": 0.9, "name": "digits"}, "accuracy": [0.98, None], "é": "ü"}


def assert_same(actual, expected):
  assert jax.tree.structure(actual) == jax.tree.structure(expected)

  def same(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a, b)

  jax.tree.map(same, actual, expected)


def small_layer(**changes):
  arrays = {
    "values": np.array([[1, 2], [3, 4]], np.float32),
    "indices": [[0, 4], [1, 2]],
    "active": [0, 2],
    "bias": np.zeros(4, np.float32),
    "kernel_shape": (5, 4),
  }
  return make_condensed(**{**arrays, **changes})


def test_round_trip(tmp_path):
  layers = {
    f"block/{name}": make_problem(
      problem,
      dtype=jnp.bfloat16 if name.startswith("odd") else jnp.float32,
      bias=not name.startswith("one"),
    )[1]
    for name, problem in PROBLEMS.items()
    if not name.startswith("vit")
  }
  layers["conv/kernel"] = small_layer(kernel_shape=(5, 1, 1, 4))
  layers["attention/query/kernel"] = small_layer(kernel_shape=(5, 2, 2), neuron_axes=(1, 2))
  layers["bfloat16 bias"] = small_layer(bias=jnp.ones(4, jnp.bfloat16))
  save_condensed(tmp_path / "model.safetensors", layers, METADATA)
  loaded, metadata = load_condensed(tmp_path / "model.safetensors")
  assert metadata == METADATA
  assert list(loaded) == list(layers)
  assert_same(loaded, layers)


def test_no_layers(tmp_path):
  save_condensed(tmp_path / "model", {})
  assert load_condensed(str(tmp_path / "model")) == ({}, {})


def test_the_same_model_gives_the_same_bytes(tmp_path):
  layers = {"b": small_layer(), "a": small_layer(bias=None)}
  for name in ("1", "2"):
    save_condensed(tmp_path / name, layers, METADATA)
  assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_other_readers_of_safetensors_can_read_it(tmp_path):
  save_condensed(tmp_path / "model", {"fc": small_layer()})
  arrays = safetensors.numpy.load_file(tmp_path / "model")
  assert sorted(arrays) == ["fc/active", "fc/bias", "fc/indices", "fc/values"]
  assert arrays["fc/indices"].tolist() == [[0, 4], [1, 2]]


def test_a_file_is_replaced_only_when_asked(tmp_path):
  path = tmp_path / "model"
  save_condensed(path, {"old": small_layer()})
  with pytest.raises(FileExistsError, match="overwrite=True"):
    save_condensed(path, {"new": small_layer()})
  assert list(load_condensed(path)[0]) == ["old"]
  save_condensed(path, {"new": small_layer()}, overwrite=True)
  assert list(load_condensed(path)[0]) == ["new"]
  assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_files_have_the_rights_of_any_new_file(tmp_path):
  (tmp_path / "other").touch()
  save_condensed(tmp_path / "model", {})
  modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("other", "model")}
  assert len(modes) == 1


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
  path = tmp_path / "model"
  save_condensed(path, {"old": small_layer()})

  def fail(*_):
    raise OSError("disk full")

  monkeypatch.setattr(os, "fsync", fail)
  with pytest.raises(OSError, match="disk full"):
    save_condensed(path, {"new": small_layer()}, overwrite=True)
  assert list(load_condensed(path)[0]) == ["old"]
  assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
  ("layers", "metadata", "message"),
  [
    ({"": small_layer()}, {}, "non-empty strings"),
    ({3: small_layer()}, {}, "non-empty strings"),
    ({"fc": small_layer(values=np.full((2, 2), np.nan, np.float32))}, {}, "'fc'.*not all finite"),
    ({"fc": small_layer(bias=np.full(4, np.inf, np.float32))}, {}, "'fc'.*not all finite"),
    ([small_layer()], {}, "must be a dict of condensed layers by name, not a list"),
    ({}, {"x": {1, 2}}, "must be JSON"),
    ({}, {"x": float("nan")}, "must be JSON"),
    ({}, {"x": (1, 2)}, "must be JSON"),
    ({}, {"x": {1: 2}}, "must be JSON"),
    ({}, {"x": "y" * serialize.MAX_HEADER_BYTES}, "header has"),
  ],
)
def test_what_cannot_be_saved(tmp_path, layers, metadata, message):
  with pytest.raises(ValueError, match=message):
    save_condensed(tmp_path / "model", layers, metadata)
  assert not list(tmp_path.iterdir())


def file_of(header, body):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return len(text).to_bytes(8, "little") + text + body


def parts(data):
  """Header, description of the layers, and body of a file."""
  size = int.from_bytes(data[:8], "little")
  header = json.loads(data[8 : 8 + size])
  return header, json.loads(header["__metadata__"]["srigl_jax"]), data[8 + size :]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
  path = tmp_path_factory.mktemp("good") / "model"
  save_condensed(path, {"fc": small_layer()}, {"note": 1})
  return path.read_bytes()


class Bomb:
  """A pickle that leaves a trace when it is loaded."""

  def __reduce__(self):
    return (pathlib.Path.touch, (pathlib.Path("exploded"),))


HOSTILE_BYTES = {
  "empty": (lambda good: b"", "has 0 bytes"),
  "seven bytes": (lambda good: good[:7], "has 7 bytes"),
  "only a length": (lambda good: good[:8], "only 0 follow"),
  "header cut": (lambda good: good[:100], "only 92 follow"),
  "body cut": (lambda good: good[:-1], "outside of"),
  "body missing": (lambda good: file_of(parts(good)[0], b""), "outside of"),
  "bytes appended": (lambda good: good + b"\0" * 8, "8 bytes follow"),
  "header of 2**64 - 1": (lambda good: b"\xff" * 8 + good[8:], "claims 18446744073709551615"),
  "header of 100 MB": (lambda good: (10**8).to_bytes(8, "little") + good[8:], "claims 100000000"),
  "header beyond the file": (lambda good: (5000).to_bytes(8, "little") + good[8:], "claims 5000"),
  "header of no bytes": (lambda good: file_of(b"", good), "is not JSON"),
  "header is noise": (lambda good: file_of(b"\x00\x01\x02", b""), "is not JSON"),
  "header is not UTF-8": (lambda good: file_of(b'{"\xff": 1}', b""), "is not JSON"),
  "header is UTF-16": (lambda good: file_of("{}".encode("utf-16"), b""), "is not JSON"),
  "header nested deep": (lambda good: file_of(b"[" * 200_000, b""), "is not JSON"),
  "header is a list": (lambda good: file_of([], b""), "must be an object"),
  "header has NaN": (lambda good: file_of(b'{"a": NaN}', b""), "NaN is no number"),
  "header has a huge number": (lambda good: file_of(b'{"a":' + b"9" * 9999 + b"}", b""), "JSON"),
  "header has a key twice": (lambda good: file_of(b'{"a": 1, "a": 2}', b""), "occurs twice"),
  "pickle": (lambda good: pickle.dumps(Bomb()), "pickle"),
  "old pickle": (lambda good: pickle.dumps(Bomb(), protocol=0), "pickle"),
  "npy": (lambda good: b"\x93NUMPY\x01\x00v\x00{'descr': '|O'}", "claims"),
  "zip": (lambda good: b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "bytes"),
}


@pytest.mark.parametrize("name", HOSTILE_BYTES)
def test_hostile_bytes(name, good, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  make, message = HOSTILE_BYTES[name]
  refuse(make(good), message, tmp_path)
  assert not (tmp_path / "exploded").exists()


def refuse(data, message, folder):
  path = folder / "model"
  path.write_bytes(data)
  with pytest.raises(ValueError, match=message) as caught:
    load_condensed(path)
  assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def entry(name, **changes):
  """Changes the header's entry of an array."""
  return lambda header, about, body: header[f"fc/{name}"].update(changes)


def content(name, array):
  """Changes what an array holds."""

  def change(header, about, body):
    start, end = header[f"fc/{name}"]["data_offsets"]
    data = np.asarray(array).tobytes()
    assert len(data) == end - start
    body[start:end] = data

  return change


def description(**changes):
  return lambda header, about, body: about["layers"]["fc"].update(changes)


def about(**changes):
  return lambda header, about, body: about.update(changes)


def without(key):
  return lambda header, about, body: header.pop(key)


def rename(old, new):
  return lambda header, about, body: header.update({new: header.pop(old)})


def swap(header, about, body):
  """Lays one array over another of the same size."""
  header["fc/values"]["data_offsets"] = header["fc/bias"]["data_offsets"]


F32, U16, I32 = np.float32, np.uint16, np.int32
HOSTILE = {
  # numbers
  "index out of range": (content("indices", U16([[0, 5], [1, 2]])), "`indices` must lie in 0..4"),
  "index far out": (content("indices", U16([[0, 4], [1, 65535]])), "`indices` must lie in 0..4"),
  "index repeated": (content("indices", U16([[4, 4], [1, 2]])), "`indices` must ascend"),
  "index descending": (content("indices", U16([[4, 0], [1, 2]])), "`indices` must ascend"),
  "neuron out of range": (content("active", I32([0, 4])), "`active` must lie in 0..3"),
  "negative neuron": (content("active", I32([-1, 2])), "`active` must lie in 0..3"),
  "neuron repeated": (content("active", I32([2, 2])), "`active` must ascend"),
  "NaN in values": (content("values", F32([[1, 2], [np.nan, 4]])), "values are not all finite"),
  "infinite value": (content("values", F32([[1, 2], [-np.inf, 4]])), "values are not all finite"),
  "NaN in bias": (content("bias", F32([0, 0, np.nan, 0])), "bias are not all finite"),
  # entries
  "unknown type": (entry("values", dtype="F8_E4M3"), "has type 'F8_E4M3'"),
  "type that is no string": (entry("values", dtype=["F32"]), "has type"),
  "float64 values": (entry("values", dtype="F64"), "has type 'F64'"),
  "integer values": (entry("values", dtype="I32"), "`values` must be float32"),
  "float active": (entry("active", dtype="F32"), "`active` must be int32"),
  "type of other size": (entry("values", dtype="BF16"), "needs 8 bytes"),
  "transposed shape": (entry("values", shape=[1, 4]), "one shape"),
  "flat shape": (entry("values", shape=[4]), "one shape"),
  "shape too large": (entry("values", shape=[2, 3]), "needs 24 bytes"),
  "shape that overflows": (entry("values", shape=[2**40, 2**40]), "needs"),
  "negative shape": (entry("values", shape=[-2, -2]), "non-negative integers"),
  "fractional shape": (entry("values", shape=[2.0, 2]), "non-negative integers"),
  "boolean shape": (entry("values", shape=[True, 4]), "non-negative integers"),
  "shape of many axes": (entry("values", shape=[2, 2] + [1] * 100), "non-negative integers"),
  "shape missing": (lambda h, a, b: h["fc/values"].pop("shape"), "must be an object with the keys"),
  "entry with another key": (entry("values", code="x"), "must be an object with the keys"),
  "entry that is a string": (lambda h, a, b: h.update({"fc/values": "x"}), "must be an object"),
  "offsets beyond the end": (entry("values", data_offsets=[10**6, 10**6 + 16]), "outside of"),
  "offsets reversed": (entry("values", data_offsets=[16, 0]), "outside of"),
  "negative offsets": (entry("values", data_offsets=[-16, 0]), "non-negative integers"),
  "three offsets": (entry("values", data_offsets=[0, 8, 16]), "outside of"),
  "overlapping arrays": (swap, "overlap"),
  "unused bytes between": (lambda h, a, b: b.extend(b"\0" * 9), "9 bytes follow"),
  "array of no layer": (rename("fc/bias", "other/bias"), "'other/bias' belongs to no layer"),
  "array of no field": (rename("fc/bias", "fc/code"), "'fc/code' belongs to no layer"),
  "values missing": (rename("fc/values", "fc/weights"), "values are missing"),
  # description
  "no metadata": (without("__metadata__"), "__metadata__ must be an object"),
  "metadata of another tool": (lambda h, a, b: a.clear(), "format version is None"),
  "older version": (about(version=0), "format version is 0"),
  "newer version": (about(version=4), "format version is 4"),
  "version of a file with arrays": (about(version=2), "with the keys arrays, layers"),
  "version True": (about(version=True), "format version is True"),
  "version in words": (about(version="1"), "format version is '1'"),
  "unknown key": (about(code="import os"), "with the keys layers, metadata, version"),
  "layers is a list": (about(layers=[]), "layers must be an object"),
  "metadata is a string": (about(metadata="x"), "metadata must be an object"),
  "layer undescribed": (about(layers={}), "belongs to no layer"),
  "layer that is not there": (
    lambda h, a, b: a["layers"].update(more=a["layers"]["fc"]),
    "layer 'more': its values are missing",
  ),
  "layer with another key": (description(hook="x"), "description of layer 'fc' must be"),
  "kernel too small for bias": (description(kernel_shape=[5, 3]), "`bias` must have shape"),
  "kernel too small for indices": (description(kernel_shape=[4, 4]), "`indices` must lie in 0..3"),
  "kernel too small for fan-in": (description(kernel_shape=[1, 4]), "fan-in 2"),
  "kernel for wide indices": (description(kernel_shape=[70_000, 4]), "`indices` must be int32"),
  "huge kernel": (description(kernel_shape=[2**50, 4]), "more inputs or neurons"),
  "kernel of one axis": (description(kernel_shape=[20]), "`kernel_shape` must be"),
  "empty kernel": (description(kernel_shape=[0, 4]), "`kernel_shape` must be"),
  "kernel that is a string": (description(kernel_shape="54"), "kernel_shape must be a list"),
  "axes out of range": (description(neuron_axes=[2]), "`neuron_axes`"),
  "axes repeated": (description(neuron_axes=[1, 1]), "`neuron_axes`"),
  "no axes": (description(neuron_axes=[]), "`neuron_axes`"),
  "all axes": (description(neuron_axes=[0, 1]), "no input axis"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_contents(name, good, tmp_path):
  change, message = HOSTILE[name]
  header, described, body = parts(good)
  unchanged = file_of(header, body)
  body = bytearray(body)
  change(header, described, body)
  if "__metadata__" in header:
    header["__metadata__"]["srigl_jax"] = json.dumps(described)
  data = file_of(header, bytes(body))
  assert data != unchanged
  refuse(data, message, tmp_path)


def test_a_gap_between_arrays(good, tmp_path):
  header, _, body = parts(good)
  last = max((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])
  header[last]["data_offsets"] = [n + 4 for n in header[last]["data_offsets"]]
  refuse(file_of(header, body + b"\0" * 4), "leave a gap", tmp_path)


@pytest.mark.parametrize("text", ["{}", '{"other": "x"}', '{"srigl_jax": 1}', '{"srigl_jax": "["}'])
def test_foreign_metadata(text, tmp_path):
  refuse(file_of(b'{"__metadata__": ' + text.encode() + b"}", b""), "srigl_jax", tmp_path)


def test_no_flipped_byte_of_the_header_raises_anything_else(good, tmp_path):
  path = tmp_path / "model"
  size = int.from_bytes(good[:8], "little")
  rng = np.random.default_rng(0)
  for position in range(8 + size):
    data = bytearray(good)
    data[position] ^= int(rng.integers(1, 256))
    path.write_bytes(data)
    try:
      load_condensed(path)
    except ValueError as error:
      assert str(path) in str(error)


ARRAYS = {
  "head/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
  "half": np.ones(3, jnp.bfloat16),
  "scalar": np.float32(2),
  "nothing": np.zeros((0, 4), np.int32),
  "mask": np.array([True, False]),
  "count": np.uint32(7),
  "bytes": np.array([-1, 1], np.int8),
}


def test_further_arrays(tmp_path):
  save_condensed(tmp_path / "model", {"fc": small_layer()}, METADATA, arrays=ARRAYS)
  file = serialize.load_condensed_file(tmp_path / "model")
  assert list(file.arrays) == list(ARRAYS) and file.metadata == METADATA
  assert_same(file.arrays, ARRAYS)
  assert_same(file.layers, {"fc": small_layer()})
  assert load_condensed(tmp_path / "model")[1] == METADATA


def test_a_file_without_further_arrays_is_as_it_was(tmp_path, good):
  save_condensed(tmp_path / "model", {"fc": small_layer()}, {"note": 1}, arrays={})
  assert (tmp_path / "model").read_bytes() == good
  assert parts(good)[1]["version"] == 1


@pytest.mark.parametrize(
  ("arrays", "message"),
  [
    ({"": np.ones(1, F32)}, "non-empty strings"),
    ({"fc/values": np.ones(1, F32)}, "name is taken"),
    ({"__metadata__": np.ones(1, F32)}, "name is taken"),
    ({"a": np.ones(1)}, "'a' has type float64"),
    ({"a": np.array([object()])}, "'a' has type object"),
    ({"a": F32([1, np.nan])}, "'a'.*not all finite"),
  ],
)
def test_arrays_that_cannot_be_saved(tmp_path, arrays, message):
  with pytest.raises(ValueError, match=message):
    save_condensed(tmp_path / "model", {"fc": small_layer()}, arrays=arrays)


HOSTILE_ARRAYS = {
  "NaN": (lambda h, a, b: content_of(h, b, "head/kernel", F32(6 * [np.nan])), "'head/kernel'.*not"),
  "bool of 2": (lambda h, a, b: content_of(h, b, "mask", np.uint8([2, 0])), "neither 0 nor 1"),
  "array missing": (about(arrays=["head/kernel", "more"]), "'more' is missing"),
  "array unnamed": (about(arrays=["head/kernel"]), "belongs to no layer"),
  "named twice": (about(arrays=2 * ["head/kernel"]), "names an array twice"),
  "no list": (about(arrays={"head/kernel": 1}), "must be a list"),
  "no strings": (about(arrays=[["head/kernel"]]), "must be a list of names"),
  "a layer's": (about(arrays=[*ARRAYS, "fc/values"]), "values are missing"),
  "older version": (about(version=1), "with the keys layers, metadata"),
  "other shape": (lambda h, a, b: h["head/kernel"].update(shape=[2, 4]), "needs 32 bytes"),
}


def content_of(header, body, name, array):
  start, end = header[name]["data_offsets"]
  body[start:end] = array.tobytes()


@pytest.mark.parametrize("name", HOSTILE_ARRAYS)
def test_hostile_arrays(name, tmp_path):
  save_condensed(tmp_path / "good", {"fc": small_layer()}, arrays=ARRAYS)
  header, described, body = parts((tmp_path / "good").read_bytes())
  body = bytearray(body)
  change, message = HOSTILE_ARRAYS[name]
  change(header, described, body)
  header["__metadata__"]["srigl_jax"] = json.dumps(described)
  refuse(file_of(header, bytes(body)), message, tmp_path)


def test_a_missing_file(tmp_path):
  with pytest.raises(FileNotFoundError):
    load_condensed(tmp_path / "model")


# ---- damage, and what is no file ---------------------------------------------------------------


def test_every_flipped_bit_is_noticed(good, tmp_path):
  """Among them those that leave a valid file: of a weight, of a number in the metadata."""
  path = tmp_path / "model"
  save_condensed(path, {"fc": small_layer()}, {"accuracy": 0.5, "name": "a"}, arrays=ARRAYS)
  good = path.read_bytes()
  rng = np.random.default_rng(0)
  for position in {*range(0, len(good), 7), *range(len(good) - 40, len(good))}:
    data = bytearray(good)
    data[position] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(path))):
      load_condensed(path)
  weight = bytearray(good)
  weight[-1] ^= 1
  refuse(bytes(weight), "its checksum is another .*Copy it again", tmp_path)
  refuse(good.replace(b"0.5", b"0.6"), "its checksum is another", tmp_path)


def test_a_file_of_before_checksums(good, tmp_path):
  header, _, body = parts(good)
  assert header["__metadata__"].pop("sha256")
  (tmp_path / "model").write_bytes(file_of(header, body))
  assert_same(load_condensed(tmp_path / "model")[0], {"fc": small_layer()})


def test_the_checksum_is_that_of_the_file(good):
  """As the module says, for other tools."""
  digits = parts(good)[0]["__metadata__"]["sha256"]
  assert hashlib.sha256(good.replace(digits.encode(), b"0" * 64)).hexdigest() == digits


@pytest.mark.parametrize("kind", ["pipe", "device", "directory"])
def test_what_is_no_file_is_not_read(kind, tmp_path):
  path = tmp_path / "model"
  if kind == "pipe":
    os.mkfifo(path)
  elif kind == "directory":
    path.mkdir()
  else:
    path.symlink_to("/dev/zero")
  with pytest.raises(ValueError, match="no regular file"):
    load_condensed(path)


@pytest.mark.parametrize("begin", [b"", (2**20).to_bytes(8, "little") + b"{", b"header"])
def test_of_a_huge_file_the_header_is_read_first(begin, good, tmp_path):
  path = tmp_path / "model"
  path.write_bytes(good if begin == b"header" else begin)
  os.truncate(path, 100 * 2**30)  # sparse
  tracemalloc.start()
  try:
    with pytest.raises(ValueError, match="no valid file"):
      load_condensed(path)
    assert tracemalloc.get_traced_memory()[1] < 2**25
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize(
  "shape", [(2**31 - 1, 1), (1, 2**31 - 1), (2**15, 2**15 + 1), (2**10, 2**10, 2**10, 3)]
)
@pytest.mark.parametrize("backend", ["auto", "cpu", "xla", "dense"])
def test_a_small_file_does_not_cost_much_memory(shape, backend, tmp_path):
  """Its sizes are claims; what would take memory out of proportion is refused beforehand."""
  if backend != "auto" and not BACKENDS[backend].is_available():
    pytest.skip(f"backend {backend} cannot run here")
  layer = small_layer(
    values=np.ones((1, 1), np.float32), indices=[[0]], active=[0], bias=None, kernel_shape=shape
  )
  save_condensed(tmp_path / "model", {"fc": layer})
  assert (tmp_path / "model").stat().st_size < 600
  loaded = load_condensed(tmp_path / "model")[0]["fc"]
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with contextlib.suppress(ValueError):
    prepare(loaded, backend=backend)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**19  # kB
  if shape[0] == 2**31 - 1:
    with pytest.raises(ValueError, match=r"needs .* GB laid out .* but the layer holds 1\d bytes"):
      prepare(loaded, backend=backend)


@pytest.mark.parametrize("dtype", ("bfloat16", "int8", "int8_weights"))
def test_layers_of_other_precisions(tmp_path, dtype):
  layer = convert(small_layer(), dtype, (-1, 2) if dtype == "int8" else None)
  file = tmp_path / "model.safetensors"
  save_condensed(file, {"a": layer, "b": small_layer()}, arrays={"c": np.zeros(3, np.float32)})
  loaded = serialize.load_condensed_file(file)
  assert_same(loaded.layers, {"a": layer, "b": small_layer()})
  assert list(loaded.arrays) == ["c"]


@pytest.mark.parametrize(
  ("field", "value", "message"),
  (
    ("scales", [1.0, np.nan], "finite and positive"),
    ("scales", [1.0, 0.0], "finite and positive"),
    ("scales", [1.0], "must have shape"),
    ("input_range", [2.0, 1.0], "in order"),
    ("input_range", [0.0, np.inf], "finite"),
    ("values", np.ones((2, 2), np.float32), "must be int8"),
  ),
)
def test_changed_layers_of_int8_are_refused(tmp_path, monkeypatch, field, value, message):
  layer = convert(small_layer(), "int8", (-1, 2))
  bad = dataclasses.replace(layer, **{field: np.asarray(value, np.float32)})
  with monkeypatch.context() as patched:
    patched.setattr(serialize, "check_condensed", lambda layer: None)
    save_condensed(tmp_path / "bad", {"a": bad})
  with pytest.raises(ValueError, match=message):
    load_condensed(tmp_path / "bad")
