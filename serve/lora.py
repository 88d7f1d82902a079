"""A delta as a LoRA adapter in PEFT's format, for every server that knows LoRA and none of this suite.

    python serve/lora.py DELTA --out ADAPTER                     ranks as the delta has them, at most 512
    python serve/lora.py DELTA --out ADAPTER --max_rank 64       the best approximation of rank 64 of larger ones
    vllm serve B --enable-lora --max-lora-rank 64 --lora-modules name=ADAPTER

Reads a delta that is stored as factors: ImPart, LowRank, Delta-CoMe, an SVD. An adapter has no place for norms,
embeddings and what else changed outside of the linear layers, nor for ranks above the largest that vLLM has: what is
left out is printed with its share of norm(dW). `serve/serve.py` leaves out nothing.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # run as `python serve/lora.py`: import from the repository root, not from serve/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import impart  # noqa: F401 - which says what packages are missing

import torch
from safetensors.torch import save_file
from torch import Tensor

from impart.architecture import is_vocabulary
from impart.artifact import Delta
from impart.card import Card
from impart.checkpoint import Checkpoint
from impart.config import Parser, add_run_flags
from impart.device import use_device
from impart.dtypes import choices, parse_dtype, short_name
from impart.encodings.encoded import Triplets, product
from impart.errors import InputError, run
from impart.matrices import split_name
from impart.outputs import MARKER, Output, is_skipped, refuse_existing
from impart.overlay import open_overlay
from impart.report import progress, start_logging, table

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # --max-lora-rank of vLLM 0.32: MaxLoRARanks of vllm/config/lora.py
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's names


@dataclass
class Tally:
    """Squared norms of the changes that an adapter carries, and of those that it leaves out, by what they are."""

    carried: float
    left_out: dict[str, tuple[int, float]]  # what -> number of parameters, squared norm

    def lose(self, what: str, squared: float) -> None:
        count, sum_of_squares = self.left_out.get(what, (0, 0.0))
        self.left_out[what] = (count + 1, sum_of_squares + squared)

    def report(self) -> str:
        """A line per kind that is left out, with its share of norm(dW)."""
        lost = sum(squared for _, squared in self.left_out.values())
        whole = max(self.carried + lost, sys.float_info.min)
        kinds = [*self.left_out.items(), ("in all", (sum(count for count, _ in self.left_out.values()), lost))]
        rows = [(what, count, f"{100 * (squared / whole) ** 0.5:.2f} %") for what, (count, squared) in kinds]
        return table(rows, ("not in the adapter", "parameters", "of norm(dW)"))


def main(arguments: Sequence[str]) -> None:
    parser = Parser(__doc__)
    parser.add_argument("delta", metavar="DELTA", help="folder of a delta artifact")
    parser.add_argument("--out", required=True, help="folder that is written")
    parser.add_argument("--base", "--base_model", help="folder or hub id of its base, where that has moved")
    parser.add_argument("--max_rank", type=int, default=RANKS[-1], help=f"largest rank (default {RANKS[-1]})")
    parser.add_argument("--dtype", choices=choices(), default="fp16", help="of the factors (default fp16)")
    add_run_flags(parser, long=False)
    given = parser.parse_args(arguments)
    start_logging(given.quiet, given.verbose)
    if not 1 <= given.max_rank <= RANKS[-1]:
        raise InputError(
            f"--max_rank {given.max_rank}: adapters have ranks from 1 to {RANKS[-1]}, the largest that vLLM serves"
        )
    if is_skipped(given.out, given.skip_existing):
        return
    refuse_existing(Path(given.out), given.overwrite, (given.delta, given.base))
    device, overlay = use_device(given.device, given.threads), open_overlay(given.delta, given.base)
    refuse_without_factors(overlay.delta)
    tally = Tally(0.0, {})
    tensors = adapter_tensors(overlay.delta, given.max_rank, parse_dtype(short_name(given.dtype)), device, tally)
    if not tensors:
        raise InputError(f"{given.delta!r} changes no linear layer; there is nothing that an adapter could hold")
    for name in overlay.delta.extras():
        tally.lose(kind_of(name), squared_change(name, overlay.delta.extra(name), overlay.base))
    config = adapter_config(tensors, overlay.base.source)
    ranks, size = sorted(config["rank_pattern"].values()), sum(tensor.nbytes for tensor in tensors.values())
    needed = next(rank for rank in RANKS if rank >= ranks[-1])
    serving = f"vllm serve {overlay.base.source} --enable-lora --max-lora-rank {needed} --lora-modules NAME={given.out}"
    card = Card(
        title=Path(given.out).name,
        text=f"A LoRA adapter of the {overlay.delta.manifest['method']} delta of a fine-tuned model. It leaves out:\n\n"
        f"```text\n{tally.report()}\n```\n\nServe it with `{serving}`.",
        base=overlay.base.source,
        relation="adapter",
        tags=["lora", overlay.delta.manifest["method"]],
        facts={
            "fine-tuned model": overlay.delta.manifest["finetuned"]["source"],
            "ranks": f"{ranks[0]} to {ranks[-1]}",
            "bytes": f"{size:,}",
        },
        library="peft",
    )
    write_adapter(Path(given.out), config, tensors, card)
    print(f"{given.out}: LoRA of {len(ranks)} matrices, ranks {ranks[0]} to {ranks[-1]}, {size:,} bytes")
    print(tally.report())
    print(serving)


def refuse_without_factors(delta: Delta) -> None:
    """InputError for a delta whose matrices are not products of thin factors."""
    for name in delta.names():
        if delta.rank(name) is None and delta.manifest["matrices"][name]["tensors"]:
            raise InputError(
                f"{str(delta.path)!r} holds {name} as {delta.manifest['matrices'][name]['encoding']}, which has no "
                "low-rank factors; serve it with serve/serve.py, or make an adapter of an ImPart or LowRank delta"
            )


def adapter_tensors(
    delta: Delta, max_rank: int, dtype: torch.dtype, device: torch.device, tally: Tally
) -> dict[str, Tensor]:
    """lora_A (r, n) and lora_B (m, r) of every matrix that changed, under PEFT's names; lora_B lora_A is dW."""
    tensors: dict[str, Tensor] = {}
    for name in progress(delta.names(), what="making the adapter"):
        if not delta.rank(name):
            continue
        factors = delta.factors(name, device)
        if is_vocabulary(name):
            tally.lose(kind_of(name), float(product(factors).double().square().sum()))
            continue
        if split_name(name)[1] is not None:
            tally.lose("experts that share a tensor", float(product(factors).double().square().sum()))
            continue
        kept, lost = truncated(factors, max_rank)
        U, s, V = kept
        module, root = f"base_model.model.{name.removesuffix('.weight')}", s.sqrt()
        tensors[f"{module}.lora_A.weight"] = (V * root).T.to("cpu", dtype).contiguous()
        tensors[f"{module}.lora_B.weight"] = (U * root).to("cpu", dtype).contiguous()
        tally.carried += float(product(kept).double().square().sum())
        if lost:
            tally.lose(f"ranks above {max_rank}", lost)
    return tensors


