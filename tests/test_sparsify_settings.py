"""Settings of a sparsification: layers of YAML files and overrides, keys of methods, and keys that nobody reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from guide import read_guide

from impart.errors import InputError
from impart.method import Method
from impart.units import units
from sparsify.methods.impart import ImPart
from sparsify.settings import load_settings, methods

MODELS = ["base_model=b", "ftm_dir=f", "save_dir=s"]
ROW, PAIR = "method: impart\nlabel: Mine\n", "name: p\nbase_model: b\nftm_dir: f\nbenchmarks: [gsm8k]\n"
NUMBERS = "preprune_ratio: 0.7\nC: 1\ncompression_ratio: 32\ncompression_ratio_qt: 64\n"


def written(folder: Path, **texts: str) -> list[str]:
    """One YAML file for each text, in their order."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return [str(folder / f"{name}.yaml") for name in texts]


def refused(face: str, paths, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_settings(face, paths, [*MODELS, *overrides])
    return str(error.value)


def test_a_row_and_a_pair_are_two_files_of_which_each_face_takes_its_ratio(tmp_path):
    paths = written(tmp_path, row=ROW, pair=PAIR + NUMBERS)
    sparse = load_settings("sparse", paths, ["save_dir=s"])
    assert sparse.method.settings()["compression_ratio"] == 32 and sparse.method.settings()["preprune_ratio"] == 0.7
    assert sparse.config.ftm_dir == "f" and sparse.method.label == "ImPart"
    quantized = load_settings("quantized", paths, ["save_dir=s"])
    assert quantized.method.settings()["compression_ratio_qt"] == 64 and quantized.method.label == "ImPart-Qt"


def test_later_files_win_and_overrides_come_last(tmp_path):
    paths = written(tmp_path, row=ROW, pair=PAIR + NUMBERS, mine="C: 0.5\nseed: 3\n")
    settings = load_settings("sparse", paths, ["save_dir=s", "seed=4"])
    assert (settings.method.settings()["C"], settings.config.seed) == (0.5, 4)


@pytest.mark.parametrize("face", ["sparse", "quantized"])
def test_an_edit_of_the_pairs_file_reaches_every_row(tmp_path, face):
    """What a table is made of comes from one file: rows hold no numbers of a pair that could win over it."""
    paths = written(tmp_path, row=ROW, pair=PAIR + NUMBERS.replace("0.7", "0.8"))
    assert load_settings(face, paths, ["save_dir=s"]).method.settings()["preprune_ratio"] == 0.8


@pytest.mark.parametrize(
    "face, key, words",
    [
        ("quantized", "allocation=uniform", "unknown key 'allocation'"),
        ("quantized", "rescale=false", "unknown key 'rescale'"),
        ("sparse", "compression_ratio_qt=32", "unknown key 'compression_ratio_qt'"),
        ("sparse", "bit_plan=[[8, 2]]", "unknown key 'bit_plan'"),
        ("sparse", "benchmarks=gsm8k", "belongs into a YAML file"),
        ("sparse", "preprune_ration=0.6", "did you mean 'preprune_ratio'?"),
    ],
)
def test_a_key_that_the_face_does_not_read_is_an_error(tmp_path, face, key, words):
    paths = written(tmp_path, row=ROW, pair=PAIR + NUMBERS)
    assert words in refused(face, paths, key)


def test_both_faces_write_the_dense_checkpoint_that_save_model_asks_for():
    for face, ratio in (("sparse", "compression_ratio=8"), ("quantized", "compression_ratio_qt=8")):
        settings = load_settings(face, None, [*MODELS, ratio, "preprune_ratio=0.6", "C=1", "save_model=true"])
        assert settings.config.save_model


def test_another_method_over_a_methods_file_is_one_word(tmp_path, caplog):
    paths = written(tmp_path, mine="method: impart\nmask: exact_count\n" + NUMBERS)
    caplog.set_level("INFO")
    assert load_settings("sparse", paths, [*MODELS, "method=dare"]).method.name == "dare"
    assert "note" not in caplog.text


def test_a_key_of_another_method_beside_the_methods_name_is_said(tmp_path, caplog):
    caplog.set_level("INFO")
    load_settings("sparse", None, [*MODELS, "method=dare", "compression_ratio=8", "mask=exact_count"])
    assert "mask is a key of method impart and impart_auto; method dare does not read it" in caplog.text
    (mine,) = written(tmp_path, mine="method: lowrank\nrescale: false\ncompression_ratio: 8\n")
    load_settings("sparse", mine, MODELS)
    assert "rescale is a key of method dare and impart; method lowrank does not read it" in caplog.text


def test_missing_keys_name_the_method_that_needs_them():
    said = refused("sparse", None, "compression_ratio=8")
    assert "preprune_ratio is missing" in said and "method impart needs it" in said and "0.6, 0.7, 0.8" in said
    assert "compression_ratio is missing" in refused("sparse", None, "method=dare")


def test_the_authors_one_ratio_serves_both_faces(caplog):
    keys = [*MODELS, "compression_ratio=32", "preprune_ratio=0.6", "C=1"]
    caplog.set_level("INFO")
    assert load_settings("quantized", None, keys).method.settings()["compression_ratio_qt"] == 32
    assert "compression_ratio=32 is taken for the quantized ratio" in caplog.text


def test_a_method_of_the_other_face_says_where_it_is():
    assert "sparsify_quant.py has it" in refused("sparse", None, "method=deltacome", "compression_ratio=8")
    assert "sparsify.py has it" in refused("quantized", None, "method=lowrank", "compression_ratio_qt=8")
    in_one_step = refused("quantized", None, "method=bitdelta", "compression_ratio_qt=8")
    assert "quantize/sparse_llama.py has those that need no sparse delta" in in_one_step
    assert "deltacome" in refused("quantized", None, "C=only_lowrank", "compression_ratio_qt=8")


def test_every_method_says_what_tables_and_plans_ask():
    for face in ("sparse", "quantized"):
        for name, cls in methods(face).items():
            assert cls.name == name and cls.label and issubclass(cls, Method) and cls.__doc__
            assert isinstance(cls.needs_svd, bool) and isinstance(cls.usable_as_mask, bool)


METHOD_FILE = read_guide().files["sparsify/methods/halves.py"]


def test_a_file_in_the_folder_is_a_method(copy_of_the_suite, tiny_pair):
    """One file: its keys are checked, it runs, its artifact opens, and merge.py takes it as a mask."""
    (copy_of_the_suite / "sparsify" / "methods" / "halves.py").write_text(METHOD_FILE)
    made = copy_of_the_suite / "out"
    keys = [*tiny_pair, "method=halves", "compression_ratio=4", f"save_dir={made}"]

    def script(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, arguments), "--threads", "1"]
        return subprocess.run(command, cwd=copy_of_the_suite, capture_output=True, text=True)

    done = script("sparsify/sparsify.py", *keys, "factor=0.25")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((made / "delta.json").read_text())
    assert manifest["method"] == "halves" and manifest["settings"] == {"compression_ratio": 4.0, "factor": 0.25}
    wrong = script("sparsify/sparsify.py", *keys, "factor=-1", "--overwrite")
    assert wrong.returncode == 2 and "factor: -1.0 is out of range" in wrong.stderr
    assert "keys of method halves (Halves):" in script("sparsify/sparsify.py", "--help").stdout
    merging = ["--merge_method", "ta_0.5", "--ptm_pth", "assets/tiny/base", "--math_pth", "assets/tiny/math"]
    done = script(
        "merge/merge.py", *merging, "--save_pth", copy_of_the_suite / "m", "mask=halves", "sparsity=0.5", "factor=1"
    )
    assert done.returncode == 0, done.stderr
    assert "math (halves, sparsity 0.5)" in done.stdout


def test_units_are_the_classes_that_a_folders_files_define():
    found = units("sparsify.methods", Method)
    of_triplets = {"impart", "impart_auto", "lowrank", "lowrank_sparse", "deltacome"}
    assert set(found) == of_triplets | {"dare", "darex", "lossless"}
    assert methods("sparse")["impart"] is ImPart
