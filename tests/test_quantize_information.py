"""Fisher information of matrices on calibration text, and bytes that are divided by it."""

import json

import pytest
import torch
from torch.nn.functional import log_softmax

from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.files import sha256_of
from impart.method import DenseMatrix
from merge import merge
from quantize import information, sparse_llama
from quantize.calibration import calibration_sequences
from quantize.information import fisher_information
from quantize.methods.lowrank_sparse import LowRankSigns
from quantize.whole_model import frozen_model
from sparsify import sparsify
from sparsify.methods.impart import ImPart
from sparsify.shares import MASKED_KAPPA

CODE = "assets/tiny/code"
TEXT = "assets/tiny/data/code_validation.jsonl"
CPU = torch.device("cpu")
V, DOWN = "model.layers.0.self_attn.v_proj.weight", "model.layers.2.mlp.down_proj.weight"
ROW = ("method=lowrank_sparse", "baseModel=assets/tiny/base", "compression_ratio_qt=64", "budget=information")
SHORT = ("text_field=prompt", "nsamples=4", "seqlen=64")


@pytest.fixture(scope="module")
def sequences():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CODE)
    return calibration_sequences(
        TEXT, lambda text: tokenizer(text)["input_ids"], count=24, length=96, seed=0, text_field="prompt"
    )


@torch.no_grad()
def log_p(model, sequences):
    return log_softmax(model(input_ids=sequences, use_cache=False).logits[:, :-1].double(), -1)


@pytest.mark.parametrize("name", [V, DOWN])
def test_a_random_error_moves_the_answers_by_half_the_information_times_its_energy(name, sequences):
    found = fisher_information(open_checkpoint(CODE), [V, DOWN], list(sequences), seed=0, device=CPU)
    model = frozen_model(open_checkpoint(CODE), CPU)
    weight, before = model.get_parameter(name), log_p(model, sequences)
    generator, moved, size = torch.Generator().manual_seed(0), [], 1e-3
    for _ in range(12):
        error = size * torch.randn(weight.shape, generator=generator)
        weight.data += error
        after = log_p(model, sequences)
        weight.data -= error
        moved.append(float((before.exp() * (before - after)).sum(-1).mean()))
    expected = 0.5 * found[name] * size**2 * weight.numel()
    assert sum(moved) / len(moved) == pytest.approx(expected, rel=0.3)


def test_bytes_go_where_the_text_says_that_errors_cost_most(called, tmp_path):
    made = called(sparse_llama.main, CODE, TEXT, "--save_compressed_delta_dir", tmp_path / "d", *ROW, *SHORT)
    assert made.code == 0, made.err
    delta = open_delta(tmp_path / "d")
    assert delta.sizes().linear_ratio == pytest.approx(64, rel=0.03)
    settings = delta.manifest["settings"]
    assert settings["budget"] == "information" and settings["nsamples"] == 4 and settings["calibration_tokens"]
    again = called(sparse_llama.main, CODE, TEXT, "--save_compressed_delta_dir", tmp_path / "again", *ROW, *SHORT)
    assert again.code == 0, again.err
    first, second = (sorted((tmp_path / name).glob("*.safetensors")) for name in ("d", "again"))
    assert first and [file.read_bytes() for file in first] == [file.read_bytes() for file in second]


@pytest.mark.parametrize(
    "method",
    [
        LowRankSigns(compression_ratio_qt=32, budget="information"),
        ImPart(compression_ratio=16, preprune_ratio=0.6, C=1.0),
    ],
)
def test_a_matrix_without_information_gets_least(method):
    dW = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    shares = method.shares([DenseMatrix(name, dW) for name in "ab"], {"a": 1.0, "b": 0.0}.__getitem__)
    assert shares["b"] < 0.3 < 1.5 < shares["a"] and sum(shares.values()) == pytest.approx(2)
    equal = method.shares([DenseMatrix(name, dW) for name in "ab"], {"a": 1.0, "b": 1.0}.__getitem__)
    assert equal == pytest.approx({"a": 1.0, "b": 1.0})


def test_no_share_is_more_than_beta_leaves_values_for():
    method = ImPart(compression_ratio=2, preprune_ratio=0.6, C=1.0)  # beta leaves none for 1.6 times its part
    dW = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
    shares = method.shares([DenseMatrix(name, dW) for name in "ab"], {"a": 0.0, "b": 1.0}.__getitem__)
    assert shares["a"] < shares["b"] < 1.6
    for share in shares.values():
        method.at(share).check("a matrix", 128, 128)


def test_a_merge_which_masks_matrix_by_matrix_refuses_information(called, tmp_path):
    (tmp_path / "information.json").write_text('{"information": {"a": 1.0}}')
    models = ("--ptm_pth", "assets/tiny/base", "--math_pth", "assets/tiny/math", "--code_pth", CODE)
    mask = ("mask=impart", "sparsity=0.3", "preprune_ratio=0.5", "C=1", f"information={tmp_path / 'information.json'}")
    ended = called(merge.main, "--merge_method", "ta_0.5", *models, "--save_pth", tmp_path / "x", *mask)
    assert ended.code == 2 and "divide one budget among all" in ended.err and not (tmp_path / "x").exists()


