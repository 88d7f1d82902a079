"""A decoder run layer by layer gives the whole model's outputs, for every dense architecture, and sees its inputs."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from impart.architecture import layer_of, linear_names
from impart.checkpoint import open_checkpoint
from impart.errors import InputError
from quantize.activations import Activations
from quantize.streamed import StreamedDecoder

SIZES = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
FUSED = [["qkv_proj"], ["o_proj"], ["gate_up_proj"], ["down_proj"]]
USUAL = [["q_proj", "k_proj", "v_proj"], ["o_proj"], ["gate_proj", "up_proj"], ["down_proj"]]
ARCHITECTURES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 12},
    "phi3": {},
    "gemma": {"head_dim": 12},
    "gemma2": {"head_dim": 12, "sliding_window": 8},
    "gemma3_text": {"head_dim": 12, "sliding_window": 8},
}


@pytest.fixture(autouse=True, scope="module")
def quiet():
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()


def make(folder: Path, kind: str, **changes):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(kind, **{**SIZES, **ARCHITECTURES[kind], **changes})
    ).eval()
    model.save_pretrained(folder)
    return model, open_checkpoint(folder)


def streamed(checkpoint):
    return StreamedDecoder(checkpoint, "model.layers", torch.device("cpu"), torch.float32)


def load(decoder, checkpoint, layer):
    decoder.load(layer, {name: checkpoint.tensor(name) for name in decoder.parameter_names(layer)})


def short(names):
    return [name.split(".")[-2] for name in names]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_layer_by_layer_is_the_whole_model(tmp_path, kind):
    model, checkpoint = make(tmp_path, kind)
    decoder, ids = streamed(checkpoint), torch.randint(3, 96, (5, 24))
    activations = Activations(decoder, ids, batch=2)  # the last batch is smaller
    for layer in range(3):
        load(decoder, checkpoint, layer)
        names = [name for name in linear_names(checkpoint) if layer_of(name) == layer]
        assert [short(group) for stage in activations.stages(layer, names) for group in stage] == (
            FUSED if kind == "phi3" else USUAL
        )
        activations.advance(layer)
        decoder.unload(layer)
    with torch.no_grad():
        expected = model.model(ids).last_hidden_state
        found = torch.cat([decoder._trunk.norm(hidden) for hidden in activations._inputs])
    assert torch.allclose(found, expected, atol=1e-6)


def test_only_one_layer_has_weights(tmp_path):
    _, checkpoint = make(tmp_path, "llama")
    decoder = streamed(checkpoint)
    assert all(parameter.is_meta for layer in decoder.layers for parameter in layer.parameters())
    load(decoder, checkpoint, 1)
    assert [any(parameter.is_meta for parameter in layer.parameters()) for layer in decoder.layers] == [
        True,
        False,
        True,
    ]
    decoder.unload(1)
    assert all(parameter.is_meta for parameter in decoder.layers[1].parameters())


def test_hessians_are_those_of_the_whole_model(tmp_path):
    """Gathered by hooks while the real model runs, against the streamed passes that stop early."""
    model, checkpoint = make(tmp_path, "llama")
    ids, gathered = torch.randint(3, 96, (4, 24)), {}

    def gather(name):
        def hook(module, arguments):
            x = arguments[0].detach().flatten(0, -2)
            gathered[name] = 2 / ids.numel() * x.T @ x

        return hook

    for name in linear_names(checkpoint):
        model.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(gather(name))
    with torch.no_grad():
        model(ids)
    decoder = streamed(checkpoint)
    activations = Activations(decoder, ids, batch=3)
    for layer in range(3):
        load(decoder, checkpoint, layer)
        names = [name for name in linear_names(checkpoint) if layer_of(name) == layer]
        found = activations.hessians(layer, names)
        for name in names:
            assert torch.allclose(found[name].H, gathered[name], rtol=1e-4, atol=1e-6)
        activations.advance(layer)


def test_a_full_gpu_moves_the_activations_to_main_memory(tmp_path, caplog):
    """The allocator's own error, raised by the pass: the work is done again, once, and the result is the same."""
    _, checkpoint = make(tmp_path, "llama")
    decoder, ids = streamed(checkpoint), torch.randint(3, 96, (4, 24))
    activations = Activations(decoder, ids, batch=2)
    load(decoder, checkpoint, 0)
    name = linear_names(checkpoint)[0]
    expected = activations.hessians(0, [name])[name].H
    inputs, failures = decoder.inputs, iter([True, False, False])

    def full_once(*arguments):
        if next(failures):
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from inputs(*arguments)

    decoder.inputs = full_once
    assert torch.equal(activations.hessians(0, [name])[name].H, expected)
    assert "the GPU is full: the calibration activations go to main memory" in caplog.text
    failures = iter([True])
    with pytest.raises(InputError, match="too small even with the activations in main memory; take a smaller batch"):
        activations.hessians(0, [name])


def test_a_gpu_that_stays_full_is_an_input_error(tmp_path):
    _, checkpoint = make(tmp_path, "llama")
    activations = Activations(streamed(checkpoint), torch.randint(3, 96, (1, 8)), batch=1)

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(InputError, match="too small even with the activations in main memory"):
        activations.with_room(full)


def test_a_module_that_the_layer_never_calls(tmp_path):
    _, checkpoint = make(tmp_path, "llama")
    decoder = streamed(checkpoint)
    activations = Activations(decoder, torch.randint(3, 96, (1, 8)), batch=1)
    load(decoder, checkpoint, 0)
    decoder.layers[0].spare = torch.nn.Linear(4, 4)
    names = ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.spare.weight"]
    assert activations.stages(0, names) == [[names[:1]]]


