"""merge/merge.py from end to end: identities, order, artifacts, masks, reports and errors."""

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import llama_shapes, random_weights, tuned_weights, write_checkpoint
from manifests import edited
from safetensors.torch import load_file

from impart.checkpoint import open_checkpoint
from merge import merge
from merge.methods import task_arithmetic, ties
from merge.settings import model_seed
from merge.thresholds import trimmed_count
from sparsify import sparsify

NAMES = ("math", "code", "chat")


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    """A base and three models of it that differ from it in every parameter."""
    folder, weights = tmp_path_factory.mktemp("zoo"), random_weights(llama_shapes())
    write_checkpoint(folder / "base", weights)
    for seed, name in enumerate(NAMES, 1):
        generator, tuned = torch.Generator().manual_seed(seed), tuned_weights(weights, seed)
        tuned = {
            key: (w.float() + 0.002 * torch.randn(w.shape, generator=generator)).to(w.dtype) for key, w in tuned.items()
        }
        write_checkpoint(folder / name, tuned, shards=seed, form="bin" if name == "chat" else "safetensors")
    return folder


@pytest.fixture
def merged(called, zoo, tmp_path):
    """`merged(method, math=path, ..., extra arguments)` -> weights and report of the merged model."""
    counter = itertools.count()

    def run(method, *arguments, **models):
        out = tmp_path / f"out{next(counter)}"
        flags = [text for name, path in models.items() for text in (f"--{name}_pth", path)]
        ended = called(
            merge.main,
            "--merge_method",
            method,
            "--ptm_pth",
            zoo / "base",
            *flags,
            "--save_pth",
            out,
            "--threads",
            1,
            *arguments,
        )
        assert ended.code == 0, ended.err
        return load_file(out / "model.safetensors"), json.loads((out / "report.json").read_text())

    return run


def weights_of(path):
    checkpoint = open_checkpoint(path)
    return {name: checkpoint.tensor(name) for name in checkpoint.names()}


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if not torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8))]
    assert not different, different


def test_ties_may_trim_over_all_tensors_of_a_model(merged, zoo):
    """As the authors of TIES do: the smallest entries of the flattened task vector, wherever they stand."""
    base = weights_of(zoo / "base")
    deltas = {
        name: {key: w.float() - base[key].float() for key, w in weights_of(zoo / name).items()} for name in NAMES[:2]
    }
    for vector in deltas.values():
        flat = torch.cat([delta.flatten() for delta in vector.values()])
        cut = flat.abs().sort().values[trimmed_count(len(flat), 0.7)]
        for key, delta in vector.items():
            vector[key] = torch.where(delta.abs() >= cut, delta, 0)
    expected = {key: ties(base[key], [vector[key] for vector in deltas.values()], 0.0, 0.8) for key in base}
    models = {name: zoo / name for name in NAMES[:2]}
    ours, report = merged("ties_0.7_0.8", "trim_scope=model", **models)
    assert_same(ours, expected)
    assert report["settings"]["trim_scope"] == "model"
    by_tensor, _ = merged("ties_0.7_0.8", **models)
    assert any(not torch.equal(ours[key], by_tensor[key]) for key in ours)


# ---------------------------------------------------------------- identities


@pytest.mark.parametrize("method", ["ta_1.0", "ties_0_1.0", "avg"])
@pytest.mark.parametrize("name", ["math", "chat"])
def test_one_model_comes_out_as_it_is(merged, zoo, method, name):
    assert_same(merged(method, **{name: zoo / name})[0], weights_of(zoo / name))


def test_copies_of_one_model_come_out_as_it_is(merged, zoo):
    for method in ("ties_0.0_1.0", "avg"):
        again = ("--model", f"again={zoo / 'math'}", "--force")
        copies, _ = merged(method, *again, math=zoo / "math", code=zoo / "math", chat=zoo / "math")
        assert_same(copies, weights_of(zoo / "math"))


@pytest.mark.parametrize("method", ["ta_0", "ties_1_1.0", "ta_-0.0"])
def test_nothing_merged_is_the_base(merged, zoo, method):
    assert_same(merged(method, math=zoo / "math", code=zoo / "code")[0], weights_of(zoo / "base"))


@pytest.mark.parametrize("method", ["ta_0.7", "ties_0.4_1.1", "avg"])
def test_permuting_the_models_changes_nothing(merged, zoo, method):
    expected, _ = merged(method, math=zoo / "math", code=zoo / "code", chat=zoo / "chat")
    for order in itertools.permutations(NAMES):
        models = {name: zoo / other for name, other in zip(NAMES, order, strict=True)}
        assert_same(merged(method, **models)[0], expected)
    extra = [text for name in reversed(NAMES) for text in ("--model", f"x{name}={zoo / name}")]
    assert_same(merged(method, *extra)[0], expected)


