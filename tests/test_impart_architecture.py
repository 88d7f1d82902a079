"""Names that hang on an architecture: what is compressed, which layer and type a parameter belongs to."""

from collections import Counter

import pytest
import torch
from checkpoints import small_model, write_checkpoint

from impart.architecture import is_linear, layer_of, linear_names, weight_type
from impart.checkpoint import open_checkpoint

LINEAR_NAMES = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.layers.31.mlp.down_proj.weight",
    "layers.3.self_attn.k_proj.weight",
    "model.language_model.layers.2.mlp.gate_proj.weight",
    "model.layers.7.self_attn.qkv_proj.weight",
    "model.layers.7.mlp.gate_up_proj.weight",
    "model.layers.0.block_sparse_moe.experts.7.w1.weight",
    "model.layers.0.mlp.experts.59.gate_proj.weight",
    "model.layers.0.mlp.shared_expert.up_proj.weight",
    "model.layers.0.self_attn.kv_a_proj_with_mqa.weight",
    "model.layers.0.self_attention.kv_proj.weight",  # JetMoe
    "model.layers.0.cross_attn.q_proj.weight",
    "model.layers.0.linear_attn.in_proj_qkvz.weight",  # Qwen3-Next
    "backbone.layers.1.mixer.in_proj.weight",  # Mamba, Mamba-2, FalconMamba
    "model.layers.1.mamba.out_proj.weight",  # Jamba
    "model.layers.0.feed_forward.w1.weight",
    "model.layers.0.feed_forward.shared_expert.up_proj.weight",  # Llama 4
    "model.layers.0.shared_mlp.input_linear.weight",  # GraniteMoeShared
    "model.vision_tower.vision_model.encoder.layers.3.mlp.fc1.weight",
    "model.visual.blocks.3.attn.qkv.weight",
    "model.decoder.layers.3.fc1.weight",  # OPT
    "transformer.h.3.attn.c_attn.weight",  # GPT-2
    "bert.encoder.layer.3.attention.self.query.weight",
    "bert.encoder.layer.3.intermediate.dense.weight",
    "encoder.block.2.layer.1.DenseReluDense.wi.weight",  # T5
]
OTHER_NAMES = [
    "model.layers.0.self_attention.experts.router.layer.weight",
    "model.layers.0.block_sparse_moe.router.layer.weight",  # GraniteMoe, JetMoe
    "model.layers.0.mlp.gate.wg.weight",  # HunYuan
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.0.input_layernorm.weight",
    "model.layers.0.self_attn.q_proj.bias",
    "model.layers.0.block_sparse_moe.gate.weight",
    "model.layers.0.mlp.gate.weight",
    "model.layers.0.mlp.shared_expert_gate.weight",
    "model.layers.0.mlp.experts.gate_up_proj",
    "model.layers.0.mlp.router.weight",
    "model.layers.0.self_attn.rotary_emb.inv_freq",
    "model.layers.0.self_attn.q_proj.weight_scale",
    "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",  # T5
    "backbone.layers.0.mixer.A_log",  # Mamba
    "model.layers.0.mamba.conv1d.bias",
    "bert.encoder.layer.0.attention.output.LayerNorm.weight",
    "bert.embeddings.position_embeddings.weight",
    "model.layers.0.post_feedforward_layernorm.weight",
    "model.layers.x.mlp.up_proj.weight",
    "model.mlp.up_proj.weight",
]


def test_linear_names_by_pattern():
    assert [name for name in LINEAR_NAMES if not is_linear(name)] == []
    assert [name for name in OTHER_NAMES if is_linear(name)] == []


def test_only_matrices_are_linear(tmp_path):
    weights = {
        "model.layers.0.self_attn.q_norm.weight": torch.ones(4),
        "model.layers.0.mlp.experts.weight": torch.ones(2, 3, 4),
        "model.layers.0.mlp.shared_gate.weight": torch.ones(1, 4),
        "model.embed_tokens.weight": torch.ones(4, 4),
        "model.layers.0.mlp.up_proj.weight": torch.ones(2, 4),
    }
    assert linear_names(open_checkpoint(write_checkpoint(tmp_path / "m", weights))) == [
        "model.layers.0.mlp.up_proj.weight"
    ]


def test_layers_and_types_of_names():
    assert [layer_of(name) for name in LINEAR_NAMES[:11]] == [0, 31, 3, 2, 7, 7, 0, 0, 0, 0, 0]
    assert [layer_of(name) for name in LINEAR_NAMES[-5:]] == [3, 3, 3, 3, 2]
    assert layer_of("transformer.h.11.mlp.weight") == 11 and layer_of("lm_head.weight") is None
    assert weight_type("model.layers.0.mlp.experts.gate_up_proj[3]") == "mlp.experts.gate_up_proj"
    assert weight_type("bert.encoder.layer.3.attention.self.query.weight") == "attention.self.query"
    assert [weight_type(name) for name in LINEAR_NAMES[:11]] == [
        "self_attn.q_proj",
        "mlp.down_proj",
        "self_attn.k_proj",
        "mlp.gate_proj",
        "self_attn.qkv_proj",
        "mlp.gate_up_proj",
        "block_sparse_moe.experts.w1",
        "mlp.experts.gate_proj",
        "mlp.shared_expert.up_proj",
        "self_attn.kv_a_proj_with_mqa",
        "self_attention.kv_proj",
    ]


def types_of(tmp_path, kind, **settings):
    """Types and counts of the compressed set of a model that transformers makes and saves, and what is left out."""
    small_model(kind, **settings).save_pretrained(tmp_path / kind)
    checkpoint = open_checkpoint(tmp_path / kind)
    chosen = linear_names(checkpoint)
    return Counter(map(weight_type, chosen)), [name for name in checkpoint.names() if name not in set(chosen)]


LLAMA = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


@pytest.mark.parametrize(
    "kind, settings",
    [
        ("Llama", {}),
        ("Mistral", {}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 8, "tie_word_embeddings": True}),
        ("Gemma", {"head_dim": 8}),
        ("Gemma2", {"head_dim": 8}),
    ],
)
def test_real_decoders_have_seven_linear_types(tmp_path, kind, settings):
    types, others = types_of(tmp_path, kind, **settings)
    assert types == dict.fromkeys(LLAMA, 2)
    assert all("norm" in name or "bias" in name or "embed" in name or "lm_head" in name for name in others)
    assert any("bias" in name for name in others) == (kind == "Qwen2")
    assert any("q_norm" in name for name in others) == (kind == "Qwen3")


def test_fused_projections_are_taken_as_they_are(tmp_path):
    types, _ = types_of(tmp_path, "Phi3")
    assert types == dict.fromkeys(("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"), 2)


def test_a_mixture_is_taken_expert_by_expert_and_its_router_left_out(tmp_path):
    types, others = types_of(tmp_path, "Mixtral", num_local_experts=4)
    attention = dict.fromkeys(LLAMA[:4], 2)
    per_expert = {f"block_sparse_moe.experts.{w}": 8 for w in ("w1", "w2", "w3")}
    assert types == attention | per_expert
    assert [name for name in others if "gate" in name] == [
        f"model.layers.{i}.block_sparse_moe.gate.weight" for i in (0, 1)
    ]
