"""A LoRA adapter in PEFT's format as the fine-tuned model: base + alpha / r B A, in place of a checkpoint.

    python sparsify/sparsify.py --config configs/rows/impart.yaml base_model=B ftm_dir=ADAPTER ...

dW is taken from the factors and never from rounded weights. What PEFT calls modules_to_save replaces the base's
parameters. Only what is known to mean this is read: any other kind of adapter is an InputError.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from impart.checkpoint import Checkpoint, open_checkpoint, source_folder
from impart.companions import companion_name, companions_of
from impart.errors import InputError
from impart.weight_files import TensorSpec, file_tensors, read_json, tensor_bytes

CONFIG, WEIGHTS = "adapter_config.json", ("adapter_model.safetensors", "adapter_model.bin")  # PEFT's names
PREFIX = "base_model.model."
FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<part>[AB])(?:\.weight)?$")
REPEATED = re.compile(r"\)[*+{]")  # in a stranger's pattern
# Keys of adapter_config.json that change what the factors mean, and which of their values do not.
PLAIN = {
    "use_dora": (False,),
    "lora_bias": (False,),
    "fan_in_fan_out": (False,),
    "layer_replication": (),
    "alora_invocation_tokens": (),
    "use_qalora": (False,),
    "use_bdlora": (),
    "trainable_token_indices": (),
    "target_parameters": ([],),
    # the others change the base's weights when PEFT loads the adapter
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal", "mica", "lora_ga"),
}


class AdaptedCheckpoint(Checkpoint):
    """A base with an adapter on it, read as a checkpoint; made by `open_finetuned`.

    `path` is the base's folder, whose config and tokenizer count where the adapter brings none.
    """

    def __init__(self, folder: Path, source: str, base: Checkpoint):
        self.folder, self.source, self.base = folder, source, base
        self.path, self.config = base.path, base.config
        settings = read_json(folder / CONFIG, f"adapter {source!r}")
        _refuse_other_kinds(settings, source)
        self._factors: dict[str, dict[str, Tensor]] = {}  # parameter -> A, B
        self._embeddings: set[str] = set()
        self._saved: dict[str, Tensor] = {}
        self._digests: dict[str, str] = {}
        for key, tensor in file_tensors(_weights(folder, source)).items():
            self._place(key.removeprefix(PREFIX), tensor)
        self._scales = {name: self._scale(name, settings) for name in self._factors}
        self._specs = {name: base.spec(name) for name in base.names()}
        self._specs |= {name: TensorSpec(name, tuple(saved.shape), saved.dtype) for name, saved in self._saved.items()}

    def _place(self, key: str, tensor: Tensor) -> None:
        """Sorts a stored tensor in; InputError for one that the base has no place for."""
        factor = FACTOR.match(key)
        name = f"{factor['module']}.weight" if factor else key
        if name not in self.base:
            what = f"changes {name}" if factor else f"holds {key}, which is no LoRA factor"
            raise InputError(
                f"adapter {self.source!r} {what}, and base {self.base.source!r} has no parameter of this name; "
                "give the base that it was trained on"
            )
        if not factor:
            if tuple(tensor.shape) != self.base.shape(name):
                raise InputError(
                    f"adapter {self.source!r} holds {name} of shape {list(tensor.shape)}, but base "
                    f"{self.base.source!r} has {list(self.base.shape(name))}; merge it with PEFT first"
                )
            self._saved[name] = tensor
            return
        self._factors.setdefault(name, {})[factor["part"]] = self._finite(name, tensor)
        if factor["embedding"]:
            self._embeddings.add(name)

    def _scale(self, name: str, settings: Mapping[str, Any]) -> float:
        """alpha / r, or alpha / sqrt(r) of a rank-stabilized adapter; InputError for factors that do not fit."""
        factors, shape = self._factors[name], self.base.shape(name)
        module = name.removesuffix(".weight")
        rank, alpha = (
            self._matching(settings, pattern, module, settings.get(default))
            for pattern, default in (("rank_pattern", "r"), ("alpha_pattern", "lora_alpha"))
        )
        m, n = shape[::-1] if name in self._embeddings else shape
        expected = {"A": (rank, n), "B": (m, rank)}
        found = {part: tuple(tensor.shape) for part, tensor in factors.items()}
        if not isinstance(alpha, int | float) or found != expected:
            raise InputError(
                f"adapter {self.source!r}: {name} has factors of shapes {found} and alpha {alpha!r}, but {CONFIG} says "
                f"rank {rank} and base {self.base.source!r} has shape {list(shape)}; give the right base"
            )
        return alpha / (rank**0.5 if settings.get("use_rslora") else rank)

    def _matching(self, settings: Mapping[str, Any], pattern: str, module: str, default: Any) -> Any:
        """PEFT's rule for rank_pattern and alpha_pattern: the first key that the module's name ends with, at a dot."""
        patterns = settings.get(pattern)
        for key, value in (patterns if isinstance(patterns, dict) else {}).items():
            try:
                if REPEATED.search(key):
                    raise re.error("a repeated group may take for ever")
                if re.match(rf"(.*\.)?({key})$", module):
                    return value
            except re.error as error:
                raise InputError(
                    f"adapter {self.source!r}: {pattern} has a key {key[:80]!r} that is no pattern of names ({error})"
                ) from error
        return default

    def change(self, name: str, device: torch.device | str = "cpu") -> Tensor | None:
        """dW in fp32 of a parameter that has factors, None of any other."""
        if name not in self._factors:
            return None
        A, B = (self._factors[name][part].to(device).float() for part in "AB")
        dW = (B @ A).mul_(self._scales[name])
        return dW.T if name in self._embeddings else dW

    def _pieces(self, name: str) -> Iterator[Tensor]:
        dW = self.change(name)
        if dW is not None:
            yield self.base.tensor(name).float().add_(dW).to(self.dtype(name))
        elif name in self._saved:
            yield self._saved[name]
        else:
            yield from self.base._pieces(name)

    def file(self, name: str) -> Path | None:
        """The base's weight file of a parameter that the adapter leaves as it is; None of any other."""
        return None if name in self._factors or name in self._saved else self.base.file(name)

    def name_in_file(self, tensor: str) -> str:
        return self.base.name_in_file(tensor)

    def companions(self) -> list[Path]:
        """The base's small files, or the adapter's of the same name."""
        own = [file for file in companions_of(self.folder) if file.name not in (CONFIG, "README.md")]
        by_name = {companion_name(file): file for file in (*self.base.companions(), *own)}
        return [by_name[name] for name in sorted(by_name)]

    def fingerprint(self) -> str:
        """sha256 over the base's fingerprint, all tensors of the adapter and their scales."""
        digest = hashlib.sha256(self.base.fingerprint().encode())
        parts = {
            f"{name} {part}": tensor for name, factors in self._factors.items() for part, tensor in factors.items()
        }
        for key, tensor in sorted({**parts, **self._saved}.items()):
            digest.update(f"{key} {list(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(tensor_bytes(tensor))
        digest.update(json.dumps(self._scales, sort_keys=True).encode())
        return digest.hexdigest()


def open_finetuned(source: str | Path, base: Checkpoint | None = None) -> Checkpoint:
    """A fine-tuned model: a checkpoint, or an adapter over `base` (default: the base that the adapter names).

    Its tensors have the base's names.
    """
    folder = source_folder(source)
    if not (folder / CONFIG).is_file():
        finetuned = open_checkpoint(source)
        return finetuned.named_like(base.names()) if base else finetuned
    return AdaptedCheckpoint(folder, str(source), base or _recorded_base(folder, str(source)))


def _recorded_base(folder: Path, source: str) -> Checkpoint:
    recorded = read_json(folder / CONFIG, f"adapter {source!r}").get("base_model_name_or_path")
    if not isinstance(recorded, str) or not recorded:
        raise InputError(f"adapter {source!r} does not name its base; give base_model")
    return open_checkpoint(recorded)


def _weights(folder: Path, source: str) -> Path:
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise InputError(f"adapter {source!r} has neither {' nor '.join(WEIGHTS)}; fetch it again")
    return found


def _refuse_other_kinds(settings: Mapping[str, Any], source: str) -> None:
    """InputError for every adapter but plain LoRA, rank-stabilized or not."""
    kind = settings.get("peft_type")
    if kind != "LORA":
        raise InputError(f"adapter {source!r} is of kind {kind!r}; LORA is known here: merge it with PEFT first")
    for key, values in PLAIN.items():
        value = settings.get(key)
        if value and value not in values:
            what = "is a DoRA adapter" if key == "use_dora" else "is no plain LoRA"
            raise InputError(
                f"adapter {source!r} {what} ({key}: {value!r}), which is no alpha / r B A; merge it with PEFT first"
            )
