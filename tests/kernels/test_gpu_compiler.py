"""What compilers make of the kernels for an H100, without one: a change for the worse is seen here.

Slow, and needs the network once: jax's CUDA plugin and NVIDIA's compilers are installed into a
folder of their own, `build/gpu_compiler/`, and used by processes of their own.
"""

import collections
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from srigl_kernels.backends.cuda import library
from tests.kernels import gpu_compiler

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = "jax-cuda13-plugin", "jax-cuda13-pjrt"  # of jax's version
COMPILERS = (
  "nvidia-cuda-nvcc", "nvidia-nvvm", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-cuda-cccl",
  "nvidia-cuda-cuobjdump", "nvidia-cuda-nvdisasm",
)  # fmt: skip
STEPS = [name for name in gpu_compiler.CASES if name.startswith("step-")]
KERNELS = [name for name in gpu_compiler.CASES if name not in STEPS]


@pytest.fixture(scope="session")
def packages():
  """The folder of the plugin and the compilers."""
  folder = ROOT / "build" / "gpu_compiler" / f"jax-{jax.__version__}"
  if not (folder / "complete").exists():
    pinned = [f"{name}=={jax.__version__}" for name in PLUGINS]
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"]
    command = [*pip, "--target", folder, *pinned, *COMPILERS]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
      pytest.skip(f"the CUDA plugin of jax {jax.__version__} cannot be had: {done.stderr[-300:]}")
    (folder / "complete").touch()
  return folder


@pytest.fixture(scope="session")
def tool(packages):
  """Runs one of NVIDIA's programs and returns what it says."""
  (folder,) = packages.glob("nvidia/cu*/bin")

  def run(name, *args):
    return subprocess.run(
      [folder / name, *args],
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      check=True,
      env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"},
    ).stdout

  return run


