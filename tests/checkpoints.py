"""Small random checkpoints in the Hugging Face layout, as the tests need them: no training, no hub."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file


def llama_shapes(hidden: int = 64, intermediate: int = 176, layers: int = 2, kv: int = 32,
                 vocabulary: int = 100) -> dict[str, tuple[int, ...]]:
    """Parameter shapes of a Llama with grouped key/value heads (kv: rows of k_proj and v_proj)."""
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,),
              "lm_head.weight": (vocabulary, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.input_layernorm.weight": (hidden,),
                   f"{prefix}.post_attention_layernorm.weight": (hidden,),
                   f"{prefix}.self_attn.q_proj.weight": (hidden, hidden),
                   f"{prefix}.self_attn.k_proj.weight": (kv, hidden),
                   f"{prefix}.self_attn.v_proj.weight": (kv, hidden),
                   f"{prefix}.self_attn.o_proj.weight": (hidden, hidden),
                   f"{prefix}.mlp.gate_proj.weight": (intermediate, hidden),
                   f"{prefix}.mlp.up_proj.weight": (intermediate, hidden),
                   f"{prefix}.mlp.down_proj.weight": (hidden, intermediate)}
    return shapes


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int = 0, dtype=torch.bfloat16) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.ones(shape).to(dtype) if len(shape) == 1
            else (torch.randn(shape, generator=generator) * 0.05).to(dtype) for name, shape in shapes.items()}


def tuned_weights(base: dict[str, torch.Tensor], seed: int = 1, scale: float = 0.02) -> dict[str, torch.Tensor]:
    """Base plus a delta whose spectrum falls like a power law, as fine-tuning's does; norms and embeddings unchanged."""
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


def write_checkpoint(path: Path, weights: dict[str, torch.Tensor], *, shards: int = 1, form: str = "safetensors",
                     config: dict | None = None) -> Path:
    """A model folder; `form` is safetensors or bin, sharded with an index when `shards` > 1."""
    path.mkdir(parents=True)
    layers = 1 + max(int(name.split(".layers.")[1].split(".")[0]) for name in weights if ".layers." in name)
    hidden = weights["model.embed_tokens.weight"].shape[1]
    settings = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
                "num_hidden_layers": layers, **(config or {})}
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
    return (write_checkpoint(folder / "base", base),
            write_checkpoint(folder / "tuned", tuned_weights(base, scale=scale), shards=2))
