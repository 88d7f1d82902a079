"""Tables: cells worked by hand, intervals, labels, and the files that the script writes."""

import csv
import json
import math
from dataclasses import replace

import pytest

from eval.report.cells import BASE, TUNED, average
from eval.report.scored import mark_of
from eval.run.results import mean_score, wilson_interval
from eval.scoring.verdict import Verdict
from eval.tables import Scored, cell, grid, main, markdown, read_results
from impart.errors import InputError

HF = {"backend": "hf", "dtype": "fp32"}


def scored(correct, *, method="impart", ratio=8.0, settings=(), model="m", byte_ratio=7.5):
    return Scored(
        "bench",
        model,
        method,
        ratio,
        tuple(settings),
        100 * sum(correct) / len(correct),
        byte_ratio,
        tuple(map(float, correct)),
    )


def write_result(folder, model, correct, *, delta=None, seed=0, benchmark="bench", settings=HF):
    target = folder / model / benchmark
    target.mkdir(parents=True)
    (target / f"{seed}.jsonl").write_text("".join(json.dumps({"correct": bool(mark)}) + "\n" for mark in correct))
    (target / f"{seed}.json").write_text(
        json.dumps(
            {
                "model": model,
                "benchmark": benchmark,
                "seed": seed,
                "score": 100 * sum(correct) / len(correct),
                "settings": settings,
                "delta": delta,
                "samples": f"{seed}.jsonl",
            }
        )
    )


def test_one_seed_gives_wilsons_interval_of_the_items():
    found = cell([scored([1] * 60 + [0] * 40)])
    low, high = wilson_interval(60, 100)
    assert found.mean == pytest.approx(60) and (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_disagreeing_seeds_widen_the_interval():
    alike = cell([scored([1, 0] * 50)] * 3)
    apart = cell([scored([1] * 30 + [0] * 70), scored([1] * 50 + [0] * 50), scored([1] * 70 + [0] * 30)])
    assert apart.mean == alike.mean == 50 and apart.seeds == 3
    assert apart.high - apart.low > alike.high - alike.low


def test_all_right_still_has_an_interval():
    found = cell([scored([1] * 200)] * 3)
    assert found.mean == 100 and found.high == pytest.approx(100) and 97 < found.low < 99


def test_labels_name_only_the_settings_that_differ():
    runs = [
        scored([1, 0], method="ImPart", settings=(("C", "1.0"), ("preprune_ratio", beta), ("mask", "bernoulli")))
        for beta in ("0.6", "0.8")
    ]
    _, rows = grid([*runs, scored([1, 1], method="DARE")])
    assert set(rows) == {"ImPart (preprune_ratio=0.6)", "ImPart (preprune_ratio=0.8)", "DARE"}


@pytest.mark.parametrize(
    ("settings", "mark"),
    [
        ({"scoring": "paper"}, ""),
        ({}, ""),
        ({"scoring": "math_verify"}, "scoring: math_verify"),
        ({"scoring": "as_is"}, "scoring: as_is"),
        ({"metric": "win_rate"}, "plain win rate"),
        ({"metric": "prompt_level_loose_acc", "bos": True}, "with BOS"),
    ],
)
def test_what_sets_a_score_apart(settings, mark):
    assert mark_of(settings) == mark


def test_a_score_by_another_rule_never_shares_a_cell_unmarked():
    paper, other = scored([1, 0]), replace(scored([1, 1]), mark="scoring: release")
    assert str(cell([other])).endswith(" [scoring: release]") and "[" not in str(cell([paper]))
    _, rows = grid([paper, other])
    assert {label: row[8.0].mean for label, row in rows.items()} == {"impart": 50, "impart [scoring: release]": 100}
    whole, _ = grid([replace(one, method=None) for one in (paper, other)])
    assert set(whole) == {"m", "m [scoring: release]"}
    assert average([cell([paper]), cell([other])]).mark == "scoring: release"
    with pytest.raises(InputError, match="differ .paper; scoring: release."):
        cell([paper, other])


def test_a_delta_without_a_ratio_stands_among_the_whole_models():
    whole, rows = grid([scored([1, 0], method="SVD", ratio=None, model="svd"), scored([1, 1], method="dare")])
    assert set(whole) == {"svd"} and set(rows) == {"dare"}


def test_runs_of_one_cell_have_the_same_items():
    with pytest.raises(InputError, match="belong to one cell, but have 2 and 3 items"):
        cell([scored([1, 0]), scored([1, 0, 1])])


def test_a_cell_that_was_not_run_says_so():
    whole, rows = grid(
        [scored([1, 0]), scored([1, 1], method="dare", ratio=16.0), scored([0, 0], method=None, model="base")]
    )
    text = markdown("bench", whole, rows)
    assert "not run" in text and "base (whole)" in text and "CR 16" in text


def test_the_script_writes_table_csv_and_figure(tmp_path, capsys):
    results = tmp_path / "results"
    write_result(results, "tuned", [1, 1, 1, 0])
    for seed in range(2):
        write_result(
            results,
            f"impart_{seed}",
            [1, seed, 0, 0],
            delta={"method": "impart", "settings": {"compression_ratio": 8.0}, "linear_ratio": 7.25},
        )
    for suffix in ("png", "svg"):
        main([str(results), "--figure", str(tmp_path / f"a.{suffix}"), "--csv", str(tmp_path / "a.csv")])
    assert "37.5" in capsys.readouterr().out  # mean of 25 and 50
    with (tmp_path / "a.csv").open() as stream:
        lines = {line["method"]: line for line in csv.DictReader(stream)}
    assert lines["ImPart"]["seeds"] == "2" and float(lines["ImPart"]["byte_ratio"]) == 7.25
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "a.svg").read_bytes()
    main([str(results), "--figure", str(tmp_path / "b.svg")])
    assert (tmp_path / "b.svg").read_bytes() == first