def compile_cases(packages, folder, names):
  """Compiles cases in a process that has the plugin."""
  places = [packages, ROOT, ROOT / "kernels", os.environ.get("PYTHONPATH", "")]
  env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places)), "JAX_PLATFORMS": "cpu"}
  env.pop("XLA_FLAGS", None)  # tests do without what takes compilers long
  done = subprocess.run(
    [sys.executable, "-m", "tests.kernels.gpu_compiler", folder, *names],
    cwd=ROOT,
    env=env,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return folder


@pytest.fixture(scope="session")
def compiled(packages, tmp_path_factory):
  """A folder with all cases but the steps, compiled."""
  return compile_cases(packages, tmp_path_factory.mktemp("compiled"), KERNELS)


def operations(folder, name):
  """How often each operation is in the program, without those that do nothing."""
  text = (folder / f"{name}.hlo").read_text()
  entry = text[text.index("\nENTRY") :]
  found = collections.Counter(re.findall(r"^  \S.* = .*? ([a-z-]+)\(", entry, re.MULTILINE))
  for idle in ("parameter", "constant", "bitcast", "tuple", "get-tuple-element"):
    found.pop(idle, None)
  return found


def assembly(folder, name, kernel):
  """The PTX of a kernel of a case."""
  texts = [path.read_text() for path in (folder / name).glob("*.ptx")]
  (found,) = re.findall(rf"\.entry {kernel}\(.*?^}}", "\n".join(texts), re.DOTALL | re.MULTILINE)
  return found


@pytest.mark.parametrize("name", KERNELS)
def test_no_kernel_spills(compiled, tool, name, tmp_path):
  """At most two registers, which ptxas may put into memory to hold more threads at once."""
  paths = [path for path in (compiled / name).glob("*.ptx") if ".entry" in path.read_text()]
  assert paths
  for path in paths:
    said = tool("ptxas", "-arch=sm_90a", "-v", path, "-o", tmp_path / "cubin")
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    assert spills and max(map(int, spills)) <= 8, said


@pytest.mark.parametrize("name", [n for n in KERNELS if n.startswith("product")])
def test_a_product_is_one_kernel_of_fused_multiply_adds(compiled, name):
  """And for more than a row of x one that lays x out in tiles."""
  is_one_row = "-1-" in name
  assert operations(compiled, name) == {"custom-call": 1} | ({} if is_one_row else {"fusion": 1})
  code = assembly(compiled, name, "condensed_sums")
  assert "fma.rn.f32" in code and "mul.rn.f32" not in code
  assert not re.search(r"\b(atom|red)\.", code)


@pytest.mark.parametrize("name", [n for n in KERNELS if n.startswith("gradients")])
def test_gradients_are_two_kernels(compiled, name):
  """Beside what lays g and x out in tiles, gathers neurons, and adds up the partial sums."""
  found = operations(compiled, name)
  assert (
    found["custom-call"] == 2 and found["fusion"] <= 5 and set(found) <= {"custom-call", "fusion"}
  )
  assert "fma.rn.f32" in assembly(compiled, name, "condensed_sums")
  code = assembly(compiled, name, "condensed_products")
  assert not re.search(r"\b(atom|red)\.", code)


@pytest.mark.parametrize("name", [n for n in KERNELS if n.startswith("groups")])
def test_groups_go_to_tensor_cores(compiled, name):
  code = assembly(compiled, name, "grouped_sums")
  half = "bfloat16" in name
  warp = f"mma.sync.aligned.m16n8k{16 if half else 8}"
  group = "wgmma.mma_async"
  assert warp in code or group in code
  assert ("bf16.bf16" if half else "tf32.tf32") in code
  assert "cp.async" in code  # the loads of later steps are in flight


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_convolutions_are_cudnns_in_their_own_type(compiled, dtype):
  text = (compiled / f"convolution-{dtype}.hlo").read_text()
  (call,) = re.findall(r"= \((\w+)\[.*custom_call_target=\"__cudnn\$conv", text)
  assert call == {"float32": "f32", "bfloat16": "bf16"}[dtype]
  assert "copy" not in operations(compiled, f"convolution-{dtype}")


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_keeps_images_as_they_are(packages, tmp_path, name):
  """Three convolutions a layer, channels last; a topology update of a few hundred launches."""
  folder = compile_cases(packages, tmp_path, [name])
  text = (folder / f"{name}.hlo").read_text()
  calls = collections.Counter(re.findall(r'custom_call_target="(.*?)"', text))
  assert sum(n for target, n in calls.items() if "cudnn$conv" in target) == 65  # 22 layers
  layouts = set(re.findall(r"dim_labels=(\w+)_\w+->(\w+)", text))
  assert ("b01f", "b01f") in layouts
  assert not any("bf01" in image or "bf01" in out for image, out in layouts)
  moved = re.findall(r" = \w+\[([\d,]+)\]\S* (?:copy|transpose)\(", text[text.index("\nENTRY") :])
  assert not [shape for shape in moved if shape.count(",") == 3]
  assert 0 < text.count(" sort(") < 200


ARCHITECTURES = "80", "90a"
TENSOR_CORES = "HMMA.1688.F32.TF32", "HMMA.16816.F32.BF16"
INSTRUCTIONS = {
  "gather.cu": ("LDG.E.128.CONSTANT", "LDGSTS", "FFMA", "LDS.128"),
  "tiles.cu": ("LDG.E.128.CONSTANT", "LDGSTS", "LDSM", *TENSOR_CORES),
  "grouped.cu": ("LDG.E.128.CONSTANT", "LDSM.16.MT88.4", *TENSOR_CORES),
  "products.cu": ("LDGSTS", "LDSM.16.MT88.4", *TENSOR_CORES),
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file", INSTRUCTIONS)
def test_what_nvcc_makes_of_the_cuda_kernels(tool, file, arch, tmp_path):
  """Wide loads and FMA in gathering, tensor cores and asynchronous copies in tiles.

  Gathering for many rows keeps some registers in memory that are not of its loop over weights. A
  load of a byte would be the compiler's reading of what it takes for unaligned.
  """
  cubin = tmp_path / "cubin"
  target = f"-gencode=arch=compute_{arch},code=sm_{arch}"
  how = ["-O3", "-std=c++17", target, "--resource-usage", "-cubin", "-o", cubin]
  usage = tool("nvcc", *how, library._sources() / file)
  most = 64 if file == "gather.cu" else 0
  assert max(map(int, re.findall(r"(\d+) bytes spill stores", usage))) <= most
  sass = tool("cuobjdump", "--dump-sass", cubin)
  assert not [word for word in INSTRUCTIONS[file] if word not in sass]
  assert "LDS.U8" not in sass
