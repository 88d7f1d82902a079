"""The scripts of reproduce/: what they plan for every table, what they refuse, and one small table end to end."""

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from impart.pair import load_pair

ROOT = Path(__file__).resolve().parents[1]
TABLES = ["table1", "table3", "table4", "table5", "table6", "table7", "table8", "figure1", "figure4"]


def variables(runs: Path, **more: str) -> dict[str, str]:
    dropped = ("PAIR", "SEEDS", "JOBS", "KEEP", "SPLIT", "FIGURE", "OPENAI_API_KEY", "OPENAI_BASE_URL", "IMPART_DATA")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    return {
        **kept,
        "VIRTUAL_ENV": sys.prefix,
        "RUNS": str(runs),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(runs / "hub"),
        "CUDA_VISIBLE_DEVICES": "",
        **more,
    }


def planned(name: str, runs: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", f"reproduce/{name}.sh", *arguments],
        cwd=ROOT,
        env=variables(runs, **more),
        capture_output=True,
        text=True,
    )


def commands(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stdout.splitlines() if line and not line.startswith(("#", "rm -rf"))]


def removals(done: subprocess.CompletedProcess) -> list[str]:
    return [line for line in done.stdout.splitlines() if line.startswith("rm -rf")]


def targets(done: subprocess.CompletedProcess, script: str) -> list[str]:
    return [
        re.search(r"(?:save_dir=|save_pth=|--save_compressed_delta_dir )(\S+)", line).group(1)
        for line in commands(done)
        if script in line
    ]


@pytest.mark.parametrize("name", TABLES)
def test_every_script_plans_the_tiny_pair(name, tmp_path):
    done = planned(name, tmp_path, "--dry-run", PAIR="tiny")
    assert done.returncode == 0, done.stderr
    lines = commands(done)
    assert "eval/tables.py" in lines[-1] and f"--table {dict(figure1=5, figure4=7).get(name, name[-1])}" in lines[-1]
    assert "steps missing" in done.stdout and "GB of disk" in done.stdout
    assert not list(tmp_path.iterdir())  # nothing was written
    made = [target for script in ("sparsify.py", "sparse_llama.py", "merge.py") for target in targets(done, script)]
    assert made and len(made) == len(set(made))
    for target in made:  # what is made is evaluated
        assert any(target in line for line in lines if "eval/tiny.py" in line), target


@pytest.mark.parametrize("name", TABLES)
def test_every_script_plans_the_papers_pairs_and_says_what_is_missing(name, tmp_path):
    done = planned(name, tmp_path, "--dry-run")
    assert done.returncode == 2 and "steps missing" in done.stdout
    *missing, error = done.stderr.splitlines()
    assert error.startswith(f"error: {len(missing)} things are missing") and "meta-llama/Llama-2-13b-hf" in error
    assert all(line.startswith("missing: ") for line in missing)
    assert any("OPENAI_API_KEY" in line for line in missing) == (name in ("table1", "table6"))
    assert any("llamacoder" in line for line in missing) == (name == "table8")


def test_a_real_run_fails_early_too(tmp_path):
    done = planned("table3", tmp_path)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ") and done.stdout == ""


def test_table_1_makes_each_row_by_its_yaml_and_the_svd_once(tmp_path):
    lines = commands(planned("table1", tmp_path, "--dry-run", "--pairs", "wizardmath_13b", "--seeds", "0 1"))
    assert sum("delta.py --svd" in line for line in lines) == 1
    sparsify = [line for line in lines if "sparsify/sparsify.py" in line]
    assert [re.search(r"--config (\S+)", line).group(1) for line in sparsify] == [
        f"configs/rows/{row}.yaml" for row in ("dare", "dare", "lowrank", "impart", "impart")
    ]
    assert all("svd_dir" in line for line in sparsify if "dare" not in line)
    for script in ("eval/gsm8k.py", "eval/competition_math.py"):
        (asked,) = [line for line in lines if script in line]  # one engine answers for all models over a base
        models = asked.split(f"{script} ")[1].split(" fp16 ")[0].split()
        assert models[:2] == ["meta-llama/Llama-2-13b-hf", "vanillaOVO/WizardMath-13B-V1.0"]
        assert [re.match("[a-z]+", model.rpartition("/")[2])[0] for model in models[2:]] == [
            "dare", "dare", "lowrank", "impart", "impart"
        ]  # fmt: skip


