"""What sparsify.py and sparsify_quant.py do, which differ in their methods and in what they report."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from impart import processes
from impart.artifact import Delta, is_delta, open_delta
from impart.checkpoint import open_checkpoint
from impart.compress import compress, expected_work
from impart.config import config_parser
from impart.costs import tell
from impart.device import use_device
from impart.errors import InputError
from impart.files import user_path
from impart.outputs import check_writable, is_skipped, refuse_existing
from impart.reconstruct import write_model
from impart.report import Report, start_logging
from impart.sources import open_source
from sparsify.settings import RunConfig, described, load_settings
from sparsify.summary import FACES


def sparsify(face: str, doc: str | None, arguments: Sequence[str]) -> None:
    """Settings and models, checked -> every matrix by the method -> artifact -> what was written."""
    flags = config_parser(RunConfig, doc, *described(face)).parse_intermixed_args(arguments)
    start_logging(flags.quiet, flags.verbose)
    settings = load_settings(face, flags.config, flags.overrides)
    settings.check_information()
    config, method, told = settings.config, settings.method, FACES[face]
    head = {"kind": "sparse", "method": method.name, "settings": method.settings(), "seed": config.seed}
    continues = lacks_only_the_model(config, flags.overwrite)
    if not continues and is_skipped(config.save_dir, flags.skip_existing, **head):
        return
    check_outputs(config, flags.overwrite, delta_is_there=continues)
    device = use_device(flags.device, flags.threads)
    report = Report(dataclasses.asdict(config) | method.settings())
    source = open_source(config, method, device, force=flags.force, base_needed=config.save_model)
    if flags.dry_run:
        tell(config.save_dir, expected_work(source, method), device)
        return
    delta = (
        finished_delta(config, {**head, **source.head()}, source.matrices)
        if continues
        else compress(
            source, method, config.save_dir, kind="sparse", seed=config.seed, overwrite=flags.overwrite, report=report
        )
    )
    if delta is not None:
        print(told.summary(delta))
        if config.log_dir:
            told.write_table(delta, table_file(config))
        if config.save_model:
            write_dense(config, delta, device, flags.overwrite)
    processes.leave()


def lacks_only_the_model(config: RunConfig, overwrite: bool) -> bool:
    """Whether an earlier run of save_model=true seems to have ended between the delta and the dense checkpoint."""
    return config.save_model and not overwrite and is_delta(config.save_dir) and not model_dir(config).exists()


def finished_delta(config: RunConfig, head: dict, matrices: Sequence[str]) -> Delta | None:
    """The delta in save_dir, in the first process; InputError unless this run would make the same."""
    if processes.rank() > 0:
        return None
    delta = open_delta(config.save_dir)
    if {key: delta.manifest.get(key) for key in head} != head or sorted(delta.names()) != sorted(matrices):
        raise InputError(
            f"{config.save_dir!r} exists and is of other models or settings; name another folder, or add --overwrite "
            "to replace it"
        )
    delta.verify()
    return delta


def check_outputs(config: RunConfig, overwrite: bool, delta_is_there: bool) -> None:
    """InputError for a place that a run may not write to, or a second one within the first."""
    inputs = (config.base_model, config.ftm_dir, config.svd_dir)
    if not delta_is_there:
        refuse_existing(Path(config.save_dir), overwrite, inputs)
    if config.save_model:
        refuse_existing(model_dir(config), overwrite, (*inputs, config.save_dir))
        if user_path(model_dir(config)).resolve() == user_path(config.save_dir).resolve():
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
    return user_path(config.log_dir or ".") / f"{Path(config.save_dir).name}.csv"


def model_dir(config: RunConfig) -> Path:
    """Where save_model puts the checkpoint."""
    return Path(config.model_dir or f"{config.save_dir.rstrip('/')}_model")
