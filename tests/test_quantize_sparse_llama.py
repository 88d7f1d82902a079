"""Whole runs on the tiny pair: the authors' three commands, every method, resuming after a kill, and bad input."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from whole_runs import killed_again_and_again

import delta as delta_script
from impart.architecture import linear_names
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from quantize import driver, sparse_llama
from quantize.activations import Activations
from sparsify import sparsify, sparsify_quant

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"
TEXT = TINY / "data" / "code_validation.jsonl"
CALIBRATION = ("text_field=prompt", "nsamples=8", "seqlen=96", "batch=8")
EXAMPLE = ROOT / "quantize" / "13b_config_example.yaml"


def sparsify_arguments(path, *more):
    return (
        f"base_model={TINY / 'base'}",
        f"ftm_dir={TINY / 'code'}",
        f"save_dir={path}",
        "compression_ratio_qt=16",
        "preprune_ratio=0.6",
        "C=0.5",
        "accounting=paper",
        "--threads",
        "1",
        *more,
    )


def quantize_arguments(sparse, path, *more):
    return (
        TINY / "code",
        TEXT,
        "--saved_delta_path",
        sparse,
        "--save_compressed_delta_dir",
        path,
        "--threads",
        "1",
        *CALIBRATION,
        *more,
    )


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """method -> sparse delta of the tiny code model, for a quantized ratio of 16."""
    folder = tmp_path_factory.mktemp("sparse")
    for method in ("impart", "deltacome", "dare"):
        sparsify_quant.main(sparsify_arguments(folder / method, f"method={method}", "grid=compact"))
    return lambda method: folder / method


def written(folder: Path) -> dict[str, bytes]:
    """Every file of an artifact but the report, which holds times, and the card, which holds the command."""
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and file.name not in ("report.json", "README.md")
    }


@pytest.mark.slow
def test_the_authors_three_commands(script, tmp_path):
    done = script(
        "sparsify/sparsify_quant.py",
        "--config",
        ROOT / "configs" / "rows" / "impart_qt.yaml",
        "--config",
        ROOT / "configs" / "tiny" / "code" / "pair.yaml",
        *sparsify_arguments(tmp_path / "d"),
    )
    assert done.code == 0, done.err
    assert "codes of the linear layers" in done.out
    done = script(
        "quantize/sparse_llama.py",
        TINY / "code",
        TEXT,
        "--config",
        EXAMPLE,
        "--saved_delta_path",
        tmp_path / "d",
        "--save_compressed_delta_dir",
        tmp_path / "q",
        f"baseModel={TINY / 'base'}",
        "--threads",
        1,
        *CALIBRATION,
    )
    assert done.code == 0, done.err
    assert "layer 2 mlp.down_proj: error 0." in done.err
    assert "relative output error of the worst matrices" in done.out and "nominal ratio 16" in done.out
    done = script(
        "delta.py",
        "--merge",
        "--finetuned_model",
        TINY / "code",
        "--delta_path",
        tmp_path / "q",
        "--base_model",
        TINY / "base",
        "--save_path",
        tmp_path / "model",
        "--threads",
        1,
    )
    assert done.code == 0, done.err
    merged, base, delta = (
        open_checkpoint(tmp_path / "model"),
        open_checkpoint(TINY / "base"),
        open_delta(tmp_path / "q"),
    )
    for name in linear_names(merged):
        expected = (base.tensor(name).float() + delta.reconstruct(name)).to(torch.bfloat16)
        assert torch.equal(merged.tensor(name), expected)
    rows = {row["name"]: row for row in json.loads((tmp_path / "q" / "report.json").read_text())["matrices"]}
    assert set(rows) == set(delta.names())
    assert all(0 < row["error"] < 0.3 and row["error_3bit"] > 0 for row in rows.values())


@pytest.mark.parametrize("grid", ["paper", "compact"])
@pytest.mark.parametrize("method", ["impart", "deltacome", "dare"])
def test_every_method_comes_near_its_sparse_delta(sparse, tmp_path, method, grid):
    sparse_llama.main(list(map(str, quantize_arguments(sparse(method), tmp_path / "q", f"grid={grid}"))))
    before, after = open_delta(sparse(method)), open_delta(tmp_path / "q")
    assert after.manifest["kind"] == "quantized" and after.manifest["method"] == method
    assert after.manifest["settings"]["grid"] == grid
    rows = json.loads((tmp_path / "q" / "report.json").read_text())["matrices"]
    assert all(0 < row["error"] < 0.35 for row in rows)  # of the outputs, on the calibration text
    for name in after.names():
        old, new = before.reconstruct(name), after.reconstruct(name)
        assert float((new - old).norm() / old.norm()) < 0.8  # of the weights: calibration trades them for outputs
    sizes = after.sizes()
    assert sizes.linear_dense / sizes.values == pytest.approx(16, rel=0.03)
    assert sizes.linear < before.sizes().linear / 3
    if grid == "compact":
        counted = sum(entry["quantized_bytes"] for entry in before.manifest["matrices"].values())
        assert sizes.linear == pytest.approx(counted, rel=0.02)


def test_calibration_helps(sparse, tmp_path):
    """On the calibration inputs the errors are smaller than those of a run that ignores them (huge damping)."""
    for name, damping in (("seen", "0.01"), ("unseen", "1.0e+9")):
        sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / name, f"damping={damping}"))))
    errors = {
        name: [row["error"] for row in json.loads((tmp_path / name / "report.json").read_text())["matrices"]]
        for name in ("seen", "unseen")
    }
    assert sum(errors["seen"]) < 0.9 * sum(errors["unseen"])


@pytest.mark.parametrize("option", ["true_sequential=false", "act_order=false", "groupsize=16"])
def test_options_change_the_codes(sparse, tmp_path, option):
    for name, more in (("plain", ()), ("changed", (option,))):
        sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / name, "grid=paper", *more))))
    plain, changed = open_delta(tmp_path / "plain"), open_delta(tmp_path / "changed")
    name = "model.layers.1.mlp.down_proj.weight"
    codes = [delta.stored(name).tensors["codes"] for delta in (plain, changed)]
    assert len(codes[0]) == len(codes[1]) and not torch.equal(*codes)


def test_a_delta_that_was_not_allocated_for_bits_takes_the_settings(tmp_path):
    """sparsify.py's deltas have no bit plan: the authors' keys, or the paper's plan, give one."""
    sparsify.main(
        [
            f"base_model={TINY / 'base'}",
            f"ftm_dir={TINY / 'code'}",
            f"save_dir={tmp_path / 's'}",
            "accounting=bytes",
            "compression_ratio=4",
            "preprune_ratio=0.6",
            "C=0.5",
            "--threads",
            "1",
        ]
    )
    sparse_llama.main(
        list(
            map(
                str,
                quantize_arguments(
                    tmp_path / "s",
                    tmp_path / "q",
                    "attn_int8_col=1",
                    "attn_int3_col=4",
                    "attn_int2_col=5120",
                    "mlp_int4_col=5120",
                ),
            )
        )
    )
    entries = open_delta(tmp_path / "q").manifest["matrices"]
    attention, mlp = entries["model.layers.0.self_attn.q_proj.weight"], entries["model.layers.0.mlp.up_proj.weight"]
    assert attention["plan"] == [[8, 1], [3, 4], [2, attention["rank"] - 5]]
    assert mlp["plan"] == [[4, mlp["rank"]]] and mlp["bits"] == 4


