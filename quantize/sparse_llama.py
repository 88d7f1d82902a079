"""Quantizes a sparse delta layer by layer with sparse GPTQ (ImPart-Qt, Delta-CoMe, DARE-Qt), or a delta to its signs (BitDelta).

Reads the fine-tuned model, the sparse delta that sparsify_quant.py wrote, its base, and calibration text: c4 or wikitext2
from the hub, or a local .txt, .jsonl or .json file. Writes a delta artifact with packed codes, which delta.py --merge
adds to the base, and a report.json with the error of every matrix and rank group. A killed run continues where it was.

    python quantize/sparse_llama.py "fine-tuned model name or path" "c4" --config "quantize/13b_config_example.yaml" \\
      --saved_delta_path "saving path of sparse delta weight" --save_compressed_delta_dir "path to save the quantized delta weight"

Sparsification and quantization in one command (the sparse delta goes beside the quantized one, with .sparse added):

    python quantize/sparse_llama.py "fine-tuned model name or path" "c4" --config "quantize/13b_config_example.yaml" \\
      --sparsify_config "sparsify/config_example.yaml" --save_compressed_delta_dir "path to save the quantized delta weight"

BitDelta needs no sparse delta, and calibration text only for distill_steps:

    python quantize/sparse_llama.py "fine-tuned model name or path" "c4" --save_compressed_delta_dir "path" \\
      method=bitdelta baseModel="meta-llama/Llama-2-13b-hf" compression_ratio_qt=16 distill_steps=200 seqlen=128
"""

import hashlib
import logging
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path

if not __package__:  # run as `python quantize/sparse_llama.py`: import from the repository root, not from quantize/
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import torch
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from impart import processes
from impart.artifact import Delta, open_delta
from impart.artifact_writer import DeltaWriter, model_facts
from impart.bit_plan import cut_plan
from impart.checkpoint import Checkpoint, linear_names, open_checkpoint, refuse_existing, weight_type
from impart.config import Parser, add_run_flags, as_dict, describe, load
from impart.device import use_device
from impart.encoded import Encoded
from impart.encodings import empty
from impart.errors import InputError, run
from impart.pair import Pair, check_pair, scan_pair, select_matrices
from impart.report import Report, progress, start_logging, table
from quantize.bitdelta import bitdelta, distilled_scales
from quantize.calibration import calibration_sequences
from quantize.driver import Weights, quantize_layers
from quantize.matrix import Rule
from quantize.settings import Config, head_settings, resolved_rule
from quantize.streamed import StreamedDecoder

log = logging.getLogger(__name__)
WORST = 10  # matrices in the table at the end


def main(arguments: Sequence[str]) -> None:
    flags = parse(arguments)
    config = load(Config, flags.config, flags.overrides)
    start_logging()
    transformers_logging.set_verbosity_error()
    if processes.world_size() > 1:
        raise InputError("calibration goes through the layers one after another and cannot be split over processes; run it "
                         "without accelerate or torchrun")
    refuse_existing(Path(flags.save_compressed_delta_dir), flags.overwrite)
    device, report = use_device(flags.device, flags.threads), Report(as_dict(config))
    finetuned = open_checkpoint(flags.model)
    if config.method == "bitdelta":
        delta = quantize_to_signs(flags, config, finetuned, device, report)
    else:
        if flags.sparsify_config:
            sparsify_first(flags)
        delta = quantize_sparse(flags, config, finetuned, device, report)
    print(summary(delta, report))


def parse(arguments: Sequence[str]) -> Namespace:
    parser = Parser(__doc__, epilog=describe(Config))
    parser.add_argument("model", help="fine-tuned model: folder or hub id")
    parser.add_argument("dataset", help="calibration text: c4, wikitext2, or a .txt, .jsonl or .json file")
    parser.add_argument("--config", help="YAML file with the keys below")
    parser.add_argument("--saved_delta_path", "--saved_delta_pth", dest="saved_delta_path",
                        help="sparse delta to quantize, from sparsify/sparsify_quant.py")
    parser.add_argument("--sparsify_config", help="YAML file of sparsify_quant.py, which is then run first")
    parser.add_argument("--save_compressed_delta_dir", required=True, help="folder of the quantized delta that is written")
    add_run_flags(parser)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="override a key of the YAML file")
    flags = parser.parse_intermixed_args(arguments)
    if flags.sparsify_config and flags.saved_delta_path is None:
        flags.saved_delta_path = f"{flags.save_compressed_delta_dir.rstrip('/')}.sparse"
    return flags


