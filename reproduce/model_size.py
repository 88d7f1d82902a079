"""What a model's config.json says of its size: parameters, those that a token passes, and shapes of matrices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from impart.architecture import TEXT_CONFIGS

# Keys of config.json under which families keep the same number.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
USED_EXPERTS = ("num_experts_per_tok", "experts_per_token")
EXPERT_WIDTH = ("moe_intermediate_size", "intermediate_size")
NEEDED = ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")


@dataclass(frozen=True)
class Matrices:
    """`number` weights of shape (m, n), of which `used` take part in the computation of a token."""

    m: int
    n: int
    number: int
    used: int

    @property
    def entries(self) -> int:
        return self.m * self.n * self.number


@dataclass(frozen=True)
class ModelSize:
    """A decoder's linear weights, and its embedding and head; norms, biases and routers are left out."""

    width: int
    layers: int
    linear: tuple[Matrices, ...]
    embeddings: int

    @property
    def parameters(self) -> int:
        return self.embeddings + sum(one.entries for one in self.linear)

    @property
    def active(self) -> int:
        """Parameters that one token passes, embedding and head included as model cards count them."""
        return self.embeddings + sum(one.m * one.n * one.used for one in self.linear)

    @property
    def side(self) -> float:
        """Mean of min(m, n) over all entries: an SVD of every matrix takes m n min(m, n) of each."""
        return sum(one.entries * min(one.m, one.n) for one in self.linear) / sum(one.entries for one in self.linear)


def text_settings(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The settings of the language model, which a multimodal model keeps below its own."""
    return next((config[key] for key in TEXT_CONFIGS if isinstance(config.get(key), dict)), config)


def model_size(config: Mapping[str, Any]) -> ModelSize:
    """Of a Llama-like decoder with NEEDED in its text settings, with experts or a vision tower or without."""
    text = text_settings(config)
    width, layers = text["hidden_size"], text["num_hidden_layers"]
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    linear = (*_attention(text, layers), *_feed_forward(text, layers), *_vision(config.get("vision_config") or {}))
    return ModelSize(width, layers, linear, (1 if tied else 2) * text["vocab_size"] * width)


def _attention(text: Mapping[str, Any], layers: int) -> list[Matrices]:
    width, heads = text["hidden_size"], text.get("num_attention_heads") or 1
    head = text.get("head_dim") or width // heads
    shared = (text.get("num_key_value_heads") or heads) * head
    return [Matrices(heads * head, width, 2 * layers, 2 * layers), Matrices(shared, width, 2 * layers, 2 * layers)]


def _feed_forward(text: Mapping[str, Any], layers: int) -> list[Matrices]:
    """Gate, up and down of every layer; where it is a mixture, those of its experts, shared ones included."""
    width, experts = text["hidden_size"], _first(text, EXPERTS)
    sparse = sum(_is_sparse(text, layer) for layer in range(layers)) if experts else 0
    dense = 3 * (layers - sparse)
    shared = text.get("shared_expert_intermediate_size") or 0
    shared = shared or (text.get("n_shared_experts") or 0) * _first(text, EXPERT_WIDTH)
    found = [
        Matrices(text["intermediate_size"], width, dense, dense),
        Matrices(_first(text, EXPERT_WIDTH), width, 3 * sparse * experts, 3 * sparse * _first(text, USED_EXPERTS)),
        Matrices(shared, width, 3 * sparse, 3 * sparse),
    ]
    return [one for one in found if one.entries]


def _is_sparse(text: Mapping[str, Any], layer: int) -> bool:
    """Whether a layer of a mixture has experts, by the keys of Qwen and DeepSeek."""
    dense = layer in (text.get("mlp_only_layers") or ()) or layer < (text.get("first_k_dense_replace") or 0)
    return not dense and (layer + 1) % (text.get("decoder_sparse_step") or 1) == 0


def _vision(vision: Mapping[str, Any]) -> list[Matrices]:
    """Four matrices of attention and two of feed-forward for every layer of the tower; a token of text passes none."""
    width, inner, layers = (vision.get(key) or 0 for key in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    found = [Matrices(width, width, 4 * layers, 0), Matrices(inner, width, 2 * layers, 0)]
    return [one for one in found if one.entries]


def _first(text: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    return next((text[key] for key in keys if text.get(key)), 0)
