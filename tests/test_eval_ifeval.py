"""IFEval: the harness' own evaluation of given answers, and the check for punkt_tab before anything is generated."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
from byte_models import byte_llama

from eval import ifeval
from eval.run.options import benchmark_parser, read_options
from eval.scoring import ifeval as harness
from impart.errors import InputError

pytest.importorskip("lm_eval", reason="IFEval is scored by lm-evaluation-harness")
nltk = pytest.importorskip("nltk")


def item(key: int, *instructions: tuple[str, dict]) -> dict:
    return {
        "key": key,
        "prompt": f"Prompt {key}.",
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [kwargs for _, kwargs in instructions],
    }


ROOT = Path(__file__).resolve().parents[1]
ITEMS = [
    item(1, ("punctuation:no_comma", {})),
    item(2, ("change_case:english_lowercase", {}), ("punctuation:no_comma", {})),
    item(3, ("keywords:existence", {"keywords": ["boat", "fox"]})),
    item(4, ("length_constraints:number_words", {"relation": "at least", "num_words": 5})),
    item(5, ("startend:quotation", {})),
]
SENTENCES = item(6, ("length_constraints:number_sentences", {"relation": "at least", "num_sentences": 2}))


def options_of(*arguments):
    return read_options(benchmark_parser("", ifeval.IFEVAL), ["model", "fp32", *map(str, arguments)])


@pytest.fixture
def no_punkt(monkeypatch):
    """A machine without punkt_tab and without a network."""
    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *_, **__: False)
    utils = harness.harness_checks()
    utils.instructions_registry.instructions.instructions_util._get_sentence_tokenizer.cache_clear()
    return utils


@pytest.fixture
def some_punkt(monkeypatch, tmp_path):
    """punkt_tab in its file format with empty tables, which splits at full stops; the official one needs a download."""
    from nltk.tokenize.punkt import PunktParameters, save_punkt_params

    folder = tmp_path / "tokenizers" / "punkt_tab" / "english"
    folder.mkdir(parents=True)
    monkeypatch.setattr(nltk.data, "path", [str(tmp_path)])
    save_punkt_params(PunktParameters(), dir=str(folder))
    monkeypatch.setattr(nltk, "download", lambda *_, **__: pytest.fail("nothing has to be downloaded"))


def write(tmp_path: Path, items: list[dict]) -> Path:
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in items))
    return path


def test_the_harness_judges(tmp_path, no_punkt):
    benchmark = ifeval.ifeval(options_of("--data", write(tmp_path, ITEMS)), False)
    right = ["No commas here.", "all in lower case", "A fox in a boat.", "one two three four five", '"Quoted."']
    wrong = ["A, comma.", "Upper case", "A fox.", "one two", "Not quoted."]
    assert [verdict.correct for verdict in benchmark.score(benchmark.items, right)] == [True] * 5
    assert [verdict.correct for verdict in benchmark.score(benchmark.items, wrong)] == [False] * 5
    assert not any(verdict.correct for verdict in benchmark.score(benchmark.items, [""] * 5))


def test_loose_forgives_what_strict_does_not(no_punkt):
    [verdict] = harness.score([ITEMS[4]], ['Sure, here it is:\n"Quoted."'])  # the first line may be left out
    assert verdict.correct and not verdict.extracted["prompt_level_strict_acc"]
    assert verdict.gold == ["startend:quotation"]


def test_all_four_metrics_by_hand(no_punkt):
    verdicts = harness.score(ITEMS[:3], ["fine", "Fine", "boat"])
    summary = ifeval.summary(verdicts)
    assert summary["score"] == pytest.approx(100 / 3)
    assert summary["metrics"]["prompt_level_strict_acc"] == pytest.approx(100 / 3)
    assert summary["metrics"]["inst_level_loose_acc"] == pytest.approx(50.0)  # 2 of 4: no_comma twice


def test_the_settings_are_the_harness_own(tmp_path, no_punkt):
    """The task that the scorer builds, as the harness reads it, says what we generate with."""
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_defaults=False).load([str(harness.local_task(ITEMS, tmp_path))])["tasks"]["ifeval"]
    assert loaded.config.generation_kwargs == {
        "until": [],
        "do_sample": False,
        "temperature": 0.0,
        "max_gen_toks": ifeval.MAX_TOKENS,
    }
    benchmark = ifeval.ifeval(options_of("--data", write(tmp_path, ITEMS)), False)
    assert list(benchmark.prompts) == [loaded.doc_to_text(doc) for doc in loaded.eval_docs]
    assert (benchmark.max_tokens, benchmark.stop) == (1280, ())


def test_prompts_begin_with_no_begin_of_sequence_token_unless_asked_for(tmp_path):
    """As lm-eval's backend for vLLM sent them in 2025."""
    path = write(tmp_path, ITEMS)
    for bos in (False, True):
        benchmark = ifeval.ifeval(replace(options_of("--data", path), bos=bos), False)
        assert benchmark.special_tokens is bos and benchmark.settings["bos"] is bos


