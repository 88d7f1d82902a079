"""The cost model and the early checks: orders of magnitude that were measured, and one line for all that is missing."""

from dataclasses import replace
from pathlib import Path

import pytest

from impart.costs import CPU, GPU, duration
from impart.errors import InputError
from impart.pair import load_pair
from reproduce.costs import Size, disk, evaluation_seconds, missing_models, problems, seconds, size_of, summary
from reproduce.steps import Step

TINY, LARGE = load_pair("tiny/code"), load_pair("wizardmath_13b")
PAIRS = {"tiny/code": TINY, "wizardmath_13b": LARGE}


def step(stage: str, pair: str = "tiny/code", *, ratio: float | None = None, **more) -> Step:
    return Step(stage, pair, "", (("python", "x"),), (Path("x"),), ratio=ratio, **more)


def test_the_tiny_pairs_measured_seconds_are_met_within_half():
    # Processor seconds on one core: sparsify 2.9; quantize 10.5; two models in one process of eval/tiny.py 16.7.
    assert seconds(step("sparsify", ratio=16), TINY, CPU) == pytest.approx(2.9, rel=0.5)
    assert seconds(step("quantize", ratio=32), TINY, CPU) == pytest.approx(10.5, rel=0.5)
    evaluate = step("evaluate", benchmarks=("tiny_code",), models=2)
    size = size_of(TINY)
    assert size is not None and evaluation_seconds(evaluate, size, CPU) == pytest.approx(16.7, rel=0.5)


def test_a_13b_svd_takes_hours_on_a_core_and_minutes_on_a_gpu():
    svd = step("svd", "wizardmath_13b")
    assert 2 < seconds(svd, LARGE, CPU) / 3600 < 12 and 1 < seconds(svd, LARGE, GPU) / 60 < 15


def test_dense_models_count_once_per_job_and_deltas_always():
    evaluations = [step("evaluate", "wizardmath_13b", benchmarks=("gsm8k",))] * 10
    assert disk(evaluations, PAIRS, 2) == 2 * disk(evaluations, PAIRS, 1) == disk(evaluations[:2], PAIRS, 8)
    sparse = step("sparsify", "wizardmath_13b", ratio=32)
    assert disk([sparse] * 3, PAIRS, 1) == 3 * disk([sparse], PAIRS, 1) > 0


def test_sizes_come_from_the_pairs_file():
    assert size_of(LARGE) == Size(13e9, 5120, 40, active=13e9, embeddings=0.328e9, side=5120)
    assert size_of(TINY) == Size(1.5e6, 192, 3, active=1.5e6, embeddings=pytest.approx(45e3), side=192)


def test_a_mixture_costs_its_narrow_experts_and_answers_with_those_that_a_token_passes():
    mixture, dense = load_pair("qwen3_30b_a3b"), replace(load_pair("qwen3_30b_a3b"), active_parameters=None)
    asked = step("evaluate", "qwen3_30b_a3b", benchmarks=("gsm8k",))
    assert seconds(asked, dense, CPU) > 5 * seconds(asked, mixture, CPU)
    svd = step("svd", "qwen3_30b_a3b")
    # 48 layers of 384 experts' matrices, 768 x 2048, take m n min(m, n) each: 93 % of it.
    experts = CPU.svd * 48 * 384 * 768 * 2048 * 768
    assert 0.85 < experts / seconds(svd, mixture, CPU) < 1
    assert seconds(svd, replace(mixture, smaller_side=None), CPU) > 2.4 * seconds(svd, mixture, CPU)


def test_embeddings_that_travel_whole_count_in_every_delta():
    sparse = step("sparsify", "gemma3_4b", ratio=32)
    assert disk([sparse], {"gemma3_4b": load_pair("gemma3_4b")}, 1) == pytest.approx(2.2 * 4.29e9 / 32 + 2 * 0.671e9)


def test_every_benchmark_of_eval_has_a_cost():
    """A new benchmark is a script: nothing here has to know it."""
    from eval.run.descriptions import described

    for name in described():
        assert seconds(step("evaluate", "wizardmath_13b", benchmarks=(name,)), LARGE, GPU) > 60
    assert "2 steps missing" in summary([step("evaluate", benchmarks=tuple(described()))] * 2, PAIRS, 1, 0)


@pytest.mark.parametrize(
    "spent, said", [(5, "5 s"), (200, "3.3 min"), (9000, "2.5 h"), (57040.37 * 3600, "2,377 days")]
)
def test_times_are_said_in_their_unit(spent, said):
    assert duration(spent) == said


def test_a_missing_model_is_told_with_the_command_that_makes_it(tmp_path):
    absent = replace(PAIRS["tiny/code"], ftm_dir=str(tmp_path / "none"))
    assert missing_models(absent) == [f"model '{tmp_path}/none' is no folder with a config.json"]
    (told,) = missing_models(replace(absent, make_models="bash reproduce/small_pair.sh code"))
    assert told.endswith("; make it with: bash reproduce/small_pair.sh code")
    assert missing_models(PAIRS["tiny/code"]) == []


def test_everything_that_is_missing_is_a_sentence_of_its_own(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "IMPART_DATA"):
        monkeypatch.delenv(name, raising=False)
    assert problems([step("evaluate", benchmarks=("tiny_code",))], PAIRS, 1, tmp_path) == []
    found = problems([step("evaluate", "wizardmath_13b", benchmarks=("alpacaeval", "gsm8k"))], PAIRS, 1, tmp_path)
    words = ("Llama-2-13b-hf", "WizardMath-13B-V1.0", "data of alpacaeval", "data of gsm8k", "key: alpacaeval needs")
    assert all(any(word in problem for problem in found) for word in words), found


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
