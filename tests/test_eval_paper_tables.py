"""The paper's numbers against a second transcription, and tables in the paper's form worked by hand."""

import pytest

from eval.report.cells import Cell, average
from eval.report.paper import (
    Column,
    Printed,
    best_markdown,
    columns_of,
    own_table,
    paper_markdown,
    paper_rows,
    printed_table,
    read_plan,
    with_rows,
)
from impart.errors import InputError

# Typed anew in the paper's own layout: a method a line, its scores from left to right, the average last if there
# is one.
SECOND_TRANSCRIPTION = {
    1: """17.80 3.90 32.32 62.70 19.04 0.71 20.52 0.10 11.46 0.08 16.86
          63.96 14.10 59.76 67.70 33.64 18.39 31.79 15.63 48.80 32.13 38.59
          58.91 11.76 54.27 64.60 24.77 2.27 16.82 0.36 30.50 17.76 28.20
          56.25 7.94 57.32 68.80 26.06 8.45 23.84 5.72 29.39 17.18 30.10
          60.20 10.38 59.76 68.00 26.80 9.88 27.91 7.13 33.27 18.77 32.21""",
    3: """60.20 59.76 26.80 48.92
          57.92 54.88 26.62 46.47
          0.00 51.83 12.20 21.34
          0.00 20.12 11.83 10.65
          33.21 6.10 22.92 20.74""",
    4: """56.48 56.71 27.91 47.03
          58.07 54.88 25.88 46.28
          57.62 54.27 26.80 46.23
          60.20 59.76 26.43 48.80
          58.45 56.71 27.54 47.57
          58.45 59.15 25.14 47.58""",
    5: """61.79 60.20 56.63 53.68 58.54 58.54 56.71 57.32 28.84 26.99 19.04 8.87
          61.41 58.38 56.25 50.42 54.27 55.49 57.32 56.71 25.32 27.36 26.06 24.95
          61.64 62.40 60.20 56.56 59.15 60.37 59.76 57.93 29.02 27.91 26.80 26.25""",
    6: """61.11 12.12 51.83 58.50 25.32 18.30 27.36 11.87 34.38 26.35 32.71
          62.17 13.40 57.32 67.70 30.87 17.68 29.76 11.76 42.33 28.24 36.12
          62.40 12.56 56.71 68.30 27.91 15.52 29.39 10.85 41.40 26.64 35.17
          64.29 13.54 58.54 68.50 30.87 17.65 29.76 12.55 45.84 28.27 36.98""",
    7: """59.89 61.11 61.11 59.14 52.44 51.83 51.22 50.00 25.88 25.32 23.66 22.92
          62.55 62.17 62.09 58.00 61.59 57.32 56.71 55.49 31.79 30.87 28.65 27.73
          61.94 62.40 61.62 58.23 59.15 56.71 52.44 55.49 31.24 27.91 28.10 25.88
          64.22 64.29 62.32 60.35 62.20 58.54 57.32 56.71 32.16 30.87 30.68 27.73""",
    8: """63.96 52.44 33.64
          62.02 30.49 29.02 40.51
          61.26 31.10 29.21 40.52
          63.00 31.10 28.84 40.98
          57.54 24.39 32.90 38.28
          59.59 24.39 33.64 39.21
          58.45 26.22 35.30 39.99""",
}
ROUNDING = 0.0061  # the paper rounds, and once in a while cuts

A, B = Column("pair_a", "gsm8k", "32"), Column("pair_b", "humaneval", "32")
PRINTED = Printed(
    "Table 1: Test",
    (A, B),
    {"dare": "DARE", "impart": "ImPart"},
    {("dare", A): 50.0, ("dare", B): 40.0, ("impart", A): 60.0, ("impart", B): 45.0},
    {"impart": 52.5},
    ("an oddity",),
)


def cell(mean, half=2.0, seeds=3):
    return Cell(mean, mean - half, mean + half, seeds, 30.5, n=100, backend="hf", dtype="fp32")


