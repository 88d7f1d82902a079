"""What the merged model's folder holds: which tensors, whose rows, and the small files that belong to them."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from impart.architecture import HEAD, TEXT_CONFIGS, is_vocabulary
from impart.companions import companion_name, kind_of
from impart.dtypes import long_name, parse_dtype
from impart.errors import InputError
from impart.weight_files import TensorSpec, read_json
from merge.models import CheckpointModel, DeltaModel
from merge.settings import Config
from merge.vocabulary import Alignment, copy_companions, merge_vocabularies

log = logging.getLogger(__name__)
Models = Sequence[CheckpointModel | DeltaModel]


def gather_small_files(config: Config, base: CheckpointModel, models: Models, folder: Path) -> Alignment | None:
    """Puts the merged model's tokenizer and other small files into `folder`, and says where its rows come from."""
    parties = {"base": base, **{model.name: model for model in models}}
    small = {name: party.companions() for name, party in parties.items()}
    rows = {
        name: next((party.shape(tensor)[0] for tensor in party.names() if is_vocabulary(tensor)), 0)
        for name, party in parties.items()
    }
    origin = config.tokenizer
    alignment = merge_vocabularies(small, rows, origin, folder)
    copy_companions(small[origin], folder, with_tokenizer=alignment is None or not alignment.added)
    templates = [name for name, files in small.items() if name != origin and has_template(files)]
    if templates and not has_template(small[origin]):
        log.info("note: %s has a chat template, which the merged model gets with tokenizer=%s", *[templates[0]] * 2)
    return alignment


def has_template(files: Sequence[Path]) -> bool:
    return any(
        kind_of(companion_name(file)) == "chat_template"
        or file.name == "tokenizer_config.json"
        and "chat_template" in read_json(file, "the tokenizer")
        for file in files
    )


def planned(config: Config, base: CheckpointModel, models: Models, alignment: Alignment | None) -> list[TensorSpec]:
    """Every tensor of the merged model: the base's, and the head if any model has one of its own."""
    head = [name for model in models for name in model.names() if name.endswith(HEAD) and not model.tied]
    plan = []
    for name in dict.fromkeys([*base.names(), *head]):
        shape = base.shape(name)
        if is_vocabulary(name) and alignment is not None:
            shape = (alignment.rows, *shape[1:])
        dtypes = {model.dtype(name) for model in models if name in model}
        dtype = dtypes.pop() if len(dtypes) == 1 else base.dtype(name)
        if dtype.itemsize == 1 and dtype.is_floating_point:
            raise InputError(
                f"{name} is stored as {dtype} without scales that say what it means; give 16-bit checkpoints"
            )
        if config.dtype != "auto" and dtype.is_floating_point:
            dtype = parse_dtype(config.dtype)
        plan.append(TensorSpec(name, shape, dtype))
    return plan


def _set_vocabulary(settings: dict, rows: int) -> None:
    """Writes the number of token rows where config.json keeps it: at the top, or with the language model's settings."""
    for key in TEXT_CONFIGS:
        if isinstance(settings.get(key), dict):
            settings[key] = {**settings[key], "vocab_size": rows}
    if "vocab_size" in settings:
        settings["vocab_size"] = rows


def write_config(
    config: Config, plan: Sequence[TensorSpec], base: CheckpointModel, models: Models, folder: Path
) -> None:
    """config.json of the model that gives the tokenizer, with the merged model's rows, dtype and tied head."""
    parties = {"base": base, **{model.name: model for model in models}}
    settings = dict(parties[config.tokenizer].config)
    rows = next((spec.shape[0] for spec in plan if is_vocabulary(spec.name)), None)
    if rows is not None:
        _set_vocabulary(settings, rows)
    dtype = next((spec.dtype for spec in plan if len(spec.shape) == 2 and not is_vocabulary(spec.name)), plan[0].dtype)
    settings["dtype" if "dtype" in settings else "torch_dtype"] = long_name(dtype)
    tied = all(party.tied for party in parties.values())
    if bool(settings.get("tie_word_embeddings")) != tied:
        settings["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
