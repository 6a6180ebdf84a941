"""README and docs: Python runs, commands parse, links lead somewhere, tables are fresh."""

import ast
import contextlib
import importlib.util
import inspect
import json
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

import srigl_jax as sx
import srigl_kernels
from docs import api_pages
from docs.examples import build, cifar10
from experiments import data, models, tables
from experiments.common import cli
from experiments.training.method_plan import own_arguments, preset_names
from experiments.training.methods import METHODS, PRESETS
from srigl_jax.layers import leaf_dict

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in tables.pages()}
PAGES["CONTRIBUTING.md"] = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
REGISTRIES = (models.MODELS, data.DATASETS, METHODS, PRESETS, srigl_kernels.BACKENDS)

# Blocks that cannot run, by page and number from 0: why.
CANNOT_RUN: dict[tuple[str, int], str] = {}


def blocks(page, languages):
  """The fenced blocks of a page: language and text."""
  fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
  return [m[2] for m in fence.finditer(PAGES[page]) if m[1] in languages]


# ---- Python ------------------------------------------------------------------------------------


def lacks_a_package(script):
  """Whether a block is about a framework that only tests need, and that is not installed."""
  imported = re.findall(r"(?m)^import (equinox|haiku|keras)\b", script)
  return any(importlib.util.find_spec(name) is None for name in imported)


class Check:
  """Called after each step of an example's loop: masked weights are 0; counts what has changed."""

  def __init__(self):
    self.masks, self.names = [], {}

  def __call__(self, names):
    if "optimizer" in names:
      opt_state = names["optimizer"].opt_state
      params = names["nnx"].state(names["model"], names["nnx"].Param)
    else:
      opt_state, params = names["opt_state"], names["params"]
    leaves, masks = leaf_dict(params), sx.get_masks(opt_state)
    masks = {path: np.asarray(mask) for path, mask in masks.items()}
    for path, mask in masks.items():
      assert not np.asarray(leaves[path])[~mask].any(), path
    self.masks.append(masks)
    self.names = names

  @property
  def num_topologies(self):
    return len({b"".join(masks[p].tobytes() for p in sorted(masks)) for masks in self.masks})


@pytest.fixture
def run_page(tmp_path, monkeypatch, capsys):
  """Runs the Python blocks of a page in one namespace: names, output, and what was checked."""

  def run(page):
    monkeypatch.chdir(tmp_path)
    check = Check()
    names = {"__name__": "__main__", "check": check}
    with rows_restored():
      for i, script in enumerate(blocks(page, ["python"])):
        if (page, i) not in CANNOT_RUN and not lacks_a_package(script):
          script = re.sub(r"(?m)^(  (?:[\w, ]+ = )?step\(.*\))$", r"\1\n  check(globals())", script)
          # Keras adds biases without a word about ranks, which conftest.py forbids our own code.
          with jax.numpy_rank_promotion("allow" if "import keras" in script else "raise"):
            exec(compile(script, f"{page}, block {i}", "exec"), names)
    return names, capsys.readouterr().out, check

  return run


def rows_restored():
  """Rows that an example adds to a table are gone after it."""
  stack = contextlib.ExitStack()
  for table in REGISTRIES:
    stack.enter_context(mock.patch.dict(table))
  return stack


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, ["python"])])
def test_python_blocks_run(run_page, page):
  names, output, check = run_page(page)
  if check.masks:
    assert check.num_topologies > 5
    assert "fan-in" in output
  if page == "docs/condensed.md":
    differences = [float(x) for x in re.findall(r"(?m)^(\d\.\d+(?:e-\d+)?)$", output)]
    assert len(differences) == 3 and max(differences) < 1e-5
  if page == "docs/your_method.md":
    budgets = sx.get_state(names["opt_state"]).budgets
    assert all(m[p].sum() == budgets[p] for m in check.masks for p in m)
    assert len(check.masks) == 200 and check.num_topologies == 15


def test_what_cannot_run_is_there():
  assert all(len(blocks(page, ["python"])) > i for page, i in CANNOT_RUN)


