"""Small data sets in the files that TensorFlow Datasets would write."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def encode(image: Image.Image | np.ndarray, file_format: str, **options) -> bytes:
  """An image file of an image, or of `[H, W, C]` uint8."""
  image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
  buffer = io.BytesIO()
  image.save(buffer, file_format, **options)
  return buffer.getvalue()


def write_data_set(
  folder: Path,
  splits: Mapping[str, Sequence[tuple[str, bytes, int]]],
  *,
  id_name: str,
  image_shape: tuple[int, int, int],
  num_classes: int,
  file_format: str = "array_record",
) -> None:
  """Writes a data set of labelled images.

  Args:
    folder: DIR/NAME/VERSION, which must not exist yet.
    splits: name, image file and label of each record, by split.
    id_name: the feature that the records' names are in.
    image_shape: -1 for sizes that differ.
    num_classes: number of labels.
    file_format: what the description says the files are.
  """
  array_record = pytest.importorskip("array_record.python.array_record_module")
  proto = pytest.importorskip("tensorflow_datasets.proto.tf_example_generated_pb2")
  folder.mkdir(parents=True)
  name, described = folder.parent.name, []
  for split, records in splits.items():
    path = folder / f"{name}-{split}.array_record-00000-of-00001"
    writer = array_record.ArrayRecordWriter(str(path), "group_size:1")
    for record_name, image, label in records:
      example = proto.Example()
      feature = example.features.feature
      feature[id_name].bytes_list.value.append(record_name.encode())
      feature["image"].bytes_list.value.append(image)
      feature["label"].int64_list.value.append(int(label))
      writer.write(example.SerializeToString())
    writer.close()
    described.append(
      {
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "name": split,
        "numBytes": str(path.stat().st_size),
        "shardLengths": [str(len(records))],
      }
    )
  info = {"fileFormat": file_format, "name": name, "splits": described, "version": folder.name}
  (folder / "dataset_info.json").write_text(json.dumps(info))
  module = "tensorflow_datasets.core.features."
  features = {
    id_name: {"pythonClassName": module + "text_feature.Text", "text": {}},
    "image": {
      "image": {
        "dtype": "uint8",
        "encodingFormat": "png",
        "shape": {"dimensions": [str(size) for size in image_shape]},
      },
      "pythonClassName": module + "image_feature.Image",
    },
    "label": {
      "classLabel": {"numClasses": str(num_classes)},
      "pythonClassName": module + "class_label_feature.ClassLabel",
    },
  }
  class_name = module + "features_dict.FeaturesDict"
  (folder / "features.json").write_text(
    json.dumps({"featuresDict": {"features": features}, "pythonClassName": class_name})
  )
