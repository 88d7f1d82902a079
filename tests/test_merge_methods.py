"""Task arithmetic, TIES and averaging on the tensors of one parameter."""

import itertools
import subprocess
import sys

import pytest
import torch
from guide import read_guide

from impart.checkpoint import open_checkpoint
from merge.method import parse_method
from merge.methods import average, task_arithmetic, ties
from merge.methods.avg import Average
from merge.methods.ta import TaskArithmetic
from merge.methods.ties_merging import Ties
from merge.sums import trim_to
from merge.thresholds import trimmed_count


def random_models(count=3, shape=(33, 17), seed=0, dtype=torch.bfloat16, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator).to(dtype)
    tuned = [(base.float() + scale * torch.randn(shape, generator=generator)).to(dtype) for _ in range(count)]
    return base, tuned, [model.float() - base.float() for model in tuned]


def naive_ties(base, deltas, trim, lam):
    """TIES as its paper writes it, on whole flattened tensors in float64, with a sort for the threshold."""
    flat = torch.stack([delta.flatten().double() for delta in deltas])  # (T, entries)
    for row in flat:
        smallest = row.abs().argsort(stable=True)[: trimmed_count(row.numel(), trim)]
        row[smallest] = 0
    sign = flat.sum(dim=0).sign()
    agreeing = (flat.sign() == sign) & (flat != 0)
    mean = (flat * agreeing).sum(dim=0) / agreeing.sum(dim=0).clamp(min=1)
    return (base.double().flatten() + lam * mean).view(base.shape)


# ---------------------------------------------------------------- method strings


def test_method_strings():
    assert parse_method("ta_0.5") == TaskArithmetic(0.5)
    assert parse_method("ta_-1") == TaskArithmetic(-1.0)
    assert parse_method("ties_0.8_1.0") == Ties(trim=0.8, lam=1.0)
    assert parse_method("ties_0_1e-1") == Ties(trim=0.0, lam=0.1)
    assert parse_method("avg") == Average()


@pytest.mark.parametrize(
    "text",
    [
        "ta",
        "ta_",
        "ta_x",
        "ties_0.8",
        "ties_1.2_1.0",
        "ties_-0.1_1",
        "dare_0.5",
        "",
        "ta_0.5_1",
        "ta_nan",
        "ta_1e999",
        "TA_0.5 ",
    ],
)
def test_wrong_method_strings_are_refused(text):
    with pytest.raises(ValueError):
        parse_method(text)


def test_an_error_shows_the_form_of_the_method():
    with pytest.raises(ValueError, match=r"'ties_0.8' is not of the form ties_<trim>_<lambda> \(ties_0.8_1.0"):
        parse_method("ties_0.8")
    with pytest.raises(ValueError, match=r"'dare_0.5' is none of avg, ta_<lambda> \(ta_0.5\), ties_<trim>_<lambda>"):
        parse_method("dare_0.5")


METHOD_FILE = read_guide().files["merge/methods/absmax.py"]


def test_a_file_in_the_folder_is_a_method(copy_of_the_suite):
    """One file: its method strings are parsed and named in --help, and it merges models with masks and weights."""
    (copy_of_the_suite / "merge" / "methods" / "absmax.py").write_text(METHOD_FILE)
    tiny = copy_of_the_suite / "assets" / "tiny"

    def script(*arguments: object) -> subprocess.CompletedProcess:
        command = [sys.executable, "merge/merge.py", *map(str, arguments), "--threads", "1"]
        return subprocess.run(command, cwd=copy_of_the_suite, capture_output=True, text=True)

    models = ["--ptm_pth", tiny / "base", "--math_pth", tiny / "math", "--code_pth", tiny / "code"]
    done = script("--merge_method", "absmax_0.5", *models, "--save_pth", copy_of_the_suite / "out")
    assert done.returncode == 0, done.stderr
    assert "absmax_0.5 of code, math" in done.stdout
    base, math, code, merged = (open_checkpoint(path) for path in (*models[1::2], copy_of_the_suite / "out"))
    for name in base.names():
        start = base.tensor(name).float()
        first, second = math.tensor(name).float() - start, code.tensor(name).float() - start
        largest = torch.where(first.abs() > second.abs(), first, second)
        tied = (first == -second) & (first != 0)
        largest = torch.where(tied, first.abs(), largest)
        expected = (start + 0.5 * largest).to(base.tensor(name).dtype)
        assert torch.equal(merged.tensor(name), expected), name
    wrong = script("--merge_method", "absmax", *models, "--save_pth", copy_of_the_suite / "no")
    assert wrong.returncode == 2 and "'absmax' is not of the form absmax_<lambda>" in wrong.stderr
    assert "absmax_<lambda>, avg, ta_<lambda> or ties_<trim>_<lambda>" in " ".join(script("--help").stdout.split())


def test_str_gives_a_method_string_back():
    for text in ("ta_0.5", "ties_0.8_1", "avg"):
        assert str(parse_method(text)) == text