def test_tables_3_and_4_share_the_deltas_of_table_1(tmp_path):
    first, third, fourth = (
        targets(
            planned(f"table{number}", tmp_path, "--dry-run", "--pairs", "llama2_chat_13b", "--seeds", "0"),
            "sparsify.py",
        )
        for number in (1, 3, 4)
    )
    own = f"{tmp_path}/llama2_chat_13b/impart_cr32_beta0.8_C0.5_seed0"
    assert own in first and own in third and own in fourth  # the pair's beta 0.8 and C 0.5 are a cell of Table 4
    assert len(fourth) == 6 and len(third) == 5


def test_a_quantized_row_is_sparsified_then_quantized_and_bitdelta_needs_no_sparse_delta(tmp_path):
    lines = commands(planned("table6", tmp_path, "--dry-run", "--pairs", "wizardmath_13b", "--seeds", "3"))
    assert [re.search(r"rows/(\w+).yaml", line).group(1) for line in lines if "sparsify_quant.py" in line] == [
        "dare_qt",
        "deltacome",
        "impart_qt",
    ]
    quantized = [line for line in lines if "sparse_llama.py" in line]
    assert len(quantized) == 4 and sum("--saved_delta_path" in line for line in quantized) == 3
    assert next(line for line in quantized if "bitdelta" in line).count("compression_ratio_qt=32") == 1


def test_merged_models_are_removed_after_their_evaluation_unless_kept(tmp_path):
    removed = [line for line in commands(planned("table8", tmp_path, "--dry-run", PAIR="tiny")) if "merge.py" in line]
    kept = [
        line for line in commands(planned("table8", tmp_path, "--dry-run", "--keep", PAIR="tiny")) if "merge.py" in line
    ]
    assert len(removed) == len(kept) == 2 * (1 + 3 + 3)
    gone = removals(planned("table8", tmp_path, "--dry-run", PAIR="tiny"))
    assert [line.split()[-1] for line in gone] == [re.search(r"save_pth=(\S+)", line).group(1) for line in removed]
    assert not removals(planned("table8", tmp_path, "--dry-run", "--keep", PAIR="tiny"))


def test_the_grid_search_is_the_loop_it_says(tmp_path):
    done = planned(
        "grid_search", tmp_path, "--dry-run", "--pairs", "tiny/code", BETAS="0.6 0.7", CS="0.5 1", RATIOS="8 16"
    )
    assert done.returncode == 0, done.stderr
    assert len(targets(done, "sparsify.py")) == 8 and sum("delta.py --svd" in line for line in commands(done)) == 1
    assert all("--split validation" in line for line in commands(done) if "eval/tiny.py" in line)
    refused = planned("grid_search", tmp_path, "--dry-run", "--pairs", "wizardmath_13b")
    assert refused.returncode == 2 and refused.stderr.startswith("error: VALIDATION")


def test_the_grid_search_of_a_merge_has_the_papers_grid_and_masks_the_chosen_method(tmp_path):
    first = planned("grid_search_merge", tmp_path, "--dry-run", PAIR="tiny", MASKS="none")
    assert first.returncode == 0, first.stderr
    merges = [line for line in commands(first) if "merge.py" in line]
    methods = [re.search(r"merge_method=(\S+) mask=none ", line).group(1) for line in merges]
    lambdas = ("0.4", "0.6", "0.8", "1.0", "1.2")
    assert sorted(methods) == sorted(
        [f"ta_{lam}" for lam in lambdas] + [f"ties_{trim}_{lam}" for trim in ("0.2", "0.4", "0.6") for lam in lambdas]
    )
    whole = planned("grid_search_merge", tmp_path, "--dry-run", PAIR="tiny")
    merges = [line for line in commands(whole) if "merge.py" in line]
    assert len(merges) == len(set(targets(whole, "merge.py"))) == len(methods) + 2 * 2 * 5 == len(removals(whole))
    asked = [line for line in commands(whole) if "eval/tiny.py" in line]
    assert len(asked) == len(merges) and all("--split validation" in line for line in asked)
    chosen = load_pair("tiny/merging").merge_methods
    masked = [line for line in merges if "mask=none" not in line]
    assert all("seed=0" in line for line in merges)
    assert all(any(f"merge_method={text} " in line for text in chosen.values()) for line in masked)
    assert "--best" in commands(whole)[-1]
    refused = planned("grid_search_merge", tmp_path, "--dry-run")
    assert refused.returncode == 2 and refused.stderr.startswith("error: VALIDATION")


