"""Measures and trains on a GPU machine that has neither network nor git: an offline bundle.

    python -m experiments.gpu_bundle pack                       here: fill .gpu_bundle/
    python -m experiments.gpu_bundle run --out=DIR --seconds=N  there: check, time, train
    python -m experiments.gpu_bundle publish DIR                here: experiments/results/gpu_*.json

The checkout is copied there together with `.gpu_bundle/`, and `--out` is copied back.

`run` goes through its parts in order: every kernel's results against float64, then its times
(`gpu_check`), whole networks (`experiments.benchmark_gpu`), the sweeps of `offline_run.STAGES`. It
writes what it has after each row and each run, ends by itself within `--seconds`, and ends early
with all that it has when it gets SIGTERM. A part that fails costs the others nothing. Started again
on the same machine, training resumes.
"""

import argparse
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from experiments.benchmarks.offline_run import BUNDLE, PARTS, ROOT, WORK, run

# What training needs and the offline machine lacks, in pure Python.
_WHEELS = ("ml_collections==1.1.0", "tensorboardX==2.6.5")
_MAX_BYTES = 64 * 2**20


def pack() -> None:
  """Fills `.gpu_bundle/` with what the offline machine lacks; keeps what is there already."""
  BUNDLE.mkdir(exist_ok=True)
  if not (BUNDLE / "site").exists():
    _fetch_wheels(BUNDLE / "site")
  if not (BUNDLE / "cifar10.npz.xz").exists():
    from experiments.data.cifar10 import pack_cifar10

    pack_cifar10(BUNDLE)
  from experiments.common.environment import commit, git

  changed = "-dirty" if git("status", "--porcelain") else ""
  (BUNDLE / "commit").write_text(f"{commit() or 'unknown'}{changed}\n")
  listed = (git("ls-files", "-co", "--exclude-standard") or "").splitlines()
  tree = [ROOT / name for name in listed]
  size = sum(p.stat().st_size for p in [*tree, *BUNDLE.rglob("*")] if p.is_file())
  print(f"{size / 2**20:.1f} of {_MAX_BYTES >> 20} MiB to copy: the checkout and {BUNDLE.name}/")
  if size > _MAX_BYTES:
    raise SystemExit(f"That is too much: remove {BUNDLE.name}/compiled-*, or untracked files.")


def _fetch_wheels(site: Path) -> None:
  """Unpacks the wheels, all of pure Python, into a folder for PYTHONPATH."""
  wheels = BUNDLE / "wheels"
  command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
  subprocess.run([*command, "--only-binary=:all:", *_WHEELS], check=True)
  for wheel in wheels.glob("*.whl"):
    zipfile.ZipFile(wheel).extractall(site)
    wheel.unlink()
  wheels.rmdir()


def publish(back: Path, results: Path) -> None:
  """Turns what came back into results files, and keeps what was compiled for the next run."""
  from experiments.common.files import read_json, write_json

  BUNDLE.mkdir(exist_ok=True)
  for path in back.glob("compiled-*.tar.gz"):
    shutil.copyfile(path, BUNDLE / path.name)
  if (back / "gpu_kernels.json").exists():
    from experiments.benchmarks.kernels import gpu_report

    found = read_json(back / "gpu_kernels.json")
    found["command"] = "python kernels/benchmark/gpu_check.py"
    found["ratios"] = gpu_report.ratios(found)
    found["table"] = f"```text\n{gpu_report.tables(found)}\n```"
    write_json(results / "gpu_kernels.json", found)
    print(f"wrote {results / 'gpu_kernels.json'}")
  if (back / "gpu_networks.json").exists():
    networks = read_json(back / "gpu_networks.json")
    networks["command"] = "python -m experiments.benchmark_gpu --out=gpu_networks.json"
    write_json(results / "gpu_networks.json", networks)
    print(f"wrote {results / 'gpu_networks.json'}")
  if not (back / "training.tar.gz").exists():
    return
  with tarfile.open(back / "training.tar.gz") as archive:
    archive.extractall(WORK, filter="data")
  for record in sorted(WORK.glob("*/sweep.json")):
    out = results / f"gpu_{record.parent.name.replace('-', '_')}.json"
    command = ["-m", "experiments.report", f"--workdir={record.parent}", f"--out={out}"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def main(argv: Sequence[str] | None = None) -> int:
  """The command."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
  commands = parser.add_subparsers(dest="command", required=True)
  commands.add_parser("pack", help="fill .gpu_bundle/")
  there = commands.add_parser("run", help="check, time and train")
  there.add_argument("--out", type=Path, required=True, help="directory for what comes back")
  there.add_argument("--seconds", type=float, required=True, help="from now until it has ended")
  there.add_argument("--parts", default=",".join(PARTS), help="some of these, with commas")
  there.add_argument("--tiny", action="store_true", help="small shapes and networks, on CPU")
  back = commands.add_parser("publish", help="write experiments/results/gpu_*.json")
  back.add_argument("directory", type=Path, help="what came back")
  back.add_argument("--results", type=Path, default=ROOT / "experiments" / "results")
  options = parser.parse_args(argv)
  if options.command == "pack":
    pack()
  elif options.command == "publish":
    publish(options.directory, options.results)
  else:
    parts = options.parts.split(",")
    if set(parts) - set(PARTS):
      parser.error(f"--parts is {options.parts!r}; it must be some of {','.join(PARTS)}")
    return run(options.out.resolve(), options.seconds, parts=parts, tiny=options.tiny)
  return 0


if __name__ == "__main__":
  sys.exit(main())