def test_no_results_and_a_strange_figure_are_input_errors(tmp_path):
    with pytest.raises(InputError, match="no results"):
        read_results(tmp_path)
    write_result(tmp_path, "tuned", [1, 0])
    with pytest.raises(InputError, match=".png, .svg or .pdf"):
        main([str(tmp_path), "--figure", "a.jpeg"])


def test_the_mean_is_of_the_runs_not_of_their_files(tmp_path):
    for seed in range(3):
        write_result(tmp_path, f"d{seed}", [1, 1, 0, 0], delta={"method": "dare", "settings": {"compression_ratio": 4}})
    _, rows = grid(read_results(tmp_path))
    assert math.isclose(rows["DARE"][4].mean, 50) and rows["DARE"][4].seeds == 3


def test_the_leaderboard_ranks_every_result_at_any_depth(tmp_path, capsys):
    write_result(tmp_path / "a" / "results", "weak", [1, 0, 0, 0])
    write_result(
        tmp_path / "b" / "results",
        "strong",
        [1, 1, 1, 0],
        delta={"method": "bitdelta", "settings": {"compression_ratio_qt": 32.0}, "linear_ratio": 30.25},
    )
    main([str(tmp_path), "--leaderboard"])
    lines = capsys.readouterr().out.splitlines()
    assert (
        "strong" in lines[2]
        and "BitDelta" in lines[2]
        and "32" in lines[2]
        and "30.2" in lines[2]
        and "75.0" in lines[2]
    )
    assert "weak" in lines[3] and "whole" in lines[3]


@pytest.mark.parametrize("kind, label", [("sparse", "DARE"), ("quantized", "DARE-Qt")])
def test_a_quantized_delta_is_not_called_by_the_name_of_the_sparse_one(tmp_path, kind, label):
    write_result(tmp_path, "d", [1, 0], delta={"kind": kind, "method": "dare", "settings": {"compression_ratio": 4}})
    _, rows = grid(read_results(tmp_path))
    assert list(rows) == [label]