def test_an_architecture_that_transformers_does_not_have(tmp_path):
    _, checkpoint = make(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "nosuch", "architectures": ["NoSuch"]}))
    with pytest.raises(
        InputError, match="its config cannot be loaded .*nosuch.* an architecture that this transformers has"
    ):
        streamed(open_checkpoint(tmp_path))


def test_another_layout_is_refused(tmp_path):
    _, checkpoint = make(tmp_path, "llama")
    with pytest.raises(InputError, match="has no 'decoder.layers', where the weights"):
        StreamedDecoder(checkpoint, "decoder.layers", torch.device("cpu"), torch.float32)


MIXTURES = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "head_dim": 12},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 12},
    "llama4_text": {
        "num_local_experts": 4,
        "head_dim": 12,
        "intermediate_size_mlp": 80,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 64,
    },
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "jetmoe": {"num_local_experts": 4, "num_experts_per_tok": 2, "kv_channels": 12, "num_key_value_heads": 2},
}


def make_mixture(folder, kind, **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SIZES, **MIXTURES[kind], **changes})
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # transformers leaves some experts empty
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.2 + (parameter.ndim == 1))
    model.save_pretrained(folder)
    return model, open_checkpoint(folder)


@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_layer_by_layer_is_the_whole_model(tmp_path, kind):
    model, checkpoint = make_mixture(tmp_path, kind)
    decoder, ids = streamed(checkpoint), torch.randint(3, 96, (4, 16))
    activations = Activations(decoder, ids, batch=2)
    for layer in range(3):
        load(decoder, checkpoint, layer)
        names = [name for name in linear_names(checkpoint) if layer_of(name) == layer]
        stages = activations.stages(layer, names)
        assert sorted(name for stage in stages for group in stage for name in group) == sorted(names)
        activations.advance(layer)
        decoder.unload(layer)
    with torch.no_grad():
        expected = model.model(ids).last_hidden_state
    found = torch.cat([decoder._trunk.norm(hidden) for hidden in activations._inputs])
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", MIXTURES)
def test_what_an_expert_s_hessian_is_gathered_from_is_what_its_matrix_is_given(tmp_path, kind, monkeypatch):
    """Against the products that the model's own loop over experts computes."""
    model, checkpoint = make_mixture(tmp_path, kind)
    model.set_experts_implementation("eager")
    ids, products = torch.randint(3, 96, (2, 16)), []
    decoder = streamed(checkpoint)
    activations = Activations(decoder, ids, batch=2)
    load(decoder, checkpoint, 0)
    own = [name for name in linear_names(checkpoint) if layer_of(name) == 0]
    names = [name for name in own if "experts" in name or "input_linear" in name]
    gathered = activations.hessians(0, names)
    routed = {name: checkpoint.tensor(name) for name in names}

    class Record(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), keywords=None):
            if function in (
                torch.nn.functional.linear,
                torch.Tensor.matmul,
                torch.matmul,
                torch.bmm,
                torch.Tensor.__matmul__,
            ):
                products.append((function, arguments[0].detach(), arguments[1].detach()))
            return function(*arguments, **(keywords or {}))

    with torch.no_grad(), Record():
        model(ids)
    for name, weight in routed.items():
        expected = torch.zeros(weight.shape[1], weight.shape[1])
        for function, x, W in products:
            for one, matrix in zip(
                x.flatten(0, -3) if function is torch.bmm else [x], W if W.ndim == 3 else [W], strict=False
            ):
                for candidate in (matrix, matrix.mT):
                    rows = candidate.shape[0] // len(weight) if len(candidate) % len(weight) == 0 else 0
                    if candidate.shape[1] == weight.shape[1] and any(
                        torch.equal(candidate[i * len(weight) : (i + 1) * len(weight)], weight) for i in range(rows)
                    ):
                        flat = one.flatten(0, -2)
                        expected += 2 / ids.numel() * flat.T @ flat
                        break
        found = gathered[name].H if name in gathered else torch.zeros_like(expected)
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-5), name
    assert sum(gathered[name].tokens for name in names if name in gathered) > 0


def test_experts_of_one_tensor_are_loaded_slice_by_slice(tmp_path):
    _, checkpoint = make_mixture(tmp_path, "gpt_oss")
    decoder = streamed(checkpoint)
    load(decoder, checkpoint, 0)
    name = "model.layers.0.mlp.experts.down_proj[2]"
    changed = checkpoint.tensor(name) + 1
    decoder.load(0, {name: changed})
    held = decoder.layers[0].mlp.experts.down_proj
    assert torch.equal(held[2], changed.T) and torch.equal(held[1], checkpoint.tensor(name[:-3])[1])


def test_hessians_of_experts_are_gathered_in_as_many_passes_as_they_have_room_for(tmp_path, monkeypatch):
    _, checkpoint = make_mixture(tmp_path, "mixtral")
    decoder = streamed(checkpoint)
    activations = Activations(decoder, torch.randint(3, 96, (1, 8)), batch=1)
    load(decoder, checkpoint, 0)
    names = [name for name in linear_names(checkpoint) if layer_of(name) == 0 and "experts" in name]
    monkeypatch.setattr("quantize.streamed.HESSIAN_BYTES", 3 * 4 * 48**2)
    stages = activations.stages(0, names)
    assert [[short(group) for group in stage] for stage in stages] == [
        [["w1", "w3"]] * 3,
        [["w1", "w3"]],
        [["w2"]],
        [["w2"]],
        [["w2"]],
        [["w2"]],
    ]
