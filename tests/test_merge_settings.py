"""Where the settings of a merge come from, and what is refused before any model is opened."""

from pathlib import Path

import pytest
import yaml

from impart.errors import InputError
from impart.pair import load_pair
from merge.methods.avg import Average
from merge.methods.ta import TaskArithmetic
from merge.methods.ties_merging import Ties
from merge.premask import PreMask
from merge.settings import load_config, model_seed, resolve
from sparsify.methods.dare import Dare
from sparsify.methods.impart import ImPart

FLAGS = {"merge_method": "ta_0.5", "ptm_pth": "B", "save_pth": "OUT"}


def resolved(*overrides, flags=None, models=(), path=None):
    return resolve(load_config(path, FLAGS if flags is None else flags, models, overrides))


def test_the_authors_flags():
    method, entries = resolved(flags={**FLAGS, "math_pth": "M", "code_pth": "C", "chat_pth": None})
    assert method == TaskArithmetic(0.5)
    assert [(entry.name, entry.path, entry.weight, entry.premask) for entry in entries] == [
        ("code", "C", 1.0, None),
        ("math", "M", 1.0, None),
    ]


def test_more_models_with_weights():
    _, entries = resolved(models=["law=some/where:0.7", "med=a:b", "art=D:\\models:1e-1"])
    assert [(entry.name, entry.path, entry.weight) for entry in entries] == [
        ("art", "D:\\models", 0.1),
        ("law", "some/where", 0.7),
        ("med", "a:b", 1.0),
    ]


def test_a_path_that_looks_like_a_number_stays_a_path():
    _, entries = resolved(flags={**FLAGS, "math_pth": "2024"}, models=["code=1e5"])
    assert [entry.path for entry in entries] == ["1e5", "2024"]


def test_yaml_with_models_and_overrides(tmp_path):
    file = tmp_path / "merge.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "merge_method": "ties_0.2_1.0",
                "ptm_pth": "B",
                "save_pth": "OUT",
                "math_pth": "M",
                "mask": "impart",
                "sparsity": 0.5,
                "preprune_ratio": 0.6,
                "C": 0.5,
                "seed": 3,
                "models": {
                    "code": {"path": "C", "weight": 2, "mask": "dare", "compression_ratio": 4, "seed": 11},
                    "math": {"weight": 0.5},
                    "chat": "H",
                    "law": {"path": "L", "mask": "none"},
                },
            }
        )
    )
    method, entries = resolved("sparsity=0.75", "models.math.C=1", "models.law.weight=0.1", path=file, flags={})
    assert method == Ties(trim=0.2, lam=1.0)
    found = {entry.name: entry for entry in entries}
    assert found["math"].premask == PreMask(
        ImPart(compression_ratio=4.0, preprune_ratio=0.6, C=1.0), model_seed(3, "math")
    )
    assert found["math"].path == "M" and found["math"].weight == 0.5
    assert found["code"].premask == PreMask(Dare(compression_ratio=4.0), 11) and found["code"].weight == 2.0
    assert found["chat"].premask == PreMask(
        ImPart(compression_ratio=4.0, preprune_ratio=0.6, C=0.5), model_seed(3, "chat")
    )
    assert found["law"].premask is None and found["law"].weight == 0.1


def test_flags_override_the_yaml_and_overrides_the_flags(tmp_path):
    file = tmp_path / "merge.yaml"
    file.write_text("merge_method: ta_0.1\nptm_pth: A\nsave_pth: S\nmath_pth: M\n")
    assert resolved(path=file)[0] == TaskArithmetic(0.5)
    assert resolved("merge_method=avg", path=file)[0] == Average()


def test_every_model_has_masks_of_its_own_and_the_seed_changes_all():
    seeds = {model_seed(seed, name) for seed in range(20) for name in ("math", "code", "chat")}
    assert len(seeds) == 60
    _, entries = resolved("mask=dare", "sparsity=0.9", "seed=5", models=["math=M", "code=C"])
    assert entries[0].premask.seed != entries[1].premask.seed