def test_table_2_prints_the_pairs(tmp_path):
    done = planned("table2", tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2 + 5 and "WizardMath-13B | meta-llama/Llama-2-13b-hf" in done.stdout


@pytest.mark.parametrize("arguments", [["--pairs", "llama9"], ["--pears", "tiny"], ["--seeds"]])
def test_wrong_arguments_are_one_error_line(arguments, tmp_path):
    done = planned("table1", tmp_path, *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error:") and len(done.stderr.splitlines()) == 1


def test_two_scripts_do_not_work_on_one_pair_at_once(tmp_path):
    (tmp_path / "tiny" / "code").mkdir(parents=True)
    with (tmp_path / "tiny" / "code" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = planned("table1", tmp_path, "--pairs", "tiny/code")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: another script is at work in") and "RUNS" in done.stderr


def test_what_other_settings_made_is_not_taken_for_this_tables(tmp_path):
    arguments = ("table1", tmp_path, "--dry-run", "--pairs", "tiny/code", "--seeds", "0")
    pair = tmp_path / "tiny" / "code"
    (pair / ".made_by").mkdir(parents=True)
    (pair / ".made_by" / "dare_cr16_seed0").write_text('{"base_model": "another", "method": "dare"}')
    assert planned(*arguments).returncode == 0  # nothing of that name is there
    (pair / "results_test" / "dare_cr16_seed0").mkdir(parents=True)
    done = planned(*arguments)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {pair}/dare_cr16_seed0 and its results")
    assert "base_model was 'another', is 'assets/tiny/base'" in done.stderr


def test_help_is_the_head_of_the_script(tmp_path):
    done = planned("table1", tmp_path, "--help")
    assert done.returncode == 0 and done.stdout.startswith("Table 1:") and "PAIR=tiny" in done.stdout


def test_all_runs_every_table(tmp_path):
    text = (ROOT / "reproduce" / "all.sh").read_text()
    named = re.search(r"for name in ([^;]*);", text).group(1).split()
    assert set(named) | {"table5", "table7"} == {"table2", *TABLES}  # figures 1 and 4 print Tables 5 and 7


@pytest.mark.slow
def test_a_killed_table_continues_and_a_finished_one_does_nothing(tmp_path):
    command = ["bash", "reproduce/table1.sh", "--pairs", "tiny/code", "--seeds", "0", "--jobs", "1"]
    started = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables(tmp_path),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    first = tmp_path / "tiny" / "code" / "dare_cr16_seed0" / "delta.json"
    while not first.is_file() and started.poll() is None:
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert first.is_file()
    made_before = first.stat().st_mtime_ns
    second = planned("table1", tmp_path, *command[2:])
    assert second.returncode == 0, second.stderr
    assert first.stat().st_mtime_ns == made_before
    assert "tiny_code, tiny/code, CR 16" in second.stdout and "not run" not in second.stdout
    assert not list(tmp_path.rglob("model*.safetensors"))  # no dense model was written
    files = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.rglob("*") if file.is_file()}
    third = planned("table1", tmp_path, *command[2:])
    assert third.returncode == 0 and third.stdout == second.stdout and "==" not in third.stderr
    again = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in tmp_path.rglob("*") if file.is_file()}
    assert {file: content for file, (content, _) in files.items()} == {
        file: content for file, (content, _) in again.items()
    }
    assert all(files[file] == again[file] for file in files if "tables" not in file.parts)
