"""Quantizes a sparse delta layer by layer with sparse GPTQ (ImPart-Qt, Delta-CoMe, DARE-Qt), or as signs (BitDelta).

Reads the fine-tuned model, the sparse delta that sparsify_quant.py wrote, its base, and calibration text: c4 or
wikitext2 from the hub, or a local .txt, .jsonl or .json file. Writes a delta artifact with packed codes, which delta.py
--merge adds to the base, and a report.json with the error of every matrix and rank group. A killed run continues where
it was.

    python quantize/sparse_llama.py "fine-tuned model name or path" "c4" --config "quantize/13b_config_example.yaml" \\
      --saved_delta_path "saving path of sparse delta weight" \\
      --save_compressed_delta_dir "path to save the quantized delta weight"

Sparsification and quantization in one command (the sparse delta goes beside the quantized one, with .sparse added):

    python quantize/sparse_llama.py "fine-tuned model name or path" "c4" --config "quantize/13b_config_example.yaml" \\
      --sparsify_config "sparsify/config_example.yaml" \\
      --save_compressed_delta_dir "path to save the quantized delta weight"

BitDelta needs no sparse delta, and calibration text only for distill_steps:

    python quantize/sparse_llama.py "fine-tuned model name or path" "c4" --save_compressed_delta_dir "path" \\
      method=bitdelta baseModel="meta-llama/Llama-2-13b-hf" compression_ratio_qt=16 distill_steps=200 seqlen=128
"""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as `python quantize/sparse_llama.py`: import from the repository root, not from quantize/
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import impart  # noqa: F401 - which says what packages are missing

import torch
from transformers.utils import logging as transformers_logging

from impart import processes
from impart.adapter import open_finetuned
from impart.architecture import decoder_prefix
from impart.artifact import Delta, is_delta, open_delta
from impart.artifact_writer import DeltaWriter
from impart.checkpoint import Checkpoint, check_named, open_checkpoint
from impart.config import Parser, add_config_flags, add_run_flags, as_dict, describe
from impart.costs import Work, tell
from impart.coverage import of_delta
from impart.device import use_device
from impart.errors import InputError, run
from impart.method import described_methods
from impart.outputs import is_skipped, refuse_existing
from impart.pretrained import add_trust_flag
from impart.report import Report, start_logging, table
from impart.tokenizer import load_tokenizer
from quantize.calibration import Text, digest, model_tokens, text_file
from quantize.driver import Weights, quantize_layers
from quantize.one_step import one_step_methods, quantize_models
from quantize.settings import Config, head_settings, load_config, resolved_rule
from quantize.sparse_gptq import RETURNED_BLOCK
from quantize.sparsified import check_method, check_quantizable, refuse_sparse_delta, sparsify_first, split_overrides
from quantize.streamed import StreamedDecoder

WORST = 10  # matrices in the table at the end


def main(arguments: Sequence[str]) -> None:
    flags = parse(arguments)
    own, handed_on = split_overrides(flags.overrides) if flags.sparsify_config else (flags.overrides, [])
    config, method = load_config(flags.config, own)
    if method is not None:
        refuse_sparse_delta(flags, method.name)
    start_logging(flags.quiet, flags.verbose)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if is_skipped(flags.save_compressed_delta_dir, flags.skip_existing, kind="quantized"):
        return
    processes.refuse_several("calibration, which goes through the layers one after another,")
    inputs = (flags.model, flags.saved_delta_path, flags.dataset, config.baseModel)
    refuse_existing(Path(flags.save_compressed_delta_dir), flags.overwrite, inputs)
    device = use_device(flags.device, flags.threads, RETURNED_BLOCK)
    report = Report(as_dict(config))
    check_named(flags.model, config.baseModel)
    if method is None or method.needs_text:
        text_file(flags.dataset)
    finetuned = open_finetuned(flags.model, open_checkpoint(config.baseModel) if config.baseModel else None)
    delta: Delta | None
    if method is not None:
        delta = quantize_models(
            flags.save_compressed_delta_dir,
            method,
            config.baseModel,
            finetuned,
            Text(config, model_tokens(flags.dataset, config, finetuned)) if method.needs_text else None,
            batch=config.batch,
            seed=config.seed,
            device=device,
            report=report,
            overwrite=flags.overwrite,
            force=flags.force,
            dry_run=flags.dry_run,
        )
    else:
        if flags.sparsify_config:
            load_tokenizer(finetuned.path, finetuned.source)  # a broken one is found before the long step
            flags.saved_delta_path = flags.saved_delta_path or f"{flags.save_compressed_delta_dir.rstrip('/')}.sparse"
            sparsify_first(flags, handed_on)
            if flags.dry_run and not is_delta(flags.saved_delta_path):
                return  # what follows reads the delta that would be there
        delta = quantize_sparse(flags, config, finetuned, device, report)
    if delta is not None:
        print(summary(delta, report))


def parse(arguments: Sequence[str]) -> Namespace:
    parser = Parser(__doc__, epilog="\n\n".join([describe(Config), *described_methods(one_step_methods())]))
    parser.add_argument("model", help="fine-tuned model: folder or hub id")
    parser.add_argument("dataset", help="calibration text: c4, wikitext2, or a .txt, .jsonl or .json file")
    parser.add_argument(
        "--saved_delta_path",
        "--saved_delta_pth",
        dest="saved_delta_path",
        help="sparse delta to quantize, from sparsify/sparsify_quant.py",
    )
    parser.add_argument(
        "--sparsify_config",
        action="append",
        help="YAML file of sparsify_quant.py, which is then run first, with those key=value that it reads; may be "
        "given several times",
    )
    parser.add_argument(
        "--save_compressed_delta_dir", required=True, help="folder of the quantized delta that is written"
    )
    add_trust_flag(parser)
    add_run_flags(parser)
    add_config_flags(parser)
    return parser.parse_intermixed_args(arguments)


