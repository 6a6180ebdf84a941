"""Leaves that are no layers, by their names: tables, norms, tokens, adapters, biases.

Names are those of Flax, Haiku, Equinox, Keras and of the public transformers; a leaf called
`kernel` is a layer whatever it stands in, but for adapters.
"""

import re

_KERNEL = re.compile(r"(.*_)?kernel")
# Names that say nothing of their own: the module that they stand in decides.
_GENERIC = re.compile(r"w|weights?|embeddings?|table|value|e|g|w_\w+")
_BIAS = re.compile(r"bias|(.*_)?bias(es)?|bias_\w+")
_TOKEN = re.compile(
  r"cls|(.*_)?tokens?|class_emb\w*|latents?(_array)?|registers?|slots?(_\w+)?|inducing_points?|(query|mask)_emb\w*|(\w+_)?queries"
)
_ADAPTER = re.compile(
  r"(.*_)?(lora|dora|ia3|vera)(_?(a|b|l|up|down|magnitude|emb|lambda)\w*)?"
  r"|(soft_)?prompts?|prefix(_(tuning|k|v|keys?|values?|tokens?))?"
)
# What stands in one of these, but for the layer that it was put around.
_ADAPTERS = re.compile(
  r"(.*_)?adapters?(_(a|b|up|down|in|out|proj\w*|w))?|(.*_)?lora(_?(a|b|up|down|params?|weights?))?"
)
_BASE = re.compile(r"(.*_)?base(_.*)?")
_POSITION = re.compile(
  r"(.*_)?(pos|posemb\w*|posembed\w*|positions?|positional|wpe|ape|relpos|relative|rotary|rope|alibi)(_.*)?|pe|rpe|rpb"
)
_EMBEDDING = re.compile(
  r"(.*_)?(embed|embeds|embedding|embeddings|embedder|emb|embs|wte|wtte|codebook|vocab|lookup)"
  r"(_(table|weights?|matrix|tokens?|words?|layer))?|(.*_)?tables?|(token_type|segment)(_.*)?"
)
_NORM_LEAF = re.compile(r"(.*_)?(scale|gamma|beta|offset)|(running|moving)_\w+")
# Of state space models: no matrices, though they have two axes.
_STATE = re.compile(r"(.*_)?(a_log|log_(step|dt|lambda\w*|a)|lambda(_(re|im|log))?)")
_NORM = re.compile(
  r"(.*_)?(norm|norms|normalization|layernorm|batchnorm|groupnorm|rmsnorm|instancenorm|ln|bn|gn|grn"
  r"|rms)(_[a-z0-9]{1,5})?"
)
_NO_TABLE = re.compile(
  r"(.*_)?(ada|patch|patches|proj|projection|mlp|dense|linear|fc|net|conv|ffn)(_.*)?"
)


def plain(name: str) -> str:
  """A name in lower case with underscores and without a number at its end: `LayerNorm_0`."""
  snake = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name.replace("LoRA", "Lora").replace("DoRA", "Dora"))
  snake = snake.lower()
  return re.sub(r"[_\d]+$", "", snake) or snake


def owner_name(path: str) -> str:
  """The plain name of the module that a leaf stands in, numbers of lists left out; maybe `""`."""
  parts = [part for part in path.split("/")[:-1] if part not in ("~", "") and not part.isdigit()]
  return plain(parts[-1]) if parts else ""


def is_kernel_name(path: str) -> bool:
  """Whether the leaf's own name says that it is a kernel (`kernel`, `depthwise_kernel`)."""
  return bool(_KERNEL.fullmatch(plain(path.rsplit("/", 1)[-1])))


def no_layer(path: str, shape: tuple[int, ...], *, has_bias: bool) -> tuple[str, str] | None:
  """What a leaf that is no layer is, and by which rule; None if it may be one.

  Args:
    path: the leaf's.
    shape: the leaf's.
    has_bias: whether the leaf has a bias beside it, as a layer does and a table does not.
  """
  leaf, module = plain(path.rsplit("/", 1)[-1]), owner_name(path)
  parts = [plain(part) for part in path.split("/")]
  is_base = any(map(_BASE.fullmatch, parts)) or (is_kernel_name(path) and module.endswith("lora"))
  if _ADAPTER.fullmatch(leaf) or (any(map(_ADAPTERS.fullmatch, parts)) and not is_base):
    return "adapter", "named like an adapter"
  if is_kernel_name(path):
    return None
  if _BIAS.fullmatch(leaf):
    kind = "position table" if _POSITION.fullmatch(leaf) else "bias"
    return kind, f"named {leaf!r}"
  if _NORM_LEAF.fullmatch(leaf):
    return "norm", f"named {leaf!r}"
  if _STATE.fullmatch(leaf):
    return "scale", f"named {leaf!r}"
  if has_bias:
    return None
  for name, where in ((leaf, "named"), (module, "in")):
    if where == "in" and (not _GENERIC.fullmatch(leaf) or _NO_TABLE.fullmatch(module)):
      break
    if _TOKEN.fullmatch(name) and where == "named":
      return "token", f"named {name!r}"
    if _POSITION.fullmatch(name):
      return "position table", f"{where} {name!r}"
    if _EMBEDDING.fullmatch(name):
      return "embedding", f"{where} {name!r}"
    if _NORM.fullmatch(name):
      return "norm", f"{where} {name!r}"
  one_sided = max(shape[:-1], default=0) == 1 or (len(shape) > 2 and max(shape[1:]) == 1)
  if one_sided and not _GENERIC.fullmatch(leaf):
    return "scale", "a vector, all axes but one are 1"
  return None
