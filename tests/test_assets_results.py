"""The raw results in the repository print the tables that stand beside them, and those that documents show."""

import re
from pathlib import Path

import pytest

from eval.tables import main as tables
from reproduce.export import main as export

ROOT = Path(__file__).resolve().parents[1]
PLANS = sorted((ROOT / "assets").glob("*/results/**/*.cells.tsv"))
NUMBERS = {"figure1": 5, "figure4": 7}  # the tables that figures are of
DOCUMENTS = ("README.md", "assets/small/README.md")


def form_of(plan: Path) -> tuple[str, object]:
    """The flag that says which table it is: the paper's number, or the title of one that the paper does not have."""
    name = plan.name.partition(".")[0]
    if name in NUMBERS or name.startswith("table"):
        return "--table", NUMBERS.get(name) or int(name.removeprefix("table"))
    return "--title", plan.with_name(f"{name}.md").read_text().splitlines()[0].removeprefix("## ")


def printed(called, plan: Path, out: Path) -> str:
    ended = called(tables, "--cells", plan, *form_of(plan), "--out", out)
    assert ended.code == 0, ended.err
    return ended.out


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: str(plan.relative_to(ROOT)))
def test_results_print_their_table_again(plan, called, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    printed(called, plan, tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_text() == plan.with_name(file.name).read_text()


def test_tables_of_documents_are_printed_ones(called, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    lines = {line for plan in PLANS for line in printed(called, plan, tmp_path).splitlines()}
    for document in DOCUMENTS:
        tables = re.findall(r"(?:^\|.*\n)+", (ROOT / document).read_text(), re.MULTILINE)
        shown = [line for text in tables if "smollm2/" in text for line in text.splitlines()]
        assert not [line for line in shown if line not in lines], document


@pytest.mark.parametrize("plan", [plan for plan in PLANS if plan.name.startswith("beyond")], ids=str)
def test_settings_are_told_of_every_method_that_is_compared(plan):
    labels = {line.split("\t")[5] for line in plan.read_text().splitlines()} - {""}
    told = plan.with_name(plan.name.replace(".cells.tsv", "_settings.md")).read_text()
    assert labels <= {line.split("|")[1].strip() for line in told.splitlines() if line.startswith("|")}


def test_no_text_of_items_is_kept():
    for plan in PLANS:
        for line in plan.read_text().splitlines():
            result = ROOT / line.split("\t")[4]
            assert not result.is_file() or '"per_item"' in result.read_text()
        assert not list(plan.parent.rglob("*.jsonl"))


def test_a_copy_prints_the_same_table(called, tmp_path, monkeypatch):
    import eval.loss as loss

    monkeypatch.chdir(tmp_path)
    results, folder = Path("runs/p/results_test"), Path("runs/tables/p")
    for model in ("base", "chat"):
        assert (
            called(
                loss.main,
                ROOT / "assets" / "tiny" / model,
                "fp32",
                "--tasks",
                "chat",
                "--limit",
                9,
                "--results_dir",
                results,
            ).code
            == 0
        )
    folder.mkdir(parents=True)
    cells = (("backbone", "base", "Backbone"), ("fine_tuned", "chat", "Fine-tuned"), ("impart", "lost", "ImPart"))
    (folder / "table1.cells.tsv").write_text(
        "".join(
            f"{row}\tp\tloss_chat\t8\t{results / model / 'loss_chat' / '0.json'}\t{label}\n"
            for row, model, label in cells
        )
    )
    first = printed(called, folder / "table1.cells.tsv", folder)
    assert called(export, folder, "--out", "kept").code == 0
    assert printed(called, Path("kept/table1.cells.tsv"), tmp_path / "again") == first and "not run" in first
    assert (Path("kept") / "table1.md").read_text() == (folder / "table1.md").read_text()
    assert not list(Path("kept").rglob("*.jsonl"))
    assert called(export, tmp_path, "--out", "kept").err.startswith("error: ")