@pytest.mark.parametrize("number", SECOND_TRANSCRIPTION)
def test_the_papers_numbers_agree_with_a_second_transcription(number):
    printed = printed_table(number)
    lines = [[float(word) for word in line.split()] for line in SECOND_TRANSCRIPTION[number].splitlines()]
    assert len(lines) == len(printed.labels)
    for row, line in zip(printed.labels, lines, strict=True):
        ours = [printed.scores[row, column] for column in printed.columns]
        assert ours + ([printed.averages[row]] if row in printed.averages else []) == line


@pytest.mark.parametrize("number", SECOND_TRANSCRIPTION)
def test_the_papers_averages_are_those_of_its_scores(number):
    printed = printed_table(number)
    for row, said in printed.averages.items():
        scores = [printed.scores[row, column] for column in printed.columns]
        assert sum(scores) / len(scores) == pytest.approx(said, abs=ROUNDING), row


def test_numbers_that_two_tables_share_are_equal():
    first, fifth, seventh, sixth = (printed_table(number) for number in (1, 5, 7, 6))
    for column in set(first.columns) & set(fifth.columns):
        for row in ("lowrank", "impart"):  # DARE differs in the paper, as its note says
            assert first.scores[row, column] == fifth.scores[row, column]
    for column in set(sixth.columns) & set(seventh.columns):
        for row in sixth.labels:
            assert sixth.scores[row, column] == seventh.scores[row, column]


def test_a_table_that_the_paper_has_no_scores_for_is_an_input_error():
    with pytest.raises(InputError, match="1, 3, 4"):
        printed_table(2)


def test_ours_stand_beside_the_papers_number_and_the_difference():
    text = paper_markdown(
        PRINTED, [A, B], {("impart", A): cell(61.5), ("impart", B): cell(44.0), ("dare", A): cell(48.0)}
    )
    lines = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    assert "61.5 (59.5-63.5) at 30.5 / 60.00 / +1.5" in lines["GSM8K, pair_a, CR 32"]
    assert "48.0 (46.0-50.0) at 30.5 / 50.00 / -2.0" in lines["GSM8K, pair_a, CR 32"]
    assert "not run / 40.00 / -" in lines["HumanEval, pair_b, CR 32"]
    assert "52.8 (51.3-54.2) / 52.50 / +0.2" in lines["average"] and "not run" in lines["average"]
    assert "- an oddity" in text and "- Means over 3 seeds." in text
    whole = "n = 100 where the benchmark has 1319 (GSM8K), n = 100 where the benchmark has 164 (HumanEval)"
    assert f"- {whole}; backend hf; dtype fp32." in text


def test_the_papers_columns_are_all_there_when_one_of_them_is_planned():
    assert columns_of({("impart", B): []}, PRINTED) == [A, B]


def test_other_models_have_no_number_of_the_paper_beside_them():
    tiny = Column("tiny/math", "tiny_math", "4")
    columns = columns_of({("impart", tiny): []}, PRINTED)
    assert columns == [tiny]
    text = paper_markdown(PRINTED, columns, {("impart", tiny): cell(70.0)})
    assert (
        "70.0 (68.0-72.0)" in text and "60.00" not in text and "an oddity" not in text and "none of the paper's" in text
    )
    assert "average" not in text


def test_a_table_by_ratio_has_no_average():
    columns = [A, Column("pair_a", "gsm8k", "64")]
    assert "average" not in paper_markdown(PRINTED, columns, {("impart", A): cell(1.0)})


def test_a_ratio_that_a_method_cannot_reach_leaves_an_empty_cell():
    reached, missed = (Column("tiny/math", "tiny_math", ratio) for ratio in ("8", "16"))
    printed = with_rows(own_table("mine"), {"dqrelo": "D-QReLO", "dare": "DARE"})
    planned = {("dqrelo", reached), ("dare", reached), ("dare", missed)}
    text = paper_markdown(printed, [reached, missed], {("dqrelo", reached): cell(70.0)}, planned)
    lines = [[part.strip() for part in line.split("|")[2:4]] for line in text.splitlines() if "tiny/math" in line]
    assert lines == [["70.0 (68.0-72.0) at 30.5", "not run"], ["", "not run"]]


