"""How much a sparse layer's output norm varies, by how its mask is drawn: closed forms.

The model: `n` inputs, `n` neurons, mean fan-in `k`, and `z = sqrt(2/k) (W ∘ I)(ξ ∘ x)` with weights
`W` i.i.d. N(0, 1), a random 0/1 mask `I`, and gates `ξ` i.i.d. Bernoulli(1/2), all independent of
the input `x`. Then `E|z|² = |x|²`, and the masks differ in the spread of `|z|²` about it. The gates
stand for the ReLU of the layer before, exactly so: `z` has independent random signs given all
magnitudes, so that `ξ ∘ z` and `relu(z)` give the next layer's norm the same distribution.

Source: the paper's section on output-norm variance (arXiv:2305.02299). The forms here are derived
by conditioning. Given `I`, `ξ` and `x`, `z_i` is N(0, (2/k) s_i) with `s_i = Σ_j I_ij ξ_j x_j²`,
independent over i, so

  E|z|⁴ = (4/k²) E[3 Σ_i s_i² + Σ_{i≠m} s_i s_m],

and the mask enters through the probability that two given weights are both active, relative to
independent weights: `same` for two weights of one neuron, `other` for two weights of different
neurons. With `A = E|x|⁴` and `B = E Σ_j x_j⁴` that becomes

  E Σ_i z_i⁴ = 3 (2 B / k + same · (A − B) / n)
  E|z|⁴      = E Σ_i z_i⁴ + other · (1 − 1/n) (A + B),

which, starting from `A = 1`, `B = 3/(n+2)` (x uniform on the unit sphere), also gives any number of
stacked layers.
"""

from typing import NamedTuple

MASKS = ("bernoulli", "constant_per_layer", "constant_fan_in")


class _PairFactors(NamedTuple):
  """P(two weights are active) / (k/n)², for two of one neuron and for two of different ones."""

  same: float
  other: float


def output_norm_variance(mask: str, n: int, k: float, *, depth: int = 1) -> float:
  """Variance of `|z|²` after one layer or several, for a uniform input of norm 1. Exact.

  For one layer, times n (n + 2), it is

    bernoulli           5n − 8 + 18 n/k
    constant_per_layer  (n + 8)(n − 1) C − n² − 2n + 18 n/k,  C = (n − 1/k) / (n − 1/n)
    constant_fan_in     5n − 5 + 15 n/k

  that is, the first less 0, (n + 8)/(n + 1) and 3 times (n − k)/k: equal at k = n, and constant
  fan-in the smallest from n = 3 on.

  Args:
    mask: "bernoulli" (each weight is kept with probability k/n), "constant_per_layer" (k n weights
      of the layer) or "constant_fan_in" (k weights of every neuron).
    n: inputs, and neurons.
    k: mean fan-in, 1 to n; whole for "constant_fan_in", k n whole for "constant_per_layer".
    depth: layers, each with its own mask, weights and gates.

  Returns:
    Var |z|², which is also E|z|⁴ − 1.

  Raises:
    ValueError: if an argument is out of range.
  """
  _check(mask, n, k, depth)
  same, other = _pair_factors(mask, n, k)
  all_pairs, fourth_powers = 1.0, 3 / (n + 2)
  for _ in range(depth):
    next_powers = 3 * (2 * fourth_powers / k + same * (all_pairs - fourth_powers) / n)
    all_pairs = next_powers + other * (1 - 1 / n) * (all_pairs + fourth_powers)
    fourth_powers = next_powers
  return all_pairs - 1


def uniform_direction_variance(mask: str, n: int, k: float, *, depth: int) -> float:
  """What `output_norm_variance` would be if every layer's input had a uniform direction.

  The norm's ratios over the layers are independent then, so `1 + Var` multiplies. A layer's output
  is in fact less evenly spread over its neurons than that, and the true variance is larger.

  Args:
    mask: see `output_norm_variance`.
    n: inputs, and neurons.
    k: mean fan-in.
    depth: layers.

  Raises:
    ValueError: if an argument is out of range.
  """
  _check(mask, n, k, depth)
  return (1 + output_norm_variance(mask, n, k)) ** depth - 1


def _pair_factors(mask: str, n: int, k: float) -> _PairFactors:
  if mask == "constant_per_layer":
    factor = (n - 1 / k) / (n - 1 / n) if n > 1 else 1.0
    return _PairFactors(factor, factor)
  if mask == "constant_fan_in":
    return _PairFactors((1 - 1 / k) / (1 - 1 / n) if n > 1 else 1.0, 1.0)
  return _PairFactors(1.0, 1.0)


def _check(mask: str, n: int, k: float, depth: int) -> None:
  if mask not in MASKS:
    raise ValueError(f"mask is {mask!r}; it must be one of {', '.join(MASKS)}.")
  if n != int(n) or n < 1 or depth != int(depth) or depth < 1:
    raise ValueError(f"n is {n} and depth {depth}; both must be whole and at least 1.")
  if not 1 <= k <= n:
    raise ValueError(f"k is {k}; a mean fan-in must be from 1 to n, which is {n}.")
  weights = {"constant_per_layer": k * n, "constant_fan_in": k}.get(mask, 0)
  if weights != int(weights):
    raise ValueError(
      f"k is {k} with n = {n}: {mask} needs a whole number of weights in each "
      f"{'layer' if mask == 'constant_per_layer' else 'neuron'}, not {weights}."
    )
