"""Held-out loss: token by token against transformers, what its tables say, and what it refuses."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from eval import loss
from eval.answers import gsm8k_answer
from eval.engine.likelihood import completion_losses, example
from eval.gsm8k import GSM8K, gsm8k
from eval.report.cells import NATS, Cell, Scored, average, cell, gain_kept
from eval.report.paper import Column, best_markdown, kept, own_table, paper_markdown, paper_rows, with_rows
from eval.run.data import load_items
from eval.run.gsm8k_items import HELD_OUT, TEST, solutions
from eval.run.options import benchmark_parser, read_options
from eval.tables import main as tables
from impart.records import read_records

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"
RECORDS = [record for _, record in read_records(TINY / "data" / "chat_test.jsonl")][:7]


def losses(values):
    return Scored("loss_x", "m", "ImPart", 8.0, (), sum(values) / len(values), 7.5, tuple(values), measure=NATS)


def nats(mean, half=0.01):
    return Cell(mean, mean - half, mean + half, 3, 7.5, measure=NATS)


def test_losses_are_those_of_each_completion_by_itself():
    model = AutoModelForCausalLM.from_pretrained(TINY / "chat", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(TINY / "chat")
    examples = [example(tokenizer, record["prompt"], record["completion"]) for record in RECORDS]
    expected = []
    for prompt, answer in examples:
        assert answer[-1] == tokenizer.eos_token_id
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        by_token = [-logits[len(prompt) + at - 1, token].item() for at, token in enumerate(answer)]
        expected.append(sum(by_token) / len(by_token))
    for batch_size in (1, 3, 16):
        assert completion_losses(model, examples, batch_size) == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_summary_worked_by_hand():
    found = loss.summary([1.0, 2.0, 3.0])
    assert found["score"] == 2 and found["stderr"] == pytest.approx(1 / 3**0.5) and found["measure"] == "nats"
    assert found["interval_95"][0] == pytest.approx(2 - 1.96 / 3**0.5, abs=1e-4)


def test_fine_tuning_lowers_the_loss_and_a_table_says_so(called, tmp_path):
    given = (TINY / "base", TINY / "chat", "fp32", "--tasks", "chat", "--limit", 20, "--results_dir", tmp_path)
    ended = called(loss.main, *given)
    assert ended.code == 0, ended.err
    base, tuned = (json.loads((tmp_path / name / "loss_chat" / "0.json").read_text()) for name in ("base", "chat"))
    assert base["score"] > 1 > 0.1 > tuned["score"] and base["n"] == 20 and base["settings"]["split"] == "test"
    before = (tmp_path / "chat" / "loss_chat" / "0.json").read_bytes()
    assert called(loss.main, *given).code == 0  # what is done is read
    assert (tmp_path / "chat" / "loss_chat" / "0.json").read_bytes() == before
    assert called(loss.main, *given, "--split", "validation").code == 2  # another configuration's result
    table = called(tables, tmp_path).out
    assert "loss_chat, nats per token (95 % interval)" in table and f"{tuned['score']:.4f} (" in table
    shown = called(tables, tmp_path, "--leaderboard").out.splitlines()
    assert [line.split("|")[2].strip() for line in shown if line.startswith("| ")] == ["model", "chat", "base"]
    assert shown[-1] == "n = 20 where the benchmark has 100; backend hf; dtype fp32."


def test_a_file_of_ones_own(called, tmp_path):
    file = tmp_path / "mine.jsonl"
    file.write_text(
        "".join(json.dumps({key: record[key] for key in ("prompt", "completion")}) + "\n" for record in RECORDS)
    )
    ended = called(loss.main, TINY / "chat", "fp32", "--data", file, "--results_dir", tmp_path)
    assert ended.code == 0 and ended.out.startswith("loss  chat  ") and "(n = 7)" in ended.out


def test_gsm8k_is_asked_as_the_benchmark_asks_it(called, tmp_path):
    file = tmp_path / "gsm8k_test.jsonl"
    file.write_text('{"question": "How many pens?", "answer": "2*3=<<2*3=6>>6 pens.\\n#### 6"}\n' * 3)
    ended = called(
        *(loss.main, TINY / "math", "fp32", "--tasks", "gsm8k", "--data", tmp_path, "--results_dir", tmp_path)
    )
    assert ended.code == 0 and ended.out.startswith("loss_gsm8k  math  ") and "(n = 3)" in ended.out, ended.err
    records = [record for _, record in read_records(tmp_path / "math" / "loss_gsm8k" / "0.jsonl")]
    options = read_options(benchmark_parser(None, GSM8K), [str(TINY / "math"), "--data", str(file)])
    asked = gsm8k(load_items(TEST, file), options).prompts
    assert [record["prompt"] for record in records] == list(asked)
    assert records[0]["completion"] == " 2*3=6 pens.\nThe answer is: 6"
    assert gsm8k_answer(records[0]["completion"]) == 6


def test_validation_items_of_gsm8k_are_not_those_that_are_learned(tmp_path):
    lines = [json.dumps({"question": f"q{n}", "answer": f"#### {n}"}) + "\n" for n in range(HELD_OUT + 5)]
    (tmp_path / "gsm8k_train.jsonl").write_text("".join(lines))
    held_out, learned = (solutions(split, tmp_path).items for split in ("validation", "train"))
    assert [item["id"] for item in learned + held_out] == [str(n) for n in range(HELD_OUT + 5)]
    assert len(held_out) == HELD_OUT and len(solutions("validation", tmp_path, limit=7).items) == 7


@pytest.mark.parametrize(
    ("record", "flags", "words"),
    [
        ({"prompt": "a"}, (), "field 'completion' is missing"),
        ({"prompt": "a", "completion": ""}, (), "empty completion"),
        ({"prompt": "a " * 600, "completion": "b"}, (), "the model reads 512"),
        ({"prompt": "a", "completion": "b"}, ("--tasks", "cooking"), "'cooking' is no task; known: math, code, chat"),
        ({"prompt": "a", "completion": "b"}, ("--backend", "vllm"), "by the backend hf alone"),
        (None, (), "name --tasks"),
    ],
)
def test_bad_input_is_one_line(called, tmp_path, record, flags, words):
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(record) + "\n")
    data = ("--data", file) if record else ()
    ended = called(loss.main, TINY / "chat", "fp32", *data, *flags, "--results_dir", tmp_path / "results")
    assert ended.code == 2 and ended.err.splitlines()[-1].startswith("error: ") and words in ended.err, ended.err


def test_a_cell_of_losses_has_the_normal_interval():
    found = cell([losses([0.1, 0.3] * 50)])
    assert found.mean == pytest.approx(0.2) and str(found) == "0.2000 (0.1803-0.2197)"
    apart = cell([losses([0.1] * 100), losses([0.3] * 100)])
    assert apart.high - apart.low > found.high - found.low


def test_the_gain_that_is_kept_by_hand():
    base, tuned = cell([losses([1.0, 1.0])]), cell([losses([0.0, 0.0])])
    share = gain_kept(cell([losses([0.1, 0.3])]), base, tuned)
    assert (share.mean, share.high - share.mean) == pytest.approx((80, 1.96 * 10), abs=0.01)  # items keep 90 and 70 %
    assert gain_kept(nats(1.5), base=nats(1.0), tuned=nats(0.0)).mean == pytest.approx(-50)  # worse than the base


def test_items_that_are_hard_for_all_models_do_not_widen_the_gain():
    hard = [0.5 * n for n in range(9)]
    base, tuned, one, other = (cell([losses([h + more for h in hard])]) for more in (1.0, 0.0, 0.2, 0.4))
    share = gain_kept(one, base, tuned)
    assert one.high - one.low > 1 and (share.low, share.high) == pytest.approx((80, 80))
    seeds = cell([losses([h + more for h in hard]) for more in (0.2, 0.4)])  # 80 and 60 % in two runs
    share = gain_kept(seeds, base, tuned)
    assert (share.mean, share.high - share.mean) == pytest.approx((70, 1.96 * 10), abs=0.01)


def test_the_interval_of_the_gain_covers_as_often_as_it_says():
    draw, truth, covered = random.Random(0), 60.0, 0
    for _ in range(400):
        hard = [draw.gauss(2, 1) for _ in range(60)]
        gained = [draw.gauss(0.5, 0.2) for _ in hard]
        left = [h - g * draw.gauss(truth / 100, 0.3) for h, g in zip(hard, gained, strict=True)]
        tuned = [h - g for h, g in zip(hard, gained, strict=True)]
        share = gain_kept(*(cell([losses(values)]) for values in (left, hard, tuned)))
        covered += share.low <= truth <= share.high
    assert 0.92 < covered / 400 < 0.975


def test_no_share_where_items_differ_or_nothing_was_gained():
    column = Column("p", "loss_math", "8")
    base, tuned, found = (cell([losses([value] * 4)]) for value in (1.0, 0.5, 0.7))
    cells = {("backbone", column): base, ("fine_tuned", column): tuned, ("impart", column): found}
    assert kept(cells, "impart", column).mean == pytest.approx(60)
    assert kept(cells | {("backbone", column): cell([losses([1.0] * 5)])}, "impart", column) is None
    assert kept(cells | {("backbone", column): tuned}, "impart", column) is None


def test_tables_say_the_share_beside_the_loss():
    a, b = Column("p", "loss_math", "8"), Column("p", "tiny_math", "8")
    cells = {
        ("backbone", a): nats(1.0),
        ("fine_tuned", a): nats(0.0),
        ("impart", a): nats(0.25),
        ("impart", b): Cell(50, 40, 60, 3, 7.5),
    }
    printed = with_rows(own_table("t"), {"backbone": "Backbone", "fine_tuned": "Fine-tuned", "impart": "ImPart"})
    text = paper_markdown(printed, [a, b], cells)
    assert "0.2500 (0.2400-0.2600), 75.0 % at 7.5 " in text and "50.0 (40.0-60.0) " in text and "nats per token" in text
    assert ", 0.0 %" not in text and "average" not in text  # not of whole models, and not over both measures
    assert paper_rows(printed, [a, b], cells)[-2][-3:] == ("75.00",) * 3
    assert paper_rows(printed, [a, b], cells)[-1][-3:] == ("",) * 3
    del cells["backbone", a]
    assert ", 75.0 %" not in paper_markdown(printed, [a, b], cells)


def test_a_grid_search_takes_the_lowest_loss():
    a = Column("p", "loss_math", "8")
    cells = {("beta 0.6", a): nats(0.5), ("beta 0.7", a): nats(0.3), ("beta 0.8", a): nats(0.31)}
    text = best_markdown({key: [] for key in cells}, cells)
    assert "best: beta 0.7, 0.3000 (0.2900-0.3100); the intervals of 1 of the 2 others overlap" in text
    assert "validation loss, nats" in text


def test_averages_keep_their_measure():
    assert str(average([nats(0.2), nats(0.4)])) == "0.3000 (0.2929-0.3071)"
