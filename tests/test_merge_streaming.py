"""One parameter merged block by block against the pure functions on whole tensors."""

import pytest
import torch

from merge import streaming
from merge.method import parse_method
from merge.methods import average, task_arithmetic, ties
from merge.models import Parameter, Scratch
from merge.streaming import ParameterMerge, Part
from merge.vocabulary import MISSING

CPU = torch.device("cpu")


def parameter(tensor, holds_delta=False):
    return Parameter(lambda rows: tensor[rows].clone(), holds_delta)


def models(count=3, shape=(57, 23), dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator).to(dtype)
    return base, [(base.float() + 0.1 * torch.randn(shape, generator=generator)).to(dtype) for _ in range(count)]


def run(base, parts, method, dtype=torch.bfloat16):
    merge = ParameterMerge(Part("base", parameter(base), None), parts, tuple(base.shape), parse_method(method), CPU)
    merged = torch.empty(base.shape, dtype=dtype)
    return merged, merge.run(merged)


@pytest.mark.parametrize("shape", [(57, 23), (1000,), (7, 5, 11), (1, 400), (400, 1)])
@pytest.mark.parametrize("method", ["ta_0.6", "ties_0.4_0.8", "avg"])
def test_blocks_give_what_the_pure_functions_give_on_the_whole(monkeypatch, shape, method):
    monkeypatch.setattr(streaming, "BLOCK", {"cpu": 100})
    base, tuned = models(shape=shape)
    deltas = [model.float() - base.float() for model in tuned]
    expected = {
        "ta_0.6": lambda: task_arithmetic(base, deltas, 0.6),
        "ties_0.4_0.8": lambda: ties(base, deltas, 0.4, 0.8),
        "avg": lambda: average(base, deltas),
    }[method]()
    parts = [Part(str(number), parameter(model), None) for number, model in enumerate(tuned)]
    merged, tally = run(base, parts, method)
    assert torch.equal(merged, expected)
    assert tally.entries == base.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("method", ["ta_1", "ties_0_1.0", "avg"])
def test_one_model_comes_out_bit_for_bit_whatever_the_magnitudes(dtype, method):
    generator = torch.Generator().manual_seed(1)
    low, high = (-14, 10) if dtype == torch.float16 else (-60, 60)

    def wild():
        sizes = 2.0 ** torch.randint(low, high, (64, 64), generator=generator).double()
        return (torch.randn(64, 64, generator=generator).double() * sizes).to(dtype)

    base, tuned = wild(), wild()
    base[0, :4] = torch.tensor([0.0, -0.0, 0.0, -0.0])
    tuned[0, :4] = torch.tensor([-0.0, 0.0, 0.0, -0.0])
    alone = (base.float() + (tuned.float() - base.float())).to(dtype)
    assert not torch.equal(alone, tuned), "the sum alone would miss it"
    for copies in (1, 3) if method != "ta_1" else (1,):
        merged, _ = run(base, [Part(str(copy), parameter(tuned), None) for copy in range(copies)], method, dtype)
        assert torch.equal(merged.view(torch.uint8), tuned.view(torch.uint8))


def test_a_delta_is_added_as_a_reconstruction_adds_it(tmp_path):
    base, _ = models(1)
    delta = 0.01 * torch.randn(57, 23, generator=torch.Generator().manual_seed(2))
    merged, _ = run(base, [Part("math", Parameter(Scratch(delta, tmp_path).read, True), None)], "ta_1")
    assert torch.equal(merged, (base.float() + delta).to(torch.bfloat16))


def test_rows_that_a_model_lacks_count_as_no_change_and_the_base_gives_its_mean(monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK", {"cpu": 6})
    base, (one, two) = (
        torch.tensor([[1.0, 2.0], [3.0, 4.0]]),
        torch.tensor([[[2.0, 2.0], [3.0, 5.0], [9.0, 9.0]], [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]]),
    )
    parts = [Part("math", parameter(one), None), Part("code", parameter(two[:2]), torch.tensor([0, 1, MISSING]))]
    merge = ParameterMerge(
        Part("base", parameter(base), torch.tensor([0, 1, MISSING])), parts, (3, 2), parse_method("ta_0.5"), CPU
    )
    merged = torch.empty(3, 2)
    merge.run(merged)
    assert torch.equal(merged, torch.tensor([[1.5, 2.0], [3.0, 4.5], [5.5, 6.0]]))  # mean (2, 3) + 0.5 * (7, 6)


@pytest.mark.parametrize("rows", [3, 300])
def test_a_sampled_guess_changes_no_threshold(monkeypatch, rows):
    monkeypatch.setattr(streaming, "WORTH_A_GUESS", 100)
    monkeypatch.setattr(streaming, "BLOCK", {"cpu": 1000})
    monkeypatch.setattr(streaming, "SAMPLED_ROWS", rows)
    base, tuned = models(3, (211, 70))
    parts = [Part(str(number), parameter(model), None) for number, model in enumerate(tuned)]
    merged, _ = run(base, parts, "ties_0.7_1")
    assert torch.equal(merged, ties(base, [model.float() - base.float() for model in tuned], 0.7, 1.0))


def test_weights_reach_the_sum():
    base, tuned = models(2, dtype=torch.float32)
    deltas = [model - base for model in tuned]
    parts = [Part("a", parameter(tuned[0]), None, 2.0), Part("b", parameter(tuned[1]), None, -0.5)]
    merged, _ = run(base, parts, "ta_0.3", torch.float32)
    assert torch.equal(merged, task_arithmetic(base, deltas, 0.3, [2.0, -0.5]))
