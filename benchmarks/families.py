"""Families of transformers, small: what each config class needs beside the sizes that are common to all."""

from typing import Any

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    "q_lora_rank": 32,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
DELTA_NET = {
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA_2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_n_groups": 1}
TEXT = {**SIZES, "head_dim": 16}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 8,
}

# Name of the config class without Config -> its settings.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Gemma3Text": {"head_dim": 16},
    "Phi3": {},
    "Olmo2": {},
    "Glm4": {"head_dim": 16},
    "Cohere": {},
    "GPT2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "GPTNeoX": {},
    "OPT": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "Falcon": {},
    "Bloom": {"n_layer": 2, "n_head": 4},
    "Mixtral": LOCAL,
    "Phimoe": LOCAL,
    "Qwen2Moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "Qwen3Moe": {**EXPERTS, "head_dim": 16},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "GptOss": {**LOCAL, "head_dim": 16},
    "Llama4Text": {**LOCAL, "head_dim": 16, "intermediate_size_mlp": 96, "interleave_moe_layer_step": 1},
    "GraniteMoe": LOCAL,
    "GraniteMoeShared": {**LOCAL, "shared_intermediate_size": 64},
    "GraniteMoeHybrid": {**LOCAL, **MAMBA_2, "shared_intermediate_size": 64, "layer_types": ["mamba", "attention"]},
    "JetMoe": {**LOCAL, "kv_channels": 16},
    "HunYuanMoEV1": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "Ernie4_5_Moe": {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    "Glm4Moe": {**LATENT, "head_dim": 16, "num_key_value_heads": 2},
    "DeepseekV2": LATENT,
    "DeepseekV3": LATENT,
    "Qwen3Next": {**EXPERTS, **DELTA_NET, "shared_expert_intermediate_size": 32},
    "Qwen3_5Text": DELTA_NET,
    "Qwen3_5MoeText": {**EXPERTS, **DELTA_NET, "shared_expert_intermediate_size": 32},
    "Mamba": {"state_size": 16, "time_step_rank": 8},
    "FalconMamba": {"state_size": 16, "time_step_rank": 8},
    "Mamba2": {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 1},
    "Bamba": {**MAMBA_2, "attn_layer_indices": [1]},
    "FalconH1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 16},
    "NemotronH": {
        "layers_block_type": ["mamba", "attention"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 16,
        "ssm_state_size": 16,
        "n_groups": 1,
        "head_dim": 16,
    },
    "Jamba": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 16,
        "mamba_dt_rank": 8,
        "use_mamba_kernels": False,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention"], "block_ff_dim": 96},
    "Gemma3": {
        "text_config": {**TEXT, "layer_types": ["sliding_attention", "full_attention"]},
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
    },
    "Rwkv": {"attention_hidden_size": 64},
    "Bert": {},
    "ModernBert": {},
    "T5": {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4},
}
# Mixtures that transformers also writes as it runs them, with experts in 3-D tensors.
FUSED = ("Mixtral", "Qwen3Moe", "GraniteMoe", "DeepseekV3")
