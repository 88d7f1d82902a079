"""The table of architectures in configs/README.md is the one that its command prints."""

from pathlib import Path

import pytest

from benchmarks.architectures import HEADER, line, names, row

PAGE = (Path(__file__).resolve().parents[1] / "configs" / "README.md").read_text()


def printed() -> list[str]:
    """The lines of the table, without its head."""
    lines = PAGE.splitlines()
    start = lines.index(line(HEADER)) + 2
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("|"))
    return lines[start:end]


def test_the_page_has_every_architecture_and_nothing_failed():
    rows = [[cell.strip() for cell in text.strip("|").split("|")] for text in printed()]
    assert [cells[0] for cells in rows] == names() and len(rows) >= 25
    assert all(cells[3:6] == ["exact"] * 3 for cells in rows)
    assert all(int(cells[1].replace(",", "")) > 0 for cells in rows)


@pytest.mark.parametrize("name", ["GptOss", "Mixtral, as run"])
def test_a_row_is_printed_as_the_page_has_it(name, tmp_path):
    assert line(row(name, tmp_path)) in printed()