def test_pages_of_the_library_need_no_harness():
  for page in ("README.md", "docs/index.md", "docs/model.md", "docs/condensed.md"):
    assert not any("experiments" in script for script in blocks(page, ["python"])), page


def test_the_example(tmp_path, capsys):
  """`docs/examples/cifar10.py` learns a few images, and its notebook is the same."""
  config = {"image_shape": (8, 8, 3), "num_classes": 4, "num_train": 256, "num_test": 64}
  images = data.load("synthetic", **config)
  train = images.train_images, images.train_labels
  test = images.test_images, images.test_labels
  out = tmp_path / "network.safetensors"
  accuracy = cifar10.main(train, test, sparsity=0.6, epochs=8, batch=32, widths=(8, 16), out=out)
  assert accuracy > 0.5 and out.exists()
  assert "epoch  8" in capsys.readouterr().out
  script = build.SCRIPT.read_text("utf-8")
  assert script == build.with_figures(script), "run `make tables`"
  assert json.loads(build.NOTEBOOK.read_text("utf-8")) == build.notebook(script), (
    "run `make tables`"
  )
  assert len(script.splitlines()) < 150


# ---- commands ----------------------------------------------------------------------------------


def commands():
  """Every command of ours on any page: page and words."""
  found = {}
  for page, text in PAGES.items():
    text = text.replace("\\\n", " ")
    for match in re.finditer(r"python (-m [\w.]+|[\w/]+\.py)([^`\n&#]*)", text):
      words = shlex.split(re.sub(r"\[.*?\]|\"$", "", match[1] + match[2]))
      words[-1] = words[-1].rstrip(".")
      if not words[0].startswith("docs/"):  # those are run below
        found.setdefault(tuple(words), page)
  return found


COMMANDS = commands()


@pytest.fixture
def run_command(monkeypatch, capsys):
  """Runs a command in this process, as far as its flags by default: exit code, output, errors."""
  monkeypatch.chdir(ROOT)
  monkeypatch.setattr(cli, "use_compile_cache", lambda directory: None)

  def run(words, parse_only=False):
    if parse_only:
      monkeypatch.setattr(cli, "run", lambda main: sys.exit(bool(cli._parse(sys.argv)[1:])))
    by_module, name, *arguments = words if words[0] == "-m" else ("", *words)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stop:
      if by_module:
        runpy.run_module(name, run_name="__main__")
      else:
        runpy.run_path(name, run_name="__main__")
    output = capsys.readouterr()
    return stop.value.code or 0, output.out, output.err

  return run


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_commands_parse(run_command, words):
  page = COMMANDS[words]
  # Those of argparse have no other way.
  if words[0] != "-m" or words[1] in ("experiments.gpu_bundle", "srigl_kernels.backends.cuda"):
    options = [word.partition("=")[0] for word in words[1:] if word.startswith("--")]
    code, output, _ = run_command((*(w for w in words if not w.startswith("--")), "--help"))
    assert code == 0 and all(option in output for option in options), page
    return
  if words[:2] == ("-m", "tests.prove_resume"):  # it hands its flags on, and adds the directory
    words = ("-m", "experiments.train", "--workdir=DIR", *words[2:])
  code, _, errors = run_command(words, parse_only=True)
  named_only = len(words) == 2 and " is missing: " in errors
  assert code == 0 or named_only, f"{page}: {errors}"


def test_the_commands_of_a_run(run_command, tmp_path):
  (script,) = [b for b in blocks("docs/index.md", ["sh"]) if "experiments.train" in b]
  outputs = []
  for line in script.replace("runs/", f"{tmp_path}/").splitlines():
    words = shlex.split(line)[1:]
    if "experiments.train" in words:
      words.append("--config.train.total_epochs=1")
    if "experiments.infer" in words:
      words += ["--batch=1", "--rounds=1"]
    code, output, errors = run_command(words)
    assert code == 0, errors
    outputs.append(output)
  assert len(outputs) == 4 and "condensed" in outputs[-1]


def test_the_citation_is_of_this_version():
  cited = re.search(r"(?m)^version: (.*)$", (ROOT / "CITATION.cff").read_text("utf-8"))
  assert cited[1] == sx.__version__


