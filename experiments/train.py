"""Trains one network: `python -m experiments.train --config=configs/NAME.py --workdir=DIR`.

The same command resumes a run that was interrupted, bit for bit, and does nothing for one that is
finished. Everything that it writes is in the work directory: config.json, plan.txt, metrics.jsonl,
tensorboard/, checkpoints/, sessions.jsonl, memory.json, and at the end results.json, report.md,
model_card.md and figures/.
"""

import sys
from pathlib import Path

from absl import flags

from experiments.common import cli
from experiments.processes import cluster, local_launch
from experiments.processes.signals import Interrupted
from experiments.training.loop import train
from experiments.training.profiling import Profiling, parse_steps
from experiments.workdir.scores import scored


def main() -> int:
  """The command."""
  values = flags.FLAGS.flag_values_dict()
  if values["processes"]:
    return local_launch.launch(
      local_launch.own_arguments(sys.argv),
      num_processes=values["processes"],
      num_devices=values["devices_per_process"],
    )
  cluster.join(values)
  workdir = Path(values["workdir"])
  cli.use_compile_cache(workdir / ".compiled")
  if cluster.is_process_0() and not (workdir / "results.json").exists():
    print("Preparing and compiling: the first steps take longer.", flush=True)
  try:
    profiling = Profiling(parse_steps(values["profile"]))
    results = train(_CONFIG.value, workdir, profiling=profiling)
  except Interrupted as stop:
    number, step = stop.args
    if cluster.is_process_0():
      print(f"Stopped and saved at step {step}. The same command resumes from there.")
    return 128 + number
  if cluster.is_process_0():
    print(results["table"])
    score, last, best = scored(results)
    print(
      f"test {score.label} {score.text(last)} (best {score.text(best)}); "
      f"report in {workdir / 'report.md'}"
    )
  return 0


if __name__ == "__main__":
  _CONFIG = cli.define_config()
  flags.DEFINE_string("workdir", None, "Directory of this run.", required=True)
  flags.DEFINE_string("profile", None, "START:STOP: write a trace of these steps to profile/.")
  cluster.define_flags()
  cli.run(main)