# ---------------------------------------------------------------- task arithmetic and averages


def test_task_arithmetic_by_hand():
    base = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    deltas = [torch.tensor([[1.0, 0.0], [-1.0, 2.0]]), torch.tensor([[0.5, 0.5], [0.5, 0.5]])]
    assert torch.equal(task_arithmetic(base, deltas, 0.5), torch.tensor([[1.75, 2.25], [2.75, 5.25]]))
    assert torch.equal(task_arithmetic(base, deltas, 1.0, [1.0, -2.0]), torch.tensor([[1.0, 1.0], [1.0, 5.0]]))
    assert torch.equal(task_arithmetic(base, deltas, 0.0), base)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_task_arithmetic_of_one_model_with_lambda_1_is_that_model(dtype):
    base, tuned, deltas = random_models(1, (500, 40), dtype=dtype)
    assert torch.equal(task_arithmetic(base, deltas, 1.0), tuned[0])


def test_average_is_the_mean_of_the_models():
    base, tuned, deltas = random_models(4, dtype=torch.float32)
    torch.testing.assert_close(average(base, deltas), torch.stack(tuned).mean(dim=0), rtol=1e-6, atol=1e-7)
    weighted = (tuned[0] + 3 * tuned[1]) / 4
    torch.testing.assert_close(average(base, deltas[:2], [1.0, 3.0]), weighted, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------- TIES


def test_ties_on_a_2x4_example_worked_by_hand():
    base = torch.zeros(2, 4)
    first = torch.tensor([[4.0, -3.0, 0.5, 0.1], [2.0, -0.2, 5.0, 0.3]])
    second = torch.tensor([[2.0, 3.5, -0.4, 0.2], [-6.0, 0.1, 1.0, -0.3]])
    third = torch.tensor([[-9.0, -0.1, 0.3, 0.6], [1.0, -0.7, 3.0, 0.2]])
    # Half of the eight entries of each model go, the smallest ones. What stays:
    #   first   4 -3  .  .   2  .  5  .        second   2 3.5 .  .  -6  .  1  .      third  -9  .  .  .   1 -0.7 3  .
    # Sums:    -3 0.5 0  0  -3 -0.7 9 0, so the elected signs are  - + 0 0  - - + 0, and the means of those that agree:
    expected = torch.tensor([[-9.0, 3.5, 0.0, 0.0], [-6.0, -0.7, 3.0, 0.0]])
    assert torch.equal(ties(base, [first, second, third], 0.5, 1.0), expected)
    assert torch.equal(ties(base, [first, second, third], 0.5, 0.5), expected / 2)


def test_an_entry_whose_deltas_cancel_keeps_the_base_value():
    base = torch.tensor([1.0, 1.0, 1.0])
    deltas = [torch.tensor([0.5, 0.25, 0.0]), torch.tensor([-0.5, 0.5, 0.0]), torch.tensor([0.0, -0.75, 0.0])]
    assert torch.equal(ties(base, deltas, 0.0, 1.0), base)


def test_entries_of_0_are_not_counted_as_agreeing():
    deltas = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, -2.0]), torch.tensor([0.0, -4.0])]
    assert torch.equal(ties(torch.zeros(2), deltas, 0.0, 1.0), torch.tensor([1.0, -3.0]))


def test_trim_0_keeps_all_and_trim_1_leaves_the_base():
    base, _, deltas = random_models()
    assert torch.equal(ties(base, deltas, 1.0, 1.0), base)
    assert torch.equal(ties(base, deltas[:1], 0.0, 1.0), task_arithmetic(base, deltas[:1], 1.0))


@pytest.mark.parametrize("copies", [1, 2, 3, 5, 7, 10])
def test_ties_and_average_of_copies_of_one_model_is_that_model(copies):
    base, tuned, deltas = random_models(1, (200, 31))
    assert torch.equal(ties(base, deltas * copies, 0.0, 1.0), tuned[0])
    assert torch.equal(average(base, deltas * copies), tuned[0])
    assert torch.equal(ties(base, deltas * copies, 0.0, 1.0, [0.7] * copies), tuned[0])


@pytest.mark.parametrize("lam", [0.4, 1.0, 1.2])
@pytest.mark.parametrize("trim", [0.0, 0.2, 0.6, 0.9, 1.0])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_ties_equals_a_naive_implementation_on_flattened_tensors(count, trim, lam):
    base, _, deltas = random_models(count, (41, 29), seed=count, dtype=torch.float32)  # all magnitudes differ
    expected = naive_ties(base, deltas, trim, lam)
    torch.testing.assert_close(ties(base, deltas, trim, lam).double(), expected, rtol=1e-6, atol=1e-6)


