"""All that is said of a pair of models, or of a set of models that are merged: configs/<pair>/pair.yaml, once.

The keys have the names under which the scripts read them, so that a pair's file is one of their --config files:

    python sparsify/sparsify.py --config configs/wizardmath_13b/pair.yaml --config configs/rows/impart.yaml save_dir=OUT
    python merge/merge.py --config configs/tiny/merging/pair.yaml merge_method=ta_0.6 save_pth=OUT
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from impart import dtypes
from impart.config import Layer, check_keys, fill, keys_of, option, read_layers
from impart.errors import InputError
from impart.yaml_text import parse_yaml

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
LISTS = ("benchmarks", "ratios", "ratios_qt")  # may be one text of words in the file: `benchmarks: gsm8k math`


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A base and a fine-tuned model, or a base and several in `models`; how they are compressed and evaluated."""

    name: str = option(help="what tables call the pair")
    base_model: str = option(help="base model: folder or hub id")
    ftm_dir: str | None = option(None, help="fine-tuned model: folder or hub id")
    eval_dtype: str = option(
        "auto", help="of the evaluation; auto: the checkpoint's own", choices=dtypes.choices("auto")
    )
    template: str = option("auto", help="of AlpacaEval: llama2, llama3, mistral, openchat, or auto: the tokenizer's")
    benchmarks: list[str] = option(help="what it is asked; the first one is that of Tables 3, 4, 5 and 7")
    preprune_ratio: float | None = option(None, help="beta of ImPart", aliases=("beta",))
    C: float | None = option(None, help="exponent of ImPart's importance")
    compression_ratio: float | None = option(None, help="CR of Tables 1, 3 and 4", low=1.0)
    ratios: list[float] = option([], help="CR of Table 5")
    compression_ratio_qt: float | None = option(None, help="CR_qt of Table 6", low=1.0)
    ratios_qt: list[float] = option([], help="CR_qt of Table 7")
    calibration: str | None = option(None, help="text of the quantization: c4, wikitext2, or a .txt or .jsonl file")
    calibration_settings: dict = option({}, help="keys of sparse_llama.py for a sparse delta of this pair")
    distillation_settings: dict = option({}, help="keys of sparse_llama.py for methods that read the models themselves")
    rows: dict = option({}, help="row -> keys that it has for this pair only, like dare_qt: {bits: 2}")
    make_models: str | None = option(None, help="command that makes the models, told where one is missing")
    models: dict = option({}, help="of a set that is merged: name -> path, in the order of the benchmarks")
    merge_methods: dict = option({}, help="of a set that is merged: name in tables -> merge_method with its numbers")
    sparsities: dict = option({}, help="of a set that is merged: row -> share that its mask removes")
    parameters: float | None = option(None, help="size, for costs", unit="billions", low=0.0)
    active_parameters: float | None = option(
        None, help="those that a token passes, for costs; default: all", unit="billions", low=0.0
    )
    embeddings: float | None = option(
        None, help="those of embedding and head, for costs; default: 3 %", unit="billions", low=0.0
    )
    smaller_side: int | None = option(
        None, help="mean over the weights of min(m, n), for costs; default: hidden_size", low=1
    )
    hidden_size: int | None = option(None, help="width, for costs", low=1)
    layers: int | None = option(None, help="depth, for costs", low=1)

    @property
    def is_small(self) -> bool:
        """Whether one thread serves it best: a start of Python costs more than the arithmetic."""
        return self.parameters is not None and self.parameters < 0.2


@dataclass(frozen=True)
class RowNotes:
    """What a file of configs/rows/ says beside the keys of its method."""

    label: str | None = option(None, help="what the row is called in tables")
    needs_information: bool = option(
        False, help="whether it reads information=FILE, which quantize/information.py writes and a plan makes once"
    )


def pairs_first(layers: Sequence[Layer]) -> list[Layer]:
    """The layers, files of pairs before all others: what a row fixes wins over its pair, whatever their order."""
    return sorted(layers, key=lambda layer: not (layer.is_file and "benchmarks" in layer.values))


def unread_keys(layers: Sequence[Layer], read: Collection[str]) -> list[str]:
    """The keys that were given together with `method`, or after it, and are not in `read`.

    What the file of a pair or a row says beside the keys of one method is for others, and not among them.
    """
    chosen = max((number for number, layer in enumerate(layers) if "method" in layer.values), default=0)
    others = {*keys_of(Pair), *keys_of(RowNotes)}
    return [
        key
        for layer in layers[chosen:]
        for key in layer.values
        if key not in read and not (layer.is_file and key in others)
    ]


def pair_file(name: str, configs: Path = CONFIGS) -> Path:
    """configs/<name>/pair.yaml, or `name` itself where it is a YAML file."""
    return Path(name) if name.endswith(".yaml") else configs / name / "pair.yaml"


def load_pair(name: str | Path, configs: Path = CONFIGS) -> Pair:
    """The pair of this name or file; InputError for what is unknown, missing or of the wrong kind in its file."""
    file = pair_file(str(name), configs)
    if not file.is_file():
        raise InputError(f"there is no {file}, so that {str(name)!r} is no pair; configs/new_pair.sh makes one")
    layers = [replace(layer, values=_with_lists(layer)) for layer in read_layers(file)]
    check_keys(layers, [Pair])
    pair = fill(Pair, layers)
    for problem in _problems(pair):
        raise InputError(f"{file}: {problem}")
    return pair


def value_text(value: Any) -> str:
    """A setting as `key=value` and as the name of a folder have it: 1 for 1.0, YAML for all that is no text or path."""
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as key=value arguments."""
    return [f"{key}={value_text(value)}" for key, value in settings.items()]


def _with_lists(layer: Layer) -> dict[str, Any]:
    values = dict(layer.values)
    for key in LISTS:
        if isinstance(values.get(key), str | int | float):
            values[key] = [parse_yaml(word, f"{key} in {layer.origin}") for word in str(values[key]).split()]
    return values


def _problems(pair: Pair) -> list[str]:
    """What no single key shows: each as one sentence."""
    found = []
    if not pair.benchmarks:
        found.append("benchmarks is empty; name at least one script of eval/")
    if pair.ftm_dir is None and not pair.models:
        found.append("ftm_dir is missing; a set of models to merge has `models` instead")
    if pair.models and len(pair.models) != len(pair.benchmarks):
        found.append(
            f"{len(pair.models)} models and {len(pair.benchmarks)} benchmarks: each model has the benchmark of its "
            "position; list as many"
        )
    found += [
        f"rows: {row} is {value_text(keys)}, but a mapping of keys to values is wanted, like dare_qt: {{bits: 2}}"
        for row, keys in pair.rows.items()
        if not isinstance(keys, dict)
    ]
    return found
