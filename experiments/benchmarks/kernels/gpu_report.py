"""Tables of what `gpu_check` measured: medians, shares of the floor, targets, and the choice."""

from collections.abc import Iterator
from typing import Any

from experiments.benchmarks.kernels.gpu_cases import cases
from experiments.benchmarks.timing import quartiles
from experiments.common.markdown import markdown_table
from srigl_kernels import cost_model

_CACHE_BYTES = 50e6


def is_right(results: dict[str, Any]) -> bool:
  """Whether every check that ran is right, and ran."""
  checks = [row for name, row in results["rows"].items() if name.startswith("check ")]
  return bool(checks) and all(row.get("ok", False) for row in checks)


def tables(results: dict[str, Any]) -> str:
  """All tables as text."""
  rows = results["rows"]
  parts = [", ".join(f"{k} {v}" for k, v in results.get("environment", {}).items())]
  ceilings = rows.get("ceilings", {})
  if "bytes" in ceilings:
    rates = ", ".join(
      f"{name} {2e-12 * ceilings[name]:.4g} TFLOP/s" for name in ("float32", "tf32", "bfloat16")
    )
    parts.append(f"ceilings: copy {1e-12 * ceilings['bytes']:.3g} TB/s; products of {rates}")
  checks = {name: row for name, row in rows.items() if name.startswith("check ")}
  wrong = {name: row for name, row in checks.items() if not row.get("ok", False)}
  parts.append(f"checks: {len(checks) - len(wrong)} of {len(checks)} right")
  parts += [f"  {name}: {row.get('failed') or row.get('errors')}" for name, row in wrong.items()]
  timed = [row for row in rows.values() if "case" in row]
  for case in dict.fromkeys(row["case"] for row in timed):
    parts.append(_table([row for row in timed if row["case"] == case], ceilings))
  if results.get("tiny"):
    parts.append("tiny shapes: times mean nothing, and have no targets")
  else:
    parts.append("\n".join(["targets:", *_targets(timed)]))
    parts.append("\n".join(["auto, by srigl_kernels.cost_model:", *_choices(timed)]))
  failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
  absent = [name for name, why in failed.items() if "torch" in name and "No module" in why]
  late = [name for name, why in failed.items() if why == "not reached in time"]
  parts += [f"failed: {n}: {why}" for n, why in failed.items() if n not in absent and n not in late]
  parts += [f"{len(absent)} rows need PyTorch"] * bool(absent)
  parts += [f"{len(late)} rows were not reached in time, from {late[0]} on"] if late else []
  return "\n\n".join(parts)


def median(row: dict[str, Any]) -> float:
  """Median seconds."""
  return quartiles(row["seconds"])[1]


def floor(row: dict[str, Any], ceilings: dict[str, float]) -> float:
  """Seconds that the card's ceilings allow: for the bytes that must move, or for the products."""
  of_bytes = row["bytes"] / ceilings["bytes"]
  return max(of_bytes, row["products"] / ceilings[row["rate"]]) * (3 if row["gradients"] else 1)


def _table(rows: list[dict[str, Any]], ceilings: dict[str, float]) -> str:
  first = rows[0]
  title = (
    f"{first['case']}: {first['in_features']} to {first['out_features']}, {first['num_active']} "
    f"active of fan-in {first['fan_in']}"
  )
  lines = []
  for row in sorted((r for r in rows if "seconds" in r), key=median):
    low, middle, high = (1e6 * t for t in quartiles(row["seconds"]))
    share = ""
    if "bytes" in row and "bytes" in ceilings:
      share = f"{100 * floor(row, ceilings) / median(row):.1f} %"
      share += "" if row["rotation_bytes"] > _CACHE_BYTES else ", weights fit into the cache"
    lines.append((row["method"], f"{middle:.2f} ({low:.2f}–{high:.2f})", share))
  header = ("method", "µs (quartiles)", "share of its floor")
  return f"{title}\n\n{markdown_table(header, lines)}"


