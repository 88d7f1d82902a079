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
        assert [short(stage) for stage in activations.stages(layer, names)] == (FUSED if kind == "phi3" else USUAL)
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
            assert torch.allclose(found[name], gathered[name], rtol=1e-4, atol=1e-6)
        activations.advance(layer)


def test_a_full_gpu_moves_the_activations_to_main_memory(tmp_path, caplog):
    """The allocator's own error, raised by the pass: the work is done again, once, and the result is the same."""
    _, checkpoint = make(tmp_path, "llama")
    decoder, ids = streamed(checkpoint), torch.randint(3, 96, (4, 24))
    activations = Activations(decoder, ids, batch=2)
    load(decoder, checkpoint, 0)
    name = linear_names(checkpoint)[0]
    expected = activations.hessians(0, [name])[name]
    inputs, failures = decoder.inputs, iter([True, False, False])

    def full_once(*arguments):
        if next(failures):
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield from inputs(*arguments)

    decoder.inputs = full_once
    assert torch.equal(activations.hessians(0, [name])[name], expected)
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
    with pytest.raises(InputError, match="model.layers.0.spare.weight takes no part"):
        activations.stages(0, ["model.layers.0.self_attn.q_proj.weight", "model.layers.0.spare.weight"])


def test_a_mixture_of_experts_is_refused(tmp_path):
    from transformers import MixtralConfig

    sizes = {**SIZES, "num_local_experts": 2, "num_experts_per_tok": 1}
    AutoModelForCausalLM.from_config(MixtralConfig(**sizes)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="stores as it runs it .mixtures of experts are not"):
        streamed(open_checkpoint(tmp_path))


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
