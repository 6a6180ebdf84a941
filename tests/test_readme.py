"""The README's scripts run as they stand, and do what they say."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

import srigl_jax as sx
from experiments import tables
from srigl_jax.layers import leaf_dict

README = Path(__file__).resolve().parent.parent / "README.md"
SCRIPTS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


LINEN, NNX, CONDENSED = SCRIPTS


@pytest.mark.parametrize("script", [LINEN, NNX], ids=["linen", "nnx"])
def test_script_keeps_masked_weights_at_zero(script, capsys):
  # The loop's body also checks, after each of its 300 steps.
  checked = re.sub(r"(?m)^(  .*step\(.*\))$", r"\1\n  check(globals())", script)
  topologies, steps = set(), []

  def check(names):
    opt_state = names["opt_state"] if "opt_state" in names else names["optimizer"].opt_state
    masks = sx.get_masks(opt_state)
    params = names["params"]
    if "optimizer" in names:
      params = names["nnx"].state(names["model"], names["nnx"].Param)
    leaves = leaf_dict(params)
    for path, mask in masks.items():
      assert not np.asarray(leaves[path])[~np.asarray(mask)].any()
    topologies.add(b"".join(np.asarray(masks[path]).tobytes() for path in sorted(masks)))
    steps.append(len(steps))

  exec(compile(checked, "README.md", "exec"), {"check": check})
  assert len(steps) == 300
  assert len(topologies) > 5
  assert "fan-in" in capsys.readouterr().out


def test_a_trained_model_condensed(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  exec(compile(NNX + CONDENSED, "README.md", "exec"), {})
  difference = float(capsys.readouterr().out.splitlines()[-1])
  assert difference < 1e-5
  layers, metadata = sx.load_condensed(tmp_path / "model.safetensors")
  assert metadata == {"name": "example"} and len(layers) == 2


def test_scripts_need_no_harness():
  assert all("experiments" not in script for script in SCRIPTS)
  assert jax.__version_info__ >= (0, 10, 2)


def test_tables_are_what_the_results_files_say():
  for page in tables.pages():
    text = page.read_text(encoding="utf-8")
    assert tables.fill(text) == text, f"{page.name} is stale: run `make tables`"
