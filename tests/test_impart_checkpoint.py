"""Checkpoints: every form that models are published in, and everything that can be wrong with one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checkpoints import SMALL, random_weights, tuned_weights, write_checkpoint
from safetensors.torch import save_file

from impart.architecture import layer_of
from impart.checkpoint import open_checkpoint
from impart.errors import InputError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def weights():
    return random_weights(SMALL)


def refused(source) -> str:
    with pytest.raises(InputError) as error:
        open_checkpoint(source)
    return str(error.value)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("shards", [1, 3])
def test_every_form_reads_the_same(tmp_path, weights, form, shards):
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", weights, form=form, shards=shards))
    assert set(checkpoint.names()) == set(weights) and "nothing" not in checkpoint
    for name, tensor in weights.items():
        assert checkpoint.shape(name) == tuple(tensor.shape) and checkpoint.dtype(name) == torch.bfloat16
        assert torch.equal(checkpoint.tensor(name), tensor) and name in checkpoint
    assert checkpoint.config["model_type"] == "llama" and checkpoint.model_dtype() == torch.bfloat16


def test_the_old_pickle_format_of_torch_reads_too(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights, form="bin")
    torch.save(weights, path / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    assert torch.equal(open_checkpoint(path).tensor("model.norm.weight"), weights["model.norm.weight"])


def test_tensors_are_owned_and_come_in_layer_order(tmp_path, weights):
    many = {f"model.layers.{layer}.mlp.up_proj.weight": torch.full((2, 2), layer) for layer in (0, 2, 10, 9)} | {
        "model.embed_tokens.weight": torch.zeros(3, 2)
    }
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", many))
    assert [layer_of(name) for name in checkpoint.names()] == [None, 0, 2, 9, 10]
    checkpoint.tensor("model.embed_tokens.weight").fill_(7)
    assert torch.equal(checkpoint.tensor("model.embed_tokens.weight"), torch.zeros(3, 2))


def test_safetensors_are_taken_where_both_are_there(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights)
    torch.save({name: tensor + 1 for name, tensor in weights.items()}, path / "pytorch_model.bin")
    assert torch.equal(open_checkpoint(path).tensor("model.norm.weight"), weights["model.norm.weight"])


def test_companions_are_all_small_files_and_no_weights(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights, shards=2)
    for name in ("tokenizer.model", "LICENSE", "training_args.bin", "optimizer.pt", ".gitattributes", "model.gguf"):
        (path / name).touch()
    (path / "original").mkdir()
    assert [file.name for file in open_checkpoint(path).companions()] == [
        "LICENSE",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
    ]


def test_a_bin_file_may_not_run_code(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights, form="bin")

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({**weights, "x": Evil()}, path / "pytorch_model.bin")
    assert "not a plain file of weights" in refused(path)
    assert not (tmp_path / "ran").exists()


# What can be wrong


def test_missing_and_truncated_files_are_named(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights, shards=3)
    second = path / "model-00002-of-00003.safetensors"
    data = second.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 9, 3, 0):
        second.write_bytes(data[:size])
        message = refused(path)
        assert "model-00002-of-00003.safetensors is damaged or truncated" in message and "fetch it again" in message
    second.unlink()
    message = refused(path)
    assert "shard model-00002-of-00003.safetensors of" in message and "is missing" in message
    (path / "model.safetensors.index.json").unlink()
    assert "no index that says what is where" in refused(path)


def test_missing_and_truncated_bin_files_are_named(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights, form="bin", shards=2)
    first = path / "pytorch_model-00001-of-00002.bin"
    data = first.read_bytes()
    for size in (len(data) - 100, len(data) // 2, 10, 0):
        first.write_bytes(data[:size])
        message = refused(path)
        assert "pytorch_model-00001-of-00002.bin is damaged, truncated" in message and "\n" not in message
    first.unlink()
    assert "is missing" in refused(path)


def test_an_index_that_promises_too_much_or_nothing(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights, shards=2)
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(content))
    assert "lacks 'model.extra.weight', which the index of" in refused(path)
    for text in ("{}", '{"weight_map": {}}', '{"weight_map": ["a"]}'):
        index.write_text(text)
        assert "has no weight_map" in refused(path)
    for file in (1, "../other/model.safetensors", "/etc/passwd", "x" * 5000, "a\0b", None, ["a"]):
        index.write_text(json.dumps({"weight_map": {"a": file}}))
        assert "which is no name of a file" in refused(path)
    for text in ("[]", "{", "\xff"):
        index.write_bytes(text.encode("latin-1"))
        assert "model.safetensors.index.json" in refused(path) and "fetch it again" in refused(path)


@pytest.mark.parametrize(
    "content, words",
    [
        (b"{not json", "is not valid JSON"),
        (b'{"a": ' + b"[" * 200_000, "is not valid JSON (maximum recursion depth"),
        (b'{"a": ' + b"1" * 5000 + b"}", "5000 digits"),
        (b"[1]", "holds a JSON list"),
        (b"\xff\xfe", "is not valid JSON"),
        (None, "has no config.json"),
    ],
)
def test_a_broken_config(tmp_path, weights, content, words):
    path = write_checkpoint(tmp_path / "model", weights)
    (path / "config.json").unlink()
    if content is not None:
        (path / "config.json").write_bytes(content)
    assert words in refused(path)


def test_a_folder_without_weights_a_file_and_nothing(tmp_path, weights):
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    assert "has no weights" in refused(tmp_path / "empty")
    assert "is a file; name the model folder" in refused(tmp_path / "empty" / "config.json")
    assert "no such folder, and not a hub id" in refused(tmp_path / "none")
    assert "no such folder, and not a hub id" in refused("./relative/none")
    assert "no such folder, and not a hub id" in refused("just-a-name")


def test_weights_of_a_dtype_that_is_not_supported(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights)
    save_file({"x": torch.ones(2, dtype=torch.complex64)}, path / "model.safetensors")
    message = refused(path)
    assert "C64" in message and "not supported" in message


def test_a_bin_file_that_holds_no_names(tmp_path, weights):
    path = write_checkpoint(tmp_path / "model", weights, form="bin")
    torch.save([torch.ones(2)], path / "pytorch_model.bin")
    assert "holds a list instead of named tensors" in refused(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2])
def test_nan_and_inf_are_found_and_counted(tmp_path, bad, dtype):
    x = torch.zeros(4, 5)
    x[1, 2] = x[3, 0] = bad
    weights = {
        "model.layers.0.mlp.up_proj.weight": x.to(dtype),
        "model.embed_tokens.weight": torch.zeros(3, 5),
        "model.layers.0.steps": torch.arange(3),
    }
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "model", weights))
    with pytest.raises(InputError, match=r"up_proj.weight of '.*model' holds 2 NaN or Inf of 20 values"):
        checkpoint.finite_tensor("model.layers.0.mlp.up_proj.weight")
    assert torch.equal(checkpoint.finite_tensor("model.layers.0.steps"), torch.arange(3))


def test_a_hub_id_is_read_from_the_cache_when_offline(tmp_path, weights):
    name = "owner/model.v1-x_y"
    snapshot = tmp_path / "hub" / "models--owner--model.v1-x_y" / "snapshots" / ("a" * 40)
    write_checkpoint(snapshot, weights)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("a" * 40)
    program = (
        "from impart.checkpoint import open_checkpoint; import sys; "
        "print(open_checkpoint(sys.argv[1]).source, len(open_checkpoint(sys.argv[1]).names()))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", program, name], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == f"{name} {len(weights)}\n", done.stderr


def test_a_hub_id_that_cannot_be_had_names_the_ways_out(tmp_path):
    program = (
        "from impart.checkpoint import open_checkpoint\nfrom impart.errors import run\n"
        "run(lambda arguments: open_checkpoint('owner/none'))"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("error: model 'owner/none'") and done.stderr.count("\n") == 1
    assert "hf auth login" in done.stderr


# Fingerprints


def test_the_fingerprint_is_that_of_the_weights_not_of_the_files(tmp_path, weights):
    weights = dict(weights)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()  # as a tied head, where it is stored
    forms = [
        open_checkpoint(write_checkpoint(tmp_path / f"{form}{shards}", weights, form=form, shards=shards)).fingerprint()
        for form in ("safetensors", "bin")
        for shards in (1, 2)
    ]
    without_head = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    with_buffer = {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    forms += [
        open_checkpoint(write_checkpoint(tmp_path / name, tensors)).fingerprint()
        for name, tensors in (("tied", without_head), ("buffer", with_buffer))
    ]
    assert len(set(forms)) == 1 and len(forms[0]) == 64


def one_row_else(tensor):
    other = tensor.clone()
    other[3] += 1
    return other


def test_every_other_model_has_another_fingerprint(tmp_path, weights):
    name = "model.layers.1.self_attn.q_proj.weight"
    norm = weights["model.norm.weight"].clone()
    norm[3] += 1
    others = [
        weights,
        tuned_weights(weights),
        {**weights, "model.norm.weight": norm},
        {**weights, "lm_head.weight": weights["lm_head.weight"].flip(0)},
        {**weights, "model.embed_tokens.weight": one_row_else(weights["model.embed_tokens.weight"])},
        {**weights, name: one_row_else(weights[name])},
        {**weights, name: weights[name].half()},
        {**weights, name: weights[name][:8]},
        {key: tensor for key, tensor in weights.items() if key != name},
        {**weights, "more.weight": norm},
    ]
    found = [
        open_checkpoint(write_checkpoint(tmp_path / str(number), tensors)).fingerprint()
        for number, tensors in enumerate(others)
    ]
    assert len(set(found)) == len(others)


@pytest.mark.parametrize(
    "files, said",
    [
        ({"model.gguf": b"GGUF"}, "GGUF files, .* give the 16-bit model"),
        ({"adapter_config.json": b"{}"}, "is an adapter, not a whole model"),
        ({"delta.json": b"{}"}, "is a delta, not a whole model"),
        (
            {"config.json": b"{}", "model.safetensors": b"version https://git-lfs.github.com/spec/v1\noid"},
            "git lfs pull",
        ),
        ({"config.json": b"version https://git-lfs.github.com/spec/v1\noid"}, "config.json is a git-lfs pointer"),
        (
            {"config.json": b'{"quantization_config": {"quant_method": "gptq"}}', "model.safetensors": b""},
            "quantized by GPTQ",
        ),
        ({"trainer_state.json": b"{}", "checkpoint-90/x": b"", "checkpoint-120/x": b""}, "as .*checkpoint-120"),
        ({"notes.txt": b""}, "has no config.json"),
    ],
)
def test_a_folder_that_is_no_model_is_said_to_be_what_it_is(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        open_checkpoint(tmp_path)
