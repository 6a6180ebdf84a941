"""docs/methods.md: the table has every method, and the worked example does what it says."""

import re
from inspect import isfunction, signature
from pathlib import Path

import numpy as np

import srigl_jax as sx
from experiments.training import methods
from experiments.training.method_plan import preset_names

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "methods.md").read_text(encoding="utf-8")
EXAMPLE, ROW = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_table_has_every_config_and_every_public_method():
  rows = [line.split("|")[1:3] for line in PAGE.splitlines() if line.startswith("| `")]
  configs = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
  assert sorted(configs) == sorted(preset_names())
  functions = {name for row in rows for name in re.findall(r"`(\w+)", row[1])} - {"experiments"}
  wraps = lambda f: isfunction(f) and "inner" in signature(f).parameters
  assert functions == {n for n in sx.__all__ if wraps(getattr(sx, n))} - {"sparse_training"}


def test_the_worked_example(capsys):
  steps, topologies = [], set()

  def check(names):
    masks = sx.get_masks(names["opt_state"])
    for path, mask in masks.items():
      assert not np.asarray(names["params"][path])[~np.asarray(mask)].any()
    sizes = {path: int(mask.sum()) for path, mask in masks.items()}
    assert sizes == {p: int(n) for p, n in sx.get_state(names["opt_state"]).budgets.items()}
    topologies.add(b"".join(np.asarray(mask).tobytes() for mask in masks.values()))
    steps.append(float(names["loss"]))

  checked = re.sub(r"(?m)^(  .*= step\(.*\))$", r"\1\n  check(globals())", EXAMPLE)
  names = {"check": check}
  exec(compile(checked, "methods.md", "exec"), names)
  assert len(steps) == 200 and len(topologies) == 15
  assert steps[-1] < 0.5 * steps[0]
  assert "hidden" in capsys.readouterr().out
  # It is about thirty lines, and the row that runs it from a config is one.
  own = EXAMPLE[EXAMPLE.index("def update") : EXAMPLE.index("def loss_fn")]
  assert len(own.strip().splitlines()) < 20
  scope = {"Method": methods.Method, "sampled_rigl": names["sampled_rigl"]} | vars(methods)
  assert isinstance(eval("{" + ROW + "}", scope)["sampled_rigl"], methods.Method)
