"""Every name that hangs on an architecture: which parameters are linear weights, experts, routers, embeddings, buffers.

An architecture with other names costs this file and no other.
"""

import re
from collections.abc import Sequence
from typing import Any, Protocol

from impart.errors import InputError

LINEAR = re.compile(r"(?:^|\.)layers\.(?P<layer>\d+)\.(?:.*\.)?(?:self_att\w+|mlp|block_sparse_moe)\.(?:.+)\.weight$")
# departs from the paper, which has no mixtures: a router compares near-equal scores, is tiny, and stays exact.
ROUTER = re.compile(r"\.(?:gate|router|shared_expert_gate)(?:\.(?:wg|layer))?\.weight$")
VOCABULARY = re.compile(r"(?:^|\.)(?:embed_tokens|lm_head|wte|embed_in|embed_out|word_embeddings)\.(?:weight|bias)$")
LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
ATTENTION = re.compile(r"(?:^|\.)self_att(?:n|ention)\.")
EMBEDDING, HEAD = "embed_tokens.weight", "lm_head.weight"  # ends of their names
BUFFERS = "rotary_emb.inv_freq"  # computed when a model is loaded; only old checkpoints store it

# Keys of config.json. Two models with other values of the first are no pair, of the second cannot be merged.
IDENTITY = ("model_type", "hidden_size", "num_hidden_layers")
STRUCTURE = (
    *IDENTITY,
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "num_experts",
    "num_local_experts",
)
COUNTS = (*IDENTITY[1:], "vocab_size", "max_position_embeddings")  # whole numbers, where a config has them
# Where config.json of a multimodal model keeps the settings of its language model, vocab_size among them.
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


class Parameters(Protocol):
    """What has named parameters with shapes: a checkpoint."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


def linear_names(checkpoint: Parameters) -> list[str]:
    """The compressed set: every 2-D weight under self_attn or mlp of a layer, experts included, in layer order."""
    return [name for name in checkpoint.names() if _is_matrix(checkpoint.shape(name)) and is_linear(name)]


def is_linear(name: str) -> bool:
    """Whether the name is that of a linear weight of a layer, routers left out."""
    return LINEAR.search(name) is not None and not ROUTER.search(name)


def is_attention(name: str) -> bool:
    """Whether a linear weight belongs to attention; the others are mlp's."""
    return ATTENTION.search(name) is not None


def is_vocabulary(name: str) -> bool:
    """Whether the first dimension of a parameter counts tokens."""
    return VOCABULARY.search(name) is not None


def layer_of(name: str) -> int | None:
    """The transformer layer that a parameter belongs to, None for embeddings, head and final norm."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def layers_prefix(name: str) -> str:
    """`model.layers` of `model.layers.0.self_attn.q_proj.weight`."""
    return name[: name.index("layers.") + len("layers")]


def weight_type(name: str) -> str:
    """`self_attn.q_proj` of `model.layers.0.self_attn.q_proj.weight`; experts count as one type."""
    text = re.sub(r"^.*?(?:^|\.)layers\.\d+\.", "", name).removesuffix(".weight")
    return re.sub(r"\.experts\.\d+\.", ".experts.", text)


def rope_theta(config: dict[str, Any]) -> float:
    """The base of the rotary embeddings, under either of its two places; Llama's default where it is in neither."""
    nested = config.get("rope_parameters")
    found = config.get("rope_theta") or (nested.get("rope_theta") if isinstance(nested, dict) else None)
    return float(found) if isinstance(found, int | float) else 10000.0


def select_matrices(
    linear: Sequence[str],
    owner: str,
    weight_types: Sequence[str] | None = None,
    layer_num: int | None = None,
    weight_name: str | None = None,
) -> list[str]:
    """The names to compress of the `linear` ones that `owner` has: all, or those that the authors' keys spell out."""
    if not linear:
        raise InputError(
            f"{owner!r} has no linear weights under self_attn or mlp; is it a decoder in the Hugging Face layout?"
        )
    known = {weight_type(name) for name in linear}
    if weight_types == []:
        raise InputError(f"weight_types is empty; {owner!r} has {', '.join(sorted(known))}")
    chosen = known if weight_types is None else weight_types
    for kind in chosen:
        if kind not in known:
            raise InputError(f"weight_types: {kind!r} is not in {owner!r}, which has {', '.join(sorted(known))}")
    if layer_num is None and weight_name is None:
        return [name for name in linear if weight_type(name) in chosen]
    if layer_num is None or weight_name is None:
        raise InputError(
            "layer_num and weight_name belong together: the one counts through the other; give both or none"
        )
    try:
        wanted = {
            weight_name.format(layer_num=layer, weight_type=kind).removesuffix(".weight") + ".weight"
            for layer in range(layer_num)
            for kind in chosen
        }
    except (LookupError, ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"weight_name={weight_name!r} is no pattern: in braces it may hold layer_num and weight_type only ({error})"
        ) from error
    unknown = sorted(wanted - set(linear))
    if unknown:
        layers = 1 + max(layer for name in linear if (layer := layer_of(name)) is not None)
        raise InputError(
            f"{unknown[0]} is not among the linear weights of {owner!r}, which has {layers} layers; "
            f"check layer_num={layer_num} and weight_name={weight_name!r}"
        )
    return [name for name in linear if name in wanted]


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and min(shape) > 1
