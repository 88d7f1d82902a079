"""Settings of a quantization: no key is ignored, rows and pairs are files like others, and a method is a file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from guide import read_guide

from impart.artifact import open_delta
from impart.errors import InputError
from impart.method import Method
from impart.units import units
from quantize import sparse_llama
from quantize.one_step import one_step_methods
from quantize.settings import load_config
from quantize.sparsified import check_made_by, split_overrides
from reproduce.rows import row_content
from sparsify import sparsify_quant

ROOT = Path(__file__).resolve().parents[1]
TINY = ROOT / "assets" / "tiny"
TEXT = TINY / "data" / "code_validation.jsonl"
CALIBRATION = ("text_field=prompt", "nsamples=8", "seqlen=96", "batch=8", "--threads", "1")
ROWS, PAIR = ROOT / "configs" / "rows", ROOT / "configs" / "tiny" / "code" / "pair.yaml"


def test_the_keys_of_another_method_are_an_error():
    for key in ("compression_ratio_qt=32", "distill_steps=10"):
        with pytest.raises(
            InputError, match=f"{key.partition('=')[0]} in the command line is a key of method bitdelta"
        ):
            load_config(None, [key])
    with pytest.raises(InputError, match="unknown key 'distil_steps' .* did you mean 'distill_steps'"):
        load_config(None, ["method=bitdelta", "distil_steps=10"])
    with pytest.raises(
        InputError,
        match="method: gptq is neither one of bitdelta, .*lowrank_sparse, .*ultradelta, which .* nor one of .*impart",
    ):
        load_config(None, ["method=gptq"])


def test_what_a_method_does_not_read_is_said(caplog):
    config, method = load_config(
        None, ["method=bitdelta", "grid=compact", "attn_int8_col=2", "seqlen=64", "baseModel=b"]
    )
    assert method is not None and method.settings() == {"compression_ratio_qt": 16.0, "distill_steps": 0}
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"note: method bitdelta does not read {key}" for key in ("grid", "attn_int8_col")]
    assert config.seqlen == 64


@pytest.mark.parametrize("row", sorted(file.stem for file in ROWS.glob("*.yaml")))
def test_a_row_and_a_pair_are_legal_files_in_either_order(row, caplog):
    for files in ([ROWS / f"{row}.yaml", PAIR], [PAIR, ROWS / f"{row}.yaml"]):
        config, method = load_config(list(map(str, files)), ["seed=3"])
        assert config.baseModel == "assets/tiny/base" and config.seed == 3
        if row == "bitdelta":
            assert method is not None and method.settings()["distill_steps"] == 200
            assert method.settings()["compression_ratio_qt"] == 64  # the pair's, for Table 6
        else:
            assert (method is None) == (row_content(row)["method"] not in one_step_methods())
    assert not caplog.records


def test_overrides_go_to_the_script_that_reads_them():
    given = [
        "compression_ratio_qt=32",
        "C=1",
        "nsamples=8",
        "grid=compact",
        "seed=2",
        "wbits=4",
        "baseModel=b",
        "bits=4",
    ]
    own, handed = split_overrides(given)
    assert own == ["nsamples=8", "grid=compact", "seed=2", "wbits=4", "baseModel=b"]
    assert handed == ["compression_ratio_qt=32", "C=1", "grid=compact", "seed=2", "base_model=b", "bits=4"]
    assert split_overrides(["bits=[8, 3, 2]"]) == (["bits=[8, 3, 2]"], [])
    with pytest.raises(InputError, match="unknown key 'nsample' .* did you mean 'nsamples'"):
        split_overrides(["nsample=8"])


@pytest.fixture(scope="module")
def sparse(tmp_path_factory):
    """A sparse delta of the tiny code model, for a quantized ratio of 16."""
    path = tmp_path_factory.mktemp("sparse") / "delta"
    models = (f"base_model={TINY / 'base'}", f"ftm_dir={TINY / 'code'}")
    keys = ("compression_ratio_qt=16", "preprune_ratio=0.6", "C=0.5", "--threads", "1")
    sparsify_quant.main([*models, *keys, f"save_dir={path}"])
    return path


def arguments(path: Path, *more: object) -> list[str]:
    return [str(TINY / "code"), str(TEXT), "--save_compressed_delta_dir", str(path), *map(str, more)]


def test_a_ratio_on_the_command_line_reaches_the_sparsification(tmp_path, called):
    """It was ignored: the ratio of the YAML file was taken, without a word."""
    files = ("--sparsify_config", ROWS / "impart_qt.yaml", "--sparsify_config", PAIR)
    models = (f"base_model={TINY / 'base'}", f"ftm_dir={TINY / 'code'}")
    keys = ("compression_ratio_qt=32", "seed=1", *models, *CALIBRATION)
    sparse_llama.main(arguments(tmp_path / "q", *files, *keys))
    manifest = open_delta(tmp_path / "q").manifest
    assert manifest["settings"]["compression_ratio_qt"] == 32 and manifest["settings"]["C"] == 1
    assert (manifest["seed"], manifest["settings"]["calibration_seed"]) == (1, 1)
    again = called(
        sparse_llama.main, *arguments(tmp_path / "q", *files, *keys[1:], "compression_ratio_qt=16", "--debug")
    )
    assert again.code != 0  # the quantized delta is there
    other = arguments(
        tmp_path / "q2", "--saved_delta_path", tmp_path / "q.sparse", *files, "C=0.5", *models, *CALIBRATION
    )
    done = called(sparse_llama.main, *other)
    assert done.code == 2 and "C=0.5 does not fit" in done.err and "an earlier run made with C=1.0" in done.err


def test_an_existing_sparse_delta_is_checked_against_the_overrides(sparse):
    check_made_by(str(sparse), ["compression_ratio=16", "beta=0.6", "method=impart", "seed=0", "accounting=auto"])
    for wrong in ("compression_ratio=32", "beta=0.7", "method=deltacome", "seed=1", "grid=compact"):
        with pytest.raises(InputError, match=f"{wrong} does not fit .* add --overwrite"):
            check_made_by(str(sparse), [wrong])


@pytest.mark.parametrize(
    "more, words",
    [
        (("method=dare",), "method: dare does not fit this delta, which is of method impart"),
        (("method=bitdelta",), "--saved_delta_path gives a sparse delta, but method=bitdelta reads the two models"),
        (("C=1",), "unknown key 'C' in the command line; it belongs into a YAML file"),
    ],
)
def test_what_contradicts_the_sparse_delta(sparse, tmp_path, called, more, words):
    done = called(sparse_llama.main, *arguments(tmp_path / "q", "--saved_delta_path", sparse, *more, *CALIBRATION))
    assert done.code == 2 and words in done.err and not (tmp_path / "q").exists()


def test_help_has_the_keys_of_every_method(script):
    done = script("quantize/sparse_llama.py", "--help")
    assert done.code == 0 and "keys of method bitdelta (BitDelta):" in done.out and "distill_lr" in done.out


METHOD_FILE = read_guide().files["quantize/methods/row_signs.py"]

ENCODING_FILE = read_guide().files["impart/encodings/row_signs.py"]


def test_a_baseline_is_one_file_and_its_bytes_are_another(copy_of_the_suite):
    """It runs with checked keys, its artifact opens, merges and tells its bytes, and --help has its keys."""
    (copy_of_the_suite / "quantize" / "methods" / "row_signs.py").write_text(METHOD_FILE)
    (copy_of_the_suite / "impart" / "encodings" / "row_signs.py").write_text(ENCODING_FILE)
    made, model = copy_of_the_suite / "out", copy_of_the_suite / "model"

    def script(*words: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *map(str, words)], cwd=copy_of_the_suite, capture_output=True, text=True)

    run = ("quantize/sparse_llama.py", "assets/tiny/code", "c4", "--save_compressed_delta_dir", made, "--threads", 1)
    keys = ("method=rowsigns", "baseModel=assets/tiny/base")
    done = script(*run, *keys, "factor=0.5")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((made / "delta.json").read_text())
    assert (manifest["kind"], manifest["method"], manifest["settings"]) == ("quantized", "rowsigns", {"factor": 0.5})
    wrong = script(*run, *keys, "factor=-1", "--overwrite")
    assert wrong.returncode == 2 and "factor: -1.0 is out of range" in wrong.stderr
    assert "keys of method rowsigns (Row signs):" in script("quantize/sparse_llama.py", "--help").stdout
    info = script("delta.py", "--info", made)
    assert info.returncode == 0, info.stderr
    assert (
        "quantized delta, method rowsigns" in info.stdout and "packed codes" in info.stdout and "scales" in info.stdout
    )
    merging = ("--base_model", "assets/tiny/base", "--finetuned_model", "assets/tiny/code", "--save_path", model)
    merged = script("delta.py", "--merge", "--delta_path", made, *merging, "--threads", 1)
    assert merged.returncode == 0, merged.stderr
    assert (model / "model.safetensors").is_file()


def test_methods_are_found_by_walking_the_folder():
    assert set(units("quantize.methods", Method)) == {"bitdelta", "dqrelo", "lowrank_sparse", "prinmix", "ultradelta"}