def test_float64_is_computed_in_float64():
    base, _, deltas = random_models(3, (41, 29), dtype=torch.float64)
    deltas = [delta.double() + 1e-12 for delta in deltas]
    torch.testing.assert_close(ties(base, deltas, 0.6, 0.8), naive_ties(base, deltas, 0.6, 0.8), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(task_arithmetic(base, deltas, 0.3), base + 0.3 * sum(deltas), rtol=1e-14, atol=1e-14)


def test_weights_decide_the_election_and_the_mean():
    base, deltas = torch.zeros(2), [torch.tensor([1.0, 2.0]), torch.tensor([-3.0, 5.0])]
    assert torch.equal(ties(base, deltas, 0.0, 1.0), torch.tensor([-3.0, 3.5]))
    assert torch.equal(ties(base, deltas, 0.0, 1.0, [4.0, 1.0]), torch.tensor([1.0, 2.6]))


def test_large_tensors_are_merged_in_pieces_that_leave_no_seam():
    base, _, deltas = random_models(3, (3, 16411), seed=9)
    whole = ties(base, deltas, 0.3, 0.7)
    for start in (0, 16384, 16400, 32768):
        entries = slice(start, start + 20)
        thresholds = [sorted(delta.abs().flatten().tolist())[trimmed_count(delta.numel(), 0.3)] for delta in deltas]
        trimmed = [trim_to(delta.flatten()[entries], t) for delta, t in zip(deltas, thresholds, strict=True)]
        expected = base.flatten()[entries].float() + Ties(trim=0.3, lam=0.7).merged_delta(trimmed)
        assert torch.equal(whole.flatten()[entries], expected.to(whole.dtype))


# ---------------------------------------------------------------- order of the models


def hostile_deltas(count):
    """Magnitudes over 60 powers of two, where a float64 sum depends on its order."""
    generator = torch.Generator().manual_seed(count)
    shape = (64, 64)
    return [
        torch.randn(shape, generator=generator) * 2.0 ** torch.randint(-45, 15, shape, generator=generator).float()
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "merge",
    [
        lambda base, deltas, w: task_arithmetic(base, deltas, 0.7, w),
        lambda base, deltas, w: average(base, deltas, [2 + abs(x) for x in w]),
        lambda base, deltas, w: ties(base, deltas, 0.3, 0.9, [2 + abs(x) for x in w]),
    ],
    ids=["task arithmetic", "average", "ties"],
)
def test_permuting_the_models_changes_nothing(merge):
    deltas, weights = hostile_deltas(4), [0.3, -1.7, 0.9, 0.1]
    base = torch.zeros(64, 64)
    expected = merge(base, deltas, weights)
    for order in itertools.permutations(range(4)):
        assert torch.equal(merge(base, [deltas[i] for i in order], [weights[i] for i in order]), expected)


def test_a_sum_in_given_order_would_differ():
    deltas = [delta.double() for delta in hostile_deltas(4)]
    sums = [sum(deltas[i] for i in order) for order in itertools.permutations(range(4))]
    assert any(not torch.equal(sums[0], other) for other in sums)


# ---------------------------------------------------------------- trimming and refusals


def test_trim_to_keeps_entries_at_the_threshold():
    delta = torch.tensor([0.1, -0.2, 0.3, -0.4])
    assert torch.equal(trim_to(delta, float(torch.tensor(0.3))), torch.tensor([0.0, 0.0, 0.3, -0.4]))
    assert torch.equal(trim_to(delta, float("inf")), torch.zeros(4))
    assert torch.equal(trim_to(delta, 0.0), delta)


def test_meaningless_input_is_refused():
    base = torch.zeros(2, 2)
    with pytest.raises(ValueError, match="no task vector"):
        task_arithmetic(base, [], 1.0)
    with pytest.raises(ValueError, match="shape"):
        ties(base, [torch.zeros(2, 3)], 0.5, 1.0)
    with pytest.raises(ValueError, match="weights"):
        task_arithmetic(base, [base], 1.0, [1.0, 2.0])
    with pytest.raises(ValueError, match="positive"):
        ties(base, [base, base], 0.5, 1.0, [1.0, -1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        ties(base, [base], 1.5, 1.0)


def test_inputs_are_not_changed():
    base, _, deltas = random_models()
    before = [base.clone(), *(delta.clone() for delta in deltas)]
    ties(base, deltas, 0.5, 1.0, [1.0, 2.0, 3.0])
    task_arithmetic(base, deltas, 0.5)
    average(base, deltas)
    assert all(torch.equal(now, then) for now, then in zip([base, *deltas], before, strict=True))


def test_float64_inputs_are_not_changed():
    base, _, deltas = random_models(2, dtype=torch.float64)
    deltas = [delta.double() for delta in deltas]
    before = [delta.clone() for delta in deltas]
    ties(base, deltas, 0.0, 1.0)
    assert all(torch.equal(now, then) for now, then in zip(deltas, before, strict=True))


def test_a_stacked_tensor_of_task_vectors_works_as_well_as_a_list():
    base, _, deltas = random_models()
    assert torch.equal(ties(base, torch.stack(deltas), 0.5, 1.0), ties(base, deltas, 0.5, 1.0))
