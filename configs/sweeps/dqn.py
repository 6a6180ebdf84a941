"""Deep Q-learning with a sparse network: return by method at 80, 90, 95 and 99 % sparsity.

`python -m experiments.sweep --config=configs/sweeps/dqn.py:breakout --workdir=runs/dqn_breakout`

Games: `breakout`, `asterix`, at the scale of `dqn_minatar.py:quick`: five seeds, 151,760 steps of
the environment, minutes for each of 65 runs; `breakout-95` looks at one sparsity, 20 runs, and the
same directory takes the others later. `breakout-updates` asks at 95 % when SRigL's topology
updates are to end (T_end, of all steps) and how often they are to be (ΔT): a replay buffer holds
what earlier networks did.
"""

from ml_collections import ConfigDict

from configs import base, dqn_minatar
from configs.sweeps import methods_at, update_schedules

SPARSITIES = {"80": 0.8, "90": 0.9, "95": 0.95, "99": 0.99}
GAMES = {"breakout": "Breakout-MinAtar", "asterix": "Asterix-MinAtar"}


def get_config(argument: str = "breakout") -> ConfigDict:
  """The sweep on a game, of methods or of when the topology is updated."""
  given = base.read_argument(argument, game=GAMES, question=("updates",), sparsity=SPARSITIES)
  one = given.get("sparsity")
  sparsities = [SPARSITIES[one]] if one else list(SPARSITIES.values())
  game = GAMES[given.get("game", "breakout")]
  run = dqn_minatar.get_config("quick")
  run.data.name = game
  is_of_updates = "question" in given
  return ConfigDict(
    {
      "name": f"DQN, {game}" + ", topology updates" * is_of_updates,
      "study": "returns",
      "base": run,
      "variants": update_schedules((100, 250, 1000)) if is_of_updates else methods_at(sparsities),
      "seeds": tuple(range(5)),
      "comparisons": ()
      if is_of_updates
      else (("srigl", "dense"), ("srigl", "rigl"), ("srigl", "static")),
    }
  )