def test_whole_models_equal_the_pure_functions(merged, zoo):
    base, models = weights_of(zoo / "base"), [weights_of(zoo / name) for name in NAMES]
    arithmetic, _ = merged("ta_0.5", math=zoo / "math", code=zoo / "code", chat=zoo / "chat")
    elected, _ = merged("ties_0.6_0.8", math=zoo / "math", code=zoo / "code", chat=zoo / "chat")
    for name in base:
        deltas = [model[name].float() - base[name].float() for model in models]
        assert torch.equal(arithmetic[name], task_arithmetic(base[name], deltas, 0.5)), name
        assert torch.equal(elected[name], ties(base[name], deltas, 0.6, 0.8)), name
    changed = [name for name in base if not torch.equal(arithmetic[name], base[name])]
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} < set(changed)


def test_weights(merged, zoo):
    doubled, _ = merged("ta_0.5", "models.math.weight=2", math=zoo / "math")
    assert_same(doubled, weights_of(zoo / "math"))
    subtracted, _ = merged("ta_1", "--model", f"same={zoo / 'math'}:-1", "--force", math=zoo / "math")
    assert_same(subtracted, weights_of(zoo / "base"))


# ---------------------------------------------------------------- artifacts and masks


def sparse(called, zoo, name, path, *settings):
    ended = called(
        sparsify.main,
        f"base_model={zoo / 'base'}",
        f"ftm_dir={zoo / name}",
        f"save_dir={path}",
        "save_model=true",
        "--threads",
        1,
        *settings,
    )
    assert ended.code == 0, ended.err
    return path


@pytest.mark.parametrize(
    "settings", [["method=dare", "compression_ratio=2"], ["method=impart", "compression_ratio=2", "beta=0.5", "C=1"]]
)
def test_one_delta_with_lambda_1_is_the_model_that_it_stands_for(merged, called, zoo, tmp_path, settings):
    path = sparse(called, zoo, "math", tmp_path / "delta", *settings)
    assert_same(merged("ta_1", math=path)[0], weights_of(tmp_path / "delta_model"))


@pytest.mark.parametrize("mask", [["mask=dare", "sparsity=0.5"], ["mask=impart", "sparsity=0.5", "beta=0.5", "C=1"]])
@pytest.mark.parametrize("method", ["ta_0.5", "ties_0.3_1.0"])
def test_masks_on_the_fly_equal_artifacts_made_before(merged, called, zoo, tmp_path, method, mask):
    kind = mask[0].replace("mask", "method")
    paths = {
        name: sparse(
            called, zoo, name, tmp_path / name, kind, "compression_ratio=2", *mask[2:], f"seed={model_seed(4, name)}"
        )
        for name in ("math", "code")
    }
    fly, report = merged(method, *mask, "seed=4", math=zoo / "math", code=zoo / "code")
    assert_same(fly, merged(method, **paths)[0])
    assert {model["name"]: model["mask"]["seed"] for model in report["models"]} == {
        name: model_seed(4, name) for name in ("math", "code")
    }
    plain, _ = merged(method, math=zoo / "math", code=zoo / "code")
    query = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(fly[query], plain[query])
    other, _ = merged(method, *mask, "seed=5", math=zoo / "math", code=zoo / "code")
    assert not torch.equal(fly[query], other[query])


def test_no_force_merges_a_delta_of_another_size(called, zoo, tmp_path):
    """A stranger's delta would decide how much memory is asked for: rows of a vocabulary are its to choose."""
    path = sparse(called, zoo, "math", tmp_path / "delta", "method=dare", "compression_ratio=2")
    with edited(path) as manifest:
        name = "lm_head.weight"
        manifest["extras"].pop(name, None)
        some = next(iter(manifest["matrices"].values()))
        manifest["matrices"][name] = some | {
            "encoding": "empty",
            "tensors": [],
            "shape": [10**9, 64],
            "rank": 0,
            "kept": [0, 0],
            "bits": 16,
            "bytes": 0,
        }
        manifest["finetuned"]["bytes"] = 10**12
    arguments = (
        "--merge_method",
        "ta_1",
        "--ptm_pth",
        zoo / "base",
        "--math_pth",
        path,
        "--save_pth",
        tmp_path / "out",
    )
    ended = called(merge.main, *arguments, "--force")
    assert ended.code == 2 and ended.err.count("error:") == 1 and not (tmp_path / "out").exists()


