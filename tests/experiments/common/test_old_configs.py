"""Configs of earlier versions: converted when read, refused with the new name."""

import shutil

import pytest
from ml_collections import ConfigDict

from configs import base
from experiments.common import old_configs
from experiments.common.files import as_json, read_json, write_json
from experiments.common.old_configs import converted, new_field, refuse_old_fields
from experiments.sweeps.spec import expand
from experiments.training.load_run import load_run
from experiments.training.loop import train
from experiments.training.method_plan import preset_names
from experiments.training.setup import prepare
from experiments.workdir.owner import differences
from tests.experiments.tiny import tiny_config

OLD = {
  "fan_in": None,
  "structure": "unstructured",
  "group_size": 1,
  "block_fan_in": 2,
  "block_size": 4,
  "grad_decay": 0.9,
  "ablation": True,
  "gamma_sal": 0.3,
  "salient_base": "constant_fan_in",
  "ste_decay": 2e-4,
  "prune_from_fraction": 0.1,
  "prune_at_fraction": 0.5,
  "ranking": "layer",
  "rounds": 5,
  "rewind_fraction": 0.05,
  "masks_from": "",
}
"""The fields that have moved, with their defaults of then."""
OLD_PRESETS = {
  "small_dense": {"name": "narrow"},
  "static_fan_in": {"name": "static", "structure": "constant_fan_in"},
  "srigl_no_ablation": {"name": "srigl", "ablation": False},
  "srigl_shared": {"name": "srigl", "group_size": 16},
  "nm_srigl": {"name": "nm_srigl", "ablation": False},
  "one_shot_global": {"name": "one_shot", "ranking": "global"},
}
NEWER = {"continual", "continual_rigl", "continual_set", "prune_pretrained"}
"""Presets that there were not then."""


def old_form(config, **fields):
  """A config of today as it was written then."""
  values = as_json(config.to_dict())
  values["method"] = {k: v for k, v in values["method"].items() if k != "kwargs"} | OLD | fields
  return values


@pytest.mark.parametrize("name", sorted(set(preset_names()) - NEWER))
def test_a_config_of_then_is_that_of_now(name):
  now = base.get_config(name)
  then = old_form(now, **OLD_PRESETS.get(name, {}))
  assert differences(converted(then), as_json(now.to_dict())) == {}
  assert converted(converted(then)) == converted(then)


@pytest.mark.parametrize(
  "old, new",
  [
    ("gamma_sal", "config.method.kwargs.gamma_sal"),
    ("ablation", "config.method.kwargs.gamma_sal, 0 for none"),
    ("block_size", "config.method.kwargs.m"),
    ("ste_decay", "config.method.kwargs.decay"),
  ],
)
def test_a_field_that_has_moved_is_named(old, new):
  assert new_field(old) == new
  with pytest.raises(ValueError, match=f"config.method.{old} is now {new}: change the config"):
    refuse_old_fields({"name": "srigl", old: 1})


def test_every_field_of_then_is_known():
  assert all(new_field(name) for name in OLD)
  assert not any(new_field(name) for name in base.get_config().method)


FIELDS = {
  "data": "name data_dir batch_size kwargs",
  "model": "name dtype kwargs",
  "method": "name sparsity relative_flops distribution dense never_ablate update_every_steps "
  "update_until_fraction drop_fraction grad_accumulation_steps sparse_init kwargs",
  "optimizer": "name learning_rate momentum nesterov betas rms_decay rms_eps weight_decay "
  "clip_norm accumulation_steps schedule once_per_epoch warmup_epochs warmup_init cosine_epochs "
  "decay_epochs milestones_epochs decay_factor",
  "train": "total_epochs label_smoothing sync_batch_norm steps_per_dispatch log_every_steps "
  "eval_every_epochs eval_batch_size checkpoint_every_epochs keep_checkpoints wandb_project",
}
"""Of the configs of 0.2.0; stays as it is."""


def test_fields_added_since_have_a_value_for_earlier_runs():
  """Else a new field orphans every work directory: add it to `_ADDED` in old_configs.py."""
  earlier = {section: dict.fromkeys(fields.split()) for section, fields in FIELDS.items()}
  now = base.get_config().to_dict()
  for section in earlier:
    assert converted(earlier)[section].keys() == now[section].keys()


def test_a_run_goes_on_when_a_field_was_added(finished_run, monkeypatch):
  workdir, results = finished_run
  config = tiny_config()
  with config.unlocked():
    config.train.new_field = 1
  with pytest.raises(ValueError, match=r"\(train\.new_field: absent there, 1 here\)"):
    train(config, workdir)
  monkeypatch.setitem(old_configs._ADDED, "train.new_field", 1)
  assert train(config, workdir) == results
  config.train.new_field = 2
  with pytest.raises(ValueError, match=r"\(train\.new_field: 1 there, 2 here\)"):
    train(config, workdir)


def test_a_run_and_a_sweep_do_not_take_old_fields():
  config = tiny_config()
  with config.unlocked():
    config.method.gamma_sal = 0.5
  with pytest.raises(ValueError, match=r"gamma_sal is now config\.method\.kwargs\.gamma_sal"):
    prepare(config)
  sweep = {"name": "x", "base": tiny_config(), "seeds": (0,)}
  sweep["variants"] = (("a", {"method": {"gamma_sal": 0.5}}),)
  with pytest.raises(ValueError, match=r"gamma_sal is now config\.method\.kwargs\.gamma_sal"):
    expand(ConfigDict(sweep))


def test_a_directory_of_then_is_read_and_resumed(one_device, finished_run, tmp_path):
  """Whose last checkpoint was lost: it goes on from the one before, to the same end."""
  workdir, results = tmp_path / "run", finished_run[1]
  shutil.copytree(finished_run[0], workdir)
  values = old_form(tiny_config(), gamma_sal=0.9)
  write_json(workdir / "config.json", values)
  (workdir / "results.json").unlink()
  last = max(int(path.name) for path in (workdir / "checkpoints").iterdir())
  shutil.rmtree(workdir / "checkpoints" / str(last))
  assert load_run(workdir).step < last
  assert train(tiny_config(), workdir)["layers"] == results["layers"]
  assert read_json(workdir / "config.json")["method"]["kwargs"]["gamma_sal"] == 0.9
  other = tiny_config({"method.kwargs.gamma_sal": 0.5})
  write_json(workdir / "config.json", values)
  with pytest.raises(ValueError, match=r"method\.kwargs\.gamma_sal: 0\.9 there, 0\.5 here"):
    train(other, workdir)
