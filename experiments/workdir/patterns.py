"""What the files of a work directory must hold for what reads them, see `json_pattern`.

Where these are more than a run's, as with a sweep's, less is asked for: what earlier versions and
other runs wrote is to be readable.
"""

from typing import Any

from experiments.common.json_pattern import Pattern

CONFIG: Pattern = {
  "name": str,
  "seed": int,
  "data": {"name": str, "batch_size": int},
  "model": {"name": str, "kwargs": dict},
  "method": {"name": str},
  "optimizer": dict,
  "train": {"total_epochs": float},
}
"""Of `config.json`."""

_ACCURACY = {"test_accuracy": float, "best_test_accuracy": float}
_SCORE = {
  "score": {
    "name": str,
    "label": str,
    "percent": bool,
    "lower_is_better": bool,
    "last": float,
    "best": float,
  }
}

_RESULTS = {
  "name": str,
  "method": str,
  "seed": int,
  "steps": int,
  "sparsity": float,
  "active_neurons": float,
  "itop_rate": (float, None),
  "inference_flops": (float, None),
  "training_flops": (float, None),
  "train_seconds": float,
  "table": str,
  "environment": {str: object},
}
RESULTS: Pattern = (_RESULTS | _ACCURACY, _RESULTS | _SCORE)
"""Of `results.json`; see `scores.as_results`."""

SWEPT_CONFIG: Pattern = {"method": {"name": str}}
"""Of the `config.json` of a sweep's run, for the sweep's report."""

_SWEPT = {
  k: _RESULTS[k]
  for k in ("sparsity", "active_neurons", "itop_rate", "inference_flops", "training_flops")
}
SWEPT_RESULTS: Pattern = (_SWEPT | _ACCURACY, _SWEPT | _SCORE)
"""Of its `results.json`."""

FAILURE: Pattern = {"error": str, "traceback": str, "killed": bool, "config": dict}
"""Of `failed.json`."""

SWEEP: Pattern = {
  "name": str,
  "study": str,
  "command": str,
  "variants": {str: {"seeds": [int], "axes": dict, "config": SWEPT_CONFIG}},
}
"""Of `sweep.json`."""

SWEEP_RESULTS: Pattern = {
  **dict.fromkeys(("name", "study", "command"), str),
  "environment": dict,
  "missing_runs": int,
  "variants": {
    str: {
      "axes": dict,
      "config": dict,
      "runs": [({"seed": int, "test_accuracy": float}, {"seed": int} | _SCORE)],
    }
  },
}
"""Of `experiments/results/NAME.json`, of a sweep."""

SESSION: Pattern = {
  "step": int,
  "git_commit": (str, None),
  "git_dirty": (bool, None),
  "devices": int,
  "processes": int,
  "host": str,
}
"""Of a line of `sessions.jsonl`."""

_LAYER = {"density": float, "fan_in": float, "active_neurons": float, "itop_rate": (float, None)}
_RECORD = {"kind": str, "step": int}
_MEASURED = {**_RECORD, "loss": float}
_OF_KIND: dict[str, Pattern] = {
  "train": {**_MEASURED, "seconds": float},
  "test": _MEASURED,
  "topology": {
    **_RECORD,
    "last_update": int,
    "density": float,
    "active_neurons": float,
    "itop_rate": (float, None),
    "layers": {str: _LAYER},
  },
}


def of_record(record: Any) -> Pattern:
  """That of a line of `metrics.jsonl`, by its kind."""
  kind = record.get("kind") if isinstance(record, dict) else None
  if not isinstance(kind, str) or kind not in _OF_KIND:
    return _RECORD
  numbers = {} if kind == "topology" else dict.fromkeys(record, (float, None))
  return numbers | _OF_KIND[kind]  # what a task measures has any name, and is a number
