"""The CPU targets of the native kernels that can be tested here."""

from srigl_kernels.backends.cpu import library


def targets():
  """CPU targets that this machine supports: the general ones, and the most special."""
  if not library.is_available():
    return []
  before, names = library.isa(), []
  for name in ("generic", "avx2", "avx512", "avx512_vnni", "avx512_bf16", "avx512_fp16"):
    try:
      library.set_isa(name)
    except ValueError:
      continue
    names = [*(n for n in names if "_" not in n), name]
  library.set_isa(before)
  return names
