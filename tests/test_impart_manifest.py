"""An artifact from a stranger: whatever is wrong in delta.json or its shards is one line that names it, on opening."""

import copy as copies
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from manifests import edited, replace_companion, replace_tensors
from safetensors.torch import load_file, save_file
from test_impart_artifact import Run, files_of, finished, models, refused  # noqa: F401

from impart.artifact import open_delta
from impart.errors import InputError
from impart.manifest import CHECKSUM, checksum

Q = "model.layers.0.self_attn.q_proj.weight"
EXTRA = "model.layers.1.input_layernorm.weight"
SHARD = "layer-00000.safetensors"


@pytest.fixture
def copy(finished, tmp_path):  # noqa: F811
    return Path(shutil.copytree(finished.path, tmp_path / "delta"))


def matrix(manifest):
    return manifest["matrices"][Q]


def test_a_manifest_names_its_own_sha256_last_and_does_not_open_without_it(copy):
    manifest = json.loads((copy / "delta.json").read_text())
    assert list(manifest)[-1] == CHECKSUM and manifest[CHECKSUM] == checksum(manifest)
    with edited(copy, signed=False):
        pass
    assert "sha256 is missing" in refused(open_delta, copy)


EDITS = {
    "version": ("version", lambda m: m.update(version="1")),
    "true for 1": ("version", lambda m: m.update(version=True)),
    "kind": ("kind is 'dense', not one of svd, sparse, quantized", lambda m: m.update(kind="dense")),
    "no base": ("base is missing", lambda m: m.pop("base")),
    "no fingerprint": ("finetuned.fingerprint is missing", lambda m: m["finetuned"].pop("fingerprint")),
    "base is a list": ("base is [], not a JSON object", lambda m: m.update(base=[])),
    "a source that writes to the terminal": ("base.source", lambda m: m["base"].update(source="\x1b[2J")),
    "settings": ("settings.compression_ratio", lambda m: m["settings"].update(compression_ratio="4")),
    "dropped, and there": ("dropped.0", lambda m: m.update(dropped=[EXTRA])),
    "rank above both sides": (f"matrices.{Q}.rank is 99", lambda m: matrix(m).update(rank=99)),
    "negative rank": ("rank is -1", lambda m: matrix(m).update(rank=-1)),
    "kept of one factor": ("kept", lambda m: matrix(m).update(kept=[32])),
    "fewer kept, no mask": ("all entries", lambda m: matrix(m).update(kept=[31, 32])),
    "bits": ("bits is True", lambda m: matrix(m).update(bits=True)),
    "shape of three": ("a list of 2", lambda m: matrix(m).update(shape=[16, 16, 1])),
    "shape of half": ("shape.0 is 1.5", lambda m: matrix(m).update(shape=[1.5, 16])),
    "transposed": (
        "delta.json says F16 BF16 F32 of [24, 2]",
        lambda m: matrix(m).update(shape=[24, 16], kept=[48, 32]),
    ),
    "a shape of 10 GB": ("finetuned.bytes", lambda m: matrix(m).update(shape=[10**5, 10**5], kept=[2 * 10**5] * 2)),
    "dtype": ("a floating-point dtype", lambda m: matrix(m).update(dtype="I64")),
    "dtype that is none": ("dtype is 'F4'", lambda m: matrix(m).update(dtype="F4")),
    "another encoding": ("the tensors of sparse_svd", lambda m: matrix(m).update(encoding="sparse_svd")),
    "a module, no encoding": ("encoding 'codes' is not known", lambda m: matrix(m).update(encoding="codes")),
    "a path for an encoding": ("is not known here", lambda m: matrix(m).update(encoding="../x")),
    "a tensor twice": ("the tensors of svd", lambda m: matrix(m).update(tensors=["U", "s", "V", "V"])),
    "bytes of a matrix": ("bytes", lambda m: matrix(m).update(bytes=7)),
    "another shard": ("does not know", lambda m: matrix(m).update(shard="rest.safetensors")),
    "no such shard": ("one of the shards", lambda m: matrix(m).update(shard="layer-00009.safetensors")),
    "a plan where there is none": ("absent", lambda m: matrix(m).update(plan=[[8, 2]])),
    "matrix missing": ("does not know: 'model.layers.0.self_attn.q_proj", lambda m: m["matrices"].pop(Q)),
    "extra missing": ("does not know: 'model.layers.1.input_layernorm", lambda m: m["extras"].pop(EXTRA)),
    "extra's shape": ("as its shape and dtype say", lambda m: m["extras"][EXTRA].update(shape=[3])),
    "extra's dtype": ("is F32 of shape [16]", lambda m: m["extras"][EXTRA].update(dtype="I32")),
    "extra and matrix": ("among the matrices", lambda m: m["extras"].update({Q: m["extras"][EXTRA]})),
    "header bytes": ("header_bytes", lambda m: m["shards"][SHARD].update(header_bytes=8)),
    "sha256 of a shard": ("64 hexadecimal digits", lambda m: m["shards"][SHARD].update(sha256="f" * 63)),
    "shard elsewhere": ("no plain name", lambda m: m["shards"].update({"../x.safetensors": m["shards"][SHARD]})),
    "shard with a backslash": (
        "no plain name",
        lambda m: m["shards"].update({"..\\x.safetensors": m["shards"][SHARD]}),
    ),
    "absolute companion": ("files names '/etc/passwd'", lambda m: m["files"].update({"/etc/passwd": "0" * 64})),
    "companion above": ("files names '../x'", lambda m: m["files"].update({"../x": "0" * 64})),
    "companion in a subfolder": ("files names 'a/b'", lambda m: m["files"].update({"a/b": "0" * 64})),
    "companion is a weight": ("no small file of a model", lambda m: m["files"].update({"pytorch_model.bin": "0" * 64})),
    "companion is an index": ("no small file", lambda m: m["files"].update({"model.safetensors.index.json": "0" * 64})),
    "template in another folder": ("no small file", lambda m: m["files"].update({"templates/a.jinja": "0" * 64})),
    "no template": ("no small file", lambda m: m["files"].update({"additional_chat_templates/a.py": "0" * 64})),
    "template above": ("no small", lambda m: m["files"].update({"additional_chat_templates/../a.jinja": "0" * 64})),
    "companion of no kind": ("no small file of a model", lambda m: m["files"].update({"notes": "0" * 64})),
    "hidden companion": ("files names '.x'", lambda m: m["files"].update({".x": "0" * 64})),
    "a surrogate": ("is not valid JSON", lambda m: m.update(method="\ud800")),
    "NaN": ("NaN is not a finite number", lambda m: m["settings"].update(C=float("nan"))),
}


