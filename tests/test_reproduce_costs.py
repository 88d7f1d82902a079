"""The cost model and the early checks: orders of magnitude that were measured, and one line for all that is missing."""

import io
import sys

import pytest

from impart.errors import InputError
from reproduce.costs import CPU, GPU, Size, Step, disk, evaluation_seconds, main, model_problem, seconds, size_of

TINY, LARGE = Size(1.5e6, 192, 3), Size(13e9, 5120, 40)
SPARSIFY = Step("sparsify", "tiny/code", "16", "python sparsify/sparsify.py save_dir=a")


def test_the_tiny_pairs_measured_seconds_are_met_within_half():
    # Processor seconds on one core: sparsify 2.9; quantize 10.5; two models in one process of eval/tiny.py 16.7.
    assert seconds(SPARSIFY, TINY, CPU) == pytest.approx(2.9, rel=0.5)
    quantize = Step("quantize", "tiny/code", "32", "python quantize/sparse_llama.py m assets/tiny/data/c.jsonl")
    assert seconds(quantize, TINY, CPU) == pytest.approx(10.5, rel=0.5)
    evaluate = Step("evaluate", "tiny/code", "tiny_code", "python eval/tiny.py a b --tasks code --backend hf")
    assert evaluation_seconds(evaluate, TINY, CPU) == pytest.approx(16.7, rel=0.5)


def test_a_13b_svd_takes_hours_on_a_core_and_minutes_on_a_gpu():
    step = Step("svd", "wizardmath_13b", "svd", "python delta.py --svd")
    assert 2 < seconds(step, LARGE, CPU) / 3600 < 12 and 1 < seconds(step, LARGE, GPU) / 60 < 15


def test_dense_models_count_once_per_job_and_deltas_always():
    evaluations = [Step("evaluate", "p", "gsm8k", "x")] * 10
    sizes = {"p": LARGE}
    assert (
        disk(evaluations, sizes, jobs=2) == 2 * disk(evaluations, sizes, jobs=1) == disk(evaluations[:2], sizes, jobs=8)
    )
    assert disk([Step("sparsify", "p", "32", "x")] * 3, sizes, 1) == 3 * disk(
        [Step("sparsify", "p", "32", "x")], sizes, 1
    )
    assert disk(evaluations, {"p": None}, 1) == 0


def test_sizes_come_from_the_pairs_file():
    assert size_of("wizardmath_13b") == LARGE and size_of("tiny/code") == TINY


def test_what_is_missing_is_one_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "IMPART_DATA"):
        monkeypatch.delenv(name, raising=False)
    assert model_problem("assets/tiny/base") is None and "no folder" in model_problem("runs/llamacoder_13b/model")
    plan = "evaluate\ttiny/code\talpacaeval\tbash eval/scripts/alpacaeval.sh m\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(plan))
    with pytest.raises(InputError, match="OPENAI_API_KEY"):
        main(["--quiet"])


def test_an_empty_plan_needs_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    main([])
    assert "0 steps missing" in capsys.readouterr().out


def test_svamp_becomes_gsm8ks_format(tmp_path, capsys):
    from eval.answers import gsm8k_gold
    from reproduce.svamp import converted
    from reproduce.svamp import main as convert

    item = {"Body": "Dan had $ 3 left with him", "Question": "How many?", "Answer": 7.0}
    assert converted(item) == {"question": "Dan had $ 3 left with him. How many?", "answer": "#### 7"}
    assert gsm8k_gold(converted(item)["answer"]) == 7
    (tmp_path / "bad.json").write_text('[{"Body": "x"}]')
    with pytest.raises(InputError, match="Question"):
        convert([str(tmp_path / "bad.json"), str(tmp_path / "out.jsonl")])
    assert not (tmp_path / "out.jsonl").exists()
