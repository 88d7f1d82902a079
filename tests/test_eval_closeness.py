"""How close models stay to the fine-tuned one on unlabelled text."""

import pytest
import torch

from eval import closeness
from eval.engine.hf import HfModel
from impart.tokenizer import load_tokenizer
from sparsify import sparsify

CODE, TEXT = "assets/tiny/code", "assets/tiny/data/code_validation.jsonl"
SHORT = ("--text_field", "prompt", "--nsamples", "4", "--seqlen", "64")


def rows_of(text):
    lines = [line.split("  ") for line in text.splitlines()]
    return {cells[0]: [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines}


def test_the_model_itself_is_nearest_and_its_base_farthest(called, tmp_path):
    for ratio in (4, 16):
        made = called(
            sparsify.main,
            "method=lowrank",
            "base_model=assets/tiny/base",
            f"ftm_dir={CODE}",
            f"compression_ratio={ratio}",
            f"save_dir={tmp_path / f'at{ratio}'}",
        )
        assert made.code == 0, made.err
    models = ["assets/tiny/base", tmp_path / "at16", CODE, tmp_path / "at4"]
    ended = called(closeness.main, CODE, TEXT, *models, *SHORT)
    assert ended.code == 0, ended.err
    rows = rows_of(ended.out)
    assert list(rows) == ["nearest first", CODE, str(tmp_path / "at4"), str(tmp_path / "at16"), "assets/tiny/base"]
    assert rows[CODE] == ["0.0000", "0.0000", "100.0 %"]
    for column in range(2):
        values = [float(cells[column]) for name, cells in rows.items() if name != "nearest first"]
        assert values == sorted(values) and values[-1] > 0.1


def test_the_measures_are_those_that_are_written_down():
    tokenizer = load_tokenizer(CODE, CODE)
    models = [
        HfModel(name, tokenizer, dtype="fp32", max_model_len=8, batch_size=1).model
        for name in ("assets/tiny/base", CODE)
    ]
    ids = torch.arange(5, 13)
    found = closeness.closeness(*models, ids[None])
    with torch.no_grad():
        ours, theirs = (one(input_ids=ids[None], output_hidden_states=True) for one in models)
    p, q = (one.logits[0].double().softmax(-1) for one in (theirs, ours))
    assert found.kl == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    h, k = (one.hidden_states[-1].double() for one in (theirs, ours))
    assert found.change == pytest.approx(float((h - k).square().sum() / h.square().sum()), rel=1e-4)
    assert found.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((CODE, TEXT, CODE, "--nsamples", "0"), "must be at least 1"),
        ((CODE, "nothing.txt", CODE), "is neither a file nor one of"),
        ((CODE, TEXT, "assets/nothing"), "assets/nothing"),
        ((CODE, TEXT, CODE), "text_field"),
    ],
)
def test_bad_input_is_one_line(called, arguments, message):
    ended = called(closeness.main, *arguments)
    assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1
