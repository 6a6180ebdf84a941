"""PPO with a sparse actor and critic: return by method at 90, 95 and 99 % sparsity.

`python -m experiments.sweep --config=configs/sweeps/ppo.py:cartpole --workdir=runs/ppo_cartpole`

Environments: `cartpole`, `acrobot`, at the scale of `ppo_gymnax.py:quick`: five seeds, 102,400
steps of the environment, less than a minute for each of 45 runs; `acrobot-95` looks at one
sparsity. `cartpole-updates` asks at 95 % when SRigL's topology updates are to end (T_end, of all
steps) and how often they are to be (ΔT): what a network that acts has to learn from changes with
what it does.
"""

from ml_collections import ConfigDict

from configs import base, ppo_gymnax
from configs.sweeps import methods_at, update_schedules

_TOO_FEW = 0.99  # leaves layers of 128 less than a connection for each neuron, and SRigL gives one
SPARSITIES = {"90": 0.9, "95": 0.95, "99": 0.99}
ENVIRONMENTS = {"cartpole": "CartPole-v1", "acrobot": "Acrobot-v1"}


def get_config(argument: str = "cartpole") -> ConfigDict:
  """The sweep on an environment, of methods or of when the topology is updated."""
  given = base.read_argument(
    argument, environment=ENVIRONMENTS, question=("updates",), sparsity=SPARSITIES
  )
  one = given.get("sparsity")
  sparsities = [SPARSITIES[one]] if one else list(SPARSITIES.values())
  environment = ENVIRONMENTS[given.get("environment", "cartpole")]
  run = ppo_gymnax.get_config("quick")
  run.data.name = environment
  run.train.log_every_steps = 800
  run.train.eval_every_epochs = 20.0
  is_of_updates = "question" in given
  return ConfigDict(
    {
      "name": f"PPO, {environment}" + ", topology updates" * is_of_updates,
      "study": "returns",
      "base": run,
      "variants": update_schedules((25, 100, 400))
      if is_of_updates
      else methods_at(sparsities, srigl_below=_TOO_FEW),
      "seeds": tuple(range(5)),
      "comparisons": ()
      if is_of_updates
      else (("srigl", "dense"), ("srigl", "rigl"), ("srigl", "static")),
    }
  )