def test_the_same_run_twice_gives_the_same_bytes(sparse, tmp_path):
    for name in "ab":
        sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / name))))
    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_a_gpu_that_is_full_while_a_matrix_is_quantized(sparse, tmp_path, monkeypatch, caplog):
    """The allocator's own error: activations leave the GPU and the matrix is done again, with the same bytes."""
    sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / "roomy"))))
    failures, quantize_matrix = iter([True]), driver.quantize_matrix

    def full_once(*arguments):
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return quantize_matrix(*arguments)

    monkeypatch.setattr(driver, "quantize_matrix", full_once)
    sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / "full"))))
    assert "the GPU is full: the calibration activations go to main memory" in caplog.text
    assert written(tmp_path / "full") == written(tmp_path / "roomy")


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_bytes(sparse, tmp_path, environment):
    sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / "whole"))))
    command = [
        sys.executable,
        str(ROOT / "quantize" / "sparse_llama.py"),
        *map(str, quantize_arguments(sparse("impart"), tmp_path / "killed")),
    ]
    moments = (
        ("artifact_writer.save_file", "during", 1, 0),
        ("artifact_writer.write_atomically", "after", 1, 1),  # layer 0 is complete
        ("artifact_writer.write_atomically", "before", 1, 1),  # layer 1 is written, but not recorded
        ("artifact_writer.write_atomically", "after", 1, 2),
    )
    done = killed_again_and_again(command, tmp_path / "killed", environment, moments)
    assert "layer 0 " not in done.stderr and "layer 2 " in done.stderr
    assert written(tmp_path / "killed") == written(tmp_path / "whole")


