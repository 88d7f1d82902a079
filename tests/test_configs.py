"""Every shipped YAML file loads, resolves, is feasible, says its own command; new pairs and LlamaCoder's recipe run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from eval.run.descriptions import described
from impart.architecture import linear_names
from impart.checkpoint import open_checkpoint
from impart.config import keys_of, load
from impart.errors import InputError
from impart.pair import Pair, load_pair
from merge import merge
from merge.settings import load_config, resolve
from quantize.settings import Config as QuantizeConfig
from quantize.settings import load_config as load_quantization
from reproduce.costs import size_of
from reproduce.model_size import model_size
from sparsify.allocation import check_feasible
from sparsify.settings import load_settings

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
ROWS = sorted((CONFIGS / "rows").glob("*.yaml"))
PAIRS = sorted(CONFIGS.glob("**/pair.yaml"))
MERGING = [file for file in PAIRS if load_pair(str(file)).models]
SINGLE = [file for file in PAIRS if file not in MERGING]
TRAINING = [CONFIGS / "llamacoder_13b" / name for name in ("train.yaml", "fsdp.yaml")]
TODAY_PAIRS = {"qwen3_8b", "qwen3_30b_a3b", "gemma3_4b"}
PAPER_PAIRS = {"wizardmath_13b", "wizardcoder_13b", "llama2_chat_13b", "llama2_chat_7b", "llama3_instruct_8b"}


def named(file: Path) -> str:
    return str(file.relative_to(CONFIGS))


def test_every_yaml_is_a_row_a_pair_or_a_training_recipe():
    assert sorted(CONFIGS.glob("**/*.yaml")) == sorted([*ROWS, *PAIRS, *TRAINING])


def test_every_pair_of_table_2_and_those_of_this_repository_have_a_folder():
    own = {f"{pair}/{skill}" for pair in ("tiny", "tiny1", "smollm2") for skill in ("math", "code", "chat")}
    others = {*TODAY_PAIRS, "smollm2/code_seed1", "smollm2/gsm8k", "smollm2_135m"}
    assert {named(file.parent) for file in SINGLE} == {*PAPER_PAIRS, *own, *others}
    assert {named(file.parent) for file in MERGING} == {"merging_13b", "tiny/merging", "smollm2/merging"}


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_row_has_a_label_runs_with_every_pair_and_names_its_commands(row):
    text, label = row.read_text(), yaml.safe_load(row.read_text()).get("label")
    assert label and f"--config configs/rows/{row.name}" in text
    for pair in SINGLE:
        files = [str(row), str(pair)]
        if "sparsify/sparsify.py" in text:
            settings = load_settings("sparse", files, ["save_dir=s"])
            assert settings.method.settings()["compression_ratio"] == load_pair(str(pair)).compression_ratio
        elif "sparsify/sparsify_quant.py" in text:
            settings = load_settings("quantized", files, ["save_dir=s"])
            assert settings.method.settings()["compression_ratio_qt"] == load_pair(str(pair)).compression_ratio_qt
            assert settings.method.settings()["accounting"] == "paper"
        else:
            config, method = load_quantization(files, [])
            assert method is not None and row.stem.startswith(method.name)
            assert method.name != "bitdelta" or config.seqlen == 128


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_row_says_nothing_of_models_or_what_a_pair_chooses(row):
    """Two homes of a fact disagree one day: rows hold what makes the method, pairs what makes the pair."""
    given = yaml.safe_load(row.read_text())
    assert not {"base_model", "ftm_dir", "svd_dir", "save_dir", "C", "compression_ratio"} & set(given)
    assert given.get("preprune_ratio", 0) == 0  # the ablation without pre-pruning; beta is the pair's


def test_what_a_row_fixes_wins_over_its_pair_in_either_order():
    row, pair = CONFIGS / "rows" / "no_preprune.yaml", CONFIGS / "wizardmath_13b" / "pair.yaml"
    for files in ([row, pair], [pair, row]):
        method = load_settings("sparse", files, ["save_dir=s"]).method
        assert (method.settings()["preprune_ratio"], method.settings()["C"]) == (0.0, 1.0)


@pytest.mark.parametrize("file", PAIRS, ids=named)
def test_a_pairs_benchmarks_are_scripts_of_eval(file):
    assert set(load_pair(str(file)).benchmarks) <= set(described())


@pytest.mark.parametrize("file", SINGLE, ids=named)
def test_every_ratio_of_a_pair_is_feasible_in_every_table(file):
    pair = load_pair(str(file))
    shapes = [(5120, 5120), (13824, 5120), (4096, 1024)]
    if pair.hidden_size == 576:
        shapes = [(576, 576), (192, 576), (1536, 576), (576, 1536)]
    if pair.base_model.startswith("assets/tiny/"):
        base = open_checkpoint(ROOT / "assets/tiny/base")  # those of the second training seed are not shipped
        shapes = [base.shape(name) for name in linear_names(base)]
    for ratio in pair.ratios:
        for m, n in shapes:
            check_feasible("w", m, n, ratio, pair.preprune_ratio)
            if ratio == pair.compression_ratio:
                check_feasible("w", m, n, ratio, 0.8)  # the highest beta of Table 4
    assert pair.compression_ratio in pair.ratios and pair.compression_ratio_qt in pair.ratios_qt
    assert set(pair.calibration_settings) <= set(keys_of(QuantizeConfig))


@pytest.mark.parametrize("file", MERGING, ids=named)
def test_a_merge_loads_with_every_method_and_mask_of_table_8(file):
    pair = load_pair(str(file))
    for method in ("ta", "ties"):
        for mask in ("none", "dare", "impart"):
            sparsity = [] if mask == "none" else [f"sparsity={pair.sparsities[f'{method}_{mask}']}"]
            settings = [f"merge_method={pair.merge_methods[method]}", f"mask={mask}", "save_pth=s", *sparsity]
            _, entries = resolve(load_config([str(file)], {}, [], settings))
            assert [entry.name for entry in entries] == ["chat", "code", "math"]


def test_the_six_lines_of_table_8_run_and_are_those_of_its_script(called, tmp_path):
    lines = [
        line.split()[1:] for line in (CONFIGS / "README.md").read_text().splitlines() if line.startswith("    $merge ")
    ]
    pair = load_pair("tiny/merging")
    masked = {
        (method, mask): [f"mask={mask}", f"sparsity={pair.sparsities[f'{method}_{mask}']}"]
        for method in ("ta", "ties")
        for mask in ("dare", "impart")
    }
    assert [line[:-1] for line in lines] == [
        [f"merge_method={pair.merge_methods[method]}", *masked.get((method, mask), [])]
        for method in ("ta", "ties")
        for mask in ("none", "dare", "impart")
    ]
    digests = set()
    for *settings, target in lines:
        out = tmp_path / Path(target.removeprefix("save_pth=")).name
        file = CONFIGS / "tiny" / "merging" / "pair.yaml"
        ended = called(merge.main, "--config", file, *settings, f"save_pth={out}", "--threads", 1)
        assert ended.code == 0, ended.err
        digests.add((out / "model.safetensors").read_bytes())
    assert len(digests) == 6


@pytest.mark.parametrize("skill", ["math", "code", "chat"])
def test_the_tiny_models_of_the_configs_are_there(skill):
    pair = load_pair(f"tiny/{skill}")
    assert (ROOT / str(pair.ftm_dir) / "model.safetensors").is_file()
    assert (ROOT / pair.base_model / "config.json").is_file()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"ratios": "8 16"}, None),  # words are read as a list
        ({"ratios": [8, "many"]}, "ratios: "),
        ({"benchmarks": []}, "benchmarks is empty"),
        ({"ftm_dir": None}, "ftm_dir is missing"),
        ({"rows": {"dare_qt": 4}}, "a mapping of keys to values is wanted"),
        ({"models": {"math": "m"}, "benchmarks": ["gsm8k", "math"]}, "1 models and 2 benchmarks"),
        ({"rato": 8}, "unknown key 'rato'"),
    ],
)
def test_a_pair_is_typed(tmp_path, changes, said):
    file = tmp_path / "pair.yaml"
    file.write_text(yaml.safe_dump({**yaml.safe_load((CONFIGS / "tiny/code/pair.yaml").read_text()), **changes}))
    if said is None:
        assert load_pair(str(file)).ratios == [8.0, 16.0]
        return
    with pytest.raises(InputError, match=said):
        load_pair(str(file))


# What the models' cards say: config.json's shapes, billions of parameters, and of those that a token passes.
CONFIGS_OF_TODAY = {
    "qwen3_8b": (
        {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
         "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False}, 8.2, 8.2
    ),
    "qwen3_30b_a3b": (
        {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 48, "num_attention_heads": 32,
         "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151936, "tie_word_embeddings": False,
         "moe_intermediate_size": 768, "num_experts": 128, "num_experts_per_tok": 8, "decoder_sparse_step": 1,
         "mlp_only_layers": []}, 30.5, 3.3
    ),
    "gemma3_4b": (
        {"text_config": {"hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
                         "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 262208},
         "vision_config": {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27},
         "tie_word_embeddings": True}, 4.3, 3.9
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(TODAY_PAIRS))
def test_the_costs_of_a_pair_of_today_are_those_of_its_shapes(name):
    config, parameters, active = CONFIGS_OF_TODAY[name]
    size, found = model_size(config), size_of(load_pair(name))
    assert size.parameters / 1e9 == pytest.approx(parameters, rel=0.01)
    assert size.active / 1e9 == pytest.approx(active, rel=0.02)
    assert found.parameters == pytest.approx(size.parameters, rel=0.005)
    assert found.active == pytest.approx(size.active, rel=0.005)
    assert found.embeddings == pytest.approx(size.embeddings, rel=0.005)
    assert (found.width, found.layers) == (size.width, size.layers)
    assert found.side == pytest.approx(size.side, rel=0.04)  # a dense model's is its width


def test_the_authors_example_loads_unchanged():
    settings = load_settings("sparse", ROOT / "sparsify" / "config_example.yaml")
    found = settings.method.settings()
    assert (found["compression_ratio"], found["preprune_ratio"], found["C"]) == (32, 0.8, 0.5)
    assert settings.config.layer_num == 40 and len(settings.config.weight_types) == 7


def test_the_authors_only_lowrank_loads_unchanged():
    overrides = ["C=only_lowrank", "preprune_ratio=null"]
    assert load_settings("sparse", ROOT / "sparsify" / "config_example.yaml", overrides).method.name == "lowrank"


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
    assert load_pair(str(tmp_path / "mine" / "pair.yaml")) == load(Pair, tmp_path / "mine" / "pair.yaml")
    again = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert again.returncode == 2 and again.stderr.startswith("error:")


@pytest.mark.parametrize(
    "arguments",
    [
        ["a/a", "b/b"],
        ["a/a", "b/b", "x/y"],
        ["a/a", "b/b", "c", "gsm9k"],
        ["a", "b/b", "c"],
        ["a/a", "a/a", "c"],
        ["assets/tiny/base", "assets/tiny/results", "c"],
    ],
)
def test_new_pair_refuses_with_one_line(arguments, tmp_path):
    done = subprocess.run(
        ["bash", "configs/new_pair.sh", *arguments],
        cwd=ROOT,
        env=os.environ | {"VIRTUAL_ENV": sys.prefix, "CONFIGS": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr.startswith("error:") and len(done.stderr.splitlines()) == 1


def test_the_training_recipe_is_the_papers():
    from configs.llamacoder_13b.train import Config as Training

    recipe = load(Training, CONFIGS / "llamacoder_13b" / "train.yaml")
    assert (recipe.epochs, recipe.batch, recipe.learning_rate, recipe.length) == (3, 8, 2e-5, 4096)
    assert load_pair("merging_13b").models["code"] == recipe.save_dir


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
