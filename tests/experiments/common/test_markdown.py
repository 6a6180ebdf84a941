import pytest

from experiments.common.markdown import markdown_table


def test_columns_are_padded_and_aligned():
  assert markdown_table(("name", "n"), [("a", 1), ("of two", 1000)]).splitlines() == [
    "| name   |    n |",
    "| ------ | ---: |",
    "| a      |    1 |",
    "| of two | 1000 |",
  ]
  assert markdown_table(("", ""), [("a|b", "")], align="rl").splitlines() == [
    "|      |     |",
    "| ---: | --- |",
    "| a\\|b |     |",
  ]


def test_rows_are_as_long_as_the_header():
  with pytest.raises(ValueError):
    markdown_table(("a", "b"), [("1",)])