def planned(tmp_path, *, ratio="32", pair="wizardmath_13b", benchmark="gsm8k"):
    for seed in range(2):
        write_result(
            tmp_path / "results",
            f"impart_{seed}",
            [1, seed, 0, 0],
            benchmark=benchmark,
            delta={"method": "impart", "settings": {"compression_ratio": float(ratio)}, "linear_ratio": 30.0},
        )
    cells = tmp_path / "t.cells.tsv"
    cells.write_text(
        "".join(
            f"impart\t{pair}\t{benchmark}\t{ratio}\t{tmp_path}/results/impart_{seed}/{benchmark}/0.json\tImPart\n"
            for seed in range(3)
        )
    )  # the third was not run
    return cells


def test_a_planned_table_is_printed_and_written_with_figures(tmp_path, capsys):
    cells, out = planned(tmp_path), tmp_path / "out"
    command = [
        "--cells",
        str(cells),
        "--table",
        "5",
        "--out",
        str(out),
        "--figure",
        str(out / "f.png"),
        "--figure",
        str(out / "f.svg"),
    ]
    main(command)
    text = capsys.readouterr().out
    assert (
        "37.5" in text and "/ 60.20 / -22.7" in text and "not run / 61.64 / -" in text and "Means over 2 seeds" in text
    )
    assert (out / "table5.md").read_text().strip() == text.strip()
    with (out / "table5.csv").open() as stream:
        lines = [line for line in csv.DictReader(stream) if line["mean"]]
    found = [(line["row"], line["ratio"], line["mean"], line["paper"]) for line in lines]
    assert found == [("impart", "32", "37.500", "60.20")]
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert before["f.png"].startswith(b"\x89PNG") and b"<svg" in before["f.svg"]
    main(command)
    assert before == {file.name: file.read_bytes() for file in out.iterdir()}


def test_alpacaevals_plain_win_rate_fills_its_cell(tmp_path, capsys):
    cells = planned(tmp_path, pair="llama2_chat_13b", benchmark="alpacaeval_plain")
    cells.write_text(cells.read_text().replace("alpacaeval_plain", "alpacaeval"))
    main(["--cells", str(cells), "--table", "1", "--out", str(tmp_path)])
    assert "37.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["r", "--delta", "d"], ["--cells", "c"], ["--cells", "c", "--table", "1", "--best"]]
)
def test_contradicting_flags_are_input_errors(arguments):
    with pytest.raises(InputError):
        main(arguments)


def test_a_deltas_spectra_and_sparsity_become_figures(tmp_path, svd_delta, capsys):
    main(["--delta", str(svd_delta), "--out", str(tmp_path)])
    names = {"spectra.png", "spectra.svg", "sparsity.png", "sparsity.svg"}
    assert {file.name for file in tmp_path.iterdir()} == names
    assert all((tmp_path / name).stat().st_size > 10_000 for name in names)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_sparsity_is_counted_from_the_kept_entries():
    from eval.report.delta_figures import sparsity

    assert sparsity({"shape": [4, 6], "kept": [10, 10]}) == pytest.approx(0.5)  # of (4 + 6) * 4
    assert sparsity({"shape": [4, 6], "kept": [6]}) == pytest.approx(0.75)


def quantized(method, ratio, linear_ratio):
    settings = {"compression_ratio_qt": ratio}
    return {"kind": "quantized", "method": method, "settings": settings, "linear_ratio": linear_ratio}


def test_the_true_ratios_stand_below_the_table(tmp_path, capsys):
    for ratio, true in ((32.0, 19.44), (64.0, 28.16)):
        write_result(tmp_path, f"d{ratio:g}", [1, 0], delta=quantized("impart", ratio, true))
    main([str(tmp_path)])
    text = capsys.readouterr().out
    assert "True byte ratios of the linear layers, from left to right: ImPart-Qt 19.4, 28.2." in text
    assert text.endswith("n = 2; backend hf; dtype fp32.\n")


