"""Proximal policy optimization (Schulman et al. 2017): an actor and a critic, both sparse."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from experiments import models
from experiments.data import Experience, InputPipeline
from experiments.data.environments import Environment, load_environment
from experiments.models.agents import ActorCritic, Judgement
from experiments.tasks import acting
from experiments.tasks.task import Sums, Task

ACTOR_CRITICS = {"actor_critic": ActorCritic}
"""Networks by name: from observations to `agents.Judgement`."""
_SHAPES = ("observation_shape", "num_actions")


def ppo(
  *,
  label_smoothing: float = 0.0,
  num_envs: int = 8,
  num_steps: int = 128,
  num_passes: int = 4,
  discount: float = 0.99,
  gae_lambda: float = 0.95,
  clip: float = 0.2,
  entropy_cost: float = 0.01,
  value_cost: float = 0.5,
) -> Task:
  """The task; its score is the mean return of episodes in which the likeliest action is taken.

  An epoch is a pass over one rollout, `num_envs * num_steps` examples; after `num_passes` of them
  the network, as it is by then, acts again.

  Args:
    label_smoothing: must be 0.
    num_envs: environments side by side.
    num_steps: of each in a rollout.
    num_passes: over a rollout, before the next one.
    discount: of rewards by step, γ.
    gae_lambda: of the generalized advantage estimation (Schulman et al. 2016), λ.
    clip: ε, how far the ratio of probabilities may move and still count.
    entropy_cost: of the policy's entropy in the loss.
    value_cost: of the critic's half squared error in the loss.

  Raises:
    ValueError: if an argument is out of range.
  """
  acting.no_label_smoothing("ppo", label_smoothing)
  acting.check_ranges(
    "ppo",
    num_envs=(num_envs, 1, math.inf),
    num_steps=(num_steps, 1, math.inf),
    num_passes=(num_passes, 1, math.inf),
    discount=(discount, 0, 1),
    gae_lambda=(gae_lambda, 0, 1),
    clip=(clip, 1e-6, math.inf),
    entropy_cost=(entropy_cost, 0, math.inf),
    value_cost=(value_cost, 0, math.inf),
  )

  def pipeline(environment: Environment, *, batch_size: int, **sizes: Any) -> InputPipeline:
    steps_per_rollout = num_passes * (environment.num_train // batch_size)
    return acting.acting_pipeline(
      environment,
      experience=_rollouts(
        environment, num_envs, num_steps, steps_per_rollout, discount, gae_lambda
      ),
      values=lambda judgement: judgement.logits,
      batch_size=batch_size,
      **sizes,
    )

  return Task(
    load=functools.partial(load_environment, num_train=num_envs * num_steps),
    shapes=acting.shapes_of,
    build=functools.partial(models.construct, ACTOR_CRITICS, _SHAPES),
    inputs=acting.observations,
    pipeline=pipeline,
    loss=functools.partial(ppo_loss, clip=clip, entropy_cost=entropy_cost, value_cost=value_cost),
    train_metrics=("entropy", "clipped", "value_error"),
    test_sums=acting.test_sums,
    score=acting.RETURN,
    unit="examples",
  )


def ppo_loss(
  outputs: Judgement,
  targets: dict[str, Array],
  *,
  clip: float,
  entropy_cost: float,
  value_cost: float,
) -> tuple[Array, Sums]:
  """The clipped objective with the critic's error and the entropy (equation 9 of the paper).

  Args:
    outputs: of the network for observations `[B, ...]`.
    targets: of these: `action` `[B]` int32, the `log_prob` `[B]` that it had when it was taken,
      its `advantage` `[B]`, and the `value` `[B]` that the critic is to find.
    clip: ε.
    entropy_cost: of the entropy.
    value_cost: of half the squared error.

  Returns:
    The mean loss `[]`, and sums of the entropy, of the share of examples beyond the clip, and of
    the critic's squared errors.
  """
  log_probs = jax.nn.log_softmax(outputs.logits)
  log_prob = jnp.take_along_axis(log_probs, targets["action"][:, None], axis=-1)[:, 0]
  ratio = jnp.exp(log_prob - targets["log_prob"])
  advantage = targets["advantage"]
  gained = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)
  entropy = -(jnp.exp(log_probs) * log_probs).sum(-1)
  error = (outputs.value - targets["value"]) ** 2
  losses = -gained + value_cost * error / 2 - entropy_cost * entropy
  clipped = (jnp.abs(ratio - 1) > clip).astype(jnp.float32)
  sums = {"entropy": entropy, "clipped": clipped, "value_error": error}
  return losses.mean(), {name: x.sum() for name, x in sums.items()}


def advantages(
  rewards: Array,
  values: Array,
  next_values: Array,
  done: Array,
  *,
  discount: float,
  gae_lambda: float,
) -> Array:
  """Generalized advantage estimation (Schulman et al. 2016, equation 16), `[T, N]` float32.

  Args:
    rewards: `[T, N]`, of `T` steps of `N` environments.
    values: `[T, N]`, the critic's of what the actions were chosen by.
    next_values: `[T, N]`, of what they led to: 0 where an episode terminated; of the last
      observation where it was cut short.
    done: `[T, N]` bool, where an episode ended either way: nothing flows back over it.
    discount: γ.
    gae_lambda: λ.
  """
  errors = rewards + discount * next_values - values

  def back(after: Array, step: tuple[Array, Array]) -> tuple[Array, Array]:
    error, end = step
    now = error + discount * gae_lambda * jnp.where(end, 0, after)
    return now, now

  return lax.scan(back, jnp.zeros_like(errors[0]), (errors, done), reverse=True)[1]


def _rollouts(
  environment: Environment,
  num_envs: int,
  num_steps: int,
  steps_per_rollout: int,
  discount: float,
  gae_lambda: float,
) -> Experience:
  """Rollouts of the network as it is, each for so many steps of training."""

  def collect(key: Array, carried: Any, network: Any, weights: Any) -> Any:
    def policy(key: Array, observation: Array) -> tuple[Array, Any]:
      judgement = network(weights, observation.astype(jnp.float32))
      action = jax.random.categorical(key, judgement.logits).astype(jnp.int32)
      log_probs = jax.nn.log_softmax(judgement.logits)
      log_prob = jnp.take_along_axis(log_probs, action[:, None], axis=-1)[:, 0]
      return action, (log_prob, judgement.value)

    def move(carry: Any, key: Array) -> tuple[Any, Any]:
      observation, state = carry
      action, step, kept = acting.act(environment, key, observation, state, policy)
      return (step.observation, step.state), (observation, action, step._replace(state={}), kept)

    start = carried["observation"], carried["state"]
    keys = jax.random.split(key, num_steps)
    (observation, state), found = lax.scan(move, start, keys)
    seen, action, step, (log_prob, value) = found
    flat = lambda x: x.reshape(num_envs * num_steps, *x.shape[2:])
    final_values = network(weights, flat(step.final).astype(jnp.float32)).value
    next_values = jnp.where(step.terminated, 0, final_values.reshape(num_steps, num_envs))
    advantage = advantages(
      step.reward, value, next_values, step.done, discount=discount, gae_lambda=gae_lambda
    )
    rollout = (
      seen.astype(jnp.float32),
      {
        "action": action,
        "log_prob": log_prob,
        "advantage": (advantage - advantage.mean()) / (advantage.std() + 1e-8),
        "value": advantage + value,
      },
    )
    inputs, targets = jax.tree.map(flat, rollout)
    return {"observation": observation, "state": state, "inputs": inputs, "targets": targets}

  def init(key: Array, network: Any, weights: Any) -> Any:
    def make(key: Array, weights: Any) -> Any:
      observation, state = acting.begin(environment, key, num_envs)
      carried = {"observation": observation, "state": state}
      # The first step makes it anew: here it only takes its place.
      blank = jax.eval_shape(lambda: collect(key, carried, network, weights))
      empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), blank)
      return empty | carried | {"step": jnp.zeros((), jnp.int32)}

    return jax.jit(make)(key, weights)

  def advance(key: Array, carried: Any, network: Any, weights: Any) -> tuple[Any, Any]:
    step = carried["step"]
    rest = {name: x for name, x in carried.items() if name != "step"}
    rest = lax.cond(
      step % steps_per_rollout == 0,
      lambda rest: collect(key, rest, network, weights),
      lambda rest: rest,
      rest,
    )
    return rest | {"step": step + 1}, (rest["inputs"], rest["targets"])

  return Experience(init, advance)