def test_further_chat_templates_reach_the_merged_model(merged, zoo, tmp_path):
    model = Path(shutil.copytree(zoo / "math", tmp_path / "math"))
    (model / "additional_chat_templates").mkdir()
    (model / "additional_chat_templates" / "tool_use.jinja").write_text("{{ messages }}")
    merged("ta_1.0", "tokenizer=math", math=model)
    assert (tmp_path / "out0" / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ messages }}"


def test_an_artifact_of_another_base_is_refused(called, zoo, tmp_path):
    write_checkpoint(tmp_path / "other", random_weights(llama_shapes(), seed=3))
    path = sparse(called, zoo, "math", tmp_path / "delta", "method=dare", "compression_ratio=2")
    ended = called(
        merge.main,
        "--merge_method",
        "ta_1",
        "--ptm_pth",
        tmp_path / "other",
        "--math_pth",
        path,
        "--save_pth",
        tmp_path / "out",
    )
    assert ended.code == 2 and "fingerprint" in ended.err and not (tmp_path / "out").exists()


# ---------------------------------------------------------------- report, dtype, folder


def test_the_report_counts_what_happened(merged, zoo):
    _, report = merged("ties_0.75_1.0", math=zoo / "math", code=zoo / "code")
    assert report["method"] == "ties_0.75_1" and report["seconds"] > 0 and report["peak_memory_mib"] > 0
    assert set(report["delta_ratios"]) == {"math", "code"}
    kind = report["by_type"]["mlp.up_proj"]
    base, math = weights_of(zoo / "base"), weights_of(zoo / "math")
    deltas = [math[name].float() - base[name].float() for name in base if "up_proj" in name]
    assert kind["entries"] == sum(delta.numel() for delta in deltas)
    assert kind["models"]["math"]["delta_norm"] == pytest.approx(float(sum(d.square().sum() for d in deltas)) ** 0.5)
    # entries that tie with the smallest survivor stay, and deltas of 16-bit weights tie often
    assert 0.70 < kind["models"]["math"]["zeros"] <= 0.75
    assert 0 < kind["sign_conflicts"] < 0.1
    names = [row["name"] for row in report["matrices"]]
    assert sorted(names) == sorted(base)


@pytest.mark.parametrize(
    ("choice", "expected"), [("auto", torch.bfloat16), ("float32", torch.float32), ("float16", torch.float16)]
)
def test_dtype(merged, zoo, choice, expected, tmp_path):
    weights, _ = merged("ta_0.5", f"dtype={choice}", math=zoo / "math", code=zoo / "code")
    assert {weight.dtype for weight in weights.values()} == {expected}
    config = json.loads((tmp_path / "out0" / "config.json").read_text())
    assert config["torch_dtype"] == str(expected).removeprefix("torch.")


def test_models_of_another_dtype_than_the_base_keep_theirs(called, zoo, tmp_path):
    weights = {name: weight.to(torch.float16) for name, weight in weights_of(zoo / "math").items()}
    write_checkpoint(tmp_path / "half", weights)
    ended = called(
        merge.main,
        "--merge_method",
        "ta_1",
        "--ptm_pth",
        zoo / "base",
        "--math_pth",
        tmp_path / "half",
        "--save_pth",
        tmp_path / "out",
    )
    assert ended.code == 0, ended.err
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), weights)


def test_nothing_is_overwritten_and_nothing_half_made_is_left(called, zoo, tmp_path):
    arguments = (
        "--merge_method",
        "ta_1",
        "--ptm_pth",
        zoo / "base",
        "--math_pth",
        zoo / "math",
        "--save_pth",
        tmp_path / "out",
    )
    assert called(merge.main, *arguments).code == 0
    again = called(merge.main, *arguments)
    assert again.code == 2 and "--overwrite" in again.err
    assert called(merge.main, *arguments, "--overwrite").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_weights_that_are_not_numbers_are_an_error_that_names_them(called, zoo, tmp_path):
    weights = weights_of(zoo / "math")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    write_checkpoint(tmp_path / "broken", weights)
    for method in ("ta_1", "ties_0.5_1"):
        ended = called(
            merge.main,
            "--merge_method",
            method,
            "--ptm_pth",
            zoo / "base",
            "--math_pth",
            tmp_path / "broken",
            "--save_pth",
            tmp_path / "out",
        )
        assert ended.code == 2 and "model.layers.1.mlp.up_proj.weight of math" in ended.err
        assert not (tmp_path / "out").exists()


