"""Leaves that are no layers, by their names: tables, norms, tokens, adapters, biases, state.

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
# Collections beside the parameters; whatever is in them, a kernel too, is no parameter.
_COLLECTION = re.compile(
  r"batch_stats|(.*_)?caches?|buffers?|replay_buffer|opt_state|intermediates"
  r"|((params?|model|weights?)_)?ema(_(params?|model|state|weights?))?"
)
# What is kept from call to call.
_KEPT = re.compile(
  r"(.*_)?(caches?|cached_\w+|buffers?|queues?|states?|carry|memory|memories|memory_bank|history)"
  r"|\w*caches?_(k|v|keys?|values?|index)|past_(keys?|values?|key_values?)"
  r"|init(ial)?_(h|c|hidden|cells?|memory|probs)"
)
_STATISTIC = re.compile(
  r"(.*_)?(ema|emas|means?|vars?|variances?|stds?|stddevs?|cov|covariances?|precisions?|averages?|avg"
  r"|moments?|counts?|cluster_size|stats?|statistics?|quantiles?|histograms?|eigenvalues?)|ema_\w+"
)
# Constants that are looked up, compared with or multiplied element by element.
_TABLE = re.compile(
  r"(.*_)?((inv_)?freqs?|frequencies|freqs_\w+|sin_?cos|cos_?sin|sinusoids?|sin|cos|timescales?"
  r"|twiddles?|slopes?|(mel_)?filter_?banks?|mel_(filters?|basis)|dct|dft|anchors?|grids?|knots"
  r"|coords?|coordinates|masks?|centroids?|centers|codewords?|transitions?|adj|adjacency|laplacian)"
  r"(_(matrix|params?|scores?|tables?|real|imag))?"
)
_FACTORS = re.compile(
  r"(.*_)?(factors|vectors)"
  r"|(users?|items?|entit(y|ies)|relations?|nodes?|movies?|products?)_(latents?|features?|matrix)"
)
_SCALAR = re.compile(
  r"(.*_)?(log_?(sigma|std|stddev|var|variance|scale|alpha|temp\w*|precision|noise)s?|logvar|logstd"
  r"|logit_scale|sigmas?|temperatures?|decays?|layer_?scale|multipliers?|thresholds?)"
)
_WEIGHT = re.compile(r"(.*_)?(w|weights?|kernels?)(_.*)?")
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
  if within := next((part for part in parts[:-1] if _COLLECTION.fullmatch(part)), None):
    return "state", f"in {within!r}"
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
  if found := _no_weight(leaf, module):
    return found
  one_sided = max(shape[:-1], default=0) == 1 or (len(shape) > 2 and max(shape[1:]) == 1)
  if one_sided and not _GENERIC.fullmatch(leaf):
    return "scale", "a vector, all axes but one are 1"
  return None


def _no_weight(leaf: str, module: str) -> tuple[str, str] | None:
  """Kind and rule of state, statistics and constants, which no input is multiplied by."""
  if _WEIGHT.fullmatch(leaf) or _WEIGHT.fullmatch(module):  # such as the mean of a random weight
    return None
  kinds = {"state": _KEPT, "statistic": _STATISTIC, "table": _TABLE, "embedding": _FACTORS}
  kinds |= {"scale": _SCALAR}
  fitting = (kind for kind, regex in kinds.items() if regex.fullmatch(leaf))
  return next(((kind, f"named {leaf!r}") for kind in fitting), None)