def _targets(timed: list[dict[str, Any]]) -> Iterator[str]:
  by_name = {(row["case"], row["method"]): row for row in timed if "seconds" in row}
  names = dict.fromkeys(row["case"] for row in timed)
  for case in cases():
    for slower, faster, at_least in case.targets if case.name in names else ():
      pair = by_name.get((case.name, slower)), by_name.get((case.name, faster))
      label = f"  {case.name}: {slower} / {faster}, at least {at_least:g}"
      if pair[0] is None or pair[1] is None:
        yield f"{label}: not measured"
      else:
        ratio = median(pair[0]) / median(pair[1])
        yield f"{label}: {ratio:.2f} {'met' if ratio >= at_least else 'MISSED'}"


_RIVALS = {
  "float32": ("dense", "torch_dense"),
  "TF32": ("dense_tf32", "torch_tf32"),
  "bfloat16": ("dense_bf16", "torch_bf16"),
}
# Methods for any layer, by what they multiply; gathering in float32 rounds nothing.
_OURS = {
  "float32": ("cuda", "cuda_gather", "cuda_tiles", "pallas"),
  "TF32": ("cuda_tf32", "cuda_gather", "cuda_tiles_tf32", "pallas"),
  "bfloat16": ("cuda_bf16", "cuda_gather_bf16", "cuda_tiles_bf16", "pallas_bf16"),
}


def ratios(results: dict[str, Any]) -> str:
  """By layer and precision: the fastest dense product's time over the fastest condensed one's.

  Methods are named where JAX's own dense product and our default are not the fastest. Only methods
  that run a layer with any pattern count.
  """
  timed = [row for row in results["rows"].values() if "case" in row and "seconds" in row]
  times = {(row["layer"], row["batch"], row["method"]): median(row) for row in timed}
  batches = sorted({row["batch"] for row in timed})
  lines = []
  for layer in dict.fromkeys(row["layer"] for row in timed):
    for precision, rivals in _RIVALS.items():
      cells = []
      for batch in batches:
        at = lambda name, layer=layer, batch=batch: (layer, batch, name)
        found = [
          sorted((times[at(name)], name) for name in names if at(name) in times)
          for names in (rivals, _OURS[precision])
        ]
        if not all(found):
          cells.append("")
          continue
        (rival, theirs), (own, ours) = (each[0] for each in found)
        said = [theirs] * theirs.startswith("torch") + [ours] * ours.startswith("pallas")
        cells.append(f"{rival / own:.2f}" + (f" ({', '.join(said)})" if said else ""))
      if any(cells):
        lines.append([layer, precision, *cells])
  return markdown_table(["layer", "products in", *(f"batch {n}" for n in batches)], lines)


def sizes(row: dict[str, Any]) -> cost_model.Sizes:
  """The sizes that `cost_model` estimates by."""
  fields = ("in_features", "out_features", "num_active", "fan_in", "group")
  return cost_model.Sizes(*(row[name] for name in fields))


def _choices(timed: list[dict[str, Any]]) -> Iterator[str]:
  """What the constants choose in each case among methods of one type, and what that loses."""
  for case in dict.fromkeys(row["case"] for row in timed):
    for dtype in ("float32", "bfloat16"):
      rows = {
        row["key"]: row
        for row in timed
        if row["case"] == case and row.get("key") and row["dtype"] == dtype and row["group"] == 1
        and not row["key"].endswith("highest")
      }  # fmt: skip
      if len(rows) > 1:
        chosen = min(
          rows, key=lambda key: cost_model.estimate(key, sizes(rows[key]), rows[key]["batch"])
        )
        best = min(rows, key=lambda key: median(rows[key]))
        loss = median(rows[chosen]) / median(rows[best])
        yield f"  {case} {dtype}: takes {chosen}, best {best}, {loss:.2f} times its time"


def constants(results: dict[str, Any]) -> str:
  """Lines for `cost_model.SECONDS`, fitted to a results file; needs scipy."""
  from experiments.benchmarks.kernels import fit_cost_model

  measured: fit_cost_model.Measured = {}
  for row in results["rows"].values():
    if row.get("key") in cost_model.SECONDS and "seconds" in row:
      measured.setdefault(row["key"], []).append((sizes(row), row["batch"], median(row)))
  return "\n".join(
    fit_cost_model.rates_row(key, fit_cost_model.fit(key, calls), calls)
    for key, calls in measured.items()
  )