def quantize_sparse(
    flags: Namespace, config: Config, finetuned: Checkpoint, device: torch.device, report: Report
) -> Delta | None:
    """Everything checked -> calibration tokens -> layer by layer -> artifact."""
    if flags.saved_delta_path is None:
        raise InputError(
            "--saved_delta_path is missing: the sparse delta from sparsify/sparsify_quant.py; or let "
            "--sparsify_config YAML make it"
        )
    delta = open_delta(flags.saved_delta_path)
    if delta.manifest["kind"] == "quantized":
        raise InputError(f"{flags.saved_delta_path!r} is already quantized; give the sparse delta it came from")
    if delta.needs_base:
        raise InputError(
            f"{flags.saved_delta_path!r} holds exact weights and no delta to quantize; give a sparse delta"
        )
    check_method(config.method, delta.manifest)
    check_quantizable(delta)
    rule = resolved_rule(config, delta.manifest)
    for name in delta.names():
        rank = delta.rank(name)
        if rank is not None:
            rule.plan(name, rank)
    finetuned = finetuned.named_like(delta.names())
    base = open_base(config, delta, finetuned)
    sequences = model_tokens(flags.dataset, config, finetuned)
    of_delta(delta).say()
    if flags.dry_run:
        shapes = [delta.shape(name) for name in delta.names()]
        work = Work(shapes, written=delta.sizes().total, tokens=sequences.numel())
        tell(flags.save_compressed_delta_dir, work, device)
        return None
    head = {
        "kind": "quantized",
        "method": delta.manifest["method"],
        "seed": delta.manifest["seed"],
        "settings": head_settings(config, rule, delta.manifest, digest(sequences)),
        **{key: delta.manifest[key] for key in ("base", "finetuned")},
    }
    writer = DeltaWriter(
        flags.save_compressed_delta_dir,
        head,
        dtypes={name: delta.dtype(name) for name in delta.names()},
        extras=delta.extras(),
        dropped=delta.manifest["dropped"],
        needed_bytes=delta.sizes().total,
        overwrite=flags.overwrite,
    )
    dtype = finetuned.model_dtype() if device.type == "cuda" else torch.float32
    weights = Weights(base, finetuned, delta, device)
    decoder = StreamedDecoder(finetuned, decoder_prefix(delta.names()), device, dtype)
    quantize_layers(
        decoder, weights, writer, sequences, rule, true_sequential=config.true_sequential, batch=config.batch
    )
    return writer.finish(delta.companions(), report)


def open_base(config: Config, delta: Delta, finetuned: Checkpoint) -> Checkpoint:
    """The base, after checking that the delta was taken between it and the fine-tuned model, and is whole."""
    base = open_checkpoint(config.baseModel or delta.manifest["base"]["source"])
    delta.check_base(base)
    expected, found = delta.manifest["finetuned"]["fingerprint"], finetuned.fingerprint()
    if expected != found:
        raise InputError(
            f"{str(delta.path)!r} is a delta of fine-tuned model {delta.manifest['finetuned']['source']!r}, but "
            f"{finetuned.source!r} has other weights; give that model"
        )
    delta.verify()
    return base


def summary(delta: Delta, report: Report) -> str:
    """The worst matrices, and nominal against true ratios."""
    sizes, nominal = delta.sizes(), delta.manifest["settings"].get("compression_ratio_qt")
    lines = []
    worst = sorted((row for row in report.rows if "error" in row), key=lambda row: -row["error"])[:WORST]
    if worst:
        parts = sorted(
            {key for row in worst for key in row if key.startswith("error_")}, key=lambda key: -int(key[6:-3])
        )
        rows = [
            (
                row["name"].removesuffix(".weight"),
                f"{row['error']:.4f}",
                f"{row['inner_product']:.3f}",
                *(f"{row[key]:.4f}" if key in row else "" for key in parts),
            )
            for row in worst
        ]
        lines += [
            "relative output error of the worst matrices, against the sparse delta, and inner product with it",
            table(rows, ("matrix", "all", "inner product", *(key.removeprefix("error_") for key in parts))),
            "",
        ]
    rows = [
        (
            "linear layers, values only",
            f"{sizes.linear_dense:,}",
            f"{sizes.values:,}",
            f"{sizes.linear_dense / max(sizes.values, 1):.2f}",
        ),
        ("linear layers, all bytes", f"{sizes.linear_dense:,}", f"{sizes.linear:,}", f"{sizes.linear_ratio:.2f}"),
        ("whole checkpoint", f"{sizes.checkpoint:,}", f"{sizes.total:,}", f"{sizes.checkpoint_ratio:.2f}"),
    ]
    title = f"bytes (nominal ratio {nominal:g})" if nominal else "bytes"
    return "\n".join(
        [
            *lines,
            f"{delta.path}: {delta.manifest['method']}, quantized",
            table(rows, (title, "16 bit / as stored", "delta", "ratio")),
        ]
    )


if __name__ == "__main__":
    run(main)
