"""The settings of a model pair, in one place: `configs/<pair>/pair.yaml`, typed. Every script reads its part of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impart import dtypes
from impart.config import load, option
from impart.errors import InputError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A base with its fine-tuned model, or, for merging, with several."""

    name: str = option(help="what the pair is called in tables")
    base_model: str = option(help="base model: folder or hub id", aliases=("ptm_pth",))
    ftm_dir: str | None = option(None, help="fine-tuned model: folder or hub id")
    eval_dtype: str = option(
        "auto", help="of the evaluation; auto: the checkpoint's own", choices=dtypes.choices("auto")
    )
    template: str = option(
        "auto", help="of AlpacaEval: llama2, llama3, mistral, openchat, or auto: the tokenizer's own"
    )
    benchmarks: list[str] = option(help="the first is the one of Tables 3, 4, 5 and 7")
    preprune_ratio: float | None = option(
        None, help="beta; reproduce/grid_search.sh chooses it and C on held-out items"
    )
    C: float | None = option(None, help="exponent of the importance")
    compression_ratio: float | None = option(None, help="of Tables 1, 3 and 4")
    ratios: list[float] = option([], help="of Table 5 and Figure 1")
    compression_ratio_qt: float | None = option(None, help="of Table 6")
    ratios_qt: list[float] = option([], help="of Table 7 and Figure 4")
    calibration: str = option("c4", help="c4, wikitext2, or a .txt or .jsonl file")
    calibration_settings: dict[str, Any] = option({}, help="keys of quantize/sparse_llama.py")
    distillation_settings: dict[str, Any] = option({}, help="its keys for BitDelta")
    rows: dict[str, Any] = option({}, help="row of configs/rows/ -> its keys for this pair alone")
    models: dict[str, Any] = option({}, help="for merging: name -> fine-tuned model, each with its benchmark in order")
    ta: str | None = option(None, help="merge_method of task arithmetic")
    ties: str | None = option(None, help="merge_method of TIES")
    sparsities: dict[str, Any] = option({}, help="for merging: method_mask -> sparsity of the mask")
    parameters: float | None = option(None, help="billions; with the two below only --dry-run needs it")
    hidden_size: int | None = option(None, help="width")
    layers: int | None = option(None, help="depth")


def load_pair(name: str | Path) -> Pair:
    """The pair of a folder of configs/, or of a YAML file; InputError for a missing file or an unknown key."""
    file = Path(name) if str(name).endswith(".yaml") else CONFIGS / name / "pair.yaml"
    if not file.is_file():
        raise InputError(f"there is no {file}; configs/new_pair.sh makes one")
    return load(Pair, file)
