"""What a sweep is: its runs, and the record of them in its directory."""

import collections
import itertools
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments.common.files import as_json, read_json, set_aside, write_json
from experiments.common.old_configs import converted, refuse_old_fields
from experiments.training.method_plan import own_arguments
from experiments.workdir.owner import MAY_CHANGE, differences
from experiments.workdir.patterns import SWEEP

_OF_AN_OLDER_VERSION = {"variants": [object]}  # a `sweep.json`

# Kinds of studies, and the axis that their figures and tables run along.
STUDIES = {
  "methods": "",
  "sparsity": "sparsity",
  "gamma": "gamma_sal",
  "length": "length",
  "neurons": "sparsity",
  "rate": "learning_rate",
  "returns": "sparsity",
}


class Variant(NamedTuple):
  """Runs that differ in their seed only.

  Attributes:
    name: also of its directory.
    differences: from the sweep's base, `{section: {field: value}}`.
    seeds: one run each.
    axes: where it stands in tables and figures: `method`, a name (the variant's own by default),
      and numbers such as `sparsity`, `gamma_sal` or `length`.
  """

  name: str
  differences: dict[str, Any]
  seeds: tuple[int, ...]
  axes: dict[str, float | str]


def variants_of(sweep: ConfigDict) -> list[Variant]:
  """The variants of a sweep.

  Args:
    sweep: `base` (a run's config), `variants`: for each a name, the differences, and optionally
      `{"seeds": ..., "axes": ...}`; `seeds`, of those that have none of their own; optionally
      `study`, a key of `STUDIES`, `published`, figures to draw beside: method, place on the axis,
      accuracy and half width of its interval of each, and `comparisons`, pairs of variants or
      methods whose paired differences are the study's answer (see `paired.compare`).

  Raises:
    ValueError: if there is nothing to run, two variants have one name, the study is unknown or
      lacks its axis, or what is to be compared is no variant or method.
  """
  if "variants" not in sweep:
    raise ValueError("This config is a single run's: use python -m experiments.train.")
  study = sweep.get("study", "methods")
  if study not in STUDIES:
    raise ValueError(f"sweep.study is {study!r}; it must be one of {', '.join(STUDIES)}.")
  default = tuple(sweep.get("seeds", ()))
  variants = []
  for name, changes, *more in sweep.variants:
    more = dict(more[0]) if more else {}
    if unknown := more.keys() - {"seeds", "axes"}:
      raise ValueError(
        f"Variant {name!r} of the sweep has {', '.join(sorted(unknown))}; besides its differences "
        "it may have 'seeds' and 'axes'."
      )
    axes = {"method": name} | dict(more.get("axes", {}))
    variants.append(Variant(name, changes, tuple(more.get("seeds", default)), axes))
  runs = collections.Counter(f"{v.name}/seed{seed}" for v in variants for seed in v.seeds)
  if twice := [name for name, count in runs.items() if count > 1]:
    raise ValueError(f"The sweep {sweep.name!r} has two runs {twice[0]!r}: names must differ.")
  if not variants or not all(v.seeds for v in variants):
    raise ValueError(
      f"The sweep {sweep.name!r} has {len(variants)} variants and "
      f"{min((len(v.seeds) for v in variants), default=len(default))} seeds; it needs one of each "
      "at least."
    )
  axis = STUDIES[study]
  if axis and not any(axis in v.axes for v in variants):
    raise ValueError(
      f"The sweep {sweep.name!r} is a study of kind {study!r}, but no variant says where it "
      f"stands: give them {{'axes': {{{axis!r}: number}}}} after their differences."
    )
  names = {v.name for v in variants} | {v.axes["method"] for v in variants}
  for pair in sweep.get("comparisons", ()):
    if len(pair) != 2 or not names.issuperset(pair):
      raise ValueError(
        f"sweep.comparisons of {sweep.name!r} has {pair!r}; each must be two of its variants or "
        f"methods: {', '.join(sorted(map(str, names)))}."
      )
  return variants