def test_an_infeasible_mask_is_refused_before_anything_is_written(called, zoo, tmp_path):
    ended = called(
        merge.main,
        "--merge_method",
        "ta_1",
        "--ptm_pth",
        zoo / "base",
        "--math_pth",
        zoo / "math",
        "--save_pth",
        tmp_path / "out",
        "mask=impart",
        "sparsity=0.1",
        "beta=0.8",
        "C=1",
    )
    assert ended.code == 2 and "take beta <= 0.55" in ended.err and not list(tmp_path.iterdir())


def test_the_authors_command_as_a_user_runs_it(script, zoo, tmp_path):
    ended = script(
        "merge/merge.py",
        "--merge_method",
        "ta_0.5",
        "--ptm_pth",
        zoo / "base",
        "--math_pth",
        zoo / "math",
        "--code_pth",
        zoo / "code",
        "--chat_pth",
        zoo / "chat",
        "--save_pth",
        tmp_path / "merged",
        cwd=tmp_path,
    )
    assert ended.code == 0, ended.err
    assert ended.out.startswith("ta_0.5 of chat, code, math\n") and "self_attn.q_proj" in ended.out
    assert ended.out.endswith(f"merged model: {tmp_path / 'merged'}\n")
    assert (tmp_path / "merged" / "config.json").is_file() and (tmp_path / "merged" / "tokenizer.json").is_file()


def test_what_is_printed_names_weights_and_masks(called, zoo, tmp_path):
    ended = called(
        merge.main,
        "--merge_method",
        "ties_0.5_1",
        "--ptm_pth",
        zoo / "base",
        "--math_pth",
        zoo / "math",
        "--model",
        f"law={zoo / 'code'}:0.5",
        "models.law.mask=dare",
        "models.law.sparsity=0.75",
        "--save_pth",
        tmp_path / "out",
    )
    assert ended.code == 0, ended.err
    assert ended.out.startswith("ties_0.5_1 of law x 0.5 (dare, sparsity 0.75), math\n")


def test_help_lists_every_key(script):
    ended = script("merge/merge.py", "--help")
    assert ended.code == 0
    for word in (
        "--merge_method",
        "--ptm_pth",
        "--math_pth",
        "--code_pth",
        "--chat_pth",
        "--save_pth",
        "--model",
        "--force",
        "sparsity",
        "preprune_ratio",
        "tokenizer",
        "retain ratio",
    ):
        assert word in ended.out


PEAK = """
import re, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from merge.merge import main
main(sys.argv[1:])
# not getrusage, which starts from what the process that forked this one had
print("peak", int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from Linux' /proc")
def test_memory_does_not_grow_with_the_number_of_models(tmp_path, environment):
    root = str(Path(__file__).resolve().parents[1])
    weights = random_weights(llama_shapes(hidden=512, intermediate=1024, layers=1, kv=512, vocabulary=20000))
    write_checkpoint(tmp_path / "base", weights)  # 20 MB of embedding and as much of head
    for seed in range(6):
        tuned = {name: (w.float() * (1 + 0.01 * (seed + 1))).to(w.dtype) for name, w in weights.items()}
        write_checkpoint(tmp_path / str(seed), tuned)
    peaks = []
    for count in (1, 6):
        models = [text for seed in range(count) for text in ("--model", f"m{seed}={tmp_path / str(seed)}")]
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                PEAK.format(root=root),
                "--merge_method",
                "ties_0.5_1",
                "--ptm_pth",
                str(tmp_path / "base"),
                "--save_pth",
                str(tmp_path / f"out{count}"),
                "--threads",
                "1",
                *models,
            ],
            env=environment,
            capture_output=True,
            text=True,
            timeout=1200,
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split("peak ")[1]))
    # five more models are 102 MB of embedding alone; the blocks of one take about 2 MB
    assert peaks[1] - peaks[0] < 40, peaks


def test_a_flag_given_twice_is_refused_before_anything_is_read(called, tmp_path):
    flags = ["--merge_method", "ta_1", "--ptm_pth", "BASE", "--save_pth", tmp_path / "out"]
    ended = called(merge.main, *flags, "--math_pth", "A", "--math_pth", "B")
    assert ended.code == 2 and ended.err.count("\n") == 1
    assert "error: --math_pth is given twice, as A and as B" in ended.err and "--model NAME=B" in ended.err


def test_a_merge_that_overflows_writes_no_model(called, zoo, tmp_path):
    flags = ["--merge_method", "ta_1e300", "--ptm_pth", zoo / "base", "--math_pth", zoo / "math"]
    ended = called(merge.main, *flags, "--save_pth", tmp_path / "out", "--threads", 1)
    assert ended.code == 2 and "beyond the range of torch.bfloat16; take a smaller lambda" in ended.err
    assert not (tmp_path / "out" / "config.json").exists()
