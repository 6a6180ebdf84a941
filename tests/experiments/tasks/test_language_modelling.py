"""Text as tokens and windows, a small language model in both engines, and what it generates."""

import gzip

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import gpt_gcide
from experiments.common.files import read_json
from experiments.data.text.corpus import load_text, make_text, text_pipeline
from experiments.data.text.dictd import decode, read_dictd
from experiments.data.text.tokens import Characters
from experiments.deploy.generation import generate
from experiments.models.gpt import GPT
from experiments.training.loop import train
from experiments.workdir.metrics import read_metrics
from tests.experiments.tiny import devices, quick_compiler
from tests.helpers import mostly_slow


def tiny_config(engine="masked"):
  config = gpt_gcide.get_config("srigl-quick")
  config.data.name = "synthetic_text"
  config.data.batch_size = 8
  config.data.kwargs = {"length": 12, "test_chars": 300, "num_words": 300}
  config.model.kwargs = {
    "depth": 2,
    "width": 8,
    "num_heads": 2,
    "mlp_width": 16,
    "scan": engine == "masked",
  }
  config.method.engine = engine
  config.method.sparsity = 0.5
  config.method.update_every_steps = 2
  config.optimizer.accumulation_steps = 1
  config.train.total_epochs = 0.5
  config.train.eval_every_epochs = 0.5
  config.train.log_every_steps = 2
  return config


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("gpt")
  with devices(1), quick_compiler():
    return workdir, train(tiny_config(), workdir)


def write_dictionary(folder, text, lines):
  (folder / "small.dict.dz").write_bytes(gzip.compress(text.encode()))
  (folder / "small.index").write_text("".join(f"{line}\n" for line in lines))


def test_a_dictionary_is_read_by_its_index(tmp_path):
  assert [decode(x) for x in ("A", "B", "/", "BA", "uk")] == [0, 1, 63, 64, 46 * 64 + 36]
  write_dictionary(tmp_path, "about\napple: fruit\n", ["00-database-info\tA\tG", "apple\tG\tN"])
  assert list(read_dictd("small", str(tmp_path)).entries()) == [("apple", "apple: fruit\n")]


@pytest.mark.parametrize(
  "line, match",
  [
    ("apple\tG", "line 1, is no entry"),
    ("a\t!\tB", "no entry"),
    ("a\tA\tBB", "beyond the 3 bytes"),
  ],
)
def test_a_damaged_index_is_refused(tmp_path, line, match):
  write_dictionary(tmp_path, "abc", [line])
  with pytest.raises(ValueError, match=match):
    read_dictd("small", str(tmp_path))


def test_a_missing_dictionary_says_how_to_get_it(tmp_path):
  with pytest.raises(FileNotFoundError, match="apt-get install dict-gcide"):
    load_text("gcide", data_dir=str(tmp_path))
  write_dictionary(tmp_path, "abc", [])
  (tmp_path / "small.dict.dz").write_bytes(b"no gzip")
  with pytest.raises(ValueError, match="damaged"):
    read_dictd("small", str(tmp_path))


def test_any_file_is_a_text(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"config\.data\.kwargs\.path"):
    load_text("text", data_dir=str(tmp_path), path="a.txt")
  (tmp_path / "a.txt").write_text("häß " * 100, encoding="utf-8")
  data = load_text("text", data_dir=str(tmp_path), path="a.txt", length=5, test_chars=50)
  assert data.tokenizer.decode(data.test) in "häß " * 100
  assert len(data.train) + len(data.test) == 400


def test_unknown_arguments_of_texts_are_named():
  with pytest.raises(ValueError, match=r"'lenght'.*Did you mean 'length'"):
    load_text("synthetic_text", lenght=5)
  with pytest.raises(ValueError, match="one of gcide, synthetic_text, text"):
    load_text("gcde")
  with pytest.raises(ValueError, match="tokenizer is 'bytes'"):
    load_text("synthetic_text", tokenizer="bytes")
  with pytest.raises(ValueError, match="test_chars 10000000"):
    load_text("synthetic_text", test_chars=10_000_000)


def test_characters_are_tokens():
  tokenizer = Characters("banana")
  assert tokenizer.encode("nab").tolist() == [2, 0, 1]
  assert tokenizer.decode(tokenizer.encode("banana")) == "banana"
  with pytest.raises(ValueError, match="'x' is not among the 3 characters"):
    tokenizer.encode("axe")


