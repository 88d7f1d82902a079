"""The numbers of a merge's report, counted from small tensors by hand."""

import pytest
import torch

from merge.tally import Tally


def test_counts_by_hand():
    tally = Tally(["math", "code"])
    base = torch.tensor([3.0, 4.0, 0.0, 0.0])
    deltas = [torch.tensor([1.0, -2.0, 0.0, 0.1]), torch.tensor([-1.0, 2.0, 2.0, 0.0])]
    trimmed = [torch.tensor([1.0, -2.0, 0.0, 0.0]), torch.tensor([-1.0, 2.0, 2.0, 0.0])]
    tally.add(base, deltas, trimmed, torch.tensor([0.0, 2.0, 2.0, 0.0]))
    found = tally.rows()
    assert found["entries"] == 4 and found["base_norm"] == pytest.approx(5.0)
    assert found["merged_delta_norm"] == pytest.approx(8**0.5)
    assert found["sign_conflicts"] == 0.5 and found["cancelled"] == 0.25
    math, code = found["models"]["math"], found["models"]["code"]
    assert math == pytest.approx({"delta_norm": 5.01**0.5, "trimmed": 0.25, "zeros": 0.5})
    assert code == pytest.approx({"delta_norm": 3.0, "trimmed": 0.0, "zeros": 0.25})


def test_parameters_add_up():
    one, two = Tally(["math"]), Tally(["math"])
    one.add(torch.ones(9), [torch.full((9,), 2.0)], [torch.full((9,), 2.0)], torch.ones(9))
    two.add(torch.ones(16), [torch.zeros(16)], [torch.zeros(16)], torch.zeros(16))
    both = Tally.combined([one, two]).rows()
    assert both["entries"] == 25 and both["base_norm"] == pytest.approx(5.0)
    assert both["models"]["math"]["delta_norm"] == pytest.approx(6.0)
    assert both["models"]["math"]["zeros"] == pytest.approx(16 / 25)


def test_nan_and_inf_are_found_in_the_right_model():
    for value in (float("nan"), float("inf")):
        tally = Tally(["math", "code"])
        good, bad = torch.ones(4), torch.tensor([1.0, value, 1.0, 1.0])
        tally.add(good, [good, bad], [good, bad], good)
        assert tally.broken() == ["code"]
        tally = Tally(["math", "code"])
        tally.add(bad, [bad, bad], [bad, bad], bad)
        assert tally.broken() == ["base"]
