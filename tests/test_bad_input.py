"""Every wrong input that the scripts know: one `error:` line with value and remedy, exit code 2, nothing left behind.

An input error has to come before the long work, so an SVD that is begun fails these tests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
import yaml
from checkpoints import llama_pair, write_checkpoint
from manifests import edited
from safetensors.torch import load_file, save_file
from whole_runs import tensors_of

import delta
from impart import checkpoint, sources
from impart.artifact import open_delta
from merge import merge
from quantize import sparse_llama
from sparsify import sparsify

ROOT = Path(__file__).resolve().parents[1]
BUDGET = {"compression_ratio": 8, "preprune_ratio": 0.6, "C": 0.5}
Q0 = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture(autouse=True)
def no_long_work(monkeypatch, svd_delta):
    """`svd_delta` is asked for first: it needs the SVD that is then forbidden."""

    def begun(dW, rank):
        raise AssertionError("the SVD was begun")

    monkeypatch.setattr(sources, "delta_svd", begun)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def copied(pair, tmp_path) -> tuple[Path, Path]:
    """A copy of the pair that a test may damage."""
    return tuple(Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in pair)


@pytest.fixture
def damaged(svd_delta, tmp_path) -> Path:
    """A copy of the SVD delta that a test may damage."""
    return Path(shutil.copytree(svd_delta, tmp_path / "delta"))


def one_error(ended, *words):
    """The single line on stderr, after checking that it is one and holds the words."""
    assert ended.code == 2, ended.err
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1 and ended.err.endswith("\n"), ended.err
    assert ended.out == ""
    for word in words:
        assert str(word) in ended.err, (word, ended.err)
    return ended.err


def nothing_at(out: Path):
    assert not [name for name in os.listdir(out.parent) if name.startswith((out.name, f".{out.name}"))]


@pytest.fixture
def svd(called, out):
    def refused(pair, *flags, words=()):
        line = one_error(
            called(
                delta.main,
                "--svd",
                "--base_model",
                pair[0],
                "--finetuned_model",
                pair[1],
                "--save_path",
                out,
                "--threads",
                "1",
                *flags,
            ),
            *words,
        )
        nothing_at(out)
        return line

    return refused


@pytest.fixture
def merged(called, out):
    def refused(path, *flags, words=()):
        line = one_error(
            called(delta.main, "--merge", "--delta_path", path, "--save_path", out, "--threads", "1", *flags), *words
        )
        nothing_at(out)
        return line

    return refused


@pytest.fixture
def sparsified(called, out, pair, tmp_path):
    def refused(settings=None, *flags, words=(), text=None):
        """Settings over a good configuration (None removes a key), or the text of the whole YAML file."""
        good = {"base_model": str(pair[0]), "ftm_dir": str(pair[1]), "save_dir": str(out), **BUDGET, **(settings or {})}
        config = tmp_path / "config.yaml"
        config.write_text(text or yaml.safe_dump({key: value for key, value in good.items() if value is not None}))
        line = one_error(called(sparsify.main, "--config", config, "--threads", "1", *flags), *words)
        nothing_at(out)
        return line

    return refused


# Checkpoints


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_missing_and_truncated_shards(svd, pair, tmp_path, which, form):
    forms = [
        write_checkpoint(tmp_path / name, tensors_of(folder), form=form, shards=2)
        for name, folder in zip(("base", "tuned"), pair, strict=True)
    ]
    shard = sorted(forms[which].glob(f"*00002*.{form}"))[0]
    shard.write_bytes(shard.read_bytes()[:-500])
    svd(forms, words=(shard.name, "truncated", "fetch it again"))
    shard.unlink()
    svd(forms, words=(shard.name, "is missing", "fetch it again"))


def test_the_same_for_sparsify(sparsified, copied):
    shard = copied[1] / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    sparsified({"ftm_dir": str(copied[1])}, words=(shard.name, "truncated"))


def test_models_that_are_not_there(svd, sparsified, pair, tmp_path):
    svd((tmp_path / "none", pair[1]), words=(tmp_path / "none", "no such folder"))
    svd((pair[0], tmp_path), words=(tmp_path, "config.json"))
    sparsified({"base_model": "./none"}, words=("'./none'", "no such folder"))


def test_another_architecture(svd, sparsified, copied):
    config = json.loads((copied[1] / "config.json").read_text())
    (copied[1] / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    svd(copied, words=("model_type=llama", "has qwen2", "one architecture"))
    sparsified({"ftm_dir": str(copied[1])}, words=("model_type=llama", "has qwen2"))


def test_different_shapes(svd, pair, tmp_path):
    weights = tensors_of(pair[1])
    for layer in (0, 1):
        weights[f"model.layers.{layer}.self_attn.k_proj.weight"] = torch.zeros(16, 64)
    other = write_checkpoint(tmp_path / "other", weights)
    svd(
        (pair[0], other),
        words=(
            "model.layers.0.self_attn.k_proj.weight (32, 64) against (16, 64)",
            "model.layers.1.self_attn.k_proj.weight",
            "equal shapes",
        ),
    )


def test_a_base_of_another_depth(svd, pair, tmp_path):
    svd((llama_pair(tmp_path / "deep", layers=3)[0], pair[1]), words=("num_hidden_layers=3", "has 2"))


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf(svd, sparsified, pair, tmp_path, which, bad):
    weights = tensors_of(pair[which])
    weights[Q0][3, 5] = bad
    folders = list(pair)
    folders[which] = write_checkpoint(tmp_path / "broken", weights)
    svd(folders, words=(Q0, "broken", "1 NaN or Inf of 4096 values", "repair"))
    sparsified({"base_model": str(folders[0]), "ftm_dir": str(folders[1])}, words=(Q0, "1 NaN or Inf"))


def test_a_model_without_linear_layers(svd, pair, tmp_path):
    bare = write_checkpoint(
        tmp_path / "bare",
        {"model.embed_tokens.weight": torch.zeros(4, 64), "model.layers.1.norm.weight": torch.ones(4)},
    )
    svd((bare, bare), words=("bare", "is known here; it has"))


# Settings


@pytest.mark.parametrize("cr, beta, largest", [(2, 0.8, 0.75), (3, 0.9, 0.8333), (7, 0.95, 0.9285), (1, 0.6, 0.5)])
def test_an_infeasible_ratio_names_the_largest_beta_that_works(sparsified, cr, beta, largest):
    line = sparsified(
        {"compression_ratio": cr, "preprune_ratio": beta},
        words=(f"beta={beta}", f"compression_ratio={cr}", "alpha=", f"take beta <= {largest} or a higher ratio"),
    )
    assert re.search(r"model\.layers\.0\.\S+ \(\d+ x \d+\)", line)
    with pytest.raises(AssertionError, match="the SVD was begun"):  # with the named beta the work begins
        sparsified({"compression_ratio": cr, "preprune_ratio": largest})


def test_the_same_over_a_saved_svd(sparsified, svd_delta):
    sparsified({"svd_dir": str(svd_delta), "compression_ratio": 2, "preprune_ratio": 0.8}, words=("take beta <= 0.75",))


@pytest.mark.parametrize(
    "key, near",
    [
        ("compresion_ratio", "compression_ratio"),
        ("preprune", "preprune_ratio"),
        ("rescal", "rescale"),
        ("save_dirs", "save_dir"),
        ("layernum", "layer_num"),
    ],
)
def test_unknown_keys(sparsified, key, near):
    sparsified({key: 1}, words=(f"unknown key {key!r}", f"did you mean {near!r}?"))
    sparsified({}, f"{key}=1", words=(f"unknown key {key!r} in the command line",))


def test_a_number_that_yaml_reads_as_text(sparsified, out):
    text = f"save_dir: {out}\nbase_model: a\nftm_dir: b\ncompression_ratio: 8\npreprune_ratio: 0.6\nC: 1e-4\n"
    sparsified(text=text, words=("C: ", "1e-4", "is a text, but number", "YAML reads 1e-4 as text", "write 0.0001"))
    sparsified({}, "compression_ratio=1e1", words=("YAML reads 1e1 as text; write 10.0",))


@pytest.mark.parametrize("word", ["no", "off", "yes", "on"])
def test_a_word_that_yaml_reads_as_a_truth_value(sparsified, out, word):
    text = (
        f"save_dir: {out}\nbase_model: a\nftm_dir: b\ncompression_ratio: 8\npreprune_ratio: 0.6\nC: 1\nmask: {word}\n"
    )
    sparsified(text=text, words=("mask: ", "is a truth value, but text is wanted", "put quotes around"))


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"compression_ratio": "much"}, ("compression_ratio: much is a text, but number",)),
        ({"compression_ratio": 0.5}, ("compression_ratio: 0.5 is out of range", "at least 1")),
        ({"compression_ratio": float("inf")}, ("compression_ratio: .inf is not a finite number",)),
        ({"compression_ratio": None}, ("compression_ratio is missing", "e.g. 32")),
        ({"preprune_ratio": None}, ("preprune_ratio is missing", "0.6, 0.7, 0.8")),
        ({"preprune_ratio": 1.0}, ("preprune_ratio=1 drops every singular vector", "less than 1")),
        ({"preprune_ratio": -0.1}, ("preprune_ratio: -0.1 is out of range",)),
        ({"C": "lowrank"}, ("C: lowrank is a text", "only_lowrank")),
        ({"C": None}, ("C is missing", "0.5, 1")),
        ({"mask": "bernouli"}, ("mask: bernouli is not one of bernoulli, exact_count",)),
        ({"method": "ties"}, ("method: ties is not one of dare,", "impart,", "lowrank")),
        ({"seed": 1.5}, ("seed: 1.5 is a number, but whole number is wanted",)),
        ({"rescale": "yes"}, ("rescale: 'yes' is a text, but true or false is wanted",)),
        ({"weight_types": 3}, ("weight_types: 3 is a whole number, but list of text",)),
        ({"weight_types": "self_attn"}, ("weight_types: 'self_attn' is not in", "embed_tokens")),
        ({"weight_types": ["self_attn.qproj"]}, ("'self_attn.qproj' is not in", "self_attn.q_proj")),
        (
            {"layer_num": 40, "weight_name": "model.layers.{layer_num}.{weight_type}"},
            ("which has 2 layers", "layer_num=40"),
        ),
        ({"base_model": None}, ("give svd_dir, or base_model and ftm_dir",)),
        ({"save_dir": None}, ("key 'save_dir' is missing", "folder of the sparse delta")),
    ],
)
def test_settings_that_make_no_sense(sparsified, settings, words):
    sparsified(settings, words=words)


def test_a_config_that_cannot_be_read(called, tmp_path, out):
    config = tmp_path / "broken.yaml"
    one_error(called(sparsify.main, "--config", config), config, "does not exist")
    config.write_text("save_dir: [a\n")
    one_error(called(sparsify.main, "--config", config), config, "is not valid YAML")
    config.write_text("- a\n")
    one_error(called(sparsify.main, "--config", config), "must be a mapping")
    one_error(called(sparsify.main), "'save_dir' is missing from the command line")


@pytest.mark.parametrize(
    "flags, words",
    [
        ((), ("one of the arguments --svd --merge --info --push_to_hub is required", "--help")),
        (("--svd", "--merge"), ("not allowed with",)),
        (("--svd", "--base_model", "a"), ("--finetuned_model is missing", "--help")),
        (("--merge", "--save_path", "a"), ("--delta_path is missing",)),
        (("--info",), ("--delta_path is missing",)),
        (
            ("--svd", "--base_model", "a", "--finetuned_model", "b", "--save_path", "c", "--dim", "0"),
            ("--dim 0", "at least 1"),
        ),
        (("--svd", "--dim", "many"), ("argument --dim: invalid int value: 'many'",)),
        (("--svd", "--dtype", "fp8"), ("invalid choice: 'fp8'",)),
        (("--svd", "--sav_path", "c"), ("unrecognized arguments: --sav_path",)),
    ],
)
def test_flags_that_make_no_sense(called, flags, words):
    one_error(called(delta.main, *flags), *words)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--device", "gpu"), ("'gpu' is not a device", "auto, cpu, cuda")),
        (("--device", "meta"), ("runs on cpu and cuda",)),
        (("--device", "cuda:99"), ("'cuda:99'", "CUDA devices", "take auto or cpu")),
        (("--threads", "-1"), ("--threads -1",)),
    ],
)
def test_devices_and_threads_that_are_not_there(svd, sparsified, pair, flags, words):
    svd(pair, *flags, words=words)
    sparsified({}, *flags, words=words)


# Output


def test_output_that_exists(called, pair, svd_delta, tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "mine.txt").write_text("kept")
    models = ("--base_model", pair[0], "--finetuned_model", pair[1])
    commands = [
        (delta.main, "--svd", *models, "--save_path", folder),
        (delta.main, "--merge", "--delta_path", svd_delta, "--save_path", folder),
        (
            sparsify.main,
            f"base_model={pair[0]}",
            f"ftm_dir={pair[1]}",
            f"save_dir={folder}",
            *(f"{key}={value}" for key, value in BUDGET.items()),
        ),
    ]
    for command in commands:
        one_error(called(*command), folder, "exists", "--overwrite")
    assert os.listdir(folder) == ["mine.txt"] and os.listdir(tmp_path) == ["out"]


def test_a_dense_model_that_exists(sparsified, out, tmp_path):
    (tmp_path / "model").mkdir()
    sparsified({"save_model": True, "model_dir": str(tmp_path / "model")}, words=(tmp_path / "model", "exists"))


def test_output_where_nothing_can_be_made(svd, merged, sparsified, called, pair, svd_delta, tmp_path):
    (tmp_path / "file").touch()
    deeper = tmp_path / "file" / "out"
    words = (deeper, "is not a folder that you may write to")
    one_error(
        called(delta.main, "--svd", "--base_model", pair[0], "--finetuned_model", pair[1], "--save_path", deeper),
        *words,
    )
    one_error(called(delta.main, "--merge", "--delta_path", svd_delta, "--save_path", deeper), *words)
    sparsified({"save_dir": str(deeper)}, words=words)
    sparsified({"log_dir": str(deeper)}, words=("is not a folder that you may write to",))


def test_a_full_disk(svd, merged, sparsified, pair, svd_delta, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    svd(pair, words=("the delta needs", "the disk has 0.00 GB free", "make room"))
    sparsified({}, words=("the delta needs", "make room"))
    merged(svd_delta, words=("the checkpoint needs", "make room"))


# Artifacts


def test_an_artifact_of_another_base(merged, sparsified, pair, svd_delta, tmp_path):
    other = llama_pair(tmp_path / "other", scale=0.5)[1]
    merged(svd_delta, "--base_model", other, words=(svd_delta, pair[0], other, "fingerprint", "give that base"))
    for save_model in (True, False):
        sparsified(
            {"svd_dir": str(svd_delta), "base_model": str(other), "save_model": save_model},
            words=("fingerprint", "give that base"),
        )


def test_a_fine_tuned_model_that_the_delta_does_not_lead_to(merged, sparsified, pair, svd_delta):
    merged(svd_delta, "--finetuned_model", pair[0], words=("is a delta of fine-tuned", pair[1]))
    for keys in ({}, {"weight_types": ["mlp.up_proj"]}):  # a YAML in which only one of the two was changed
        sparsified(
            {"svd_dir": str(svd_delta), "base_model": None, "ftm_dir": str(pair[0]), **keys},
            words=("is a delta of fine-tuned", pair[1]),
        )


def test_a_base_that_has_moved(merged, copied, called, tmp_path, damaged):
    with edited(damaged) as manifest:
        manifest["base"]["source"] = str(tmp_path / "moved")
    merged(damaged, words=(tmp_path / "moved", "say where its base model is with --base_model"))


@pytest.mark.parametrize("damage", ["altered", "truncated", "missing"])
def test_a_damaged_shard(merged, sparsified, damaged, damage):
    shard = damaged / "layer-00001.safetensors"
    if damage == "altered":
        tensors = load_file(shard)
        next(iter(tensors.values()))[0] += 1
        save_file(tensors, shard, {"format": "pt"})
    elif damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-1])
    else:
        shard.unlink()
    words = (
        shard.name,
        "is missing" if damage == "missing" else "altered or truncated",
        "fetch or make the delta again",
    )
    merged(damaged, words=words)
    sparsified({"svd_dir": str(damaged)}, words=words)


def test_a_newer_format_and_what_is_no_delta(merged, sparsified, called, damaged, tmp_path, pair):
    manifest = json.loads((damaged / "delta.json").read_text())
    (damaged / "delta.json").write_text(json.dumps({**manifest, "version": 99}))
    words = ("has format version 99", "update it")
    merged(damaged, words=words)
    sparsified({"svd_dir": str(damaged)}, words=words)
    one_error(called(delta.main, "--info", damaged), *words)
    (damaged / "delta.json").write_text("{")
    merged(damaged, words=("delta.json is not valid JSON", "again"))
    merged(pair[0], words=(pair[0], "is not a delta artifact", "delta.py --svd"))
    merged(tmp_path / "none", words=("none", "is not a delta artifact"))


def test_an_unfinished_delta(merged, called, svd_delta, tmp_path):
    (tmp_path / "delta.partial").mkdir()
    merged(tmp_path / "delta", words=("was interrupted (delta.partial is there): run it again to continue",))


@pytest.fixture
def truncated_svd(pair, tmp_path, called, monkeypatch):
    """The SVD delta of rank 4; made while the SVD is allowed."""
    monkeypatch.undo()
    path = tmp_path / "rank_4"
    ended = called(
        delta.main,
        "--svd",
        "--base_model",
        pair[0],
        "--finetuned_model",
        pair[1],
        "--save_path",
        path,
        "--dim",
        "4",
        "--threads",
        "1",
    )
    assert ended.code == 0, ended.err
    return path


def test_svds_that_do_not_hold_what_a_method_needs(sparsified, truncated_svd):
    words = ("a larger --dim or without", "base_model and ftm_dir instead of svd_dir")
    sparsified(
        {"svd_dir": str(truncated_svd), "method": "dare"}, words=("has 5 singular triplets", "64 are needed", *words)
    )
    sparsified({"svd_dir": str(truncated_svd)}, words=("has 5 singular triplets", "37 are needed", *words))
    sparsified(
        {"svd_dir": str(truncated_svd), "method": "lowrank", "compression_ratio": 2}, words=("23 are needed", *words)
    )
    sparsified(
        {"svd_dir": str(truncated_svd), "base_model": None, "ftm_dir": None, "weight_types": ["mlp.up_proj"]},
        words=("weight_types leaves out", "name it as ftm_dir"),
    )


def test_a_sparse_delta_is_no_svd(called, sparsified, pair, tmp_path, monkeypatch):
    monkeypatch.undo()
    ended = called(
        sparsify.main,
        f"base_model={pair[0]}",
        f"ftm_dir={pair[1]}",
        "method=dare",
        "compression_ratio=4",
        f"save_dir={tmp_path / 'dare'}",
        "--threads",
        "1",
    )
    assert ended.code == 0, ended.err
    sparsified({"svd_dir": str(tmp_path / "dare")}, words=("is a sparse delta; an SVD delta is wanted",))


# How it looks from outside


def by_command(environment, *command):
    return subprocess.run(
        [sys.executable, *map(str, command)], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def infeasible(pair, out) -> tuple[str, ...]:
    """A command whose ratio its beta does not leave room for."""
    models = (f"base_model={pair[0]}", f"ftm_dir={pair[1]}", f"save_dir={out}")
    return ("sparsify/sparsify.py", *models, "compression_ratio=2", "preprune_ratio=0.8", "C=1")


def test_from_a_shell_there_is_one_line_and_no_traceback(environment, pair, out, tmp_path):
    done = by_command(
        environment,
        "delta.py",
        "--svd",
        "--base_model",
        pair[0],
        "--finetuned_model",
        tmp_path / "none",
        "--save_path",
        out,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(
        r"error: model '.*none': no such folder, and not a hub id of the form owner/name\n", done.stderr
    )
    done = by_command(
        environment,
        *infeasible(pair, out),
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: model.layers.0.") and "take beta <= 0.75" in done.stderr
    nothing_at(out)


def test_debug_shows_the_traceback(environment, pair, out):
    done = by_command(
        environment,
        *infeasible(pair, out),
        "--debug",
    )
    assert done.returncode == 2
    assert "Traceback (most recent call last)" in done.stderr and "in check_feasible" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def test_good_input_passes_these_very_checks(called, pair, out, monkeypatch):
    """The other side of all of the above: the configuration that they start from is a good one."""
    monkeypatch.undo()
    ended = called(
        sparsify.main,
        f"base_model={pair[0]}",
        f"ftm_dir={pair[1]}",
        f"save_dir={out}",
        "--threads",
        "1",
        *(f"{key}={value}" for key, value in BUDGET.items()),
    )
    assert ended.code == 0 and ended.err == "" and len(open_delta(out).names()) == 14


@pytest.mark.parametrize(
    "main, arguments",
    [
        (delta.main, ["--svd", "--base_model", "owner/m", "--finetuned_model", "none", "--save_path", "OUT"]),
        (
            delta.main,
            [
                "--merge",
                "--delta_path",
                "SVD",
                "--base_model",
                "owner/m",
                "--finetuned_model",
                "none",
                "--save_path",
                "OUT",
            ],
        ),
        (
            sparsify.main,
            ["base_model=owner/m", "ftm_dir=none", "save_dir=OUT", *(f"{k}={v}" for k, v in BUDGET.items())],
        ),
        (merge.main, ["merge_method=ta_1", "ptm_pth=owner/m", "math_pth=none", "save_pth=OUT"]),
        (
            sparse_llama.main,
            ["owner/m", "c4", "--save_compressed_delta_dir", "OUT", "baseModel=none", "method=bitdelta"],
        ),
    ],
    ids=["svd", "rebuild", "sparsify", "merge", "quantize"],
)
def test_a_mistyped_path_is_found_before_another_model_is_fetched(called, svd_delta, out, monkeypatch, main, arguments):
    monkeypatch.setattr(checkpoint, "fetch_model", lambda name: pytest.fail(f"{name} was asked for"))
    given = [text.replace("OUT", str(out)).replace("SVD", str(svd_delta)) for text in arguments]
    one_error(called(main, *given), "model 'none': no such folder, and not a hub id")
    nothing_at(out)


def test_a_mistyped_text_is_found_before_the_model_is_fetched(called, out, monkeypatch):
    monkeypatch.setattr(checkpoint, "fetch_model", lambda name: pytest.fail(f"{name} was asked for"))
    ended = called(sparse_llama.main, "owner/m", "none.jsonl", "--save_compressed_delta_dir", out)
    one_error(ended, "calibration text 'none.jsonl' is neither a file nor one of c4, wikitext2")
