"""The planner in process: what a line needs, how pairs and rows reach every step, and how steps run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from impart import pair as pairs
from impart.errors import InputError
from reproduce import evaluations, rows, things
from reproduce.provenance import check_made_by
from reproduce.running import Machine, StepFailed, held, run_steps
from reproduce.steps import Step, Wanted, in_order, pasteable
from reproduce.things import Plan

ROOT = Path(__file__).resolve().parents[1]


def planned(runs: Path, *lines: str, **wanted) -> Plan:
    plan = Plan(Wanted(runs=runs, **{"seeds": (0,), "threads": 1, **wanted}))
    for line in lines:
        plan.add(line.split())
    return plan


def words(plan: Plan, script: str) -> list[tuple[str, ...]]:
    return [command for step in in_order(plan.steps()) for command in step.commands if script in command]


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """`edited(PAIR, key=value)`: the configs of this repository with one pair changed, for this test alone."""
    copy = tmp_path / "repository"
    shutil.copytree(ROOT / "configs", copy / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pairs, "CONFIGS", copy / "configs")
    monkeypatch.setattr(rows, "ROOT", copy)
    for module in (rows, things):
        monkeypatch.setattr(module, "pair_file", lambda name: copy / "configs" / name / "pair.yaml")
    for module in (evaluations, things):
        monkeypatch.setattr(module, "load_pair", lambda name: pairs.load_pair(copy / "configs" / name / "pair.yaml"))

    def edit(pair: str, **changes) -> Path:
        file = copy / "configs" / pair / "pair.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **changes}))
        return copy

    return edit


def test_an_edit_of_a_pairs_beta_reaches_every_table(tmp_path, edited):
    """Tables 1, 3 and 6 of a pair come from one file: none of them can keep the old number."""
    edited("wizardmath_13b", preprune_ratio=0.7)
    lines = [f"sparse {row} wizardmath_13b" for row in ("impart", "no_importance", "no_rescale")]
    plan = planned(tmp_path / "r", *lines, "quantized impart_qt wizardmath_13b")
    folders = [Path(cell.result).parents[1].name for cell in plan.cells]
    assert all("_beta0.7_" in folder for folder in folders), folders
    made = {name: facts for (_, name), facts in plan.made_by.items() if "impart" in name or "no_" in name}
    assert {facts["preprune_ratio"] for facts in made.values()} == {0.7}


def test_an_edit_of_a_pairs_model_reaches_every_row(tmp_path, edited):
    edited("wizardmath_13b", ftm_dir="someone/else")
    rows = [f"sparse {row} wizardmath_13b" for row in ("dare", "lowrank", "impart")]
    plan = planned(tmp_path / "r", "finetuned wizardmath_13b", *rows, "quantized bitdelta wizardmath_13b")
    named = {facts[key] for facts in plan.made_by.values() for key in ("ftm_dir", "model") if key in facts}
    assert named == {"someone/else"}
    assert all("someone/else" in command for command in words(plan, "quantize/sparse_llama.py"))
    assert all("someone/else" in command for command in words(plan, "delta.py"))


def test_a_row_wins_over_its_pair_and_a_line_over_both(tmp_path):
    plan = planned(tmp_path, "sparse no_preprune tiny/code", "sparse impart tiny/code 8 C=0.5 preprune_ratio=0.6")
    first, second = (plan.made_by["tiny/code", name] for name in (
        "no_preprune_cr16_C1_seed0", "impart_cr8_beta0.6_C0.5_seed0"
    ))  # fmt: skip
    assert (first["preprune_ratio"], first["C"]) == (0.0, 1.0)
    assert (second["preprune_ratio"], second["C"], second["compression_ratio"]) == (0.6, 0.5, 8.0)


def test_a_methods_units_say_what_its_row_needs(tmp_path):
    plan = planned(tmp_path, *(f"sparse {row} tiny/code" for row in ("dare", "lowrank", "impart")), seeds=(0, 1))
    names = [Path(target).parent.name for step in in_order(plan.steps()) for target in step.targets]
    assert [name for name in names if "cr16" in name] == [
        "dare_cr16_seed0", "dare_cr16_seed1", "lowrank_cr16_seed0",
        "impart_cr16_beta0.7_C1_seed0", "impart_cr16_beta0.7_C1_seed1",
    ]  # fmt: skip
    assert all(any(word.startswith("svd_dir=") for word in command) == ("dare" not in " ".join(command))
               for command in words(plan, "sparsify/sparsify.py"))  # fmt: skip


def test_bitdelta_has_a_seed_only_where_entries_are_dropped(tmp_path):
    plan = planned(tmp_path, *(f"quantized bitdelta tiny/code {ratio}" for ratio in (16, 32)), seeds=(0, 1, 2))
    assert [len(step.targets) for step in plan.steps() if step.stage == "quantize"] == [1] * 4


def test_information_is_made_once_for_all_that_reads_it(tmp_path):
    lines = [f"quantized lowrank_sparse_information tiny/code {ratio}" for ratio in (16, 32)]
    plan = planned(tmp_path, *lines, "sparse impart_information tiny/code", "sparse impart tiny/code", seeds=(0, 1))
    (made,) = words(plan, "quantize/information.py")
    file = tmp_path / "tiny/code/information.json"
    flags = ("--out", str(file), "--text_field", "prompt", "--nsamples", "32", "--seqlen", "128", "--threads", "1")
    assert made[1:] == ("assets/tiny/code", "assets/tiny/data/code_validation.jsonl", *flags)
    readers = [step for step in plan.steps() if any(f"information={file}" in command for command in step.commands)]
    assert [step.stage for step in readers] == ["quantize"] * 4 + ["sparsify"] * 2
    assert all(file in step.reads for step in readers)
    assert plan.made_by["tiny/code", "impart_information_cr16_beta0.7_C1_seed0"]["nsamples"] == 32
    stages = [step.stage for step in in_order(plan.steps())]
    assert stages[:2] == ["svd", "information"]
    for cell in plan.cells:
        cell.result.parent.mkdir(parents=True, exist_ok=True)
        cell.result.touch()
    assert not planned(tmp_path, *lines, seeds=(0, 1)).steps()


def test_a_ratio_as_a_yaml_list_and_every_other_kind_of_key_is_read(edited):
    edited("wizardmath_13b", ratios=[8, 16])
    assert things.load_pair("wizardmath_13b").ratios == [8.0, 16.0]
    with pytest.raises(InputError, match="ratios"):
        edited("wizardmath_13b", ratios={"a": 1}) and things.load_pair("wizardmath_13b")
    with pytest.raises(InputError, match="unknown key 'ratioes'.*did you mean 'ratios'"):
        edited("wizardmath_13b", ratios=[8], ratioes=[8]) and things.load_pair("wizardmath_13b")


@pytest.mark.parametrize(
    "line, said",
    [
        ("spares impart tiny/code", "no kind of thing"),
        ("sparse imparts tiny/code", "there is no configs/rows/imparts.yaml"),
        ("sparse impart tiny/none", "new_pair.sh"),
        ("sparse impart", "no line of a plan"),
        ("sparse impart tiny/code 32x", "'32x' is no compression ratio"),
        ("single tiny/code", "names no models to merge"),
        ("merged x tiny/code ta none", "names no models to merge"),
        ("sparse impart tiny/code 32 beta=2", "drops every singular vector"),
        ("merged x tiny/merging ta nomask", "sparsities.ta_nomask"),
        ("merged x tiny/merging tas_0.5 none", "merge_method: "),
    ],
)
def test_a_line_that_cannot_be_had_is_one_error(tmp_path, line, said):
    with pytest.raises(InputError, match=said.replace(".", r"\.")):
        planned(tmp_path, line)


def test_commands_are_lists_that_paste_into_a_shell(tmp_path):
    runs = tmp_path / "my runs"
    plan = planned(runs, "sparse dare tiny/code 16", "merged ta tiny/merging ta none")
    lines = [line for step in in_order(plan.steps()) for line in pasteable(step, ("srun", "-n1"))]
    assert any(f"'save_dir={runs}/tiny/code/dare_cr16_seed0'" in line for line in lines)
    assert all(line.startswith(("srun -n1 ", "rm -rf ")) for line in lines)


def test_a_delta_whose_results_are_there_is_not_made_again(tmp_path):
    lines = ("sparse impart tiny/code 16", "quantized impart_qt tiny/code 16", "sparse dare tiny/code 16")
    plan = planned(tmp_path, *lines)
    stages = [step.stage for step in in_order(plan.steps())]
    assert stages[:5] == ["svd", "sparsify", "sparsify", "sparsify", "quantize"]
    for cell in plan.cells:
        if "dare" not in str(cell.result):
            cell.result.parent.mkdir(parents=True)
            cell.result.write_text("{}")
    later = in_order(planned(tmp_path, *lines).steps())
    assert [(step.stage, step.detail.split("_cr")[0]) for step in later] == [
        ("sparsify", "dare"),
        ("evaluate", f"1 model on {plan.cells[0].benchmark}"),
    ]


def test_other_types_of_weights_come_from_the_models_and_their_words_are_in_the_folders_name(tmp_path):
    plan = planned(tmp_path, "sparse lowrank tiny/code 16 weight_types=[linear,embeddings]")
    (step,) = [step for step in plan.steps() if step.stage == "sparsify"]
    assert "weight_types=[linear, embeddings]" in step.commands[0] and "svd_dir" not in str(step.commands)
    assert step.targets[0].parent.name == "lowrank_cr16_weight_typeslinear+embeddings_seed0"
    assert not [one for one in plan.steps() if one.stage == "svd"]


def test_a_row_without_a_label_is_said(tmp_path, edited, caplog):
    copy = edited("tiny/code")
    (copy / "configs" / "rows" / "mine.yaml").write_text("method: dare\n")
    plan = planned(tmp_path / "r", "sparse mine tiny/code 8")
    assert "configs/rows/mine.yaml has no label" in caplog.text
    assert plan.cells[0].label == "mine"
    (copy / "configs" / "rows" / "mine.yaml").write_text("method: dare\nlabel: My DARE\n")
    assert planned(tmp_path / "r", "sparse mine tiny/code 8").cells[0].label == "My DARE"


def test_a_row_that_is_no_yaml_is_one_error(tmp_path, edited):
    copy = edited("tiny/code")
    for kind, text, said in (("sparse", "method: [\n", "valid YAML"), ("quantized", "- method\n", "must be a mapping")):
        (copy / "configs" / "rows" / "mine.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            planned(tmp_path / "r", f"{kind} mine tiny/code 8")


def test_a_mask_that_no_matrix_can_meet_stops_the_plan(tmp_path, edited):
    edited("tiny/merging", preprune_ratio=0.6)
    with pytest.raises(InputError, match=r"mask=impart sparsity=0\.1: a matrix \(192 x 192\).*take beta <= 0\.55"):
        planned(tmp_path / "r", "merged ties tiny/merging ties impart 0.1")


def test_an_unknown_key_for_a_one_step_method_stops_the_plan(tmp_path, edited):
    edited("tiny/code", distillation_settings={"distil_steps": 3})
    with pytest.raises(InputError, match="unknown key 'distil_steps'.*did you mean 'distill_steps'"):
        planned(tmp_path / "r", "quantized bitdelta tiny/code 16")


# Running


def step(tmp_path: Path, code: str, name: str = "out", **more) -> Step:
    return Step("sparsify", "p", name, (("-c", code),), (tmp_path / name,), **more)


def test_steps_run_with_their_slots_gpu(tmp_path, capfd):
    tell = "import os, pathlib; pathlib.Path({!r}).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    steps = [step(tmp_path, tell.format(str(tmp_path / str(number))), str(number)) for number in range(4)]
    run_steps(steps, tmp_path / "runs", Machine(jobs=2, gpus=2))
    told = [(tmp_path / str(number)).read_text() for number in range(4)]
    assert set(told) <= {"0", "1"} and list((tmp_path / "runs" / "logs").iterdir()) == []
    assert "sparsify: 4 steps, 2 at a time" in capfd.readouterr().err


def test_a_launcher_stands_before_every_command_and_gives_its_own_gpu(tmp_path, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    write = (
        f"import os; open({str(tmp_path / 'gpu')!r}, 'w').write(os.environ.get('CUDA_VISIBLE_DEVICES', 'the launcher'))"
    )
    launch = ("env", "LAUNCHED=yes")
    run_steps([step(tmp_path, write)], tmp_path, Machine(jobs=1, gpus=2, launch=launch))
    assert (tmp_path / "gpu").read_text() == "the launcher"


def test_a_failed_step_says_its_last_lines_and_stops_the_plan(tmp_path):
    bad = step(tmp_path, "print('the ' + 'reason'); raise SystemExit(3)", "bad")
    later = Step("evaluate", "p", "later", (("-c", f"open({str(tmp_path / 'later')!r}, 'w')"),), ())
    with pytest.raises(StepFailed) as failed:
        run_steps([bad, later], tmp_path / "runs", Machine(jobs=1))
    assert "the reason" in str(failed.value) and "command: " in str(failed.value)
    assert not (tmp_path / "later").exists()


def test_what_a_step_does_not_need_afterwards_is_removed(tmp_path):
    (tmp_path / "merged").mkdir()
    run_steps([step(tmp_path, "pass", removes=(tmp_path / "merged",))], tmp_path / "runs", Machine(jobs=1))
    assert not (tmp_path / "merged").exists()


def test_steps_that_outlive_their_plan_keep_the_next_one_out(tmp_path, monkeypatch):
    monkeypatch.setattr("reproduce.running.PATIENCE", 0.0)
    with held(tmp_path, ["p"]) as locks:
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=locks)
    try:
        with pytest.raises(InputError, match="another script is at work"), held(tmp_path, ["p"]):
            pass
    finally:
        assert child.stdin is not None
        child.stdin.close()
        child.wait(timeout=300)
    with held(tmp_path, ["p"]):
        pass


def test_notes_of_an_earlier_form_and_equal_ones_are_no_conflict(tmp_path):
    made = {("p", "d"): {"C": 1.0}}
    check_made_by(tmp_path, made, write=True)
    assert json.loads((tmp_path / "p" / ".made_by" / "d").read_text()) == {"C": 1.0}
    (tmp_path / "p" / "d").mkdir()
    check_made_by(tmp_path, made, write=False)
    with pytest.raises(InputError, match=r"C was 1\.0, is 0\.5"):
        check_made_by(tmp_path, {("p", "d"): {"C": 0.5}}, write=False)
    (tmp_path / "p" / ".made_by" / "d").write_text("python sparsify/sparsify.py C=1\n")
    check_made_by(tmp_path, {("p", "d"): {"C": 0.5}}, write=False)


# Whole scripts


def reproduce(cwd: Path, *command: str, **variables: str) -> subprocess.CompletedProcess:
    dropped = ("PAIR", "SEEDS", "JOBS", "KEEP", "SPLIT", "LAUNCH", "IMPART_DATA")
    kept = {key: value for key, value in os.environ.items() if key not in dropped}
    environment = {**kept, "VIRTUAL_ENV": sys.prefix, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(["bash", *command], cwd=cwd, env=environment, capture_output=True, text=True)


def test_a_dry_run_touches_nothing(tmp_path):
    before = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in ("table1", "table2", "table8", "figure4"):
        done = reproduce(ROOT, f"reproduce/{name}.sh", "--dry-run", PAIR="tiny", RUNS=str(tmp_path / "r"))
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "r").exists()
    assert subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True).stdout == before


OWN_TABLE = """
source "$(dirname "${BASH_SOURCE[0]}")/plan.sh"
start mine tiny/code "$@"
for pair in $PAIRS; do
    echo "finetuned $pair 8"
    echo "sparse halves $pair 8"
    echo "sparse dare $pair 8 as 'DARE again'"
