"""What goes into the matrices of experts: each form of their modules, and experts that the text hardly reaches."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional

from benchmarks import architectures
from impart.artifact import open_delta
from quantize import sparse_llama
from quantize.experts import expert_inputs, is_expert_module, order_of_use
from sparsify import sparsify_quant


class Experts(nn.Module):
    """As Llama 4's: 3 experts, x W, each run on all tokens; with biases, which gpt-oss has."""

    num_experts = 3

    def __init__(self):
        super().__init__()
        self.act_fn = functional.silu
        self.gate_up_proj, self.down_proj = nn.Parameter(torch.randn(3, 4, 6)), nn.Parameter(torch.randn(3, 3, 4))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 6))


class Choosing(Experts):
    """As transformers' experts that are given tokens and choices."""

    has_gate = is_transposed = True

    def _apply_gate(self, inner):
        return inner[:, ::2] * inner[:, 1::2]


def test_tokens_and_choices():
    module, x = Choosing(), torch.randn(5, 4)
    chosen = torch.tensor([[0, 1], [1, 2], [0, 2], [0, 1], [1, 0]])
    arguments = (x, chosen, torch.ones(5, 2))
    assert is_expert_module(module) and order_of_use("gate_up_proj") < order_of_use("down_proj")
    up, down = (expert_inputs(module, arguments, name) for name in ("gate_up_proj", "down_proj"))
    assert torch.equal(up(2), x[[1, 2]]) and torch.equal(up(0), x[[0, 2, 3, 4]])
    inner = x[[1, 2]] @ module.gate_up_proj[2] + module.gate_up_proj_bias[2]
    assert torch.allclose(down(2), inner[:, ::2] * inner[:, 1::2])


def test_all_tokens_for_every_expert_zero_where_it_was_not_chosen():
    """Llama 4's: hidden (experts * tokens, d)."""
    module, x = Experts(), torch.randn(6, 4)
    x[1] = x[4] = 0.0
    up, down = (expert_inputs(module, (x,), name) for name in ("gate_up_proj", "down_proj"))
    assert torch.equal(up(0), x[:1]) and torch.equal(up(1), x[2:4]) and torch.equal(up(2), x[5:])
    gate, right = (x[5:] @ module.gate_up_proj[2] + module.gate_up_proj_bias[2]).chunk(2, dim=1)
    assert torch.allclose(down(2), right * functional.silu(gate))


def test_tokens_sorted_by_expert():
    module, x = nn.Module(), torch.randn(5, 4)
    module.weight = nn.Parameter(torch.randn(3, 2, 4))
    given = expert_inputs(module, (x, [2, 0, 3]), "weight")
    assert torch.equal(given(0), x[:2]) and len(given(1)) == 0 and torch.equal(given(2), x[2:])


def test_a_form_that_is_not_known_has_no_inputs():
    assert expert_inputs(nn.Module(), (torch.zeros(1, 2),) * 4, "gate_up_proj") is None


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A small Mixtral pair and its sparse delta."""
    models = architectures.made("Mixtral", tmp_path_factory.mktemp("mixture"))
    pair = (f"base_model={models.base}", f"ftm_dir={models.one}", f"save_dir={models.folder / 'sparse'}")
    sparsify_quant.main([*pair, "method=dare", "bits=4", "compression_ratio_qt=8", "accounting=paper"])
    return models


def test_experts_with_too_few_tokens_are_rounded_to_nearest_and_that_is_said(mixture, caplog):
    """24 tokens, of which an expert with 64 or 96 inputs needs 16 or 24: some get fewer, the attention gets all."""
    text = mixture.folder / "text.txt"
    text.write_text(" ".join(str(3 + number % 120) for number in range(400)))
    out = mixture.folder / "quantized"
    flags = ("--saved_delta_path", mixture.folder / "sparse", "--save_compressed_delta_dir", out)
    keys = ("nsamples=1", "seqlen=24", "batch=1")
    sparse_llama.main([str(word) for word in (mixture.one, text, *flags, *keys)])
    rows = {row["name"]: row for row in json.loads((out / "report.json").read_text())["matrices"]}
    rounded = {name for name, row in rows.items() if row.get("rounded_to_nearest")}
    assert rounded and all(".experts." in name for name in rounded)
    assert "too few calibration tokens for so many inputs; rounded to nearest" in caplog.text
    assert rows.keys() == set(open_delta(out).names())
