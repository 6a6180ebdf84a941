"""`model_card.md` of a finished run: what the network is, what it can do, where it comes from."""

import shlex
from pathlib import Path
from typing import Any

from experiments.common.files import read_json, write_text
from experiments.common.markdown import markdown_table
from experiments.common.old_configs import converted
from experiments.data.holdout import tested_on
from experiments.workdir.patterns import CONFIG, RESULTS
from experiments.workdir.provenance import read_sessions
from experiments.workdir.scores import scored

_OPTIMIZER = {
  "name": str,
  "learning_rate": float,
  "schedule": str,
  "weight_decay": float,
  "accumulation_steps": int,
}
_ENVIRONMENT = dict.fromkeys(("python", "jax", "flax", "optax", "device"), str)
_RESULTS = tuple(pattern | {"environment": _ENVIRONMENT} for pattern in RESULTS)


def write_model_card(workdir: Path) -> None:
  """Writes the card of a run from its `config.json`, `results.json` and `sessions.jsonl`.

  Raises:
    ValueError: if one of them is damaged.
  """
  config = read_json(workdir / "config.json", CONFIG | {"optimizer": _OPTIMIZER})
  results = read_json(workdir / "results.json", _RESULTS)
  sessions = read_sessions(workdir)
  sections = [
    f"# {config['name']}",
    _summary(config, results),
    "## Results",
    _table(_results(results)),
    "## Training",
    _table(_training(config, results)),
    "## Where it comes from",
    _table(_provenance(sessions, results)),
    "## Use",
    _use(config, results, workdir),
    "## Limits",
    _limits(config, results),
  ]
  write_text(workdir / "model_card.md", "\n\n".join(sections) + "\n")


def _summary(config: dict[str, Any], results: dict[str, Any]) -> str:
  dense = config["method"]["name"] == "dense"
  how = "dense" if dense else f"{results['sparsity']:.1%} sparse by {config['method']['name']}"
  how += " in condensed form" if results.get("engine") == "condensed" else ""
  return f"{config['model']['name']}, {how}, trained on {config['data']['name']}."


def _results(results: dict[str, Any]) -> dict[str, str]:
  score, last, best = scored(results)
  rows = {
    f"test {score.label}": f"{score.text(last)} (best of the run {score.text(best)})",
    "sparsity": f"{results['sparsity']:.2%}",
    "active neurons": f"{results['active_neurons']:.1%}",
  }
  if results["itop_rate"] is not None:
    rows["weights ever active (ITOP)"] = f"{results['itop_rate']:.1%}"
  for name in ("inference", "training"):
    if results[f"{name}_flops"] is not None:
      rows[f"FLOPs of {name}"] = f"{results[f'{name}_flops']:.3f} of the dense network's"
  return rows


def _training(config: dict[str, Any], results: dict[str, Any]) -> dict[str, str]:
  optimizer, batch = config["optimizer"], config["data"]["batch_size"]
  every = optimizer["accumulation_steps"]
  return {
    "steps": f"{results['steps']:,} of {batch} {_unit(config)}"
    + (f", {every} of which make an optimizer step" if every > 1 else ""),
    "epochs": f"{config['train']['total_epochs']:g}",
    "optimizer": f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g} "
    f"({optimizer['schedule']}), weight decay {optimizer['weight_decay']:g}",
    "seed": str(results["seed"]),
    "time": f"{results['train_seconds'] / 3600:.2f} hours of training steps",
  }


def _provenance(sessions: list[dict[str, Any]], results: dict[str, Any]) -> dict[str, str]:
  environment = results["environment"]
  rows = {
    name: ", ".join(dict.fromkeys(str(session[name]) for session in sessions))
    for name in ("git_commit", "devices", "processes", "host")
    if sessions
  }
  if any(session["git_dirty"] for session in sessions):
    rows["git_commit"] += " (with changes that are not committed)"
  versions = ", ".join(f"{k} {environment[k]}" for k in ("python", "jax", "flax", "optax"))
  return {
    **{name.replace("_", " "): value for name, value in rows.items()},
    "started": f"{len(sessions)} times" if len(sessions) != 1 else "once",
    "versions": versions,
    "device": environment["device"],
  }


def _use(config: dict[str, Any], results: dict[str, Any], workdir: Path) -> str:
  lines = [
    "```python",
    "from pathlib import Path",
    "",
    "import jax.numpy as jnp",
    "",
    "from experiments.training.load_run import load_run",
    "",
    f"trained = load_run(Path({str(workdir)!r}))",
    "data = trained.run.data",
    "images = jnp.zeros((1, *data.image_shape))  # [B, H, W, C], from data.preprocess_fn",
    "logits = trained.model(images)",
  ]
  if not _is_of_images(config):
    lines = [line for line in lines[:-3] if not line.startswith("import jax")]
    lines += ["inputs = trained.run.task.inputs(trained.run.shapes, 1)  # their shapes"]
  text = "\n".join([*lines, "```"])
  if config["method"]["name"] == "srigl" or results.get("engine") == "condensed":
    folder = shlex.quote(str(workdir))
    text += f"\n\nIts condensed form: `python -m experiments.export --workdir={folder} --out=FILE`."
  return text


def _limits(config: dict[str, Any], results: dict[str, Any]) -> str:
  examples = tested_on(config["data"]) if _is_of_images(config) else "test examples"
  others = _unit(config)
  return (
    f"One seed. The {scored(results).score.label} is that on the {examples} of "
    f"{config['data']['name']}, on which the best checkpoint was also chosen; nothing is known of "
    f"other {others}, of robustness or of fairness. The full config is in `config.json`, every "
    "record in `metrics.jsonl`."
  )


def _unit(config: dict[str, Any]) -> str:
  return "images" if _is_of_images(config) else "examples"


def _is_of_images(config: dict[str, Any]) -> bool:
  return converted(config)["task"]["name"] == "image_classification"


def _table(rows: dict[str, str]) -> str:
  return markdown_table(("", ""), rows.items(), align="ll")
