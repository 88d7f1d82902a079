"""Every shipped YAML file loads, resolves, is feasible and names its command; new pairs and LlamaCoder's recipe run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sparsify.settings_quant import QuantConfig, resolved_quant

from impart.architecture import linear_names
from impart.checkpoint import open_checkpoint
from impart.config import load
from merge import merge
from merge.settings import load_config, resolve
from quantize.settings import Config as QuantizeConfig
from sparsify.allocation import check_feasible
from sparsify.settings import Config, resolved

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
ROWS = sorted((CONFIGS / "rows").glob("*.yaml"))
PAIRS = sorted(CONFIGS.glob("**/pair.yaml"))
MERGES = sorted(CONFIGS.glob("**/merge.yaml"))
TRAINING = [CONFIGS / "llamacoder_13b" / name for name in ("train.yaml", "fsdp.yaml")]
SPARSIFY = [file for file in sorted(CONFIGS.glob("**/*.yaml")) if file not in (*ROWS, *PAIRS, *MERGES, *TRAINING)]
MODELS = ["base_model=b", "ftm_dir=f", "save_dir=s"]
PAPER_PAIRS = {"wizardmath_13b", "wizardcoder_13b", "llama2_chat_13b", "llama2_chat_7b", "llama3_instruct_8b"}


def named(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


def test_every_pair_of_table_2_and_the_tiny_one_has_a_folder():
    assert {file.parent.name for file in SPARSIFY} >= {*PAPER_PAIRS, "tiny"}
    assert {named(file.parent) for file in PAIRS} >= {
        *PAPER_PAIRS,
        "tiny/math",
        "tiny/code",
        "tiny/chat",
        "merging_13b",
    }


@pytest.mark.parametrize("file", SPARSIFY, ids=named)
def test_a_config_loads_is_feasible_and_names_its_command(file):
    config = resolved(load(Config, file))
    assert f"--config configs/{file.parent.name}/{file.name}" in file.read_text()
    if config.method == "impart":
        check_feasible(file.stem, 5120, 13824, config.compression_ratio, config.preprune_ratio)
    assert config.save_dir.startswith(f"runs/{file.parent.name}/")


@pytest.mark.parametrize("file", [file for file in SPARSIFY if file.parent.name in PAPER_PAIRS], ids=named)
def test_a_pairs_row_is_the_general_row_with_the_pairs_settings(file):
    pair = yaml.safe_load((file.parent / "pair.yaml").read_text())
    expected = {key: pair[key] for key in ("base_model", "ftm_dir")} | {"compression_ratio": pair["ratio"]}
    row = yaml.safe_load((CONFIGS / "rows" / file.name).read_text())
    if row["method"] == "impart":
        expected |= {"preprune_ratio": pair["preprune_ratio"], "C": pair["C"]}
    given = yaml.safe_load(file.read_text())
    assert {**expected, **row} == {
        key: value for key, value in given.items() if key not in ("save_dir", "log_dir", "seed")
    }


@pytest.mark.parametrize("file", ROWS, ids=named)
def test_a_row_loads_with_any_pairs_models(file):
    text = file.read_text()
    if "sparsify/sparsify.py" in text:
        resolved(load(Config, file, [*MODELS, "compression_ratio=32", *missing(file, "preprune_ratio=0.6", "C=1")]))
    elif "sparsify/sparsify_quant.py" in text:
        more = missing(file, "preprune_ratio=0.6", "C=1")
        assert (
            resolved_quant(load(QuantConfig, file, [*MODELS, "compression_ratio_qt=32", *more])).accounting == "paper"
        )
    else:
        assert load(QuantizeConfig, file).method == "bitdelta"
    assert f"--config configs/rows/{file.name}" in text


def missing(file: Path, *overrides: str) -> list[str]:
    given = yaml.safe_load(file.read_text())
    return [one for one in overrides if one.partition("=")[0] not in given and given["method"] == "impart"]


@pytest.mark.parametrize("file", PAIRS, ids=named)
def test_a_pair_has_what_the_scripts_read_on_plain_lines(file):
    pair = yaml.safe_load(file.read_text())
    needed = {"name", "base_model", "dtype", "template", "benchmarks"}
    if (file.parent / "merge.yaml").is_file():
        needed |= {
            "ta",
            "ties",
            *(f"{method}_{mask}_sparsity" for method in ("ta", "ties") for mask in ("dare", "impart")),
        }
    else:
        needed |= {
            "ftm_dir",
            "preprune_ratio",
            "C",
            "ratio",
            "ratios",
            "ratio_qt",
            "ratios_qt",
            "dare_bits",
            "calibration",
            "calibration_settings",
            "distillation_settings",
        }
    assert needed <= set(pair)
    for benchmark in pair["benchmarks"].split():
        assert benchmark.startswith("tiny_") or (ROOT / "eval" / "scripts" / f"{benchmark}.sh").is_file()
    shell = subprocess.run(
        ["sed", "-n", "s/^[A-Za-z_]*: *//p", file], capture_output=True, text=True, check=True
    ).stdout
    as_bash_reads = [line.partition("#")[0].strip() for line in shell.splitlines()]
    assert [yaml.safe_load(value) for value in as_bash_reads] == list(pair.values())


@pytest.mark.parametrize("file", [file for file in PAIRS if not (file.parent / "merge.yaml").is_file()], ids=named)
def test_every_ratio_of_a_pair_is_feasible_in_every_table(file):
    pair = yaml.safe_load(file.read_text())
    shapes = [(5120, 5120), (13824, 5120), (4096, 1024)]
    if pair["base_model"].startswith("assets/"):
        base = open_checkpoint(ROOT / pair["base_model"])
        shapes = [base.shape(name) for name in linear_names(base)]
    for ratio in map(int, pair["ratios"].split()):
        for m, n in shapes:
            check_feasible("w", m, n, ratio, pair["preprune_ratio"])
            if ratio == pair["ratio"]:
                check_feasible("w", m, n, ratio, 0.8)  # the highest beta of Table 4
    assert str(pair["ratio"]) in pair["ratios"].split() and str(pair["ratio_qt"]) in pair["ratios_qt"].split()
    for text in (pair["calibration_settings"], pair["distillation_settings"]):
        load(QuantizeConfig, None, text.split())


@pytest.mark.parametrize("file", MERGES, ids=named)
def test_a_merge_loads_with_every_method_and_mask_of_table_8(file):
    pair = yaml.safe_load((file.parent / "pair.yaml").read_text())
    for method in ("ta", "ties"):
        for mask in ("none", "dare", "impart"):
            sparsity = [] if mask == "none" else [f"sparsity={pair[f'{method}_{mask}_sparsity']}"]
            _, entries = resolve(
                load_config(str(file), {}, [], [f"merge_method={pair[method]}", f"mask={mask}", *sparsity])
            )
            assert [entry.name for entry in entries] == ["chat", "code", "math"]


def test_the_six_lines_of_table_8_run_and_are_those_of_its_script(called, tmp_path):
    lines = [
        line.split()[1:] for line in (CONFIGS / "README.md").read_text().splitlines() if line.startswith("    $merge ")
    ]
    pair = yaml.safe_load((CONFIGS / "tiny" / "merging" / "pair.yaml").read_text())
    masked = {
        (method, mask): [f"mask={mask}", f"sparsity={pair[f'{method}_{mask}_sparsity']}"]
        for method in ("ta", "ties")
        for mask in ("dare", "impart")
    }
    assert [line[:-1] for line in lines] == [
        [f"merge_method={pair[method]}", *masked.get((method, mask), [])]
        for method in ("ta", "ties")
        for mask in ("none", "dare", "impart")
    ]
    digests = set()
    for *settings, target in lines:
        out = tmp_path / Path(target.removeprefix("save_pth=")).name
        ended = called(
            merge.main,
            "--config",
            CONFIGS / "tiny" / "merging" / "merge.yaml",
            *settings,
            f"save_pth={out}",
            "--threads",
            1,
        )
        assert ended.code == 0, ended.err
        digests.add((out / "model.safetensors").read_bytes())
    assert len(digests) == 6


def test_save_folders_are_distinct():
    folders = [yaml.safe_load(file.read_text())["save_dir"] for file in SPARSIFY]
    assert len(set(folders)) == len(folders)


@pytest.mark.parametrize("skill", ["math", "code", "chat"])
def test_the_tiny_models_of_the_configs_are_there(skill):
    config = load(Config, CONFIGS / "tiny" / f"{skill}.yaml")
    assert (ROOT / config.ftm_dir / "model.safetensors").is_file()
    assert (ROOT / config.base_model / "config.json").is_file()


def test_the_authors_example_loads_unchanged():
    config = resolved(load(Config, ROOT / "sparsify" / "config_example.yaml"))
    assert (config.layer_num, config.compression_ratio, config.preprune_ratio, config.C) == (40, 32, 0.8, 0.5)
    assert len(config.weight_types) == 7


def test_the_authors_only_lowrank_loads_unchanged():
    config = resolved(
        load(Config, ROOT / "sparsify" / "config_example.yaml", ["C=only_lowrank", "preprune_ratio=null"])
    )
    assert config.method == "lowrank"


def test_new_pair_makes_one_yaml_that_the_scripts_take(tmp_path):
    variables = os.environ | {"VIRTUAL_ENV": sys.prefix, "CONFIGS": str(tmp_path)}
    command = ["bash", "configs/new_pair.sh", "assets/tiny/base", "assets/tiny/code", "mine", "tiny_code"]
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["pair.yaml"]
    made = yaml.safe_load((tmp_path / "mine" / "pair.yaml").read_text())
    assert (made["ftm_dir"], made["hidden_size"], made["layers"]) == ("assets/tiny/code", 192, 3)
    assert made["parameters"] == pytest.approx(0.00149, rel=0.05)
    assert set(yaml.safe_load((CONFIGS / "wizardmath_13b" / "pair.yaml").read_text())) == set(made)
    again = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.startswith("error:")


@pytest.mark.parametrize("arguments", [["a", "b"], ["a", "b", "x/y"], ["a", "b", "c", "gsm9k"]])
def test_new_pair_refuses_with_one_line(arguments, tmp_path):
    done = subprocess.run(
        ["bash", "configs/new_pair.sh", *arguments],
        cwd=ROOT,
        env=os.environ | {"CONFIGS": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("error:") and len(done.stderr.splitlines()) == 1


def test_the_training_recipe_is_the_papers():
    from configs.llamacoder_13b.train import Config as Training

    recipe = load(Training, CONFIGS / "llamacoder_13b" / "train.yaml")
    assert (recipe.epochs, recipe.batch, recipe.learning_rate, recipe.length) == (3, 8, 2e-5, 4096)
    assert yaml.safe_load((CONFIGS / "merging_13b" / "merge.yaml").read_text())["code_pth"] == recipe.save_dir


def test_the_loss_is_on_the_answer_alone_and_long_instructions_are_left_out():
    from configs.llamacoder_13b.train import Config as Training
    from configs.llamacoder_13b.train import rate_factor, tokenized

    class Letters:
        eos_token_id = 9

        def __call__(self, text, add_special_tokens=True):
            return {"input_ids": [1] * add_special_tokens + [int(letter) for letter in text]}

    config = Training("b", [], "s", length=6, template="{instruction}")
    assert tokenized("23", "45", Letters(), config) == ([1, 2, 3, 4, 5, 9], [-100, -100, -100, 4, 5, 9])
    assert tokenized("23", "4567", Letters(), config) == ([1, 2, 3, 4, 5, 6], [-100, -100, -100, 4, 5, 6])
    assert tokenized("23456", "7", Letters(), config) is None
    factor = rate_factor(100, 0.1)
    assert factor(0) == pytest.approx(0.1) and factor(9) == factor(10) == 1 and factor(55) == pytest.approx(0.5)


@pytest.mark.slow
def test_the_training_script_learns_on_the_tiny_base_and_its_model_merges(tmp_path, script):
    items = [
        json.loads(line) for line in (ROOT / "assets/tiny/data/code_validation.jsonl").read_text().splitlines()[:16]
    ]
    data = tmp_path / "answers.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": item["prompt"], "completion": "    return xs\n"}) + "\n" for item in items)
    )
    out = tmp_path / "tuned"
    done = script(
        "configs/llamacoder_13b/train.py",
        "base_model=assets/tiny/base",
        f"data=[{data}]",
        f"save_dir={out}",
        "length=200",
        "learning_rate=0.001",
        "--device",
        "cpu",
    )
    assert done.code == 0, done.err
    losses = json.loads((out / "training.json").read_text())["losses"]
    assert len(losses) == 6 and losses[-1] < losses[0] / 10
    merged = script(
        "merge/merge.py",
        "--merge_method",
        "ta_0.5",
        "--ptm_pth",
        "assets/tiny/base",
        "--code_pth",
        out,
        "--save_pth",
        tmp_path / "merged",
    )
    assert merged.code == 0, merged.err
