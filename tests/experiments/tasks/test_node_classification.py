"""WordNet as a graph, sampled neighbourhoods, and a message-passing network by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import graph_wordnet
from experiments.data.graphs.dataset import Neighbourhood, graph_pipeline, split_nodes
from experiments.data.graphs.wordnet import hashed_words, load, make_graph
from experiments.data.text.wordnet import read_synsets
from experiments.models.graph_sage import GraphSage
from experiments.tasks.node_classification import node_classification
from experiments.training.loop import train
from tests.experiments.tiny import devices

LINES = {
  "noun": """\
  1 a licence
00001740 03 n 02 big_cat 0 tiger(a) 0 003 @ 1750 n 0 + 7 v 0101 ~ 9 s 0 | a large animal; "it"
00001750 05 n 01 animal 0 001 ~ 00001740 n 0000 | a living thing
""",
  "verb": "00000007 38 v 01 prowl 0 000 01 + 02 00 | move about\n",
  "adj": "00000009 00 s 01 wild 0 001 & 00000008 a 0000 | of large animals\n"
  "00000008 00 a 01 free 0 000 | not tied\n",
  "adv": "  1 nothing\n",
}  # fmt: skip


def write(folder, **changes):
  for part, text in (LINES | changes).items():
    (folder / f"data.{part}").write_text(text)
  return str(folder)


def test_wordnet_is_read_as_a_graph(tmp_path):
  synsets = list(read_synsets(write(tmp_path)))
  assert synsets[0].words == ("big cat", "tiger") and synsets[0].gloss == "a large animal"
  more = [*synsets, *(one._replace(offset=100 + i, pointers=()) for i, one in enumerate(synsets))]
  arguments = (16, (3, 2), "test", 0)
  graph = make_graph(more, "lexicographer_file", *arguments)
  assert graph.starts.tolist()[:6] == [0, 3, 4, 4, 5, 5]
  assert graph.targets.tolist() == [1, 2, 3, 0, 4]  # satellites are adjectives
  assert graph.num_relations == 4
  assert graph.relations.tolist() == [sorted("@+~&").index(x) for x in "@+~~&"]
  assert graph.labels.tolist() == [3, 5, 38, 0, 0] * 2 and graph.num_classes == 45
  assert make_graph(more, "part_of_speech", *arguments).labels.tolist() == [0, 0, 1, 2, 2] * 2
  # A label is in no feature: other files, the same features.
  others = [one._replace(lexicographer_file=44, words=()) for one in more]
  same = make_graph(others, "part_of_speech", *arguments)
  np.testing.assert_array_equal(same.features, graph.features)


@pytest.mark.parametrize(
  "changes, match",
  [
    ({"noun": "00001740 03 n 02 big_cat\n"}, r"data\.noun, line 1, is no synset"),
    ({"verb": LINES["verb"].replace(" 38 ", " 45 ")}, r"file 45; they lie in 0\.\.44"),
    ({"adj": "00000008 00 a 01 free 0 000 | not tied\n"}, "points to 9 of part of speech 'a'"),
  ],
)
def test_damaged_files_are_refused(tmp_path, changes, match):
  with pytest.raises(ValueError, match=match):
    load("wordnet", data_dir=write(tmp_path, **changes))


def test_missing_files_and_unknown_arguments_say_what_to_do(tmp_path):
  with pytest.raises(FileNotFoundError, match=r"wordnet-base.*config\.data\.data_dir"):
    load("wordnet", data_dir=str(tmp_path))
  with pytest.raises(ValueError, match="one of lexicographer_file, part_of_speech"):
    load("wordnet", target="pos")
  with pytest.raises(ValueError, match="num_features is 0"):
    load("wordnet", num_features=0)
  with pytest.raises(ValueError, match=r"neighbours is \(8, 0\)"):
    load("synthetic_graph", neighbours=(8, 0))
  with pytest.raises(ValueError, match="held_out is 'valid'"):
    load("synthetic_graph", held_out="valid")
  with pytest.raises(ValueError, match="one of wordnet, synthetic_graph"):
    load("cora")
  with pytest.raises(ValueError, match="5 nodes is too small"):
    split_nodes(5, seed=0, held_out="test")


def test_no_node_is_on_both_sides():
  train, test = split_nodes(103, seed=3, held_out="test")
  few, validation = split_nodes(103, seed=3, held_out="validation")
  assert sorted([*train, *test]) == list(range(103)) and len(test) == len(validation) == 10
  assert set(validation) <= set(train) and set(few) == set(train) - set(validation)


def test_words_are_hashed_alike_everywhere():
  one, other, none = hashed_words(["a sparse net", "A net, sparse", "–"], 64)
  np.testing.assert_array_equal(one, other)
  assert (one.astype(np.float32) ** 2).mean() == pytest.approx(1, rel=1e-2) and not none.any()
  assert sorted(np.flatnonzero(one)) == [3, 57, 63]


def test_neighbours_are_sampled_from_the_edges():
  graph = load("synthetic_graph", num_nodes=40, neighbours=(5, 2))
  pipeline = graph_pipeline(graph, batch_size=8, eval_batch_size=3, seed=0)
  batches = list(pipeline.test_batches())
  x, labels, valid = jax.jit(pipeline.test_inputs)(pipeline.device_data, batches[-1])
  assert valid.tolist() == [True, False, False] and labels[0] == graph.labels[graph.test[3]]
  assert [f.shape for f in x.features] == [(3, 16), (3, 5, 16), (3, 5, 2, 16)]
  number = {graph.features[i].tobytes(): i for i in range(40)}
  name = lambda features: number[np.asarray(features).tobytes()]
  node = name(x.features[0][0])
  assert node == graph.test[3]
  edges = lambda node: list(zip(graph.targets, graph.relations, strict=True))[
    3 * node : 3 * node + 3
  ]
  for i in range(5):
    first = name(x.features[1][0, i])
    assert (first, x.relations[0][0, i]) in edges(node)
    for j in range(2):
      assert (name(x.features[2][0, i, j]), x.relations[1][0, i, j]) in edges(first)
  (batch,) = pipeline.train_batches(0, 1)
  inputs = jax.jit(pipeline.train_inputs)
  draw = lambda seed: inputs(jax.random.key(seed), jnp.arange(8), pipeline.device_data, batch)
  (one, targets), (again, _), (other, _) = draw(1), draw(1), draw(2)
  assert (one.features[2] == again.features[2]).all() and (
    one.features[2] != other.features[2]
  ).any()
  assert targets.shape == (8, 4)


def test_a_layer_sees_a_node_its_neighbours_and_their_kinds():
  shapes = {"num_features": 2, "num_relations": 3, "num_classes": 4, "neighbours": (2,)}
  model = GraphSage(5, rngs=nnx.Rngs(0), **shapes)
  own, around = np.ones((3, 2)), np.arange(12.0).reshape(3, 2, 2)
  relations = np.array([[0, 2], [1, 3], [3, 3]])  # 3: none
  x = Neighbourhood((jnp.asarray(own), jnp.asarray(around)), (jnp.asarray(relations),))
  received = [
    [*around[0].mean(0), 0.5, 0, 0.5],
    [*around[1, 0], 0, 1, 0],
    [0, 0, 0, 0, 0],
  ]
  inputs = np.concatenate([own, received], axis=-1)
  h = np.maximum(inputs @ np.asarray(model.layers[0].kernel[...]), 0)
  expected = h @ np.asarray(model.head.kernel[...])
  np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
  struct = node_classification().inputs(shapes, 3)
  assert jax.tree.map(jnp.shape, x) == jax.tree.map(lambda s: s.shape, struct)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["masked", "condensed"])
def test_neighbours_help(tmp_path, engine):
  config = graph_wordnet.get_config("srigl-quick")
  config.data.name = "synthetic_graph"
  config.data.batch_size = 32
  config.data.kwargs = {"num_nodes": 800}
  config.method.engine = engine
  config.method.sparsity = 0.5
  config.optimizer.learning_rate = 0.01
  config.train.total_epochs = 15.0
  config.train.eval_every_epochs = 15.0
  with devices(1):
    results = train(config, tmp_path)
  assert results["test_accuracy"] > 0.9  # by the features of a node alone 0.8