def test_both_steps_in_one_command(tmp_path):
    config = tmp_path / "sparsify.yaml"
    config.write_text(
        f"base_model: {TINY / 'base'}\nftm_dir: {TINY / 'code'}\nsave_dir: unused\n"
        "compression_ratio_qt: 16\npreprune_ratio: 0.6\nC: 0.5\naccounting: paper\n"
    )
    sparse_llama.main(
        [
            str(TINY / "code"),
            str(TEXT),
            "--sparsify_config",
            str(config),
            "--save_compressed_delta_dir",
            str(tmp_path / "q"),
            "--threads",
            "1",
            *CALIBRATION,
        ]
    )
    assert open_delta(tmp_path / "q.sparse").manifest["settings"]["compression_ratio_qt"] == 16
    assert open_delta(tmp_path / "q").manifest["kind"] == "quantized"


@pytest.mark.parametrize("steps", [0, 12])
@pytest.mark.parametrize("cr", [16, 64])
def test_bitdelta(tmp_path, cr, steps, caplog):
    caplog.set_level("INFO")
    sparse_llama.main(
        [
            str(TINY / "code"),
            str(TEXT),
            "--save_compressed_delta_dir",
            str(tmp_path / "q"),
            "--threads",
            "1",
            "method=bitdelta",
            f"baseModel={TINY / 'base'}",
            f"compression_ratio_qt={cr}",
            f"distill_steps={steps}",
            *CALIBRATION,
        ]
    )
    delta, base, tuned = open_delta(tmp_path / "q"), open_checkpoint(TINY / "base"), open_checkpoint(TINY / "code")
    assert delta.sizes().linear_dense / delta.sizes().values == pytest.approx(cr, rel=0.02)
    for name in delta.names():
        dW, found = tuned.tensor(name).float() - base.tensor(name).float(), delta.reconstruct(name)
        kept = found != 0
        signs = dW[kept].sign()
        assert torch.equal(found[kept].sign()[signs != 0], signs[signs != 0])
        if steps == 0:
            assert float(found.abs().max()) == pytest.approx(float(dW.abs().mean()) * cr / 16, rel=1e-3)
    if steps:
        told = [record.args for record in caplog.records if record.msg.startswith("distillation step")]
        assert told[-1][2] < told[0][2]


def test_bitdelta_takes_a_bit_per_entry(tmp_path, called):
    done = called(
        sparse_llama.main,
        TINY / "code",
        TEXT,
        "--save_compressed_delta_dir",
        tmp_path / "q",
        "method=bitdelta",
        f"baseModel={TINY / 'base'}",
        "compression_ratio_qt=8",
    )
    assert done.code == 2 and "compression_ratio_qt=8: BitDelta takes one bit" in done.err
    assert not list(tmp_path.iterdir())


