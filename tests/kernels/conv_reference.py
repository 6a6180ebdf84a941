"""Convolutions in float64 numpy, tap by tap; groups are blocks of a kernel of all channels."""

import itertools

import numpy as np

from tests.kernels import reference


class Conv:
  """What an output reads, from arguments as `condensed_conv` takes them (no names of paddings)."""

  def __init__(self, condensed, *, strides, padding, input_dilation=1, kernel_dilation=1, groups=1):
    *self.size, channels, self.neurons = condensed.kernel_shape
    rank = len(self.size)
    each = lambda value: (value,) * rank if isinstance(value, int) else tuple(value)
    self.strides, self.dilation = each(strides), each(kernel_dilation)
    self.spacing, self.padding = each(input_dilation), padding
    matrix = reference.dense_matrix(condensed).reshape(*self.size, channels, self.neurons)
    self.kernel = np.zeros((*self.size, channels * groups, self.neurons))
    per_group = self.neurons // groups
    for g in range(groups):
      block = np.s_[g * per_group : (g + 1) * per_group]
      self.kernel[..., g * channels : (g + 1) * channels, block] = matrix[..., block]
    neurons, indices = np.asarray(condensed.active), np.asarray(condensed.indices, int)
    tap, channel = indices // channels, indices % channels
    channel = channel + (neurons // per_group * channels)[:, None]
    self.places = tap * channels * groups + channel, neurons[:, None]

  def padded(self, x):
    x = np.asarray(x, float)
    size = [max((n - 1) * d + 1, 0) for n, d in zip(x.shape[1:-1], self.spacing, strict=True)]
    dilated = np.zeros((x.shape[0], *size, x.shape[-1]))
    dilated[(slice(None), *(slice(None, None, d) for d in self.spacing))] = x
    pads = [(max(a, 0), max(b, 0)) for a, b in self.padding]
    padded = np.pad(dilated, [(0, 0), *pads, (0, 0)])
    cut = [slice(max(-a, 0), min(b, 0) or None) for a, b in self.padding]
    return padded[(slice(None), *cut)]

  def taps(self, padded):
    """Index of the kernel, and of the pixels of the padded image that it meets."""
    reach = [(k - 1) * d + 1 for k, d in zip(self.size, self.dilation, strict=True)]
    out = [
      max(n - r + s, 0) // s
      for n, r, s in zip(padded.shape[1:-1], reach, self.strides, strict=True)
    ]
    self.out = out
    for tap in itertools.product(*map(range, self.size)):
      starts = [k * d for k, d in zip(tap, self.dilation, strict=True)]
      yield (
        tap,
        (
          slice(None),
          *(
            slice(a, a + (n - 1) * s + 1 if n else a, s)
            for a, n, s in zip(starts, out, self.strides, strict=True)
          ),
        ),
      )

  def __call__(self, x, bias=None):
    padded, y = self.padded(x), 0
    for tap, pixels in self.taps(padded):
      y = y + padded[pixels] @ self.kernel[tap]
    return y if bias is None else y + np.asarray(bias, float)

  def gradients(self, x, g):
    """In x, values and bias, from the gradient in the convolution."""
    padded, g = self.padded(x), np.asarray(g, float)
    dpadded, dkernel = np.zeros_like(padded), np.zeros_like(self.kernel)
    for tap, pixels in self.taps(padded):
      dpadded[pixels] += g @ self.kernel[tap].T
      dkernel[tap] = np.tensordot(padded[pixels], g, (range(g.ndim - 1),) * 2)
    inside = []
    for n, d, (low, _) in zip(np.shape(x)[1:-1], self.spacing, self.padding, strict=True):
      assert low >= 0
      inside.append(slice(low, low + (n - 1) * d + 1, d))
    dvalues = dkernel.reshape(-1, self.neurons)[self.places]
    return dpadded[(slice(None), *inside)], dvalues, g.sum(tuple(range(g.ndim - 1)))
