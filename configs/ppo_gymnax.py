"""PPO on a classic control environment of gymnax, actor and critic sparse.

Two hidden layers of 256 in either, eight environments, rollouts of 128 steps, four passes over each
in batches of 256; 204,800 steps of the environment. All layers are sparse, 90 % by default.

    pip install gymnax
    python -m experiments.train --config=configs/ppo_gymnax.py:quick --workdir=runs/ppo_quick
    python -m experiments.train --config=configs/ppo_gymnax.py --config.data.name=Acrobot-v1

What follows a colon chooses a method, `:rigl`, and a size: `:quick` (102,400 steps of the
environment, two hidden layers of 128: a minute on two cores) or `:rigl-quick`. Any environment of
gymnax's by `--config.data.name=NAME`; one's own by `--config.data.name=module:function`, for which
gymnax need not be there. An epoch is a pass over a rollout of 1,024 steps: four of them are one
iteration of PPO.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "srigl") -> ConfigDict:
  """CartPole at 90 % sparsity.

  Args:
    argument: a method of `base.get_config` and "quick", each at most once, joined by hyphens;
      SRigL by default.
  """
  given = base.read_argument(argument, method=base.preset_names(), size=("quick",))
  method = given.get("method", "srigl")
  config = base.get_config(method)
  config.name = f"PPO, {method}"
  config.task.name = "ppo"
  config.task.kwargs = ConfigDict(
    {
      "num_envs": 8,
      "num_steps": 128,
      "num_passes": 4,
      "discount": 0.99,
      "gae_lambda": 0.95,
      "clip": 0.2,
      "entropy_cost": 0.01,
      "value_cost": 0.5,
    }
  )
  config.data.name = "CartPole-v1"
  config.data.batch_size = 256
  config.data.kwargs = ConfigDict({"test_episodes": 20, "max_episode_steps": 0})
  config.model.name = "actor_critic"
  config.model.kwargs = ConfigDict({"hidden": (256, 256), "channels": 0})
  config.method.never_ablate = ("_head/",)
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 1e-3
  config.optimizer.weight_decay = 0.0
  config.optimizer.clip_norm = 0.5
  config.train.total_epochs = 800.0
  config.train.log_every_steps = 320
  config.train.eval_every_epochs = 40.0
  config.train.eval_batch_size = 20
  config.train.checkpoint_every_epochs = 400.0
  if "size" in given:
    config.name += ", quick"
    config.model.kwargs = ConfigDict({"hidden": (128, 128), "channels": 0})
    config.train.total_epochs = 400.0
  return config