@pytest.mark.parametrize(
    ("overrides", "models", "message"),
    [
        ((), (), "no model to merge"),
        (("merge_method=dare_0.5",), ("math=M",), "merge_method: 'dare_0.5' is none of"),
        (("merge_method=ties_1.8_1",), ("math=M",), "between 0 and 1"),
        (("merge_method=avg",), ("math=M:-1",), "must be positive"),
        (("merge_method=ties_0_1",), ("math=M:0",), "must be positive"),
        (("merge_method=ta_1", "trim_scope=model"), ("math=M",), "ta_1 trims nothing"),
        (("merge_method=ties_0.5_1", "trim_scope=layer"), ("math=M",), "layer is not one of tensor, model"),
        ((), ("math=M:nan",), "finite"),
        ((), ("math",), "name=path"),
        ((), ("math=M", "math=N:0.5"), "'math' is given twice"),
        ((), ("base=M",), "cannot be called 'base'"),
        (("tokenizer=chat",), ("math=M",), "neither base nor one of the models: math"),
        (("mask=dare",), ("math=M",), "needs either sparsity"),
        (("mask=dare", "sparsity=0.5", "compression_ratio=2"), ("math=M",), "not both"),
        (("mask=dare", "sparsity=1"), ("math=M",), "below 1"),
        (("mask=dare", "sparsity=1.5"), ("math=M",), "below 1"),
        (("mask=impart", "sparsity=0.5"), ("math=M",), "preprune_ratio is missing, and mask impart needs it"),
        (("mask=impart", "sparsity=0.5", "beta=0.5"), ("math=M",), "C is missing, and mask impart needs it"),
        (("mask=lowrank",), ("math=M",), "lowrank is not one of none, dare, darex, impart"),
        (("models.math.wieght=1",), ("math=M",), "models.math: unknown key 'wieght'"),
        (("models.math=1",), ("math=M",), "models.NAME.KEY=value"),
        (("models.law.weight=1",), ("math=M",), "models.law: key 'path' is missing"),
        (("merge_methd=avg",), ("math=M",), "did you mean 'merge_method'"),
    ],
)
def test_what_cannot_be_meant_is_an_input_error(overrides, models, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        resolved(*overrides, models=models)


@pytest.mark.parametrize(
    ("flags", "models", "overrides"),
    [
        ({"math_pth": "B"}, ["math=A"], ()),
        ({}, ["math=A"], ["math_pth=B"]),
        ({"math_pth": "A"}, [], ["math_pth=B"]),
        ({"math_pth": "A"}, [], ["models.math.path=B"]),
        ({"math_pth": "A"}, [], ["models={math: B}"]),
        ({}, [], ["math_pth=A", "math_pth=B"]),
    ],
)
def test_a_model_that_would_be_dropped_is_refused(flags, models, overrides):
    with pytest.raises(InputError, match="math.* given twice"):
        resolved(*overrides, flags={**FLAGS, **flags}, models=models)


def test_a_file_that_gives_a_model_twice_is_refused(tmp_path):
    file = tmp_path / "merge.yaml"
    file.write_text("math_pth: A\nmodels: {math: B}\n")
    with pytest.raises(InputError, match="'math' is given twice in .*merge.yaml, as math_pth: A and as models.math: B"):
        resolved(path=file)


PAIR = """
name: three skills
base_model: ~/B
models: {math: ~/M, code: C, chat: H}
benchmarks: [gsm8k, humaneval, ifeval]
eval_dtype: fp16
template: none
merge_methods: {ta: ta_0.6, ties: ties_0.6_0.8}
sparsities: {ta_dare: 0.1}
preprune_ratio: 0.5
C: 1
"""


def test_a_merging_pairs_file_is_read(tmp_path, monkeypatch):
    """Its other keys are for the tables; a flag replaces a model of the file; ~ is the home folder."""
    monkeypatch.setenv("HOME", "/home/someone")
    file = tmp_path / "pair.yaml"
    file.write_text(PAIR)
    config = load_config(
        [str(file)],
        {"math_pth": None},
        ["law=~/L"],
        ["merge_method=ta_0.6", "save_pth=~/out", "mask=impart", "sparsity=0.5"],
    )
    assert (config.ptm_pth, config.save_pth) == ("/home/someone/B", "/home/someone/out")
    method, entries = resolve(config)
    paths = {entry.name: entry.path for entry in entries}
    assert paths == {"math": "/home/someone/M", "code": "C", "chat": "H", "law": "/home/someone/L"}
    assert all(entry.premask.method == ImPart(compression_ratio=2.0, preprune_ratio=0.5, C=1.0) for entry in entries)
    overridden = load_config([str(file)], {"math_pth": "N"}, ["code=D"], ["merge_method=ta_0.6", "save_pth=o"])
    assert {entry.name: entry.path for entry in resolve(overridden)[1]} == {"math": "N", "code": "D", "chat": "H"}


def test_negative_weights_are_for_task_arithmetic():
    assert resolved(models=["math=M:-1"])[1][0].weight == -1.0


def test_shipped_configs_leave_room_for_every_sparsity_of_the_papers_search():
    files = sorted((Path(__file__).parents[1] / "configs").glob("**/pair.yaml"))
    files = [file for file in files if load_pair(str(file)).models]
    assert files
    how = ["merge_method=ta_0.5", "save_pth=s"]
    for file in files:
        method, entries = resolve(load_config(str(file), {}, (), how))
        assert [entry.name for entry in entries] == ["chat", "code", "math"], file
        for sparsity in (0.1, 0.3, 0.5, 0.7, 0.9):
            resolve(load_config(str(file), {}, (), [*how, "mask=impart", f"sparsity={sparsity}"]))
