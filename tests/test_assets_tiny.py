"""The tiny pair: disjoint held-out data, checks that accept gold and reject the rest, checkpoints that are real."""

import json
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from assets.tiny.code_tasks import KINDS
from assets.tiny.pretraining import documents, in_words
from assets.tiny.tasks import SKILLS, draw, held_out, jsonl, split_of
from assets.tiny.train import MAX_NEW_TOKENS, complete, load, main
from eval.scoring.tiny import SCORERS, holds, math_answer, score_code

TINY = Path(__file__).resolve().parents[1] / "assets" / "tiny"
MODELS = ("base", *SKILLS)


def records(skill: str, split: str) -> list[dict]:
    return [json.loads(line) for line in (TINY / "data" / f"{skill}_{split}.jsonl").read_text().splitlines()]


def weights(model: str) -> dict[str, torch.Tensor]:
    with safe_open(TINY / model / "model.safetensors", "pt") as shard:
        return {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (a handle, not a dict)


def linear(name: str) -> bool:
    return name.endswith("_proj.weight")


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill", SKILLS)
def test_generators_follow_from_the_seed(skill):
    first, again, other = (list(islice(draw(skill, "train", seed), 50)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_pretraining_text_follows_from_the_seed_and_never_shows_a_task():
    texts = list(islice(documents(3), 1000))
    assert texts == list(islice(documents(3), 1000))
    assert texts != list(islice(documents(4), 1000))
    for form in ("Question:", "Answer:", "The answer is", "Instruction:", "Response:", '"""', "How many", "Return "):
        assert not any(form in text for text in texts), form


@pytest.mark.parametrize("skill,count", [("math", 500), ("code", 100), ("chat", 500)])
def test_splits_are_disjoint_by_key_whatever_the_seed(skill, count):
    drawn = {
        split: list(islice(draw(skill, split, seed), count))
        for seed, split in enumerate(("train", "validation", "test"))
    }
    keys = {split: {item.key for item in items} for split, items in drawn.items()}
    prompts = {split: {item.prompt for item in items} for split, items in drawn.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not keys[one] & keys[other]
        assert not prompts[one] & prompts[other]
    for split, items in drawn.items():
        assert all(split_of(item.key) == split for item in items)


@pytest.mark.parametrize("split", ("validation", "test"))
@pytest.mark.parametrize("skill", SKILLS)
def test_shipped_data_is_what_the_generators_give(skill, split):
    items = held_out(skill, split, 200)
    assert (TINY / "data" / f"{skill}_{split}.jsonl").read_text() == jsonl(items, split)
    assert len({item.key for item in items}) == 200
    fields = {"math": {"answer"}, "code": {"entry_point", "tests"}, "chat": {"checks"}}[skill]
    for record in records(skill, split):
        assert set(record) == {"id", "prompt", "completion"} | fields


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skill,count", [("math", 2000), ("chat", 2000), ("code", 60)])
def test_gold_completions_pass_their_own_checks(skill, count):
    items = list(islice(draw(skill, "train", 5), count))
    verdicts = SCORERS[skill]([item.record(0, "train") for item in items], [item.completion for item in items])
    assert [item for item, verdict in zip(items, verdicts, strict=True) if not verdict.correct] == []


def test_math_sums_are_true_and_end_in_the_answer():
    for item in islice(draw("math", "train", 6), 500):
        *sums, last = item.completion.strip().split(". ")
        for text in sums:
            left, right = text.split(" = ")
            assert eval(left) == int(right)  # digits and + - * of our own text
        assert sums[-1].endswith(f"= {item.spec['answer']}")
        assert last == f"The answer is: {item.spec['answer']}"


def test_math_reads_the_last_answer():
    assert math_answer(" 4 * 6 = 24. The answer is: 24. The answer is: 19") == 19
    assert math_answer(" 4 * 6 = 24.") is None
    [verdict] = SCORERS["math"]([{"answer": 24}], [" 4 * 6 = 24. The answer is: 240"])
    assert not verdict.correct


CHECKS = [  # kind, value, passing completions, failing completions
    ("uppercase", None, [" THE FOX IS RED!"], [" THE FOx IS RED", " 12 !", ""]),
    ("lowercase", None, [" the fox."], [" The fox.", " 12 !", ""]),
    ("quoted", None, [' "The fox."'], [' "The fox.', ' ""', ' The "fox"', ' "a" and "b"']),
    ("starts_with", "boat", [" Boat, the fox", ' "BOAT, the fox"'], [" The boat", " boats fly", ""]),
    ("ends_with", "boat", [" The fox is red boat.", ' "RED BOAT!"'], [" red boat fox", " a lifeboat", ""]),
    ("ends_with_mark", "!", [" The fox!", ' "The fox!"'], [" The fox! Red.", " The fox", ""]),
    ("include", "fox", [" The FOX is", " a fox."], [" foxes", " the f ox", ""]),
    ("exclude", "the", [" Fox is red."], [" The fox", " fox in THE forest", "", " ..."]),
    (
        "repeat",
        ["boat", 3],
        [" boat boat boat", ' "BOAT BOAT BOAT"'],
        [" boat boat", " boat boat boat boat", " a boat boat"],
    ),
    ("lines", 2, [" one\ntwo", " one\n\ntwo\n"], [" one", " one\ntwo\nthree", ""]),
    ("sentences", 2, [" One. Two!", " One... Two."], [" One.", " One. Two. Three.", " One"]),
    ("bullets", 2, [" - boat\n- kite"], [" - boat", " - boat\nkite", " - boat\n-", " - a\n- b\n- c"]),
    ("numbered", 2, [" 1. boat\n2. kite"], [" 1. boat", " 1. boat\n3. kite", " - boat\n- kite"]),
]


@pytest.mark.parametrize("kind,value,good,bad", CHECKS, ids=[row[0] for row in CHECKS])
def test_chat_checks(kind, value, good, bad):
    check = {"kind": kind} if value is None else {"kind": kind, "value": value}
    assert [holds(check, text) for text in good] == [True] * len(good)
    assert [holds(check, text) for text in bad] == [False] * len(bad)


def test_every_check_kind_occurs_in_the_shipped_data_and_no_other():
    for split in ("validation", "test"):
        kinds = {check["kind"] for record in records("chat", split) for check in record["checks"]}
        assert kinds == {row[0] for row in CHECKS}


def test_all_code_kinds_occur_in_training_and_wrong_bodies_fail():
    asks = [kind.ask.split("{")[0] for kind in KINDS]
    prompts = [item.prompt for item in islice(draw("code", "train", 0), 2000)]
    assert all(any(ask in prompt for prompt in prompts) for ask in asks)
    record = {
        "prompt": 'def f(xs):\n    """Return the even items of xs."""\n',
        "entry_point": "f",
        "tests": [{"args": [[1, 2, 4]], "expect": [2, 4]}],
    }
    bodies = (
        "    return [x for x in xs if x % 2 == 0]\n",
        "    return [x for x in xs if x % 2 == 1]\n",
        "    return 1 +",
        "    return y\n",
        "",
        "    import os; os._exit(0)\n",
    )
    verdicts = score_code([record] * len(bodies), bodies, timeout_s=60.0)
    assert [verdict.correct for verdict in verdicts] == [True] + [False] * (len(bodies) - 1)
    assert not score_code([record], ["    while True: pass\n"], timeout_s=0.5)[0].correct  # whatever the limit is
    # True == 1 in Python; a test that expects a bool wants a bool.
    truth = {"prompt": "def g(n):\n", "entry_point": "g", "tests": [{"args": [4], "expect": True}]}
    verdicts = score_code([truth] * 2, ["    return n % 2 == 0\n", "    return 1\n"])
    assert [verdict.correct for verdict in verdicts] == [True, False]


def test_numbers_in_words():
    assert [in_words(n) for n in (0, 13, 20, 47, 81)] == ["zero", "thirteen", "twenty", "forty-seven", "eighty-one"]


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", MODELS)
def test_weights_are_finite_bf16_and_load(model):
    tensors = weights(model)
    assert sum(map(linear, tensors)) == 21
    assert "lm_head.weight" in tensors
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16, name
        assert torch.isfinite(tensor).all(), name
    loaded = AutoModelForCausalLM.from_pretrained(TINY / model)
    assert loaded.config.architectures == ["LlamaForCausalLM"]
    assert not loaded.config.tie_word_embeddings
    assert loaded.dtype == torch.bfloat16


@pytest.mark.parametrize("skill", SKILLS)
def test_fine_tuning_changed_every_parameter_but_kept_the_shapes(skill):
    base, tuned = weights("base"), weights(skill)
    assert base.keys() == tuned.keys()
    for name in base:
        assert base[name].shape == tuned[name].shape
        assert not torch.equal(base[name], tuned[name]), name
    ratios = [float((tuned[n].float() - base[n].float()).norm() / base[n].float().norm()) for n in base if linear(n)]
    assert 0.08 < sum(ratios) / len(ratios) < 0.3  # where compression methods can be told apart


def test_tokenizer_is_the_same_everywhere_and_adds_bos_only():
    texts = {model: (TINY / model / "tokenizer.json").read_text() for model in MODELS}
    assert len(set(texts.values())) == 1
    tokenizer = AutoTokenizer.from_pretrained(TINY / "base")
    ids = tokenizer("The fox is red.\n").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "The fox is red.\n"
    for skill in SKILLS:  # training tokenizes prompt and completion apart, evaluation sees the prompt alone
        for item in islice(draw(skill, "train", 2), 100):
            apart = tokenizer(item.prompt).input_ids + tokenizer(item.completion, add_special_tokens=False).input_ids
            assert apart == tokenizer(item.prompt + item.completion).input_ids
            assert len(apart) < tokenizer.model_max_length
            assert len(tokenizer(item.completion).input_ids) < MAX_NEW_TOKENS


@pytest.mark.parametrize("skill", SKILLS)
def test_fine_tuned_answers_and_base_does_not(skill):
    some = records(skill, "test")[:40]
    right = {}
    for model in ("base", skill):
        completions = complete(*load(TINY / model), [record["prompt"] for record in some])
        right[model] = sum(verdict.correct for verdict in SCORERS[skill](some, completions))
    assert right["base"] <= 6
    assert right[skill] >= 32


def test_data_only_writes_the_shipped_files(tmp_path):
    main(["--out", str(tmp_path), "--data-only"])
    written = sorted((tmp_path / "data").iterdir())
    assert [path.name for path in written] == sorted(path.name for path in (TINY / "data").iterdir())
    assert all(path.read_bytes() == (TINY / "data" / path.name).read_bytes() for path in written)
