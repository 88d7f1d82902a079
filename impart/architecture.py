"""Every name that hangs on an architecture: which parameters are linear weights, experts, routers, embeddings, buffers.

An architecture with other names costs this file and no other.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product
from os.path import commonprefix
from typing import Any, Protocol

from impart.errors import InputError
from impart.matrices import slice_names, tensor_of

# A module that is repeated: layers of decoders and encoders, of GPT-2 and Bloom (h), of T5 (block) and BERT (layer).
BLOCK = r"(?:^|\.)(?:layers|layer|h|blocks|block)\.(?P<layer>\d+)\."
MIXERS = r"\w*attn|\w*[Aa]ttention|mixer|mamba|conv"  # attention, linear or not, and state spaces
FEED_FORWARD = r"\w*mlp\w*|block_sparse_moe|feed_forward|ffn|DenseReluDense|intermediate|output|shared_experts?"
LINEAR = re.compile(rf"{BLOCK}(?:.*\.)?(?:(?:{MIXERS}|{FEED_FORWARD})\.(?:.+)|fc[12])\.weight$")
# Experts of a layer in one tensor (experts, m, n).
EXPERTS = re.compile(
    rf"{BLOCK}.*(?:experts|moe|mlp)\.(?:.+\.)?(?:\w+_proj|w[123]|fc[12]|(?:in|out)put_linear)(?:\.weight)?$"
)
# Families that store their experts as (experts, n, m).
TRANSPOSED = ("gpt_oss", "llama4", "llama4_text", "aria", "aria_text", "openai_privacy_filter")
INTO_HIDDEN = re.compile(r"\b(?:down_proj|w2|fc2|output_linear)\b")  # the others of an expert read the hidden state
# departs from the paper, which has no mixtures: a router compares near-equal scores, is tiny, and stays exact.
ROUTER = re.compile(r"\.(?:gate|router|shared_expert_gate)(?:\.(?:wg|layer))?\.weight$")
NO_LINEAR = re.compile(r"(?:[Nn]orm|bias|position|embed)\w*(?:\.\w+)?$")  # 2-D as well, and added or looked up
VOCABULARY = re.compile(r"(?:^|\.)(?:embed_tokens|lm_head|wte|embed_in|embed_out|word_embeddings)\.(?:weight|bias)$")
EMBEDDINGS = re.compile(r"(?:embed_tokens|wte|embed_in|embeddings?)\.weight$")  # of tokens, positions and the like
LAYER = re.compile(BLOCK)
ATTENTION = re.compile(r"(?:^|\.)\w*(?:attn|[Aa]ttention)\.")
TOWER = re.compile(r"(?:^|\.)(?:vision|visual|vit|image|audio)\w*\.")
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
SMALLEST_SIDE = 64  # of a matrix that is compressed by its shape alone
# Words of weight_types: every matrix of a repeated block; all linear weights; embedding and head, a tied one once.
ALL, LINEAR_TYPES, VOCABULARY_TYPES = "all", "linear", "embeddings"
# Where config.json of a multimodal model keeps the settings of its language model, vocab_size among them.
TEXT_CONFIGS = ("text_config", "llm_config", "language_config")


class Parameters(Protocol):
    """What has named parameters with shapes: a checkpoint."""

    def names(self) -> list[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...


def linear_names(checkpoint: Parameters) -> list[str]:
    """The compressed set: every 2-D weight of attention, mixers and feed-forward, and every expert, in layer order."""
    return _matrices(checkpoint, lambda name, shape: is_linear(name) and min(shape) > 1)


def names_by_shape(checkpoint: Parameters) -> list[str]:
    """`linear_names` and every other matrix of a repeated block with both sides of at least SMALLEST_SIDE."""
    return _matrices(
        checkpoint,
        lambda name, shape: (
            (is_linear(name) and min(shape) > 1)
            or (
                min(shape) >= SMALLEST_SIDE
                and layer_of(name) is not None
                and not ROUTER.search(name)
                and not NO_LINEAR.search(name)
            )
        ),
    )


def vocabulary_names(checkpoint: Parameters) -> list[str]:
    """The embedding and the head, where they are stored."""
    names = checkpoint.names()
    return [name for name in names if is_vocabulary(name) and len(checkpoint.shape(name)) == 2]


def _matrices(checkpoint: Parameters, is_chosen: Callable[[str, tuple[int, ...]], bool]) -> list[str]:
    """The names of the chosen 2-D tensors, and of the slices of 3-D tensors of experts."""
    found = []
    for name in checkpoint.names():
        shape = checkpoint.shape(name)
        if len(shape) == 2 and is_chosen(name, shape):
            found.append(name)
        elif is_experts(name, shape):
            found += slice_names(name, shape[0])
    return found


def is_linear(name: str) -> bool:
    """Whether the name is that of a linear weight of a layer, routers left out."""
    return LINEAR.search(name) is not None and not ROUTER.search(name) and not NO_LINEAR.search(name)


def is_experts(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor of this name and shape holds one matrix of every expert of a layer."""
    return len(shape) == 3 and min(shape[1:]) > 1 and EXPERTS.search(name) is not None