def test_too_little_text_for_no_damping_ends_in_a_note_not_in_an_error(sparse, tmp_path, caplog):
    """96 tokens for 192 inputs: every Hessian is singular."""
    more = ("damping=0", "nsamples=1", "batch=1")
    sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / "q", *more))))
    rows = json.loads((tmp_path / "q" / "report.json").read_text())["matrices"]
    assert {row["damping"] for row in rows if "v_proj" in row["name"]} == {0.01}
    warning = "layers.1.self_attn.v_proj.weight (Hessian of the inputs): the Hessian with damping 0 is not positive"
    assert warning in caplog.text


def test_one_bad_hessian_costs_one_matrix_its_calibration(sparse, tmp_path, monkeypatch, caplog):
    """What activations that overflow in one place do to a run: said, recorded, and everything else as it was."""
    bad = "model.layers.1.mlp.down_proj.weight"
    gathered = Activations.hessians

    def overflowing(self, layer, names):
        hessians = gathered(self, layer, names)
        if bad in hessians:
            hessians[bad].H[5] = torch.nan
        return hessians

    sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / "good"))))
    caplog.clear()
    monkeypatch.setattr(Activations, "hessians", overflowing)
    for name in ("bad", "again"):
        sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / name))))
    assert caplog.text.count(f"{bad} (Hessian of the inputs): the Hessian contains NaN or Inf; rounded to nearest") == 2
    assert written(tmp_path / "bad") == written(tmp_path / "again")
    rows = {row["name"]: row for row in json.loads((tmp_path / "bad" / "report.json").read_text())["matrices"]}
    assert [name for name, row in rows.items() if row.get("rounded_to_nearest")] == [bad]
    assert all(("error" in row) == (name != bad) for name, row in rows.items())
    delta, before, good = (open_delta(path) for path in (tmp_path / "bad", sparse("impart"), tmp_path / "good"))
    assert delta.manifest["settings"] == good.manifest["settings"]  # a resumed run finds its layers again
    for name in delta.names():
        old, new = before.reconstruct(name), delta.reconstruct(name)
        assert float((new - old).norm() / old.norm()) < 0.8
    first = "layer-00000.safetensors"
    assert (tmp_path / "bad" / first).read_bytes() == (tmp_path / "good" / first).read_bytes()


def test_info_counts_the_bytes(sparse, tmp_path, called):
    sparse_llama.main(list(map(str, quantize_arguments(sparse("impart"), tmp_path / "q"))))
    done = called(delta_script.main, "--info", tmp_path / "q")
    assert done.code == 0
    assert "quantized delta, method impart" in done.out and "bytes (nominal ratio 16)" in done.out
    table = done.out[done.out.index("bytes (nominal ratio") :].splitlines()
    bytes_of = {
        re.split(r"  +", line.strip())[0]: int(
            re.split(r"  +", line.strip())[-1 if line.startswith(" ") else 2].replace(",", "")
        )
        for line in table[2:]
        if line.startswith(" ") or line.startswith("linear layers, all")
    }
    parts = {key: size for key, size in bytes_of.items() if key != "linear layers, all bytes"}
    assert set(parts) == {"packed codes", "singular values", "zeros", "keep thresholds", "headers of shards"}
    assert sum(parts.values()) == bytes_of["linear layers, all bytes"] == open_delta(tmp_path / "q").sizes().linear