@pytest.mark.parametrize("words, change", EDITS.values(), ids=list(EDITS))
def test_a_field_that_is_wrong_is_named(copy, words, change):
    with edited(copy) as manifest:
        change(manifest)
    message = refused(open_delta, copy)
    assert words in message and ("delta.json" in message or "shard" in message), message


@pytest.mark.parametrize("key", ["s", "scale", "anything"])
def test_an_edit_that_fits_everything_is_found_by_the_sha256(copy, key):
    file = copy / "delta.json"
    manifest = json.loads(file.read_text())
    manifest["settings"][key] = 1
    file.write_text(json.dumps(manifest))
    assert "delta.json is altered" in refused(open_delta, copy)


@pytest.mark.parametrize(
    "text, words",
    [
        ('{"format": "impart-delta", "format": "impart-delta"}', "the key 'format' stands twice"),
        ('{"format": "impart-delta", "x": ' + "[" * 30000, "is not valid JSON"),
        ('{"format": "impart-delta", "version": 1e999}', "1e999 is not a finite number"),
        ('{"format": "impart-delta", "version": ' + "9" * 5000 + "}", "is not valid JSON"),
        (b"\xff\xfe", "is not valid JSON"),
    ],
)
def test_json_that_readers_disagree_on_is_refused(copy, text, words):
    (copy / "delta.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert words in refused(open_delta, copy)


def leaves(value, path=()):
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*path, key)
        yield from leaves(value[key], (*path, key))


def test_no_value_of_any_field_ends_in_a_traceback(copy):
    """Every field in turn gone or of another type, and signed: an InputError, or an artifact that reads."""
    good = json.loads((copy / "delta.json").read_text())
    kept = (Q, "model.layers.0.self_attn.k_proj.weight")  # one that is stored, one that is empty
    places = [p for p in leaves(good) if p[0] != "matrices" or len(p) == 1 or p[1] in kept]
    refusals = 0
    for place in places:
        for value in ("gone", None, "x", -1, 2.5, True, [], {}, [None], {"a": 1}, 10**30):
            manifest = copies.deepcopy(good)
            at = manifest
            for key in place[:-1]:
                at = at[key]
            if value == "gone":
                del at[place[-1]]
            else:
                at[place[-1]] = value
            if place != (CHECKSUM,):
                manifest[CHECKSUM] = checksum(manifest)
            (copy / "delta.json").write_text(json.dumps(manifest))
            try:
                delta = open_delta(copy)
                delta.sizes(), delta.parts(), delta.rank(Q)
                assert bool(torch.isfinite(delta.reconstruct(Q)).all())
            except InputError as error:
                assert "\n" not in str(error)
                refusals += 1
    assert refusals > len(places) * 6


def test_a_shard_that_is_no_file_of_the_folder_is_refused_at_once(copy, tmp_path):
    shard, elsewhere = copy / SHARD, tmp_path / "elsewhere"
    shard.rename(elsewhere)
    os.mkfifo(shard)
    assert "a pipe, a device" in refused(open_delta, copy)
    shard.unlink()
    for target in (elsewhere, "/dev/zero", copy):
        shard.symlink_to(target)
        assert "no file of that folder" in refused(open_delta, copy)
        shard.unlink()
    shard.symlink_to(shard)
    assert "is missing" in refused(open_delta, copy)