def test_make_targets_and_extras_are_there():
  targets = set(re.findall(r"(?m)^([\w-]+):", (ROOT / "Makefile").read_text("utf-8")))
  extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
  for page, text in PAGES.items():
    named = re.findall(r"(?:^|`)make ([\w-]+)", text, re.MULTILINE)
    assert set(named) <= targets, page
    for listed in re.findall(r"pip install (?:-e )?'?\.\[([\w,]+)\]", text):
      assert set(listed.split(",")) <= extras["optional-dependencies"].keys(), page


# ---- pages -------------------------------------------------------------------------------------


def anchors(text):
  """The anchors that Git hosts and the site's builder give to headings."""
  titles = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```$", "", text))
  plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "", title)).lower() for title in titles]
  return {re.sub(r"\s+", "-", title.strip()) for title in plain}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
  text = re.sub(r"(?ms)^```.*?^```$|`[^`\n]*`", "", PAGES[page])
  for target in re.findall(r"\]\(([^)\s]+)\)", text):
    if target.startswith("https://"):
      continue
    file, _, anchor = target.partition("#")
    path = (ROOT / page).parent / file if file else ROOT / page
    assert path.exists(), target
    assert not anchor or anchor in anchors(path.read_text("utf-8")), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_are_there(page):
  text = PAGES[page].partition("## 0.1.0")[0]
  folders = "srigl_jax|experiments|kernels|configs|docs|tests"
  for named in re.findall(rf"`((?:{folders})/[\w/.-]+?)(?::[^`]*)?`", text):
    assert "NAME" in named or (ROOT / named).exists(), named


def test_results_are_what_their_files_say():
  for page in tables.pages():
    text = page.read_text("utf-8")
    assert tables.fill(text) == text, f"{page.name} is stale: run `make tables`"


def test_the_methods_table_has_every_config_and_every_method():
  text = PAGES["docs/methods.md"]
  text = text.partition("| `config.method.name` |")[0]
  rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| `")]
  configs = [name for row in rows for name in re.findall(r"`(\w+)`", row[0])]
  assert sorted(configs) == sorted(preset_names())
  functions = {name for row in rows for name in re.findall(r"`(\w+)", row[1])} - {"experiments"}
  wraps = lambda f: inspect.isfunction(f) and "inner" in inspect.signature(f).parameters
  # Those of layers in condensed form are no methods of a config; they have their own page.
  others = {"sparse_training", *api_pages.names(PAGES["docs/api/condensed_training.md"])}
  assert functions == {n for n in sx.__all__ if wraps(getattr(sx, n))} - others


def test_the_methods_page_has_every_argument():
  given = {}
  for line in PAGES["docs/methods.md"].partition("| `config.method.name` |")[2].splitlines():
    if line.startswith("| `"):
      names, arguments = line.split("|")[1:3]
      own = dict(re.findall(r"`(\w+)=([^`]*)`", arguments))
      own = {key: ast.literal_eval(value) for key, value in own.items()}
      given |= dict.fromkeys(re.findall(r"`(\w+)`", names), own)
  assert given == {name: own_arguments(name) for name in METHODS}


def test_the_api_pages_have_every_public_name():
  pages = [text for page, text in PAGES.items() if page.startswith("docs/api/")]
  named = [name for text in pages for name in api_pages.names(text)]
  assert sorted(named) == sorted(sx.__all__)
  for text in pages:
    assert api_pages.fill(text) == text, "API pages are stale: run `make tables`"


def test_messages_of_the_faq_are_in_the_code():
  said = []
  for folder in ("configs", "experiments", "kernels/srigl_kernels", "srigl_jax"):
    for path in (ROOT / folder).rglob("*.py"):
      for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
          said.append(node.value)
  titles = re.findall(r"(?m)^### `(.*)`$", PAGES["docs/faq.md"])
  assert len(titles) > 15 and titles == sorted(titles, key=lambda t: t.lstrip("… ").lower())
  for title in titles:
    for piece in filter(None, (piece.strip() for piece in title.split("…"))):
      assert any(piece in text for text in said), title


def test_every_page_is_in_the_navigation():
  listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))
  assert listed == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