def truncated(factors: Triplets, max_rank: int) -> tuple[Triplets, float]:
    """The best approximation of U diag(s) V^T of at most that rank, and the squared norm of what it leaves out."""
    U, s, V = factors
    if len(s) <= max_rank:
        return factors, 0.0
    Q_U, R_U = torch.linalg.qr(U * s)  # masked factors are not orthogonal
    Q_V, R_V = torch.linalg.qr(V)
    left, values, right = torch.linalg.svd(R_U @ R_V.T)
    kept = (Q_U @ left[:, :max_rank], values[:max_rank], Q_V @ right[:max_rank].T)
    return kept, float(values[max_rank:].double().square().sum())


def kind_of(name: str) -> str:
    """What a parameter outside of the compressed set is called in the report."""
    if is_vocabulary(name):
        return "embeddings and head"
    return "norms" if "norm" in name else "other parameters"


def squared_change(name: str, value: Tensor, base: Checkpoint) -> float:
    """Squared norm of the difference to the base's parameter; rows that only one of them has count whole."""
    value = value.double()
    if name not in base:
        return float(value.square().sum())
    old = base.tensor(name).double()
    common = min(len(value), len(old))
    if value.shape[1:] != old.shape[1:]:
        return float(value.square().sum() + old.square().sum())
    parts = (value[:common] - old[:common], value[common:], old[common:])
    return float(sum(part.square().sum() for part in parts))


def adapter_config(tensors: dict[str, Tensor], base: str) -> dict:
    """adapter_config.json: every module with its rank, and alpha = rank, so that nothing is scaled."""
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    ranks = {
        name.removeprefix(prefix).removesuffix(suffix): len(tensor)
        for name, tensor in tensors.items()
        if name.endswith(suffix)
    }
    largest = max(ranks.values())
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "bias": "none",
        "fan_in_fan_out": False,
        "lora_dropout": 0.0,
        "r": largest,
        "lora_alpha": largest,
        "target_modules": sorted(ranks),
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
    }


def write_adapter(folder: Path, config: dict, tensors: dict[str, Tensor], card: Card) -> None:
    """PEFT's two files and the card; the folder appears when it is whole."""
    output = Output(folder)
    output.hold()
    with output.released_on_error():
        output.refuse_foreign_partial(ours=(output.partial / MARKER).exists())
        output.clear()
        output.partial.mkdir(parents=True)
        (output.partial / MARKER).touch()
        save_file(tensors, output.partial / WEIGHTS, {"format": "pt"})
        (output.partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
        card.write(output.partial)
        output.publish()


if __name__ == "__main__":
    run(main)