def sparsify_first(flags: Namespace) -> None:
    """Runs sparsify_quant.py into saved_delta_path, unless a finished delta is there from an earlier run."""
    script = Path(__file__).resolve().parents[1] / "sparsify" / "sparsify_quant.py"
    command = [sys.executable, str(script), "--config", flags.sparsify_config, "--device", flags.device, "--threads",
               str(flags.threads), f"save_dir={flags.saved_delta_path}", *(["--overwrite"] if flags.overwrite else [])]
    if Path(flags.saved_delta_path).exists() and not flags.overwrite:
        log.info("%s is there and is used as it is", flags.saved_delta_path)
        return
    code = subprocess.run(command).returncode
    if code:
        sys.exit(code)  # it has said why


def quantize_sparse(flags: Namespace, config: Config, finetuned: Checkpoint, device: torch.device,
                    report: Report) -> Delta:
    """Everything checked -> calibration tokens -> layer by layer -> artifact."""
    if flags.saved_delta_path is None:
        raise InputError("--saved_delta_path is missing: the sparse delta from sparsify/sparsify_quant.py; or let "
                         "--sparsify_config YAML make it")
    delta = open_delta(flags.saved_delta_path)
    if delta.manifest["kind"] == "quantized":
        raise InputError(f"{flags.saved_delta_path!r} is already quantized; give the sparse delta it came from")
    rule = resolved_rule(config, delta.manifest)
    for name in delta.names():
        if delta.rank(name) is not None:
            cut_plan(rule.attn_plan if "self_attn" in name else rule.mlp_plan, delta.rank(name), name)
    base = open_base(config, delta, finetuned)
    sequences = calibration_tokens(flags.dataset, config, finetuned)
    head = {"kind": "quantized", "method": delta.manifest["method"], "seed": delta.manifest["seed"],
            "settings": head_settings(config, rule, delta.manifest, digest(sequences)),
            **{key: delta.manifest[key] for key in ("base", "finetuned")}}
    writer = DeltaWriter(flags.save_compressed_delta_dir, head, dtypes={name: delta.dtype(name) for name in delta.names()},
                         extras=delta.extras(), dropped=delta.manifest["dropped"], needed_bytes=delta.sizes().total,
                         overwrite=flags.overwrite)
    dtype = finetuned.model_dtype() if device.type == "cuda" else torch.float32
    weights = Weights(base, finetuned, delta, device)
    decoder = StreamedDecoder(finetuned.path, layers_prefix(finetuned), weights.plain, device, dtype)
    quantize_layers(decoder, weights, writer, sequences, rule, true_sequential=config.true_sequential, batch=config.batch)
    return writer.finish(delta.companions(), report)


def open_base(config: Config, delta: Delta, finetuned: Checkpoint) -> Checkpoint:
    """The base, after checking that the delta was taken between it and the fine-tuned model, and is whole."""
    base = open_checkpoint(config.baseModel or delta.manifest["base"]["source"])
    delta.check_base(base)
    expected, found = delta.manifest["finetuned"]["fingerprint"], finetuned.fingerprint()
    if expected != found:
        raise InputError(f"{str(delta.path)!r} is a delta of fine-tuned model {delta.manifest['finetuned']['source']!r}, but "
                         f"{finetuned.source!r} has other weights; give that model")
    delta.verify()
    return base


def calibration_tokens(dataset: str, config: Config, finetuned: Checkpoint) -> Tensor:
    """Token ids (nsamples, seqlen), checked against what the model takes."""
    positions = finetuned.config.get("max_position_embeddings")
    if positions is not None and config.seqlen > positions:
        raise InputError(f"seqlen={config.seqlen} is more than the {positions} positions of {finetuned.source!r}; lower it")
    try:
        tokenizer = AutoTokenizer.from_pretrained(finetuned.path)
    except (OSError, ValueError) as error:
        raise InputError(f"{finetuned.source!r} has no tokenizer that transformers can read "
                         f"({str(error).splitlines()[0]})") from error
    sequences = calibration_sequences(dataset, lambda text: tokenizer(text, verbose=False)["input_ids"],
                                      count=config.nsamples, length=config.seqlen, seed=config.seed,
                                      text_field=config.text_field)
    rows = finetuned.config.get("vocab_size")
    if rows is not None and int(sequences.max()) >= rows:
        raise InputError(f"the tokenizer of {finetuned.source!r} gives token {int(sequences.max())}, but the model has "
                         f"{rows} embeddings; is it the right tokenizer?")
    return sequences


def digest(sequences: Tensor) -> str:
    return hashlib.sha256(sequences.numpy().tobytes()).hexdigest()[:16]


def layers_prefix(checkpoint: Checkpoint) -> str:
    """`model.layers` of `model.layers.0.self_attn.q_proj.weight`."""
    name = linear_names(checkpoint)[0]
    return name[: name.index("layers.") + len("layers")]