def test_the_expected_error_is_that_of_masks_that_are_drawn():
    generator = torch.Generator().manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(96, 96, generator=generator)).Q for _ in range(2))
    matrix = DenseMatrix(DOWN, (U * torch.arange(1, 97).float() ** -0.8) @ V.T)
    method = ImPart(compression_ratio=8, preprune_ratio=0.6, C=1.0)
    s = torch.linalg.svdvals(matrix.dW).double().numpy()
    p = method.sparsity(s, 96, 96)
    dropped = float((s[len(p) :] ** 2).sum())
    expected = method.expected_error(DOWN, matrix.shape, s, 1.0) - (MASKED_KAPPA - 1) * dropped
    drawn = [float((method.encode(matrix, seed).dense(DOWN) - matrix.dW).square().sum()) for seed in range(150)]
    assert sum(drawn) / len(drawn) == pytest.approx(expected, rel=0.05)


def test_impart_divides_its_values_by_a_file_of_information(called, tmp_path):
    file = tmp_path / "made" / "information.json"
    keys = ("method=impart", "preprune_ratio=0.6", "C=1", "compression_ratio=8")
    flags = ("--text_field", "prompt", "--nsamples", "4", "--seqlen", "64")
    made = called(information.main, CODE, TEXT, "--out", file, *flags)
    assert made.code == 0 and "21 matrices, from 4 sequences of 64 tokens" in made.out
    again = called(information.main, CODE, TEXT, "--out", file, *flags)
    assert again.code == 2 and "exists" in again.err
    models = ("base_model=assets/tiny/base", f"ftm_dir={CODE}")
    stored = {}
    for name, more in (("even", ()), ("divided", (f"information={file}",))):
        done = called(sparsify.main, *keys, *models, *more, f"save_dir={tmp_path / name}")
        assert done.code == 0, done.err
        stored[name] = open_delta(tmp_path / name)
        assert stored[name].sizes().linear_ratio == pytest.approx(8, rel=0.04)
    assert "information" not in stored["even"].manifest["settings"]
    assert stored["divided"].manifest["settings"]["information"] == sha256_of(file)[:16]
    F = json.loads(file.read_text())["information"]
    share = {name: stored["divided"].stored(name).nbytes / stored["even"].stored(name).nbytes for name in F}
    per_entry = {name: F[name] * float(stored["even"].stored(name).dense(name).square().mean()) for name in F}
    most, least = (pick(per_entry, key=per_entry.__getitem__) for pick in (max, min))
    assert share[most] > 1.2 and share[least] < 0.8
    for content, message in (
        ('{"information": {"a": 1.0}}', "says nothing of model.layers.0."),
        ('{"information": {"a": -1.0}}', "has no information of matrices"),
        ("[]", "has no information of matrices"),
        ("", "has no information of matrices"),
    ):
        (tmp_path / "other.json").write_text(content)
        wrong = called(
            sparsify.main, *keys, *models, f"information={tmp_path / 'other.json'}", f"save_dir={tmp_path / 'x'}"
        )
        assert wrong.code == 2 and message in wrong.err and wrong.err.count("\n") == 1
    gone = called(sparsify.main, *keys, *models, "information=nowhere.json", f"save_dir={tmp_path / 'x'}")
    assert gone.code == 2 and "information=nowhere.json: No such file" in gone.err and not list(tmp_path.glob("x*"))


def test_a_row_that_needs_information_is_refused_without(called, tmp_path):
    files = ("--config", "configs/rows/impart_information.yaml", "--config", "configs/tiny/code/pair.yaml")
    done = called(sparsify.main, *files, f"save_dir={tmp_path / 'x'}")
    assert done.code == 2 and "this row needs information=FILE, which quantize/information.py writes" in done.err


def test_a_file_of_information_gives_the_bytes_that_its_text_does(called, tmp_path):
    file = tmp_path / "information.json"
    flags = ("--text_field", "prompt", "--nsamples", "4", "--seqlen", "64")
    assert called(information.main, CODE, TEXT, "--out", file, *flags).code == 0
    for name, text, more in (("text", TEXT, SHORT), ("file", "no text", (f"information={file}",))):
        made = called(sparse_llama.main, CODE, text, "--save_compressed_delta_dir", tmp_path / name, *ROW, *more)
        assert made.code == 0, made.err
    shards = [
        [file.read_bytes() for file in sorted((tmp_path / name).glob("*.safetensors"))] for name in ("text", "file")
    ]
    assert shards[0] and shards[0] == shards[1]
    settings = open_delta(tmp_path / "file").manifest["settings"]
    assert settings["information"] == sha256_of(file)[:16] and "calibration_tokens" not in settings


def test_the_rule_of_the_head_and_text_are_needed(called, tmp_path):
    for extra, message in (
        (("head=0.5",), "budget: information divides the bytes by the rule of head: auto"),
        (("seqlen=100000",), "seqlen=100000 is more than"),
        (("budget=model", "information=x.json"), "information=x.json is for budget: information"),
        (("information=nowhere.json",), "information=nowhere.json: No such file"),
    ):
        ended = called(
            sparse_llama.main, CODE, TEXT, "--save_compressed_delta_dir", tmp_path / "x", *ROW, *SHORT, *extra
        )
        assert ended.code == 2 and message in ended.err and ended.err.count("\n") == 1
