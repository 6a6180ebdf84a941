"""What the commands have in common: the config flag, and errors for people."""

import difflib
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from experiments.common.old_configs import new_field


def define_config() -> Any:
  """Defines `--config=configs/NAME.py[:argument]` with overrides `--config.key=value`."""
  holder = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, e.g. configs/digits.py or configs/digits.py:rigl; any value in it can be "
    "overridden: --config.method.sparsity=0.95.",
    lock_config=True,
  )
  flags.mark_flag_as_required("config")
  flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])  # for --help
  return holder


def config_name() -> str:
  """The name of what `--config` gives: `methods-quick` for configs/sweeps/methods.py:quick."""
  file, _, argument = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
  return "-".join(filter(None, (Path(file).stem, argument)))


def run(main: Callable[[], int | None]) -> None:
  """Parses the flags and runs a command; bad input ends with a message and exit code 2.

  A file system that fails ends with exit code 74, processes that are missing with 75, Ctrl-C
  with 130.
  """
  logging.set_verbosity(logging.FATAL)  # checkpoints would report their every step and stack
  app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def _parse(argv: Sequence[str]) -> list[str]:
  try:
    rest = flags.FLAGS(list(argv))
    flags.FLAGS.validate_all_flags()
    config = flags.FLAGS["config"].value if "config" in flags.FLAGS else None
    _refuse_addresses(flags.FLAGS.flag_values_dict())
    if config is not None:
      config.to_dict()  # a config file that cannot be loaded complains when it is first used
    return rest
  except (AttributeError, KeyError) as error:  # an override of a field that is not there
    _refuse_old_overrides(argv)
    _refuse_unknown_overrides(argv)
    said = error.args[0].args[0] if isinstance(error.args[0], KeyError) else error.args[0]
    fail(f"No such field in the config: {said}".replace("\n", ". "))
  except flags.Error as error:
    if missing := re.findall(r"Flag --(\w+) must have a value other than None", str(error)):
      fail("\n".join(f"--{name} is missing: {flags.FLAGS[name].help}" for name in missing))
    # What a config file raises comes with its traceback, and what it says at the end.
    fail(str(error).strip().rpartition("\nValueError: ")[2])
  except OSError as error:
    names = ", ".join(sorted(str(p) for p in Path("configs").rglob("*.py") if p.stem[0] != "_"))
    file = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
    said = error if Path(file).exists() else f"There is no config file {file}"
    fail(f"{said}. The configs here are {names}; commands are run from the checkout.")


def _refuse_old_overrides(argv: Sequence[str]) -> None:
  """Fails if an override names a field by its former name, saying what it is now."""
  for argument in argv:
    match = re.match(r"--?config\.(?:base\.)?method\.(\w+)", argument)
    if match and (now := new_field(match[1])):
      fail(f"config.method.{match[1]} is now {now}.")


def _refuse_unknown_overrides(argv: Sequence[str]) -> None:
  """Fails if an override names a field that is not there, saying which there are."""
  files = [argument.partition("=")[2] for argument in argv if re.match("--?config=", argument)]
  config = flags.FLAGS["config"].parser.parse(files[-1]) if files else None
  for argument in argv:
    if not (override := re.match(r"--?config((?:\.\w+)+)", argument)):
      continue
    path, section = "config", config
    for name in override[1].split(".")[1:]:
      if not isinstance(section, ConfigDict):
        break
      if name not in section:
        near = difflib.get_close_matches(name, section, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        if not len(section):
          fail(
            f"No such field in the config: {path}.{name}. {path} has no fields in {files[-1]}, and "
            "only those that a config file sets can be overridden: set it there"
            f"{_whose(path, config)}."
          )
        fail(
          f"No such field in the config: {path}.{name}{hint} The fields of {path} are "
          f"{', '.join(sorted(section))}."
        )
      path, section = f"{path}.{name}", section[name]


def _whose(path: str, config: ConfigDict) -> str:
  """What decides which fields the `kwargs` of a section may have."""
  section = path.split(".")[1:2]
  if not path.endswith(".kwargs") or "name" not in config[section[0]]:
    return ""
  return f", among the arguments of {section[0]} {config[section[0]].name!r}"


def _refuse_addresses(values: Mapping[str, Any]) -> None:
  """Fails for gs:// and the like: as a path, it names a directory here, on a disk that may go."""
  for name in ("workdir", "out"):
    value = values.get(name)
    if isinstance(value, str) and "://" in value:
      fail(
        f"--{name} is {value!r}; it must be a directory that is mounted here. Mount the bucket "
        "(gcsfuse, s3fs), or give a disk that outlives this machine."
      )


def _guarded(main: Callable[[], int | None], argv: Sequence[str]) -> int | None:
  if len(argv) > 1:
    fail(f"Unexpected argument {argv[1]!r}: flags are written --name=value.")
  try:
    return main()
  except KeyboardInterrupt:  # where nothing watches for it to save first
    print("Stopped at once, without saving.", file=sys.stderr)
    _exit(128 + signal.SIGINT)
  except Exception as error:
    known = isinstance(error, ValueError | OSError | FloatingPointError)
    if known and not os.environ.get("SRIGL_TRACEBACK"):
      fail(f"{error}\n(SRIGL_TRACEBACK=1 shows where this comes from.)", _exit_code(error))
    if jax.distributed.is_initialized():
      traceback.print_exc()
      print("If this is about communication, another process has ended first.", file=sys.stderr)
      _leave_at_once(1)
    raise


def fail(message: str, code: int = 2) -> NoReturn:
  """Prints a message to standard error and exits, by default with code 2.

  What is in it may be from a file: what would control the terminal is shown escaped.
  """
  shown = "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in message)
  print(f"error: {shown}", file=sys.stderr)
  _exit(code)


def _exit(code: int) -> NoReturn:
  if jax.distributed.is_initialized():
    _leave_at_once(code)
  sys.exit(code)


def _exit_code(error: Exception) -> int:
  """As sysexits.h has them: what may go better next time, what the disk is to blame for, or 2."""
  if isinstance(error, TimeoutError):
    return os.EX_TEMPFAIL
  if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
    return os.EX_IOERR
  return 2


def _leave_at_once(code: int) -> None:
  """Ends the process without waiting for the others of its run, which would wait for it.

  At a normal exit JAX waits until all processes are done. After an error they never will be.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def use_compile_cache(directory: Path) -> None:
  """Keeps compiled programs in a directory, so that resuming and repeating start sooner.

  Several processes do without. Process 0 alone would write, and the others find what it wrote only
  if they share its disk and JAX gives their programs the same keys (on CPUs it does not). On GPUs
  they divide the choice of kernels among them, so one that compiles would wait, for up to a day,
  for another that has found its program and compiles nothing.

  Args:
    directory: is not used if `JAX_COMPILATION_CACHE_DIR` names another.
  """
  if jax.distributed.is_initialized():
    return
  directory = Path(os.environ.get("JAX_COMPILATION_CACHE_DIR") or directory)
  jax.config.update("jax_compilation_cache_dir", str(directory.absolute()))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
