"""Deep Q-learning on Breakout of MinAtar (Young & Tian 2019), in gymnax, the network sparse.

MinAtar's network: a convolution of 3 × 3 with 16 channels, 128 neurons, a value for each action.
Four environments each take a step before a gradient step on 64 transitions of the last 100,000;
1,005,000 steps of the environment. All layers are sparse, 90 % by default.

    pip install gymnax
    python -m experiments.train --config=configs/dqn_minatar.py:quick --workdir=runs/dqn_quick
    python -m experiments.train --config=configs/dqn_minatar.py --config.data.name=Asterix-MinAtar

What follows a colon chooses a method, `:rigl`, and a size: `:quick` (151,760 steps of the
environment, a buffer of 20,000: minutes on two cores) or `:rigl-quick`. One's own environment by
`--config.data.name=module:function`, with `--config.task.kwargs.replay_dtype=float32` unless
its observations are whole numbers below 256. An epoch is as many examples as the buffer holds.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "srigl") -> ConfigDict:
  """Breakout at 90 % sparsity.

  Args:
    argument: a method of `base.get_config` and "quick", each at most once, joined by hyphens;
      SRigL by default.
  """
  given = base.read_argument(argument, method=base.preset_names(), size=("quick",))
  method = given.get("method", "srigl")
  config = base.get_config(method)
  config.name = f"DQN, {method}"
  config.task.name = "dqn"
  config.task.kwargs = ConfigDict(
    {
      "num_envs": 4,
      "capacity": 100_000,
      "warm_up": 5_000,
      "replay_dtype": "uint8",
      "discount": 0.99,
      "epsilon_start": 1.0,
      "epsilon_end": 0.05,
      "epsilon_steps": 50_000,
      "target_every_steps": 500,
    }
  )
  config.data.name = "Breakout-MinAtar"
  config.data.batch_size = 64
  config.data.kwargs = ConfigDict({"test_episodes": 20, "max_episode_steps": 0})
  config.model.name = "q_network"
  config.model.kwargs = ConfigDict({"hidden": (128,), "channels": 16})
  config.method.never_ablate = ("^head/",)
  config.method.update_every_steps = 1000
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 5e-4
  config.optimizer.weight_decay = 0.0
  config.optimizer.schedule = "constant"
  config.train.total_epochs = 160.0  # of 1,562 steps
  config.train.log_every_steps = 2000
  config.train.eval_every_epochs = 8.0
  config.train.eval_batch_size = 20
  config.train.checkpoint_every_epochs = 40.0
  if "size" in given:
    config.name += ", quick"
    config.task.kwargs.capacity = 20_000
    config.task.kwargs.warm_up = 2_000
    config.task.kwargs.epsilon_steps = 10_000
    config.method.update_every_steps = 250
    config.train.total_epochs = 120.0  # of 312 steps
    config.train.log_every_steps = 1000
    config.train.eval_every_epochs = 12.0
    config.train.checkpoint_every_epochs = 60.0
  return config