done | plan --title "My own table"
"""


@pytest.mark.slow
def test_a_row_is_a_yaml_file_and_a_table_a_shell_script(copy_of_the_suite):
    """In a checkout and RUNS with spaces in their paths; the row's label heads a column of the printed table."""
    suite = copy_of_the_suite.rename(copy_of_the_suite.with_name("my suite"))
    (suite / "configs" / "rows" / "halves.yaml").write_text("label: Half the ratio\nmethod: dare\nrescale: false\n")
    (suite / "reproduce" / "mine.sh").write_text(OWN_TABLE)
    done = reproduce(suite, "reproduce/mine.sh", SEEDS="0", RUNS="my runs")
    assert done.returncode == 0, done.stderr
    assert "## My own table" in done.stdout
    header = next(line for line in done.stdout.splitlines() if line.startswith("| %"))
    assert [part.strip() for part in header.split("|")[2:-1]] == ["Fine-tuned", "Half the ratio", "DARE again"]
    assert "not run" not in done.stdout and (suite / "my runs" / "tables" / "paper" / "mine.md").is_file()


def test_an_own_row_in_the_papers_table_stands_beside_the_papers_rows(tmp_path, capsys):
    from eval import tables

    (tmp_path / "t.cells.tsv").write_text(f"mine\twizardmath_13b\tgsm8k\t32\t{tmp_path}/none/gsm8k/0.json\tMy method\n")
    tables.main(["--cells", str(tmp_path / "t.cells.tsv"), "--table", "1", "--out", str(tmp_path)])
    header = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| %"))
    assert "ImPart" in header and "My method" in header
