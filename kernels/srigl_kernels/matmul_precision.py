"""The setting `jax_default_matmul_precision`, kept by operations that are computed later.

JAX's own products take the setting when they are traced. An operation of ours whose products are
traced when it is lowered keeps it as a parameter `precision`, or a `with
jax.default_matmul_precision(...)` within a function that is compiled would be forgotten.
"""

import jax


def current_precision() -> str | None:
  """The setting where this is called."""
  return getattr(jax.config, "jax_default_matmul_precision", None)