def quantize_to_signs(flags: Namespace, config: Config, finetuned: Checkpoint, device: torch.device,
                      report: Report) -> Delta:
    """BitDelta: signs and scales of every matrix, the scales distilled when asked for."""
    if config.baseModel is None:
        raise InputError("baseModel is missing: BitDelta takes the delta between it and the fine-tuned model")
    cr = config.compression_ratio_qt or 16.0
    sequences = calibration_tokens(flags.dataset, config, finetuned) if config.distill_steps else None
    base = open_checkpoint(config.baseModel)
    matrices = select_matrices(linear_names(finetuned), finetuned.source)
    check_pair(base, finetuned, matrices)
    pair = scan_pair(base, finetuned, matrices)
    settings = {"compression_ratio_qt": cr, "distill_steps": config.distill_steps}
    if sequences is not None:
        settings |= {"distill_lr": config.distill_lr, "nsamples": config.nsamples, "seqlen": config.seqlen,
                     "batch": config.batch, "calibration_tokens": digest(sequences)}
    head = {"kind": "quantized", "method": "bitdelta", "settings": settings, "seed": config.seed,
            "base": model_facts(base), "finetuned": model_facts(finetuned)}
    entries = sum(m * n for m, n in map(finetuned.shape, matrices))
    extra_bytes = sum(finetuned.spec(name).nbytes for name in pair.extras)
    writer = DeltaWriter(flags.save_compressed_delta_dir, head, dtypes={name: finetuned.dtype(name) for name in matrices},
                         extras=pair.extras, dropped=pair.dropped, needed_bytes=int(2.1 * entries / cr) + extra_bytes,
                         overwrite=flags.overwrite)
    scales = trained_scales(config, pair, cr, sequences, device) if sequences is not None else {}
    for shard in progress(writer.pending(), what="bitdelta", unit="shard"):
        encoded = {name: signs_of(pair, name, cr, config.seed, device, scales.get(name)) for name in shard.matrices}
        rows = [{"name": name, **matrix.facts} for name, matrix in encoded.items()]
        writer.write(shard, encoded, {name: finetuned.tensor(name) for name in shard.extras}, rows)
    return writer.finish(finetuned.companions(), report)


def signs_of(pair: Pair, name: str, cr: float, seed: int, device: torch.device, mu: float | None = None) -> Encoded:
    if name in pair.unchanged:
        return empty(pair.base.shape(name))
    return bitdelta(pair.delta(name, device), name=name, cr=cr, seed=seed, mu=mu)


def trained_scales(config: Config, pair: Pair, cr: float, sequences: Tensor, device: torch.device) -> Mapping[str, float]:
    signs = {name: signs_of(pair, name, cr, config.seed, device) for name in pair.matrices}
    dtype = pair.finetuned.model_dtype() if device.type == "cuda" else torch.float32
    return distilled_scales(pair.base, pair.finetuned, signs, sequences, steps=config.distill_steps, lr=config.distill_lr,
                            batch=config.batch, device=device, dtype=dtype)


def summary(delta: Delta, report: Report) -> str:
    """The worst matrices, and nominal against true ratios."""
    sizes, nominal = delta.sizes(), delta.manifest["settings"].get("compression_ratio_qt")
    lines = []
    worst = sorted((row for row in report.rows if "error" in row), key=lambda row: -row["error"])[:WORST]
    if worst:
        parts = sorted({key for row in worst for key in row if key.startswith("error_")}, key=lambda key: -int(key[6:-3]))
        rows = [(row["name"].removesuffix(".weight"), f"{row['error']:.4f}",
                 *(f"{row[key]:.4f}" if key in row else "" for key in parts)) for row in worst]
        lines += ["relative output error of the worst matrices, against the sparse delta",
                  table(rows, ("matrix", "all", *(key.removeprefix("error_") for key in parts))), ""]
    rows = [("linear layers, values only", f"{sizes.linear_dense:,}", f"{sizes.values:,}",
             f"{sizes.linear_dense / max(sizes.values, 1):.2f}"),
            ("linear layers, all bytes", f"{sizes.linear_dense:,}", f"{sizes.linear:,}", f"{sizes.linear_ratio:.2f}"),
            ("whole checkpoint", f"{sizes.checkpoint:,}", f"{sizes.total:,}", f"{sizes.checkpoint_ratio:.2f}")]
    title = f"bytes (nominal ratio {nominal:g})" if nominal else "bytes"
    return "\n".join([*lines, f"{delta.path}: {delta.manifest['method']}, quantized",
                      table(rows, (title, "16 bit / as stored", "delta", "ratio"))])


if __name__ == "__main__":
    run(main)
