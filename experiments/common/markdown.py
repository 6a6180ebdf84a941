"""The one writer of Markdown tables, which read as well on a terminal as on a page."""

from collections.abc import Iterable, Sequence


def markdown_table(
  header: Sequence[object], rows: Iterable[Sequence[object]], *, align: str = ""
) -> str:
  """A table, its columns padded.

  Args:
    header: of the columns, anything that `str` takes, as are the cells.
    rows: as many cells each.
    align: `l` or `r` for each column; the first to the left and the others to the right by default.
  """
  align = align or "l" + "r" * (len(header) - 1)
  lines = [[str(cell).replace("|", "\\|") for cell in line] for line in (header, *rows)]
  widths = [max(3, *map(len, column)) for column in zip(*lines, strict=True)]

  def line(cells: Sequence[str]) -> str:
    padded = (
      cell.rjust(width) if side == "r" else cell.ljust(width)
      for cell, width, side in zip(cells, widths, align, strict=True)
    )
    return "| " + " | ".join(padded) + " |"

  rule = line(
    [
      ("-" * (w - 1) + ":") if side == "r" else "-" * w
      for w, side in zip(widths, align, strict=True)
    ]
  )
  return "\n".join([line(lines[0]), rule, *map(line, lines[1:])])
