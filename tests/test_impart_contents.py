"""What a delta holds, as JSON and as text; delta.json of every kind of artifact against its schema."""

import json
from pathlib import Path

import pytest

import delta as delta_script
from impart.artifact import open_delta
from impart.contents import contents, printed
from impart.encodings.encoded import encoding_of
from quantize import sparse_llama
from sparsify import sparsify, sparsify_quant

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = json.loads((ROOT / "impart" / "delta.schema.json").read_text())
CALIBRATION = ("nsamples=8", "seqlen=32", "text_field=prompt", "--threads", "1")


def test_the_numbers_that_are_printed_are_those_of_the_json(called, tiny_deltas):
    path = tiny_deltas("impart", "code")
    text, ended = called(delta_script.main, "--info", path), called(delta_script.main, "--info", path, "--json")
    assert text.code == ended.code == 0
    found = json.loads(ended.out)
    assert found == json.loads(json.dumps(contents(open_delta(path)))) and text.out == printed(found) + "\n"
    sizes = found["bytes"]
    assert found["kind"] == "sparse" and found["method"] == "impart" and found["nominal_ratio"] == 4
    assert sum(one["matrices"] for one in found["types"]) == 21 and found["extras"] == 9
    files = [path / "delta.json", *path.glob("*.safetensors")]
    assert sizes["checkpoint"]["delta"] == sum(file.stat().st_size for file in files)
    assert sizes["linear"]["delta"] == sum(sizes["parts"].values()) + sizes["headers"]
    assert f"{sizes['checkpoint']['delta']:,}" in text.out and f"{found['ratios']['linear']:.2f}" in text.out


def test_json_is_for_info_only(called, tmp_path):
    ended = called(delta_script.main, "--merge", "--delta_path", tmp_path, "--save_path", tmp_path / "x", "--json")
    assert ended.code == 2 and ended.err == "error: --json goes with --info; leave it out\n"


@pytest.fixture(scope="module")
def artifacts(tiny_deltas, tmp_path_factory) -> list[Path]:
    """One of every kind: an SVD, each sparse method, each quantized one."""
    folder, models = tmp_path_factory.mktemp("kinds"), ("base_model=assets/tiny/base", "ftm_dir=assets/tiny/code")
    flags = ("--base_model", "assets/tiny/base", "--finetuned_model", "assets/tiny/code", "--threads", "1")
    delta_script.main(["--svd", *flags, "--save_path", str(folder / "svd")])
    sparse = [tiny_deltas(row, "code") for row in ("impart", "lowrank", "dare", "lowrank_sparse")]
    for row in ("impart_qt", "dare_qt", "deltacome"):
        rows = ("--config", f"configs/rows/{row}.yaml", "--config", "configs/tiny/code/pair.yaml")
        sparsify_quant.main(
            [*rows, *models, "compression_ratio_qt=16", f"save_dir={folder / row}.sparse", "--threads", "1"]
        )
    text = "assets/tiny/data/code_validation.jsonl"
    for grid in ("paper", "compact"):
        for row in ("impart_qt", "dare_qt"):
            saved = ("--saved_delta_path", f"{folder / row}.sparse", "--save_compressed_delta_dir")
            settings = (f"grid={grid}", *CALIBRATION)
            sparse_llama.main(["assets/tiny/code", text, *saved, str(folder / f"{row}_{grid}"), *settings])
    for method in ("bitdelta", "ultradelta", "lowrank_sparse"):
        one_step = ("--save_compressed_delta_dir", str(folder / method), f"method={method}", "compression_ratio_qt=16")
        sparse_llama.main(["assets/tiny/code", text, *one_step, "baseModel=assets/tiny/base", *CALIBRATION])
    sparsify.main(["method=lossless", *models, f"save_dir={folder / 'lossless'}", "--threads", "1"])
    return [*sparse, *(file.parent for file in folder.glob("*/delta.json"))]


def test_every_kind_of_artifact_has_the_schema(artifacts):
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator, encodings, kinds = jsonschema.Draft202012Validator(SCHEMA), set(), set()
    for path in artifacts:
        manifest = open_delta(path).manifest
        assert not [error.message for error in validator.iter_errors(manifest)], path
        assert set(manifest) <= set(SCHEMA["properties"]), path
        kinds.add(manifest["kind"])
        for entry in manifest["matrices"].values():
            assert set(entry) <= set(SCHEMA["$defs"]["matrix"]["properties"]), path
            encodings.add(entry["encoding"])
    assert kinds == set(SCHEMA["properties"]["kind"]["enum"])
    listed = set(SCHEMA["$defs"]["matrix"]["properties"]["encoding"]["enum"])
    assert encodings >= listed - {"empty"}


def test_the_schema_names_every_encoding_and_refuses_what_is_none():
    jsonschema = pytest.importorskip("jsonschema")
    listed = SCHEMA["$defs"]["matrix"]["properties"]["encoding"]["enum"]
    modules = [file.stem for file in (ROOT / "impart" / "encodings").glob("*.py") if "FACTS = (" in file.read_text()]
    assert sorted(modules) == listed and all(encoding_of(name) for name in listed)
    facts = {fact for name in listed for fact in encoding_of(name).FACTS}
    assert facts <= set(SCHEMA["$defs"]["matrix"]["properties"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"format": "impart-delta"}, SCHEMA)
