"""Checkpoints with real tokenizers whose vocabularies differ, for the tests of merging."""

from pathlib import Path

import torch
from checkpoints import llama_shapes, random_weights, write_checkpoint
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

WORDS = ["<unk>", "<s>", "</s>", "the", "fox", "boat", "red", "runs", "sings", "home"]


def write_tokenizer(
    folder: Path, words: list[str] = WORDS, added: tuple[str, ...] = (), template: str | None = None
) -> None:
    """A word-level tokenizer: `words` have the ids 0.., then come the `added` special tokens."""
    (folder / "tokenizer.json").unlink(missing_ok=True)
    plain = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    for token in added:
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False)], special_tokens=True)
    if template is not None:
        tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def llama_with_rows(folder: Path, weights: dict[str, torch.Tensor], tied: bool = False, **tokenizer) -> Path:
    """A loadable Llama folder with these weights and a tokenizer."""
    rows, hidden = weights["model.embed_tokens.weight"].shape
    config = {
        "vocab_size": rows,
        "intermediate_size": weights["model.layers.0.mlp.up_proj.weight"].shape[0],
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden // 4,
        "max_position_embeddings": 64,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    write_checkpoint(folder, weights, config=config)
    write_tokenizer(folder, **tokenizer)
    return folder


def small_weights(rows: int = len(WORDS), seed: int = 0, tied: bool = False) -> dict[str, torch.Tensor]:
    weights = random_weights(llama_shapes(hidden=16, intermediate=24, layers=1, kv=8, vocabulary=rows), seed)
    if tied:
        del weights["lm_head.weight"]
    return weights


def moved_weights(weights: dict[str, torch.Tensor], seed: int, rows: int | None = None) -> dict[str, torch.Tensor]:
    """The weights with a small random step, the vocabulary's parameters with `rows` rows (the new ones random)."""
    generator, moved = torch.Generator().manual_seed(seed), {}
    for name, weight in weights.items():
        if rows is not None and ("embed_tokens" in name or "lm_head" in name):
            extra = torch.randn(rows - len(weight), weight.shape[1], generator=generator) * 0.05
            weight = torch.cat([weight, extra.to(weight.dtype)])
        moved[name] = (weight.float() + 0.005 * torch.randn(weight.shape, generator=generator)).to(weight.dtype)
    return moved
