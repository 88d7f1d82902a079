"""Writes configs/<NAME>/pair.yaml for a model pair of one's own, with which every script of this folder runs.

    bash configs/new_pair.sh BASE FINETUNED NAME [benchmarks]
    bash configs/new_pair.sh mistralai/Mistral-7B-v0.1 meta-math/MetaMath-Mistral-7B metamath_7b "gsm8k math"

BASE and FINETUNED are folders or hub ids. The sizes, which only --dry-run needs, are read from BASE's config.json where
it is at hand or the hub gives it.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python reproduce/new_pair.py`: import from the repository root, not from reproduce/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import yaml

from eval.run.descriptions import described
from impart.config import Parser
from impart.errors import InputError, run
from impart.files import user_path, write_atomically
from impart.foreign_folders import ADAPTER, foreign_kind
from impart.hub import fetch_file, is_hub_id
from impart.pair import CONFIGS
from impart.weight_files import read_json
from reproduce.costs import model_problem
from reproduce.model_size import NEEDED, model_size, text_settings

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = """\
# {finetuned} over {base}.
#   bash reproduce/table1.sh --pairs {name}
name: {name}
base_model: {base_text}
ftm_dir: {finetuned_text}
eval_dtype: auto  # fp16, bf16, fp32, or the checkpoint's own
template: auto  # of AlpacaEval: llama2, llama3, mistral, openchat, or the tokenizer's own
benchmarks: [{benchmarks}]  # the first is the one of Tables 3, 4, 5 and 7
preprune_ratio: 0.6  # beta; reproduce/grid_search.sh chooses it and C on held-out items
C: 1
compression_ratio: 32
ratios: [8, 16, 32, 64]
compression_ratio_qt: 32
ratios_qt: [16, 32, 64, 128]
rows:
  dare_qt: {{bits: 4}}  # 2, 4 or 8
calibration: c4  # c4, wikitext2, or a .txt or .jsonl file
calibration_settings: {{nsamples: 128, seqlen: 2048}}
distillation_settings: {{nsamples: 128, seqlen: 128}}  # of BitDelta
"""
SIZES = """\
parameters: {parameters:.4g}  # billions; with those below only --dry-run needs it
embeddings: {embeddings:.3g}
hidden_size: {width}
layers: {layers}
"""
MIXTURE = """\
active_parameters: {active:.3g}
smaller_side: {side:.0f}
"""


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("base", metavar="BASE", help="base model: folder or hub id")
    parser.add_argument("finetuned", metavar="FINETUNED", help="its fine-tuned model")
    parser.add_argument("name", metavar="NAME", help="of the pair and its folder")
    parser.add_argument("benchmarks", nargs="?", default="gsm8k", help="names of scripts of eval/, in quotes")
    flags = parser.parse_args(arguments)
    benchmarks = flags.benchmarks.split()
    file = checked_place(flags.name) / "pair.yaml"
    for benchmark in benchmarks or [flags.benchmarks]:
        if benchmark not in described():
            raise InputError(f"benchmark {benchmark!r} is not one of {', '.join(described())}")
    base, finetuned = placed(flags.base), placed(flags.finetuned)
    if base == finetuned:
        raise InputError(f"BASE and FINETUNED are both {base!r}; a pair is two models")
    for model in (base, finetuned):
        folder = user_path(model)
        if not folder.is_dir() or foreign_kind(folder) == ADAPTER:  # all rows but the fine-tuned model's own take one
            continue
        problem = model_problem(model)
        if problem is not None:
            raise InputError(problem)
    texts = {
        key: yaml.safe_dump(text).removesuffix("...\n").strip() for key, text in (("base", base), ("tuned", finetuned))
    }
    text = TEMPLATE.format(
        base=base,
        finetuned=finetuned,
        base_text=texts["base"],
        finetuned_text=texts["tuned"],
        name=flags.name,
        benchmarks=", ".join(benchmarks),
    )
    file.parent.mkdir(parents=True)
    write_atomically(file, (text + sizes(base)).encode())
    print(f"{file}\nnext: bash reproduce/table1.sh --pairs {flags.name} --dry-run")


def checked_place(name: str) -> Path:
    """The new pair's folder; InputError for a name that is none, or is taken."""
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*", name):
        raise InputError(f"NAME {name!r} may have letters, digits, _ . and - only: it is a folder's name")
    folder = Path(os.environ.get("CONFIGS") or CONFIGS) / name
    if folder.exists():
        raise InputError(f"{folder} is there already; choose another NAME")
    return folder


def placed(model: str) -> str:
    """A folder of this machine as the scripts find it, which run from the repository; a hub id as it is."""
    folder = user_path(model)
    if not folder.is_dir():
        if not is_hub_id(model):
            raise InputError(f"{model!r} is no folder, and not a hub id of the form owner/name")
        return model
    return model if Path.cwd() == ROOT and not folder.is_absolute() else str(folder.resolve())


def sizes(base: str) -> str:
    """The size of the model as lines of the file; a note, and nothing, where the config cannot be read."""
    try:
        config = read_config(base)
    except InputError as error:
        print(f"note: --dry-run will not count this pair's costs: {error}", file=sys.stderr)
        return ""
    size = model_size(config)
    numbers = {
        "parameters": size.parameters / 1e9,
        "embeddings": size.embeddings / 1e9,
        "active": size.active / 1e9,
        "side": size.side,
        "width": size.width,
        "layers": size.layers,
    }
    return (SIZES + MIXTURE * (size.active < size.parameters)).format(**numbers)


def read_config(model: str) -> dict:
    file = user_path(model) / "config.json"
    if not file.is_file():
        if not is_hub_id(model):
            raise InputError(f"{model!r} is no folder with a config.json, and not a hub id of the form owner/name")
        file = fetch_file(model, "config.json", what=f"size of {model!r}", remedy="name a local folder")
    config = read_json(file, f"model {model!r}")
    missing = [key for key in NEEDED if key not in text_settings(config)]
    if missing:
        raise InputError(
            f"{file} lacks {missing[0]}; write parameters, hidden_size and layers into the pair.yaml yourself"
        )
    return config


if __name__ == "__main__":
    run(main)
