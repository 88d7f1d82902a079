"""The start of the tiny base model: random, except for the two attention heads with which a transformer copies.

A model of this size learns the other things it is taught within minutes, but the pair of heads that finds an earlier
occurrence of the current token and copies what followed it forms late and by luck. So training starts with a rough
pair, and shapes it further: in layer 0 a head that looks one token back, in layer 1 one that looks for the place whose
previous token is the current one.
"""

import math

import torch
from transformers import LlamaForCausalLM

EMBEDDING_STD = 0.3
CONSTANT = 0.6  # share of a direction that all tokens have in common, on which the position-only head works
SHARP_BACK = 6.0
SHARP_MATCH = 3.0
HEAD_START = 0.2  # of the embedding, in the output weights


def _orthonormal(rows: int, width: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(width, rows, generator=generator))[0].T  # (rows, width)


@torch.no_grad()
def start_with_copy_heads(model: LlamaForCausalLM, seed: int) -> None:
    """Overwrites the embeddings and the first key/value group of layers 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    width, size = config.hidden_size, config.head_dim
    half, quarter = size // 2, size // 4
    common, *rest = _orthonormal(1 + half + size, width, generator)
    read, content = torch.stack(rest[:half]), torch.stack(rest[half:])  # (half, width), (size, width)
    write = _orthonormal(half, width, generator)  # where layer 0 leaves the previous token

    tokens = torch.randn(config.vocab_size, width, generator=generator) * EMBEDDING_STD
    tokens -= torch.outer(tokens @ common, common)
    model.lm_head.weight += HEAD_START * tokens
    model.model.embed_tokens.weight.copy_(tokens + common * EMBEDDING_STD * math.sqrt(width) * CONSTANT)

    # Rotary pairs are (i, i + half). The fast ones tell neighbours apart, the slow ones hardly see the distance.
    pair = torch.arange(size) % half
    fast, slow = (pair < size // 8).float(), torch.nonzero(pair >= quarter).flatten()
    angle = config.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)
    ahead = torch.cat([torch.cos(angle), -torch.sin(angle)]) * fast  # turned so that the best match is one token back
    here = torch.cat([torch.ones(half), torch.zeros(half)]) * fast
    level = CONSTANT / math.sqrt(1 + CONSTANT**2) * math.sqrt(width)  # of a normalised token along `common`

    back, match = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    back.q_proj.weight[:size] = torch.outer(ahead, common) * SHARP_BACK / level
    back.k_proj.weight[:size] = torch.outer(here, common) * SHARP_BACK / level
    back.v_proj.weight[:size] = 0
    back.v_proj.weight[slow] = read
    back.o_proj.weight[:, :size] = 0
    back.o_proj.weight[:, slow] = write.T * EMBEDDING_STD
    match.q_proj.weight[:size] = 0
    match.q_proj.weight[slow] = read * SHARP_MATCH
    match.k_proj.weight[:size] = 0
    match.k_proj.weight[slow] = write * SHARP_MATCH
    match.v_proj.weight[:size] = content
    match.o_proj.weight[:, :size] = content.T * EMBEDDING_STD
