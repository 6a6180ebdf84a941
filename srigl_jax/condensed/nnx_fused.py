"""Flax NNX models whose calls are fused: condensed layers do what follows them."""

import functools
from typing import Any

import jax
from flax import nnx

from srigl_jax.condensed.nnx_modules import CondensedLayer
from srigl_jax.programs.fuse import fuse
from srigl_kernels.backends.registry import is_traced


class _ModelChangedError(TypeError):
  """A call that adds variables to its model, or changes its static attributes."""


def with_fused_call(model: nnx.Module) -> nnx.Module:
  """Makes the calls of a model fused when they are traced; changes and returns it.

  Its class becomes one of the same name below its own, so that everything else stays as it was.
  """
  if not isinstance(model, CondensedLayer) and callable(model):
    model.__class__ = _fused_class(type(model))
  return model


def without_fused_call(model: nnx.Module) -> nnx.Module:
  """Takes back `with_fused_call`; changes and returns the model."""
  model.__class__ = getattr(type(model), "srigl_unfused", type(model))
  return model


@functools.cache
def _fused_class(base: Any) -> type:
  """The class of a model with fused calls; the given one if it is that, or takes no subclass."""
  if "srigl_unfused" in vars(base):
    return base

  @functools.wraps(base.__call__)
  def __call__(self, *args, **kwargs):
    is_module = lambda x: isinstance(x, (nnx.Module, nnx.Rngs, nnx.Variable))
    leaves = jax.tree.leaves((args, kwargs), is_leaf=is_module)
    if is_traced(leaves) and not any(map(is_module, leaves)):
      try:
        return _fused(base, self, args, kwargs)
      except TypeError:  # of what can only be traced with concrete variables, or is not pure
        pass
    return base.__call__(self, *args, **kwargs)

  def __reduce_ex__(self, protocol):  # a pickle names the class that can be imported
    make, given, *rest = super(new, self).__reduce_ex__(protocol)
    if getattr(make, "__name__", "") != "__newobj__":
      return (make, given, *rest)
    return (_new_fused, (base, *given[1:]), *rest)

  names = {"__call__": __call__, "__reduce_ex__": __reduce_ex__, "__doc__": base.__doc__}
  names |= {"__module__": base.__module__, "__qualname__": base.__qualname__}
  try:
    new = type(base)(base.__name__, (base,), names | {"srigl_unfused": base})
  except TypeError:
    return base
  return new


def _new_fused(base: Any, *args: Any) -> Any:
  """An object of a fused class, as `object.__reduce_ex__` makes one."""
  new = _fused_class(base)
  return new.__new__(new, *args)


def _fused(base: Any, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
  """The call of a model as a pure function, fused, and its effect on the model's variables."""
  graphdef, state = nnx.split(model)

  def run(state, args, kwargs):
    model = nnx.merge(graphdef, state)
    outputs = base.__call__(model, *args, **kwargs)
    after, state = nnx.split(model)
    if after != graphdef:
      raise _ModelChangedError
    return outputs, state

  outputs, after = fuse(run)(state, args, kwargs)
  before = dict(nnx.to_flat_state(state))
  same = lambda a, b: all(x is y for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
  changed = [(path, x) for path, x in nnx.to_flat_state(after) if not same(x, before[path])]
  if changed:
    nnx.update(model, nnx.from_flat_state(changed))
  return outputs