def test_a_method_that_was_not_asked_everything_has_no_average():
    easy, hard = (Column("tiny/math", f"tiny_{task}", "8") for task in ("math", "code"))
    printed = with_rows(own_table("mine"), {"dqrelo": "D-QReLO", "dare": "DARE", "lowrank": "LowRank"})
    planned = {("dqrelo", easy), ("dare", easy), ("dare", hard), ("lowrank", easy), ("lowrank", hard)}
    cells = {("dqrelo", easy): cell(70.0), ("dare", easy): cell(60.0), ("dare", hard): cell(80.0)}
    *_, last = (line for line in paper_markdown(printed, [easy, hard], cells, planned).splitlines() if "| av" in line)
    assert [part.strip() for part in last.split("|")[1:-1]][:2] == ["average", ""]
    assert "70.0" in last and last.split("|")[-2].strip() == "not run"


def test_the_average_adds_independent_errors_in_squares():
    found = average([cell(50, 3), cell(70, 4)])
    assert (found.mean, found.high) == (60, pytest.approx(62.5))


def test_csv_rows_hold_every_cell_of_the_table():
    rows = paper_rows(PRINTED, [A, B], {("impart", A): cell(61.5)})
    assert len(rows) == 1 + 4
    scores = ("61.500", "59.500", "63.500", "30.500", 100, "hf", "fp32", "", "60.00", "1.500", *[""] * 3)
    assert rows[3] == ("impart", "pair_a", "gsm8k", "32", 3, *scores)
    assert rows[4] == ("impart", "pair_b", "humaneval", "32", *[""] * 9, "45.00", *[""] * 4)


def test_a_plan_is_read_cell_by_cell_and_a_torn_one_is_an_input_error(tmp_path):
    file = tmp_path / "plan.tsv"
    file.write_text(
        "impart\tp\tgsm8k\t32\tr/a/gsm8k/0.json\tImPart\n"
        "impart\tp\tgsm8k\t32\tr/b/gsm8k/0.json\tImPart\n"
        "ta\tm\tmath\t\tr/c/math/0.json\tTA\n"
    )
    plan, labels = read_plan(file)
    assert labels == {"impart": "ImPart", "ta": "TA"}
    assert [len(files) for files in plan.values()] == [2, 1] and list(plan)[1] == ("ta", Column("m", "math", ""))
    file.write_text("impart\tp\n")
    with pytest.raises(InputError, match="line 1"):
        read_plan(file)


def test_the_best_point_of_a_grid_names_its_rivals():
    plan = {(row, A): [] for row in ("beta 0.6", "beta 0.7", "beta 0.8")}
    text = best_markdown(
        plan, {("beta 0.6", A): cell(50, 2), ("beta 0.7", A): cell(53, 2), ("beta 0.8", A): cell(40, 2)}
    )
    assert "best: beta 0.7, 53.0 (51.0-55.0); the intervals of 1 of the 2 others overlap with it\nn = 100 where" in text
    assert "not run" in best_markdown(plan, {})


def test_a_grid_over_several_benchmarks_is_decided_by_their_average_and_every_group_is_a_search():
    C, D = Column("m", "gsm8k", ""), Column("m", "ifeval", "")
    rows = ("ta: lambda 1", "ta: lambda 2", "ties: lambda 1", "ties: lambda 2")
    plan = {(row, column): [] for row in rows for column in (C, D)}
    cells = {
        ("ta: lambda 1", C): cell(90, 2),
        ("ta: lambda 1", D): cell(10, 2),
        ("ta: lambda 2", C): cell(55, 2),
        ("ta: lambda 2", D): cell(65, 2),
        ("ties: lambda 1", C): cell(99, 2),
        ("ties: lambda 2", C): cell(1, 2),
        ("ties: lambda 2", D): cell(2, 2),
    }
    task_arithmetic, ties = best_markdown(plan, cells).split("## ties")
    assert task_arithmetic.startswith("## ta, GSM8K + IFEval, m\n")
    assert "best: lambda 2, 60.0 (58.6-61.4)\n" in task_arithmetic
    assert "best: lambda 2, 1.5 (" in ties and "lambda 1" not in ties  # half of a setting does not count
