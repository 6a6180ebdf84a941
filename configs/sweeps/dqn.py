"""Deep Q-learning with a sparse network: return by method at 80, 90, 95 and 99 % sparsity.

`python -m experiments.sweep --config=configs/sweeps/dqn.py:breakout --workdir=runs/dqn_breakout`

Games: `breakout`, `asterix`, at the scale of `dqn_minatar.py:quick`: five seeds, 151,760 steps of
the environment, minutes for each of 65 runs. `breakout-updates` asks at 95 % when SRigL's topology
updates are to end (T_end, of all steps) and how often they are to be (ΔT): a replay buffer holds
what earlier networks did.
"""

from ml_collections import ConfigDict

from configs import base, dqn_minatar
from configs.sweeps import fields

GAMES = {"breakout": "Breakout-MinAtar", "asterix": "Asterix-MinAtar"}


def get_config(argument: str = "breakout") -> ConfigDict:
  """The sweep on a game, of methods or of when the topology is updated."""
  given = base.read_argument(argument, game=GAMES, question=("updates",))
  game = GAMES[given.get("game", "breakout")]
  run = dqn_minatar.get_config("quick")
  run.data.name = game
  is_of_updates = "question" in given
  return ConfigDict(
    {
      "name": f"DQN, {game}" + ", topology updates" * is_of_updates,
      "study": "returns",
      "base": run,
      "variants": _updates() if is_of_updates else _methods(),
      "seeds": tuple(range(5)),
      "comparisons": ()
      if is_of_updates
      else (("srigl", "dense"), ("srigl", "rigl"), ("srigl", "static")),
    }
  )


def _methods() -> tuple:
  variants: list = [("dense", fields("dense"))]
  for sparsity in (0.8, 0.9, 0.95, 0.99):
    for method in ("static", "rigl", "srigl"):
      axes = {"axes": {"method": method, "sparsity": sparsity}}
      name = f"{method}_{100 * sparsity:g}"
      variants.append((name, fields(method, sparsity=sparsity), axes))
  return tuple(variants)


def _updates() -> tuple:
  variants = []
  for every in (100, 250, 1000):
    for until in (0.25, 0.75, 1.0):
      changes = {"update_every_steps": every, "update_until_fraction": until}
      axes = {"axes": {"method": f"ΔT {every}, T_end {until:g}", "sparsity": 0.95}}
      variants.append((f"{every}_{until:g}", fields("srigl", sparsity=0.95, **changes), axes))
  return tuple(variants)