BAD = {
    "short text": (("nsamples=5000",), "too short: .* tokens, but 5000 sequences of 96 need 480000"),
    "long sequences": (("seqlen=4096",), "seqlen=4096 is more than the 512 positions"),
    "another grid": (("grid=none",), "grid: none is not one of paper, compact"),
    "other bits": (("attn_int8_col=3", "attn_int3_col=32", "attn_int2_col=9"), "was allocated for the bit plan"),
    "bits that disagree": (("bits=[8, 2]",), "bits: .8, 2. does not agree"),
    "another base": ((f"baseModel={TINY / 'code'}",), "give that base"),
    "no groups": (("groupsize=0",), "groupsize=0 means nothing"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(sparse, tmp_path, called, case):
    more, message = BAD[case]
    done = called(sparse_llama.main, *quantize_arguments(sparse("impart"), tmp_path / "q", *more))
    assert done.code == 2
    error = done.err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert re.search(message, error), error
    assert not (tmp_path / "q").exists()


def test_bad_deltas(sparse, tmp_path, called):
    other = called(
        sparse_llama.main,
        TINY / "chat",
        TEXT,
        "--saved_delta_path",
        sparse("impart"),
        "--save_compressed_delta_dir",
        tmp_path / "q",
        *CALIBRATION,
    )
    assert other.code == 2 and "has other weights; give that model" in other.err
    missing = called(
        sparse_llama.main, TINY / "code", TEXT, "--save_compressed_delta_dir", tmp_path / "q", *CALIBRATION
    )
    assert missing.code == 2 and "--saved_delta_path is missing" in missing.err
    sparse_llama.main(list(map(str, quantize_arguments(sparse("dare"), tmp_path / "q"))))
    twice = called(sparse_llama.main, *quantize_arguments(tmp_path / "q", tmp_path / "qq"))
    assert twice.code == 2 and "is already quantized" in twice.err
    again = called(sparse_llama.main, *quantize_arguments(sparse("dare"), tmp_path / "q"))
    assert again.code == 2 and "exists; name another folder" in again.err
    bits = called(sparse_llama.main, *quantize_arguments(sparse("dare"), tmp_path / "qq", "wbits=4"))
    assert bits.code == 2 and "its entries were counted at 2 bits; leave wbits out" in bits.err


def test_one_process_only(sparse, tmp_path, called, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    done = called(sparse_llama.main, *quantize_arguments(sparse("impart"), tmp_path / "q"))
    assert done.code == 2 and "cannot be split over processes" in done.err


@pytest.mark.parametrize("size", ["13b", "7b"])
def test_the_authors_yaml_files_load(size):
    from impart.bit_plan import PAPER_PLAN, cut_plan
    from impart.config import load
    from quantize.settings import Config, resolved_rule

    config = load(Config, ROOT / "quantize" / f"{size}_config_example.yaml")
    rule = resolved_rule(config, {"settings": {"bit_plan": [list(part) for part in PAPER_PLAN]}, "method": "impart"})
    assert rule.plan("self_attn", 1000) == cut_plan(PAPER_PLAN, 1000, "w")
    assert config.groupsize == 128 and config.true_sequential and config.act_order and config.nsamples == 128
    assert config.seqlen == 2048 and config.bits == [8, 3, 2]


def test_a_broken_tokenizer_is_found_before_the_sparsification(pair, tmp_path, called):
    """The pair's tokenizer.json is none."""
    config = tmp_path / "sparse.yaml"
    config.write_text(
        f"ftm_dir: {pair[1]}\nbase_model: {pair[0]}\ncompression_ratio_qt: 4\npreprune_ratio: 0.2\nC: 1\n"
    )
    command = [str(pair[1]), "c4", "--sparsify_config", str(config), "--save_compressed_delta_dir", str(tmp_path / "q")]
    ended = called(sparse_llama.main, *command)
    assert ended.code == 2 and "tokenizer" in ended.err and not (tmp_path / "q.sparse").exists()


def test_an_embedding_is_rounded_to_nearest_beside_the_layers(called, tmp_path):
    sparse = sparsify_arguments(tmp_path / "d", "grid=compact", "weight_types=[linear, embeddings]")
    assert called(sparsify_quant.main, *sparse).code == 0
    ended = called(sparse_llama.main, *quantize_arguments(tmp_path / "d", tmp_path / "q", "nsamples=2"))
    assert ended.code == 0, ended.err
    before, after = open_delta(tmp_path / "d"), open_delta(tmp_path / "q")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new = before.reconstruct(name), after.reconstruct(name)
        assert after.stored(name).encoding == "quantized_vectors" and float((old - new).norm() / old.norm()) < 0.5
    assert after.sizes().linear < before.sizes().linear / 4 and not {*after.extras()} & {*after.names()}