def test_the_hub_cache_may_link_to_its_own_blobs(copy, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1234"
    blobs = tmp_path / "models--a--b" / "blobs"
    shutil.copytree(copy, snapshot)
    blobs.mkdir()
    for number, name in enumerate((SHARD, "delta.json", "model/config.json")):
        (snapshot / name).rename(blobs / str(number))
        (snapshot / name).symlink_to(blobs / str(number))
    delta = open_delta(snapshot)
    delta.verify()
    assert delta.reconstruct(Q).isfinite().all()
    (snapshot / SHARD).unlink()
    (snapshot / SHARD).symlink_to(copy / SHARD)  # the same bytes, but of another place
    assert "no file of that folder" in refused(open_delta, snapshot)


@pytest.mark.parametrize(
    "header",
    [b"{", b"[]", b'{"a": 1}', b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 0]}}', b'"' + b"x" * 20],
)
def test_a_header_that_is_none(copy, header):
    data = len(header).to_bytes(8, "little") + header
    (copy / SHARD).write_bytes(data)
    with edited(copy) as manifest:
        manifest["shards"][SHARD]["bytes"] = len(data)
    assert f"shard {SHARD} of delta" in refused(open_delta, copy)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_decodes_to_nan_or_inf_is_refused_with_its_name(copy, value):
    U = torch.zeros(16, 2, dtype=torch.float16)
    U[3, 1] = value
    replace_tensors(copy, SHARD, **{f"{Q}.U": U})
    delta = open_delta(copy)
    for call in (delta.reconstruct, delta.factors):
        assert f"{Q} decodes to NaN or Inf" in refused(call, Q)
    replace_tensors(copy, SHARD, **{f"{Q}.U": U.nan_to_num(0, 0, 0), f"{Q}.s": torch.full((2,), 1e30)})
    assert open_delta(copy).reconstruct(Q).isfinite().all()


def test_a_matrix_of_another_shape_than_the_base_has(models, copy):  # noqa: F811
    with edited(copy) as manifest:
        empty = "model.layers.0.self_attn.k_proj.weight"
        manifest["matrices"][empty]["shape"] = [8, 15]
    assert f"{empty} of shape [8, 15]" in refused(open_delta(copy).check_base, models[0])
    with edited(copy) as manifest:
        manifest["matrices"]["zzz.weight"] = manifest["matrices"].pop(empty)
    assert "has none of this name" in refused(open_delta(copy).check_base, models[0])


def test_facts_that_are_no_numbers_never_reach_an_artifact(models, tmp_path):  # noqa: F811
    run = Run(models, tmp_path / "out")
    shard = run.writer.pending()[0]
    matrices = {name: run.encode(name) for name in shard.matrices}
    matrices[Q].facts["bits"] = float("nan")
    with pytest.raises(InputError, match="bits of .*q_proj.weight is nan"):
        run.writer.write(shard, matrices, {name: run.extras[name] for name in shard.extras})


# Small files


def test_small_files_are_verified_before_they_are_handed_out(copy):
    (copy / "model" / "config.json").write_text("{}")
    assert "config.json is missing or altered" in refused(open_delta(copy).companions)


def test_a_small_file_that_is_not_listed_is_refused_since_a_tokenizer_would_read_it(copy):
    (copy / "model" / "chat_template.jinja").write_text("ignore all of this")
    assert "holds 'chat_template.jinja', which delta.json does not list" in refused(open_delta(copy).companions)
    replace_companion(copy, "chat_template.jinja", b"hello")
    assert [file.name for file in open_delta(copy).companions()][-1] == "chat_template.jinja"


def test_a_small_file_that_links_out_of_the_delta_is_refused(copy, tmp_path):
    config = copy / "model" / "config.json"
    config.rename(tmp_path / "config.json")
    config.symlink_to(tmp_path / "config.json")
    assert "link out of the delta" in refused(open_delta(copy).companions)


def test_damage_that_only_decoding_shows(copy):
    """Of a quantized matrix: the plan, the codes and the mask contradict each other."""
    before = files_of(copy)
    with edited(copy) as manifest:
        matrix(manifest).update(
            encoding="sparse_svd", tensors=["values", "s", "keep"], kept=[5, 5], seed=1, mask="bernoulli", s_1=1.0
        )
        matrix(manifest).update(rescale=True, bytes=5 * 2 * 2 + 2 * 2 + 2 * 2)
    stored = load_file(copy / SHARD)
    for suffix in "UsV":
        del stored[f"{Q}.{suffix}"]
    save_file(stored, copy / SHARD, {"format": "pt"})
    values = {"values": torch.ones(10).half(), "s": torch.ones(2).half()}
    values["keep"] = torch.tensor([100, 100], dtype=torch.int32).to(torch.uint16)
    replace_tensors(copy, SHARD, **{f"{Q}.{suffix}": tensor for suffix, tensor in values.items()})
    assert files_of(copy) != before
    assert f"{Q} cannot be decoded" in refused(open_delta(copy).reconstruct, Q)
