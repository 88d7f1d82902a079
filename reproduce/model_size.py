"""Prints a model's size as lines of a pair.yaml; reads its config.json, from the folder or the hub.

python reproduce/model_size.py meta-llama/Llama-2-13b-hf
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:  # run as `python reproduce/model_size.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from impart.config import Parser
from impart.errors import InputError, run
from impart.hub import fetch_file, is_hub_id
from impart.weight_files import read_json


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
        if not is_hub_id(model):
            raise InputError(f"{model!r} is no folder with a config.json, and not a hub id of the form owner/name")
        file = fetch_file(model, "config.json", what=f"size of {model!r}", remedy="name a local folder")
    config = read_json(file, f"model {model!r}")
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
