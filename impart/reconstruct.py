"""base + delta -> fine-tuned checkpoint, tensor by tensor."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from impart.artifact import Delta
from impart.card import rebuilt_card
from impart.checkpoint import Checkpoint
from impart.checkpoint_writer import CheckpointWriter
from impart.dtypes import DTYPES
from impart.matrices import by_tensor, head_and_rest, split_name
from impart.report import progress
from impart.weight_files import TensorSpec


def planned_tensors(delta: Delta, base: Checkpoint, finetuned: Checkpoint | None = None) -> list[TensorSpec]:
    """Every tensor of the rebuilt model: the base's, less those the fine-tuned model lacks, plus those it adds."""
    if finetuned is not None:
        return [finetuned.spec(name) for name in finetuned.names()]
    extras, dropped = delta.manifest["extras"], set(delta.manifest["dropped"])
    specs = {name: base.spec(name) for name in base.names() if name not in dropped}
    specs |= {name: TensorSpec(name, tuple(extra["shape"]), DTYPES[extra["dtype"]]) for name, extra in extras.items()}
    for name, matrices in by_tensor(delta.names()).items():
        shape, rest = base.shape(name), rest_of(delta, matrices)
        if isinstance(rows := split_name(matrices[0])[1], slice):
            shape = (rows.stop + (specs.pop(rest).shape[0] if rest else 0), *shape[1:])
        specs[name] = TensorSpec(name, shape, delta.dtype(matrices[0]))
    return list(specs.values())


def rest_of(delta: Delta, matrices: Sequence[str]) -> str | None:
    """The extra that holds the rows after a matrix that is the first rows of a tensor; None where there is none."""
    tensor, rows = split_name(matrices[0])
    rest = head_and_rest(tensor, rows.stop)[1] if isinstance(rows, slice) else None
    return rest if rest in delta.manifest["extras"] else None


def reconstructed(
    delta: Delta,
    base: Checkpoint,
    finetuned: Checkpoint | None = None,
    device: torch.device | str = "cpu",
    wanted: Callable[[str], bool] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of the rebuilt model, one at a time: decoded matrices on the device, the others on the CPU.

    Matrices that are parts of a tensor are decoded on the device one after another, and gathered on the CPU.

    Without the fine-tuned model, what lies outside the compressed set comes from the artifact's extras and, where it
    did not change, from the base; with it, from there. `wanted`: which names; None: all.
    """
    matrices, extras = by_tensor(delta.names()), set(delta.extras())
    specs = [spec for spec in planned_tensors(delta, base, finetuned) if wanted is None or wanted(spec.name)]
    for spec in progress(specs, what="rebuilding the model", unit="tensor"):
        if matrices.get(spec.name) == [spec.name]:
            yield spec.name, decoded_weight(delta, base, spec, device)
        elif spec.name in matrices:
            yield spec.name, decoded_parts(delta, base, matrices[spec.name], spec, device)
        elif finetuned is not None:
            yield spec.name, finetuned.tensor(spec.name)
        else:
            yield spec.name, delta.extra(spec.name) if spec.name in extras else base.tensor(spec.name)


def decoded_weight(delta: Delta, base: Checkpoint, spec: TensorSpec, device: torch.device | str) -> torch.Tensor:
    """The weight (m, n) of the rebuilt model: its bits where the delta holds them, else base + dW."""
    stored = delta.stored(spec.name, device)
    if stored.is_exact:
        return stored.restored(spec.name, base.tensor(spec.name, device).to(spec.dtype))
    return rebuilt_weight(base, spec.name, stored.dense(spec.name), spec.dtype)


def decoded_parts(
    delta: Delta, base: Checkpoint, matrices: Sequence[str], spec: TensorSpec, device: torch.device | str
) -> torch.Tensor:
    """The tensor of the rebuilt model that these matrices lie in, on the CPU; an expert that lacks is the base's."""
    whole, rest = torch.empty(spec.shape, dtype=spec.dtype), rest_of(delta, matrices)
    if rest is not None:
        base.place(rest).of(whole).copy_(delta.extra(rest))
    elif len(spec.shape) == 3:
        whole.copy_(base.tensor(spec.name))
    for name in matrices:
        one = TensorSpec(name, delta.shape(name), spec.dtype)
        base.place(name).of(whole).copy_(decoded_weight(delta, base, one, device))
    return whole


def rebuilt_weight(base: Checkpoint, name: str, dW: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The base's weight + dW (m, n), added in fp32 and rounded once, to `dtype`; on the device of dW."""
    return base.tensor(name, dW.device).float().add_(dW).to(dtype)


def write_model(
    delta: Delta,
    base: Checkpoint,
    path: str | Path,
    *,
    finetuned: Checkpoint | None = None,
    device: torch.device | str = "cpu",
    overwrite: bool = False,
) -> None:
    """Writes base + delta as a checkpoint folder with the fine-tuned model's config, tokenizer and other files."""
    delta.check_base(base)
    if finetuned is not None:
        delta.check_finetuned(finetuned)
    writer = CheckpointWriter(path, planned_tensors(delta, base, finetuned), overwrite=overwrite)
    for name, tensor in reconstructed(delta, base, finetuned, device):
        writer.add(name, tensor)
        del tensor  # or it would still be held while the next one is made
    companions = finetuned.companions() if finetuned is not None else delta.companions()
    writer.finish(companions, rebuilt_card(Path(path).name, delta.manifest, base.source))
