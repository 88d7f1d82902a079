"""Random Llamas with a byte-level tokenizer and many positions, for the benchmarks whose prompts are long."""

from pathlib import Path

SPECIAL = ("<s>", "</s>", "<pad>")
CHAT = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def byte_llama(folder: Path, *, seed: int = 0, positions: int = 8192, chat: str | None = None) -> Path:
    """A model folder: 2 layers of 128, one token per byte, untrained; `chat` is the tokenizer's chat template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.chat_template = chat
    fast.save_pretrained(folder)
    torch.manual_seed(seed)
    # vLLM's attention on a CPU takes heads of 32 and more
    config = LlamaConfig(
        vocab_size=len(vocabulary()),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def vocabulary() -> dict[str, int]:
    """token -> id of the byte-level tokenizer."""
    from tokenizers import pre_tokenizers

    return {token: index for index, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
