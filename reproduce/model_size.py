"""Prints a model's size as lines of a pair.yaml; reads its config.json, from the folder or the hub.

python reproduce/model_size.py meta-llama/Llama-2-13b-hf
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:  # run as `python reproduce/model_size.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.config import Parser
from impart.errors import InputError, run


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("model", help="folder or hub id")
    flags = parser.parse_args(arguments)
    config = read_config(flags.model)
    print(
        f"parameters: {parameters(config) / 1e9:.4g}          # billions; with the two below only --dry-run needs it\n"
        f"hidden_size: {config['hidden_size']}\nlayers: {config['num_hidden_layers']}"
    )


def read_config(model: str) -> dict:
    file = Path(model).expanduser() / "config.json"
    if not file.is_file():
        from huggingface_hub import hf_hub_download

        try:
            file = Path(hf_hub_download(model, "config.json"))
        except Exception as error:  # offline, gated, no such model: the remedy is the same
            raise InputError(
                f"{model!r} is no folder with a config.json, and the hub does not give one ({type(error).__name__})"
            ) from error
    config = json.loads(file.read_text())
    missing = [
        key for key in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size") if key not in config
    ]
    if missing:
        raise InputError(
            f"{file} lacks {missing[0]}; write parameters, hidden_size and layers into the pair.yaml yourself"
        )
    return config


def parameters(config: Mapping) -> float:
    """Parameters of a Llama-like decoder, norms left out."""
    width, heads = config["hidden_size"], config.get("num_attention_heads", 1)
    head = config.get("head_dim") or width / heads
    shared = (config.get("num_key_value_heads") or heads) * head
    attention = width * (2 * heads * head + 2 * shared)
    embeddings = (1 if config.get("tie_word_embeddings") else 2) * config["vocab_size"] * width
    return config["num_hidden_layers"] * (attention + 3 * width * config["intermediate_size"]) + embeddings


if __name__ == "__main__":
    run(main)