def test_an_answer_that_the_harness_cannot_check_is_wrong_and_ends_nothing(caplog):
    """Its JSON parser gives up on one that is nested absurdly, with an error that would end the run."""
    items = [item(1, ("detectable_format:json_format", {})), item(2, ("punctuation:no_comma", {}))]
    verdicts = harness.score(items, ["[" * 5000, "Fine"])
    assert [verdict.correct for verdict in verdicts] == [False, True]
    assert verdicts[0].detail == "the harness cannot check it: RecursionError" and "item 1" in caplog.text


def test_exactly_these_checks_need_punkt(no_punkt):
    """Every instruction that the harness knows is tried without punkt_tab."""
    arguments = {"keywords:existence": {"keywords": ["a"]}, "combination:repeat_prompt": {"prompt_to_repeat": "x"}}
    failing = []
    for name, kind in no_punkt.instructions_registry.INSTRUCTION_DICT.items():
        check = kind(name)
        check.build_description(**arguments.get(name, {}))
        try:
            check.check_following("Some words. AND more.")
        except LookupError:
            failing.append(name)
    assert sorted(failing) == sorted(harness.NEED_PUNKT)


def test_without_punkt_the_run_ends_before_it_starts(tmp_path, no_punkt):
    path = write(tmp_path, [*ITEMS, SENTENCES])
    with pytest.raises(InputError, match=r"1 of the 6 prompts \(the first has key 6\).*NLTK_DATA.*--without_punkt"):
        ifeval.ifeval(options_of("--data", path), False)
    assert len(ifeval.ifeval(options_of("--data", path, "--limit", 5), False).items) == 5  # none of these needs it
    benchmark = ifeval.ifeval(options_of("--data", path), True)
    assert benchmark.name == "ifeval_without_punkt" and [one["id"] for one in benchmark.items] == list("12345")
    with pytest.raises(InputError, match="leaves none"):
        ifeval.ifeval(options_of("--data", path, "--subset", "6"), True)


def test_with_punkt_sentences_are_counted(tmp_path, some_punkt):
    harness.harness_checks().instructions_registry.instructions.instructions_util._get_sentence_tokenizer.cache_clear()
    benchmark = ifeval.ifeval(options_of("--data", write(tmp_path, [SENTENCES])), False)
    assert [benchmark.score(benchmark.items, [text])[0].correct for text in ("One. Two.", "One")] == [True, False]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (
            {"key": 1, "prompt": "p", "instruction_id_list": ["punctuation:no_comma"]},
            "line 1: field 'kwargs' is missing",
        ),
        (item(7, ("no:such_check", {})), "key 7 has an instruction that the harness does not know"),
        ({**item(8, ("punctuation:no_comma", {})), "kwargs": []}, "key 8 has 1 instructions but 0 kwargs"),
        (item(9, ("punctuation:no_comma", {"num_words": 3})), "key 9 has kwargs that its instructions do not take"),
    ],
)
def test_bad_items_are_found_before_generation(broken, message, tmp_path, no_punkt):
    with pytest.raises(InputError, match=message):
        ifeval.ifeval(options_of("--data", write(tmp_path, [broken])), False)


def test_the_public_file(no_punkt):
    folder = os.environ.get("IMPART_DATA")
    if not folder:
        pytest.skip("IMPART_DATA is unset: no ifeval.jsonl to test with")
    benchmark = ifeval.ifeval(options_of(), True)
    assert len(benchmark.items) == 477  # 64 of the 541 count sentences or capital words
    assert len(benchmark.score(benchmark.items, ["A short answer."] * 477)) == 477


@pytest.mark.vllm
@pytest.mark.slow
def test_a_whole_run_with_vllm(tmp_path, script):
    pytest.importorskip("vllm")
    data, model = write(tmp_path, ITEMS), byte_llama(tmp_path / "model")
    ended = script("eval/scripts/ifeval.sh", model, "bf16", "--data", data, cwd=tmp_path)
    assert ended.code == 0, ended.err[-3000:]
    result = json.loads((tmp_path / "results/model/ifeval/0.json").read_text())
    assert result["n"] == 5 and set(result["metrics"]) == set(harness.METRICS)
    assert result["score"] == result["metrics"]["prompt_level_loose_acc"]