def is_transposed(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether a tensor (experts, a, b) holds its matrices as inputs times outputs.

    The family says so or, where the side of the hidden state is not the one of a 2-D weight, the shape.
    """
    settings = [config, *(config[key] for key in TEXT_CONFIGS if isinstance(config.get(key), dict))]
    if any(setting.get("model_type") in TRANSPOSED for setting in settings):
        return True
    hidden = next((setting["hidden_size"] for setting in settings[::-1] if "hidden_size" in setting), None)
    here, there = (1, 2) if INTO_HIDDEN.search(name) else (2, 1)
    return shape[here] != hidden == shape[there]


def is_attention(name: str) -> bool:
    """Whether a linear weight belongs to attention; the others are mlp's."""
    return ATTENTION.search(name) is not None


def is_vocabulary(name: str) -> bool:
    """Whether the first dimension of a parameter counts tokens."""
    return VOCABULARY.search(tensor_of(name)) is not None


def layer_of(name: str) -> int | None:
    """The transformer layer that a parameter belongs to, None for embeddings, head and final norm."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def layers_prefix(name: str) -> str:
    """`model.layers` of `model.layers.0.self_attn.q_proj.weight`."""
    found = LAYER.search(name)
    assert found is not None
    return name[: found.start("layer") - 1]


def names_like(names: Iterable[str], wanted: Collection[str]) -> dict[str, str]:
    """What `wanted` calls each of the names, where all differ by one prefix; else {}.

    It is what transformers calls base_model_prefix: BERT without a head is saved as `encoder.layer`, with one as
    `bert.encoder.layer`, and either loads the other's weights.
    """
    ours, theirs = ({layers_prefix(name) for name in each if LAYER.search(name)} for each in (names, wanted))
    for here, there in product(ours, theirs):
        if there.endswith(f".{here}"):
            prefix = there.removesuffix(here)
            if theirs <= {prefix + one for one in ours}:
                return {name: name if name in wanted else prefix + name for name in names}
        elif here.endswith(f".{there}"):
            prefix = here.removesuffix(there)
            if theirs <= {one.removeprefix(prefix) for one in ours} and all(one.startswith(prefix) for one in ours):
                return {name: name.removeprefix(prefix) for name in names}
    return {}


def heads(names: Collection[str]) -> set[str]:
    """The parameters outside of what transformers calls the base model, which another task replaces.

    The base model holds layers and embeddings below one prefix; where they have none, no head is known.
    """
    layers, embeddings = ([name for name in names if form.search(name)] for form in (LAYER, EMBEDDINGS))
    shared = commonprefix([name.split(".") for name in (*layers, *embeddings)]) if layers and embeddings else []
    prefix = ".".join([*shared, ""])
    return {name for name in names if shared and not name.startswith(prefix)}


def stated_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any], keys: Iterable[str]) -> str | None:
    """The first key for which two configs have other values. Old ones lack model_type: what one does not say is no
    difference."""
    values = {key: (ours.get(key), theirs.get(key)) for key in keys}
    return next((key for key, pair in values.items() if None not in pair and pair[0] != pair[1]), None)


def decoder_prefix(names: Sequence[str]) -> str:
    """`layers_prefix` of most of these matrices; those of towers for images and sound, and embeddings, are left out."""
    counts = Counter(layers_prefix(name) for name in names if LAYER.search(name) and not TOWER.search(name))
    if not counts:
        raise InputError(
            "no matrix of a text decoder is among the compressed ones; calibration runs its layers on text"
        )
    return counts.most_common(1)[0][0]


def weight_type(name: str) -> str:
    """`self_attn.q_proj` of `model.layers.0.self_attn.q_proj.weight`, `embed_tokens`; experts count as one type."""
    if is_vocabulary(name):
        return name.split(".")[-2]
    found = LAYER.search(name)
    text = tensor_of(name)[found.end() if found else 0 :].removesuffix(".weight")
    return re.sub(r"\.experts\.\d+\.", ".experts.", text)


def kinds(checkpoint: Parameters) -> str:
    """`rnn.in_proj (256 x 64, 24 times), ...`: what there is of matrices, for errors."""
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names()}
    counts = Counter((weight_type(name), shape) for name, shape in shapes.items() if len(shape) > 1)
    return ", ".join(f"{kind} ({' x '.join(map(str, shape))}, {count})" for (kind, shape), count in counts.items())


def matrices_of(
    checkpoint: Parameters,
    owner: str,
    weight_types: Sequence[str] | None = None,
    layer_num: int | None = None,
    weight_name: str | None = None,
) -> list[str]:
    """The names to compress of a checkpoint that errors call `owner`; InputError where none of its layers is known."""
    everything = weight_types == [ALL]
    found = names_by_shape(checkpoint) if everything else linear_names(checkpoint)
    if not found:
        rule = f"2-D weight of at least {SMALLEST_SIDE} x {SMALLEST_SIDE} in a repeated block"
        remedy = f"there is no {rule}" if everything else f"weight_types={ALL} compresses every {rule}"
        raise InputError(f"no layer of {owner!r} is known here; it has {kinds(checkpoint)}: {remedy}")
    by_name = weight_types is not None and not everything
    candidates = [*found, *vocabulary_names(checkpoint)] if by_name else found
    return select_matrices(candidates, owner, weight_types, layer_num, weight_name)


def rope_theta(config: dict[str, Any]) -> float:
    """The base of the rotary embeddings, under either of its two places; Llama's default where it is in neither."""
    nested = config.get("rope_parameters")
    found = config.get("rope_theta") or (nested.get("rope_theta") if isinstance(nested, dict) else None)
    return float(found) if isinstance(found, int | float) else 10000.0


def select_matrices(
    names: Sequence[str],
    owner: str,
    weight_types: Sequence[str] | None = None,
    layer_num: int | None = None,
    weight_name: str | None = None,
) -> list[str]:
    """The names to compress of those that `owner` has: all, or those that the authors' keys spell out."""
    known = {weight_type(name) for name in names}
    groups = {
        LINEAR_TYPES: {weight_type(name) for name in names if not is_vocabulary(name)},
        VOCABULARY_TYPES: {weight_type(name) for name in names if is_vocabulary(name)},
    }
    if weight_types == []:
        raise InputError(f"weight_types is empty; {owner!r} has {', '.join(sorted(known))}")
    given = known if weight_types is None or weight_types == [ALL] else weight_types
    chosen = [kind for word in given for kind in sorted(groups.get(word, {word}))]
    for kind in chosen:
        if kind not in known:
            raise InputError(f"weight_types: {kind!r} is not in {owner!r}, which has {', '.join(sorted(known))}")
    if layer_num is None and weight_name is None:
        return [name for name in names if weight_type(name) in chosen]
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
    expected = {name: tensor_of(name).removesuffix(".weight") + ".weight" for name in names}
    unknown = sorted(wanted - set(expected.values()))
    if unknown:
        layers = 1 + max(layer for name in names if (layer := layer_of(name)) is not None)
        raise InputError(
            f"{unknown[0]} is not among the linear weights of {owner!r}, which has {layers} layers; "
            f"check layer_num={layer_num} and weight_name={weight_name!r}"
        )
    return [name for name in names if expected[name] in wanted]
