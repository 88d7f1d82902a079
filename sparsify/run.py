"""What sparsify.py and sparsify_quant.py do, which differ in their methods and in what they report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from impart import processes
from impart.artifact import Delta
from impart.checkpoint import open_checkpoint
from impart.compress import compress
from impart.config import config_parser
from impart.device import use_device
from impart.errors import InputError
from impart.outputs import check_writable, refuse_existing
from impart.reconstruct import write_model
from impart.report import Report, start_logging
from impart.sources import open_source
from sparsify.settings import RunConfig, described, load_settings
from sparsify.summary import FACES


def sparsify(face: str, doc: str | None, arguments: Sequence[str]) -> None:
    """Settings and models, checked -> every matrix by the method -> artifact -> what was written."""
    flags = config_parser(RunConfig, doc, *described(face)).parse_intermixed_args(arguments)
    start_logging()
    settings = load_settings(face, flags.config, flags.overrides)
    config, method, told = settings.config, settings.method, FACES[face]
    check_outputs(config, flags.overwrite)
    device = use_device(flags.device, flags.threads)
    report = Report(dataclasses.asdict(config) | method.settings())
    source = open_source(config, method, device, base_needed=config.save_model)
    delta = compress(
        source, method, config.save_dir, kind="sparse", seed=config.seed, overwrite=flags.overwrite, report=report
    )
    if delta is not None:
        print(told.summary(delta))
        if config.log_dir:
            told.write_table(delta, table_file(config))
        if config.save_model:
            write_dense(config, delta, device, flags.overwrite)
    processes.leave()


def check_outputs(config: RunConfig, overwrite: bool) -> None:
    """InputError for a place that a run may not write to, or a second one within the first."""
    inputs = (config.base_model, config.ftm_dir, config.svd_dir)
    refuse_existing(Path(config.save_dir), overwrite, inputs)
    if config.save_model:
        refuse_existing(model_dir(config), overwrite, (*inputs, config.save_dir))
        if model_dir(config).expanduser().resolve() == Path(config.save_dir).expanduser().resolve():
            raise InputError(
                f"model_dir={str(model_dir(config))!r} is save_dir, where the delta goes; name another folder"
            )
    if config.log_dir:
        check_writable(table_file(config))


def write_dense(config: RunConfig, delta: Delta, device, overwrite: bool) -> None:
    """base + sparse delta as a checkpoint."""
    base = open_checkpoint(config.base_model or delta.manifest["base"]["source"])
    write_model(delta, base, model_dir(config), device=device, overwrite=overwrite)
    print(f"dense checkpoint: {model_dir(config)}")


def table_file(config: RunConfig) -> Path:
    """The CSV of a run, in its log_dir."""
    return Path(config.log_dir or ".").expanduser() / f"{Path(config.save_dir).name}.csv"


def model_dir(config: RunConfig) -> Path:
    """Where save_model puts the checkpoint."""
    return Path(config.model_dir or f"{config.save_dir.rstrip('/')}_model")
