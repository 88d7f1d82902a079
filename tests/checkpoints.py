"""Small random checkpoints in the Hugging Face layout, as the tests need them: no training, no hub."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def llama_shapes(
    hidden: int = 64, intermediate: int = 176, layers: int = 2, kv: int = 32, vocabulary: int = 100
) -> dict[str, tuple[int, ...]]:
    """Parameter shapes of a Llama with grouped key/value heads (kv: rows of k_proj and v_proj)."""
    shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (vocabulary, hidden),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.input_layernorm.weight": (hidden,),
            f"{prefix}.post_attention_layernorm.weight": (hidden,),
            f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
            f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
            f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
            f"{prefix}.mlp.gate_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.up_proj.weight": (intermediate, hidden),
            f"{prefix}.mlp.down_proj.weight": (hidden, intermediate),
        }
    return shapes


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.ones(shape).to(dtype)
        if len(shape) == 1
        else (torch.randn(shape, generator=generator) * 0.05).to(dtype)
        for name, shape in shapes.items()
    }


def tuned_weights(base: dict[str, torch.Tensor], seed: int = 1, scale: float = 0.02) -> dict[str, torch.Tensor]:
    """Base plus a delta whose spectrum is a power law, like fine-tuning's; norms and embeddings unchanged."""
    generator, tuned = torch.Generator().manual_seed(seed), {}
    for name, weight in base.items():
        if weight.ndim == 2 and ".layers." in name:
            m, n = weight.shape
            s = scale * torch.arange(1, min(m, n) + 1).float() ** -0.8
            U = torch.linalg.qr(torch.randn(m, len(s), generator=generator)).Q
            V = torch.linalg.qr(torch.randn(n, len(s), generator=generator)).Q
            weight = (weight.float() + (U * s) @ V.T).to(weight.dtype)
        tuned[name] = weight.clone()
    return tuned


SMALL = llama_shapes(hidden=16, intermediate=24, layers=2, kv=8, vocabulary=20)


def write_checkpoint(
    path: Path,
    weights: dict[str, torch.Tensor],
    *,
    shards: int = 1,
    form: str = "safetensors",
    config: dict | None = None,
) -> Path:
    """A model folder; `form` is safetensors or bin, sharded with an index when `shards` > 1."""
    path.mkdir(parents=True)
    layers = 1 + max(
        (int(name.split(".layers.")[1].split(".")[0]) for name in weights if ".layers." in name), default=0
    )
    hidden = weights["model.embed_tokens.weight"].shape[1]
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        **(config or {}),
    }
    (path / "config.json").write_text(json.dumps(settings))
    (path / "generation_config.json").write_text("{}")
    (path / "tokenizer.json").write_text('{"version": "1.0"}')
    stem, suffix = ("model", "safetensors") if form == "safetensors" else ("pytorch_model", "bin")
    names = sorted(weights)
    parts = [names[start::shards] for start in range(shards)]
    index = {}
    for number, part in enumerate(parts, 1):
        file = f"{stem}.{suffix}" if shards == 1 else f"{stem}-{number:05d}-of-{shards:05d}.{suffix}"
        held = {name: weights[name].contiguous() for name in part}
        save_file(held, path / file, {"format": "pt"}) if form == "safetensors" else torch.save(held, path / file)
        index |= dict.fromkeys(part, file)
    if shards > 1:
        (path / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


def llama_pair(folder: Path, *, dtype=torch.bfloat16, scale: float = 0.02, **shape) -> tuple[Path, Path]:
    """A base and a fine-tuned checkpoint below `folder`."""
    base = random_weights(llama_shapes(**shape), dtype=dtype)
    return (
        write_checkpoint(folder / "base", base),
        write_checkpoint(folder / "tuned", tuned_weights(base, scale=scale), shards=2),
    )


# Families of decoders and what sets each of them apart; sizes are common to all.
FAMILIES = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8, "tie_word_embeddings": True},
    "Gemma": {"head_dim": 8},
    "Gemma2": {"head_dim": 8},
    "Phi3": {},
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8},
    "GptOss": {"head_dim": 8, "num_local_experts": 4},
}


def small_model(family: str, **settings):
    """A causal language model of transformers with two layers of width 16 and random weights."""
    import transformers

    config = getattr(transformers, f"{family}Config")(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        **settings,
    )
    return transformers.AutoModelForCausalLM.from_config(config)


def family_pair(folder: Path, family: str) -> tuple[Path, Path]:
    """A base and a fine-tuned model of a real family, made and saved by transformers; every parameter differs."""
    generator = torch.Generator().manual_seed(0)
    model = small_model(family, **FAMILIES[family])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3 + (parameter.ndim == 1))
        model.to(torch.bfloat16).save_pretrained(folder / "base")
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        model.save_pretrained(folder / "tuned")
    return folder / "base", folder / "tuned"