def test_what_differs_between_results_is_marked_and_never_shares_a_row(tmp_path, capsys):
    impart = {"method": "impart", "settings": {"compression_ratio": 8.0}}
    write_result(tmp_path, "a", [1, 0, 0, 0], delta=impart)
    write_result(tmp_path, "b", [1, 1], delta=impart)  # --limit 2
    write_result(tmp_path, "c", [1, 1, 1, 0], delta=impart, settings={"backend": "vllm", "dtype": "fp16"})
    write_result(tmp_path, "d", [0, 0, 0, 0], settings={})  # completions from elsewhere
    main([str(tmp_path), "--csv", str(tmp_path / "all.csv"), "--figure", str(tmp_path / "all.svg")])
    text = capsys.readouterr().out
    rows = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ImPart")}
    assert rows == {f"ImPart [{mark}]" for mark in ("n = 4, hf, fp32", "n = 2, hf, fp32", "n = 4, vllm, fp16")}
    assert "d [n = 4, backend not said, dtype not said] (whole)" in text
    with (tmp_path / "all.csv").open() as stream:
        lines = [(line["n"], line["backend"], line["dtype"]) for line in csv.DictReader(stream)]
    assert sorted(lines) == [("2", "hf", "fp32"), ("4", "", ""), ("4", "hf", "fp32"), ("4", "vllm", "fp16")]


def test_a_part_of_the_items_is_marked_beside_the_papers_score_of_all(tmp_path, capsys):
    main(["--cells", str(planned(tmp_path)), "--table", "5", "--out", str(tmp_path)])
    text = capsys.readouterr().out
    assert "[n = 4 instead of 1319] at 30.0 / 60.20 / -22.7" in text and "- n = 4 where the benchmark has 1319;" in text


def test_one_run_has_one_interval():
    correct = [1] * 13 + [0] * 187
    found, said = cell([scored(correct)]), mean_score([Verdict(None, None, bool(mark)) for mark in correct])
    assert (found.low, found.high) == pytest.approx(said["interval_95"])


def test_a_grid_over_beta_and_c_is_drawn_as_a_heat_map(tmp_path, capsys):
    lines = []
    for C in (0.5, 1.0):
        for beta in (0.6, 0.7):
            settings = {"compression_ratio": 32.0, "C": C, "preprune_ratio": beta}
            name = f"C{C:g}_beta{beta}"
            delta = {"method": "impart", "settings": settings, "linear_ratio": 30.9}
            write_result(tmp_path / "results", name, [1, beta > 0.6, C > 0.5, 0], delta=delta, benchmark="gsm8k")
            result = tmp_path / "results" / name / "gsm8k" / "0.json"
            lines.append(f"{name}\twizardmath_13b\tgsm8k\t32\t{result}\tC {C:g} beta {beta}\n")
    cells = tmp_path / "grid.cells.tsv"
    cells.write_text("".join(lines))
    for form in (("--best",), ("--table", "4")):
        figure = tmp_path / f"{form[0]}.svg"
        main(["--cells", str(cells), *form, "--out", str(tmp_path), "--figure", str(figure)])
        assert "QuadMesh" in figure.read_text()
    cells.write_text(lines[0])
    with pytest.raises(InputError, match="two settings that are numbers"):
        main(["--cells", str(cells), "--best", "--out", str(tmp_path), "--figure", str(figure)])


def test_base_and_fine_tuned_have_their_lines_where_a_delta_names_them(tmp_path, monkeypatch):
    import eval.report.figures as figures

    drawn = []
    monkeypatch.setattr(figures, "whole_lines", lambda place, lines: drawn.append(dict(lines)))
    impart = {"method": "impart", "settings": {"compression_ratio": 8.0}, "base": "hub/llama", "finetuned": "my/chat"}
    write_result(tmp_path, "d", [1, 1, 0, 0], delta=impart)
    for name in ("llama", "chat", "other"):
        write_result(tmp_path, name, [1, 0, 0, 0])
    main([str(tmp_path), "--figure", str(tmp_path / "f.png")])
    assert drawn == [
        {"fine-tuned model: chat": (TUNED, 25), "base model: llama": (BASE, 25), "other": (None, 25)},
    ]
