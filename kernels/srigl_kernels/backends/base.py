"""What a backend is: the record that each exports, as `BACKEND`, and `registry` lists."""

from collections.abc import Callable, Collection
from typing import NamedTuple

from jax import Array

from srigl_kernels.conv_geometry import Geometry
from srigl_kernels.epilogue import COMMON, apply_epilogue
from srigl_kernels.format import Condensed
from srigl_kernels.prepared import Layout


class Backend(NamedTuple):
  """One way to compute the product.

  A record can be imported everywhere: what is heavy to import, or may not be there, is imported by
  its functions, and `is_available` says whether these can run.

  Attributes:
    pack: `(condensed) -> layout`, the arrays that `matmul` reads.
    matmul: `(x [B, I], layout, bias [N] or None, activation) -> y [B, N]` of x's type.
    is_available: whether it can run here.
    needs: what it takes to run, for messages.
    pack_rounded: as `pack`, where it is faster to compute with weights that are slightly rounded.
    packs_traced: whether `pack` also takes traced arrays.
    pack_pattern: `(condensed) -> layout`, all that does not depend on the values; None where
      `pack` is cheap enough for every call.
    with_values: `(layout, values [A, K]) -> layout`, from what `pack_pattern` or `pack` made to
      what `matmul` and `conv` read.
    input_gradient: `(g [B, N], condensed, layout) -> dx [B, I]`, as `xla.input_gradient`; None for
      that one.
    values_gradient: `(g [B, N], x [B, I], condensed, layout) -> dvalues [A, K]`; likewise.
    conv: `(x [B, *S, C], layout, bias or None, activation, geometry) -> y [B, *S_out, N]`; None if
      it runs a convolution as `conv_patches.conv` with its `matmul`.
    conv_groups: whether `conv` takes groups; for other backends the layer's are expanded.
    converts: whether `pack` and what reads its layouts take layers of int8, and round inputs where
      the layer says so; others get float32, and inputs that are rounded already.
    fuses: the activations that `matmul` and `conv` apply; others follow them.
    adds_residual: whether `matmul` and `conv` take one more argument, an array of y's shape or
      None, which they add to y before the activation.
    is_linear: `(layout) -> bool`, whether `matmul` is linear in x, so that it has derivatives.
  """

  pack: Callable[[Condensed], Layout]
  matmul: Callable[[Array, Layout, Array | None, str | None], Array]
  is_available: Callable[[], bool] = lambda: True
  needs: str = ""
  pack_rounded: Callable[[Condensed], Layout] | None = None
  packs_traced: Callable[[], bool] = lambda: True
  pack_pattern: Callable[[Condensed], Layout] | None = None
  with_values: Callable[[Layout, Array], Layout] = lambda layout, values: layout
  input_gradient: Callable[[Array, Condensed, Layout], Array] | None = None
  values_gradient: Callable[[Array, Array, Condensed, Layout], Array] | None = None
  conv: Callable[[Array, Layout, Array | None, str | None, Geometry], Array] | None = None
  conv_groups: bool = False
  converts: bool = False
  fuses: Collection[str | None] = COMMON
  adds_residual: bool = False
  is_linear: Callable[[Layout], bool] = lambda layout: True

  def finish(
    self, run: Callable[..., Array], activation: str | None, residual: Array | None
  ) -> Array:
    """What `run(activation)` gives, a residual added before the activation.

    Args:
      run: `matmul` or `conv`, of all but the activation and what follows it.
      activation: a name in `ACTIVATIONS`.
      residual: of the shape of the result, or None.
    """
    if self.adds_residual and activation in self.fuses:
      return run(activation, residual)
    if residual is None and activation in self.fuses:
      return run(activation)
    y = run(None)
    return apply_epilogue(y, None, activation, y.dtype, residual)
