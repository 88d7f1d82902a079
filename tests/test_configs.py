"""Every shipped YAML file of the sparsification loads, resolves, is feasible, and says its own command."""

from pathlib import Path

import pytest
import yaml

from impart.config import load
from sparsify.allocation import check_feasible
from sparsify.settings import Config, resolved

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "configs").glob("*/*.yaml"))
SPARSIFY = [file for file in FILES if "sparsify/sparsify.py" in file.read_text()]


def test_every_pair_of_table_2_and_the_tiny_one_has_a_folder():
    folders = {file.parent.name for file in SPARSIFY}
    assert folders >= {"wizardmath_13b", "wizardcoder_13b", "llama2_chat_13b", "llama2_chat_7b", "llama3_instruct_8b", "tiny"}


@pytest.mark.parametrize("file", SPARSIFY, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_a_config_loads_is_feasible_and_names_its_command(file):
    config = resolved(load(Config, file))
    assert f"--config configs/{file.parent.name}/{file.name}" in file.read_text()
    if config.method == "impart":
        check_feasible(file.stem, 5120, 13824, config.compression_ratio, config.preprune_ratio)
    assert config.save_dir.startswith(f"runs/{file.parent.name}/")


def test_save_folders_are_distinct():
    folders = [yaml.safe_load(file.read_text())["save_dir"] for file in SPARSIFY]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("skill", ["math", "code", "chat"])
def test_the_tiny_models_of_the_configs_are_there(skill):
    config = load(Config, ROOT / "configs" / "tiny" / f"{skill}.yaml")
    assert (ROOT / config.ftm_dir / "model.safetensors").is_file()
    assert (ROOT / config.base_model / "config.json").is_file()


def test_the_authors_example_loads_unchanged():
    config = resolved(load(Config, ROOT / "sparsify" / "config_example.yaml"))
    assert (config.layer_num, config.compression_ratio, config.preprune_ratio, config.C) == (40, 32, 0.8, 0.5)
    assert len(config.weight_types) == 7


def test_the_authors_only_lowrank_loads_unchanged():
    config = resolved(load(Config, ROOT / "sparsify" / "config_example.yaml", ["C=only_lowrank", "preprune_ratio=null"]))
    assert config.method == "lowrank"
