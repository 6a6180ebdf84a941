"""A message-passing network on WordNet: which of 45 fields of meaning a synset was filed under.

117,659 synsets are nodes, 377,592 pointers typed edges (hypernym, part, antonym, ...), hashed words
of the definitions features. GraphSAGE with two layers of 128 on sampled neighbourhoods, sparse at
90 %. WordNet comes with apt-get install wordnet-base; elsewhere `--config.data.data_dir=FOLDER`.

    python -m experiments.train --config=configs/graph_wordnet.py:quick --workdir=runs/graph

What follows a colon chooses a method, `:rigl`, and a size: `:quick` (layers of 64, fewer
neighbours, one epoch: about a minute on two cores) or `:rigl-quick`. By part of speech:
`--config.data.kwargs.target=part_of_speech`. More hops or neighbours, a layer for each:
`--config.data.kwargs.neighbours=8,4,4`. For settings to be chosen by:
`--config.data.kwargs.held_out=validation`.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(argument: str = "srigl") -> ConfigDict:
  """The network at 90 % sparsity.

  Args:
    argument: a method of `base.get_config` and "quick", each at most once, joined by hyphens;
      SRigL by default.
  """
  given = base.read_argument(argument, method=base.preset_names(), size=("quick",))
  method = given.get("method", "srigl")
  config = base.get_config(method)
  config.name = f"WordNet's graph, {method}"
  config.task.name = "node_classification"
  config.data.name = "wordnet"
  config.data.batch_size = 256
  config.data.kwargs = ConfigDict(
    {
      "target": "lexicographer_file",
      "num_features": 512,
      "neighbours": (8, 4),
      "held_out": "test",
      "split_seed": 0,
    }
  )
  config.model.name = "graph_sage"
  config.model.kwargs = ConfigDict({"width": 128})
  config.optimizer.name = "adam"
  config.optimizer.learning_rate = 0.01
  config.optimizer.weight_decay = 0.0
  config.train.total_epochs = 5.0
  config.train.eval_batch_size = 512
  if "size" in given:
    config.name += ", quick"
    config.data.kwargs.neighbours = (5, 3)
    config.model.kwargs.width = 64
    config.method.update_every_steps = 25
    config.train.total_epochs = 1.0
  return config