def expand(sweep: ConfigDict) -> dict[str, ConfigDict]:
  """The runs of a sweep: `{"variant/seedN": config}`.

  The first seed of every variant comes before the second of any, so that a sweep which is stopped
  can already be compared.

  Args:
    sweep: see `variants_of`.

  Raises:
    ValueError: as `variants_of`, or if a variant sets a field that the base has not.
  """
  runs = {}
  variants = variants_of(sweep)
  rounds = itertools.zip_longest(*([(v, seed) for seed in v.seeds] for v in variants))
  for variant, seed in filter(None, itertools.chain.from_iterable(rounds)):
    config = ConfigDict(sweep.base.to_dict()).lock()
    try:
      _change_names(config, variant.differences)
      config.update(variant.differences)
    except (AttributeError, KeyError, TypeError) as error:
      raise ValueError(
        f"Variant {variant.name!r} of the sweep does not fit its base: {error}"
      ) from error
    config.seed = seed
    config.name = f"{variant.name}, seed {seed}"
    runs[f"{variant.name}/seed{seed}"] = config
  return runs


def _change_names(config: ConfigDict, differences: Mapping[str, Any]) -> None:
  """Replaces the `kwargs` of sections whose `name` is to change: they are another's."""
  refuse_old_fields(differences.get("method", {}))
  for name in ("method", "model", "data"):
    new = differences.get(name, {})
    if new.get("name", config[name].name) != config[name].name:
      known = own_arguments(new["name"]) if name == "method" else {}
      config[name].kwargs = ConfigDict(known | dict(new.get("kwargs", {})))


def write_record(sweep: ConfigDict, workdir: Path, command: str) -> None:
  """Writes `sweep.json`: what a report is made by.

  The record of a sweep that had other variants or seeds is kept beside, as `sweep.N.json`.
  """
  runs = expand(sweep)
  variants = {
    v.name: {
      "seeds": list(v.seeds),
      "axes": v.axes,
      "config": runs[f"{v.name}/seed{v.seeds[0]}"].to_dict(),
    }
    for v in variants_of(sweep)
  }
  record = {
    "name": sweep.name,
    "study": sweep.get("study", "methods"),
    "command": command,
    "published": [list(point) for point in sweep.get("published", ())],
    "comparisons": [list(pair) for pair in sweep.get("comparisons", ())],
    "variants": variants,
  }
  path = workdir / "sweep.json"
  try:
    before = read_json(path, (SWEEP, _OF_AN_OLDER_VERSION))
  except ValueError as error:
    warnings.warn(f"{error} It is now {set_aside(path)}.", stacklevel=2)
    before = None
  if before and not _is_part(before, as_json(record)):
    beside = next(
      p for p in (workdir / f"sweep.{i}.json" for i in itertools.count(1)) if not p.exists()
    )
    path.rename(beside)
  write_json(path, record)


def _is_part(before: dict[str, Any], record: dict[str, Any]) -> bool:
  """Whether every run of one record is in the other, with the same config."""
  theirs, ours = before["variants"], record["variants"]
  if not isinstance(theirs, dict):
    return False
  return all(
    name in ours
    and set(variant["seeds"]) <= set(ours[name]["seeds"])
    and same_variant(converted(variant["config"]), ours[name]["config"])
    for name, variant in theirs.items()
  )


def same_variant(one: dict[str, Any], other: dict[str, Any]) -> bool:
  """Whether two runs' configs differ in nothing but their seed, name, and `run.MAY_CHANGE`."""
  return not differences(one, other).keys() - {"seed", "name", *MAY_CHANGE}


def read_record(workdir: Path) -> dict[str, Any]:
  """Reads `sweep.json`.

  Raises:
    ValueError: if there is none, or it is damaged or of a version that wrote less.
  """
  record = read_json(workdir / "sweep.json", (SWEEP, _OF_AN_OLDER_VERSION))
  if record is None:
    raise ValueError(f"{workdir} holds no sweep: it has no sweep.json.")
  if not isinstance(record["variants"], dict):
    raise ValueError(
      f"{workdir / 'sweep.json'} is of an older version: run the sweep's command again, which "
      "repeats no finished run."
    )
  for variant in record["variants"].values():
    variant["config"] = converted(variant["config"])
  return record
