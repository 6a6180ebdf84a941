"""Settings of every test: virtual devices, strictness, hypothesis, the authors' vectors."""

import gc
import importlib.metadata
import importlib.util
import os
import pathlib
import tempfile

# Before jax is imported. Eight CPU devices on a few cores starve XLA's thread pool (a collective
# then waits for ever) unless it is told of more threads; steps are also waited for one by one.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("NPROC", "64")
# Most of the suite's time is compiling small programs that run once or twice: the compiler is not
# to try hard, which saves a third, nor to fuse loops in MLIR first, which takes as long as all the
# rest of it; XLA_FLAGS=--xla_backend_optimization_level=3 overrules the one, and so on.
_FLAGS: dict[str, int | str] = {
  "--xla_force_host_platform_device_count": 8,
  "--xla_backend_optimization_level": 0,
  "--xla_cpu_parallel_codegen_split_count": 1,  # the other core has tests of its own
}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # newer ones die of the unknown flag
  _FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
for _flag, _value in _FLAGS.items():
  if _flag not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_flag}={_value}".strip()

import hypothesis  # noqa: E402
import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")
# Where in Python an operation comes from: noted for every one of every program that is lowered.
jax.config.update("jax_traceback_in_locations_limit", 0)

# Many tests compile the same small programs. One folder for each process: jax does not write
# entries atomically.
_COMPILED = tempfile.TemporaryDirectory(prefix="srigl-jax-tests-", ignore_cleanup_errors=True)
jax.config.update("jax_compilation_cache_dir", _COMPILED.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)  # else writing costs more
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# The first example of a test compiles, so a deadline would measure the compiler. To look further
# than the suite does: pytest --hypothesis-profile=explore.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=3000)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish(session):
  """Collecting garbage less often saves a tenth of the time: tracing makes many small objects, and
  those of the imports and of the collected tests stay to the end.
  """
  gc.collect()
  gc.freeze()
  gc.set_threshold(200_000, 50, 1000)


@pytest.fixture(scope="module", autouse=True)
def programs_are_forgotten():
  """Those of all the suite would take gigabytes. Below that they are kept: to trace a run's
  programs again takes six times as long as to train it.
  """
  yield
  resident_pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
  if resident_pages * os.sysconf("SC_PAGE_SIZE") > 2 * 2**30:
    jax.clear_caches()


@pytest.fixture(scope="session")
def oracle():
  """The checker that comes with the authors' vectors: a module named `oracle_check`."""
  beside = pathlib.Path(__file__).parents[2] / "shared" / "golden"
  folder = pathlib.Path(os.environ.get("SRIGL_GOLDEN_DIR", beside))
  if not (folder / "oracle_check.py").is_file():
    pytest.skip(f"no golden vectors in {folder}; set SRIGL_GOLDEN_DIR to their folder")
  spec = importlib.util.spec_from_file_location("oracle_check", folder / "oracle_check.py")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
