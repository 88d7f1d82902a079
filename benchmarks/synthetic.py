"""Synthetic weights whose difference looks like fine-tuning's: a power law over a flat bulk, rounded to 16 bit."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast

HEAD = 128  # columns of an attention head
WORDS, POSITIONS = 1000, 2048  # of the wide models: their embeddings weigh nothing, and take calibration text
BASE_SCALE = 0.02  # standard deviation of the base's entries
EXPONENT = 0.7  # of the power law that singular values follow
BULK = 0.05  # largest singular value of the flat part, over the power law's first


def base_weight(m: int, n: int, generator: torch.Generator, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """W_base (m, n)."""
    return (_randn(m, n, generator) * BASE_SCALE).to(dtype)


def tuned_weight(base: torch.Tensor, generator: torch.Generator, relative_size: float = 0.1) -> torch.Tensor:
    """W_finetuned (m, n) in the base's dtype; norm(dW) is about `relative_size` of norm(W_base)."""
    m, n = base.shape
    N = min(m, n)
    s = torch.arange(1, N + 1, device=base.device).float() ** -EXPONENT
    # Gaussian factors are orthonormal enough once divided by the roots of their lengths.
    dW = (_randn(m, N, generator) * s) @ _randn(N, n, generator) / (m * n) ** 0.5
    dW += BULK / (m**0.5 + n**0.5) * _randn(m, n, generator)
    dW *= relative_size * torch.linalg.norm(base.float()) / torch.linalg.norm(dW)
    return (base.float() + dW).to(base.dtype)


def delta(m: int, n: int, seed: int = 0, device: torch.device | str = "cpu") -> torch.Tensor:
    """dW (m, n) in fp32: what is left of a fine-tuning step between two 16-bit models, their rounding included."""
    generator = torch.Generator(device).manual_seed(seed)
    base = base_weight(m, n, generator)
    return tuned_weight(base, generator).float() - base.float()


def llama_pair(
    folder: Path, layers: int, device: torch.device, hidden: int = 5120, intermediate: int = 13824
) -> tuple[Path, Path, Path]:
    """Folders of a base and a fine-tuned Llama of this depth, by default of a 13B model's width; calibration text."""
    config = LlamaConfig(
        vocab_size=WORDS,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD,
        num_key_value_heads=hidden // HEAD,
        max_position_embeddings=POSITIONS,
        architectures=["LlamaForCausalLM"],
        dtype="bfloat16",
    )
    base, tuned, text = folder / "base", folder / "tuned", folder / "text.txt"
    words = [f"w{index}" for index in range(WORDS)]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for path in (base, tuned):
        path.mkdir()
        config.save_pretrained(path)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token=words[0]).save_pretrained(path)
    drawn = torch.randint(WORDS, (POSITIONS * 160,), generator=torch.Generator().manual_seed(0))
    text.write_text(" ".join(words[index] for index in drawn.tolist()))
    with ThreadPoolExecutor(8) as pool:
        files = pool.map(lambda layer: _write_layer(base, tuned, config, layer, device), [*range(layers), None])
        placed = {name: file for names, file in files for name in names}
    for path in (base, tuned):
        (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    return base, tuned, text


def _write_layer(
    base: Path, tuned: Path, config: LlamaConfig, layer: int | None, device: torch.device
) -> tuple[list[str], str]:
    """One layer of both models, or what lies outside of them -> names of its tensors, name of its file."""
    hidden, mlp, prefix = config.hidden_size, config.intermediate_size, f"model.layers.{layer}"
    generator = torch.Generator(device).manual_seed(1 if layer is None else 2 + layer)
    norms = [f"{prefix}.{kind}_layernorm" for kind in ("input", "post_attention")]
    shapes = {f"{prefix}.self_attn.{kind}_proj": (hidden, hidden) for kind in "qkvo"}
    shapes |= {f"{prefix}.mlp.{kind}_proj": (mlp, hidden) for kind in ("gate", "up")}
    shapes[f"{prefix}.mlp.down_proj"] = (hidden, mlp)
    if layer is None:
        norms, shapes = ["model.norm"], dict.fromkeys(("model.embed_tokens", "lm_head"), (WORDS, hidden))
    ours = {f"{name}.weight": torch.ones(hidden, dtype=torch.bfloat16) for name in norms}
    theirs, file = dict(ours), "rest.safetensors" if layer is None else f"layer-{layer:05d}.safetensors"
    for name, shape in shapes.items():
        weight = base_weight(*shape, generator)
        changed = weight if layer is None else tuned_weight(weight, generator)
        ours[f"{name}.weight"], theirs[f"{name}.weight"] = weight.cpu(), changed.cpu()
    for path, weights in ((base, ours), (tuned, theirs)):
        save_file(weights, path / file, {"format": "pt"})
    return list(ours), file


def _randn(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, columns, generator=generator, device=generator.device)