def test_windows_predict_what_follows_and_test_windows_are_each_there_once():
  data = make_text("small", "abcdefghijklmnopqrstuvwxyz" * 20, length=7, test_chars=104)
  pipeline = text_pipeline(data, batch_size=4, eval_batch_size=3, seed=0)
  (batch,) = pipeline.train_batches(0, 1)
  inputs, targets = jax.jit(pipeline.train_inputs)(
    jax.random.key(0), jnp.arange(4), pipeline.device_data, batch
  )
  assert inputs.shape == targets["tokens"].shape == (4, 7)
  np.testing.assert_array_equal(inputs[:, 1:], targets["tokens"][:, :-1])
  assert targets["chars"].tolist() == [7.0] * 4
  seen = []
  for batch in pipeline.test_batches():
    inputs, _, valid = pipeline.test_inputs(pipeline.device_data, batch)
    seen += [data.tokenizer.decode(row) for row in np.asarray(inputs)[np.asarray(valid)]]
  assert "".join(seen) == data.tokenizer.decode(data.test)[: 7 * data.num_test]


@pytest.mark.slow
def test_a_run_is_scored_by_nats_per_character(masked_run):
  workdir, results = masked_run
  test = read_metrics(workdir)["test"][-1]
  assert results["score"]["last"] == test["nats_per_char"] == pytest.approx(test["loss"])
  assert results["score"]["lower_is_better"] and "test_accuracy" not in results
  assert 0 < results["score"]["best"] < np.log(20)
  report = (workdir / "report.md").read_text()
  assert f"test loss, nats per character {test['nats_per_char']:.4f}" in report
  assert "windows" in (workdir / "metrics.jsonl").read_text()
  assert "nats per character" in (workdir / "model_card.md").read_text()


@pytest.mark.slow
def test_both_engines_train_the_same_network(masked_run, tmp_path):
  """Stacked blocks with masks, a list of them in condensed form: masks differ, the sizes do not."""
  with devices(1), quick_compiler():
    results = train(tiny_config("condensed"), tmp_path)
  assert results["sparsity"] == masked_run[1]["sparsity"]
  assert results["score"]["last"] == pytest.approx(masked_run[1]["score"]["last"], rel=0.05)


@pytest.mark.slow
def test_a_run_is_exported_and_generates(masked_run, tmp_path, command):
  workdir, results = masked_run
  file = tmp_path / "gpt.safetensors"
  with devices(1):
    code, out, err = command("export", f"--workdir={workdir}", f"--out={file}")
    assert code == 0, err
    last = f"{results['score']['last']:.4f}"
    assert f"test loss, nats per character {last}" in out and f": {last}" in out
    texts = []
    for source in (f"--workdir={workdir}", f"--model={file}"):
      arguments = ["--prompt=sparse", "--num_tokens=20", "--temperature=0"]
      code, out, err = command("generate", source, *arguments)
      assert code == 0, err
      texts.append(out.splitlines()[0])
    assert texts[0] == texts[1] and texts[0].startswith("sparse")
    code, _, err = command(
      "export", f"--workdir={workdir}", f"--out={tmp_path / 'a.c'}", "--format=c"
    )
    assert code and "is for networks of image_classification" in err
    code, _, err = command("infer", f"--model={file}")
    assert code and "language_modelling" in err
  assert read_json(workdir / "config.json")["task"]["name"] == "language_modelling"


@pytest.mark.parametrize("scan", mostly_slow([True, False], {False}))
def test_a_cache_changes_nothing(scan):
  model = GPT(2, 8, 2, 16, vocab_size=11, length=10, rngs=nnx.Rngs(0), scan=scan)
  tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, 11)
  with quick_compiler():
    extend = nnx.jit(lambda model, tokens, cache: model.extend(tokens, cache))
    logits, cache = extend(model, tokens[:, :5], model.empty_cache(2))
    later, cache = extend(model, tokens[:, 5:], cache)
    whole = nnx.jit(lambda model, tokens: model(tokens))(model, tokens)
  np.testing.assert_allclose(jnp.concatenate([logits, later], 1), whole, atol=1e-5)
  assert int(cache.position) == 9


@pytest.mark.slow
def test_generating_goes_on_beyond_the_length():
  model = GPT(1, 8, 2, 16, vocab_size=11, length=6, rngs=nnx.Rngs(0))
  prompt = np.arange(9) % 11
  found = generate(model, prompt, 8, temperature=1.0, seed=1)
  assert found.shape == (8,) and found.max() < 11
  np.testing.assert_array_equal(found, generate(model, prompt, 8, temperature=1.0, seed=1))
  with pytest.raises(ValueError, match="The prompt has 0 tokens"):
    generate(model, prompt[:0], 1)


@pytest.mark.slow
def test_quick_learns_the_text(tmp_path):
  """The config's own quick size, but for the text, which is made up."""
  config = gpt_gcide.get_config("srigl-quick")
  config.data.name = "synthetic_text"
  config.data.kwargs = {"length": 96, "test_chars": 50_000, "num_words": 300_000}
  config.train.total_epochs = 0.3
  config.train.eval_every_epochs = 0.3
  results = train(config, tmp_path)
  assert results["score"]["last"] < 1.0  # letters alone: 2.6; the next word is a draw from ten
