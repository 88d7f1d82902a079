"""One matrix: what is stored is what was quantized, the analytic Hessian of U is the gathered one, errors are true."""

import numpy as np
import pytest
import torch

from impart.encodings import empty, sparse_entries, sparse_svd, svd
from impart.encodings.masked import factor_masks
from quantize.grid import fp16_unit
from quantize.matrix import Rule, factor_errors, quantize_matrix, rank_hessian, relative_error, safe_inverse
from quantize.sparse_gptq import inverse_of, nearest, sparse_gptq

M, N, R = 80, 96, 40
PLAN = [[8, 2], [3, 10], [2, "rest"]]
NAME = "model.layers.0.self_attn.q_proj.weight"


def inputs(tokens=400):
    generator = torch.Generator().manual_seed(5)
    return torch.randn(tokens, N, generator=generator) @ (torch.eye(N) + 0.3 * torch.randn(N, N, generator=generator))


def hessian():
    X = inputs()
    return 2 / len(X) * X.T @ X


def rule(grid, **changes):
    return Rule(**{"grid": grid, "attn_plan": PLAN, "mlp_plan": PLAN, "entry_bits": 2, "groupsize": 16, **changes})


def triplets():
    generator = torch.Generator().manual_seed(0)
    U = torch.linalg.qr(torch.randn(M, R, generator=generator))[0]
    V = torch.linalg.qr(torch.randn(N, R, generator=generator))[0]
    return U, torch.linspace(4, 0.4, R), V


def sources():
    U, s, V = triplets()
    drop = np.linspace(0, 0.8, R)
    return {
        "sparse": sparse_svd.write(U, s, V, drop, seed=1, name=NAME, mask="bernoulli", rescale=True),
        "exact": sparse_svd.write(U, s, V, drop, seed=1, name=NAME, mask="exact_count", rescale=True),
        "dense": svd.write(U, s, V, torch.float16),
        "entries": sparse_entries.write((U * s) @ V.T, 0.4, seed=1, name=NAME),
    }


def value(encoded):
    return encoded.dense(NAME)


def quantize(kind, grid, **changes):
    source, H, how = sources()[kind], hessian(), rule(grid, **changes)
    encoded, errors = quantize_matrix(NAME, source, H, safe_inverse(H, how, [NAME]), how)
    return source, encoded, errors


@pytest.mark.parametrize("grid", ["paper", "compact"])
@pytest.mark.parametrize("kind", ["sparse", "exact", "dense", "entries"])
def test_what_is_stored_is_what_was_measured(kind, grid):
    source, encoded, errors = quantize(kind, grid)
    told = relative_error(value(encoded) - value(source), value(source), hessian())
    assert told == pytest.approx(errors["error"], abs=2e-3)
    assert 0.005 < told < 0.6
    X = inputs()
    outputs = ((value(encoded) - value(source)) @ X.T).norm() / (value(source) @ X.T).norm()
    assert float(outputs) == pytest.approx(told, rel=1e-3)


@pytest.mark.parametrize("grid", ["paper", "compact"])
def test_masks_are_kept(grid):
    source, encoded, _ = quantize("sparse", grid)
    U, _, V = encoded.factors(NAME)
    for factor, mask in zip((U, V), factor_masks(NAME, source), strict=True):
        assert bool((factor.T[~mask] == 0).all())
    assert encoded.facts["kept"] == source.facts["kept"] and encoded.facts["seed"] == source.facts["seed"]


def test_paper_mode_is_algorithm_2_factor_by_factor():
    """V by one call per bit group; U group by group with the Hessian of its own inputs."""
    source, encoded, _ = quantize("sparse", "paper")
    U, s, V = source.factors(NAME)
    mask_U, mask_V = factor_masks(NAME, source)
    H, spans = hessian(), ((8, 0, 2), (3, 2, 12), (2, 12, R))
    Vq = torch.cat([sparse_gptq(V.T[a:b], mask_V[a:b], H, bits, 16) for bits, a, b in spans])
    H_U = rank_hessian(H, Vq, s)
    Uq = torch.cat([sparse_gptq(U[:, a:b], mask_U.T[:, a:b], H_U[a:b, a:b], bits, 16) for bits, a, b in spans], 1)
    stored_U, stored_s, stored_V = encoded.factors(NAME)
    units = fp16_unit(U), fp16_unit(V)  # powers of two that stand in s instead
    assert torch.equal(stored_V * units[1], Vq.T)
    assert torch.equal(stored_U * units[0], Uq)
    assert torch.allclose(stored_s, s * units[0] * units[1], rtol=1e-3)


def test_analytic_hessian_of_U_is_the_gathered_one():
    U, s, V = (x.double() for x in triplets())
    X = inputs().double()
    y = X @ V * s  # the inputs of U: diag(s) V^T x for every token
    gathered = 2 / len(X) * y.T @ y
    analytic = rank_hessian(2 / len(X) * X.T @ X, V.T, s)
    assert float((analytic - gathered).norm() / gathered.norm()) < 1e-12
    single = rank_hessian(hessian(), V.T.float(), s.float())
    assert float((single - gathered).norm() / gathered.norm()) < 1e-5


def test_errors_per_rank_group():
    U, s, V = triplets()
    H, plan = hessian(), [[8, 2], [3, 10], [2, 28]]
    generator = torch.Generator().manual_seed(2)
    Uq, Vq = U + 0.01 * torch.randn(M, R, generator=generator), V + 0.01 * torch.randn(N, R, generator=generator)
    errors = factor_errors(U, V.T, Uq, Vq.T, s, H, plan)
    for key, a, b in (("error", 0, R), ("error_8bit", 0, 2), ("error_3bit", 2, 12), ("error_2bit", 12, R)):
        true, new = ((x[:, a:b] * s[a:b]) @ y[:, a:b].T for x, y in ((U, V), (Uq, Vq)))
        assert errors[key] == pytest.approx(relative_error(new - true, true, H), rel=1e-3)
    assert factor_errors(U, V.T, 0.9 * U, 0.9 * V.T, s, H, plan)["inner_product"] == pytest.approx(0.81)


def test_compact_is_more_exact_and_smaller_when_ranks_are_many():
    compact, paper = quantize("sparse", "compact"), quantize("sparse", "paper")
    assert compact[2]["error"] < paper[2]["error"] * 1.1
    assert sum(x.nbytes for x in compact[1].tensors.values()) < 0.7 * sum(x.nbytes for x in paper[1].tensors.values())


def test_more_bits_are_more_exact():
    errors = [
        quantize("entries", grid, entry_bits=bits)[2]["error"] for grid in ("paper", "compact") for bits in (2, 4, 8)
    ]
    assert errors[0] > 3 * errors[1] > 9 * errors[2] and errors[3] > 3 * errors[4] > 9 * errors[5]


@pytest.mark.parametrize("grid", ["paper", "compact"])
def test_the_error_of_entries_does_not_depend_on_the_size_of_the_delta(grid):
    """Grids in fp16 would be too coarse for the steps of 8 bits of a delta of 1e-5."""
    U, s, V = triplets()
    H, how, errors = hessian(), rule(grid, entry_bits=8), []
    for size in (1.0, 1e-5):
        source = sparse_entries.write(size * (U * s) @ V.T, 0.4, seed=1, name=NAME)
        encoded, told = quantize_matrix(NAME, source, H, safe_inverse(H, how, [NAME]), how)
        assert relative_error(value(encoded) - value(source), value(source), H) == pytest.approx(
            told["error"], rel=0.02
        )
        errors.append(told["error"])
        whole = value(source)
        assert told["inner_product"] == pytest.approx(
            float((value(encoded) * whole).sum() / whole.square().sum()), rel=1e-3
        )
    assert errors[1] == pytest.approx(errors[0], rel=0.1)


def test_an_empty_matrix_stays_empty():
    H = hessian()
    encoded, errors = quantize_matrix(NAME, empty.write((M, N)), H, inverse_of(H), rule("compact"))
    assert encoded.encoding == "empty" and errors == {}


def test_rank_inside_the_first_bit_groups():
    U, s, V = triplets()
    H = hessian()
    for grid in ("paper", "compact"):
        for rank in (1, 2, 5):
            source = svd.write(U[:, :rank], s[:rank], V[:, :rank], torch.float16)
            encoded, errors = quantize_matrix(NAME, source, H, inverse_of(H), rule(grid))
            assert encoded.facts["rank"] == rank and errors["error"] < 0.2


def test_the_plan_goes_by_the_kind_of_matrix():
    how = rule("compact", mlp_plan=[[4, "rest"]])
    assert how.plan("model.layers.0.self_attn.k_proj.weight", 20) == [[8, 2], [3, 10], [2, 8]]
    assert how.plan("model.layers.0.mlp.up_proj.weight", 20) == [[4, 20]]


def with_eigenvalue(value):
    """The Hessian with its smallest eigenvalue replaced by this share of its mean diagonal."""
    values, vectors = torch.linalg.eigh(hessian().double())
    values[0] = value * hessian().diagonal().mean()
    return (vectors * values @ vectors.T).float()


def singular():
    """Fewer tokens than inputs: of rank 20."""
    X = inputs(20)
    return 2 / len(X) * X.T @ X


BAD = {  # Hessian, damping that is given, and what comes of it
    "singular": (singular(), 0.0, {"damping": 0.01}),
    "tiny negative eigenvalue": (with_eigenvalue(-1e-4), 0.0, {"damping": 0.01}),
    "negative beyond the damping": (with_eigenvalue(-0.03), 0.01, {"damping": 0.1}),
    "negative beyond two steps": (with_eigenvalue(-0.3), 0.001, {"damping": 1.0}),
    "negative beyond all steps": (with_eigenvalue(-5.0), 0.01, {"rounded_to_nearest": True}),
    "NaN": (hessian().fill_diagonal_(torch.nan), 0.01, {"rounded_to_nearest": True}),
    "Inf in one place": (hessian().index_put_((torch.tensor(3), torch.tensor(4)), torch.tensor(torch.inf)), 0.01,
                         {"rounded_to_nearest": True}),
}  # fmt: skip


@pytest.mark.parametrize("grid", ["paper", "compact"])
@pytest.mark.parametrize("kind", ["sparse", "entries"])
@pytest.mark.parametrize("case", BAD)
def test_a_bad_hessian_gets_more_damping_or_none_of_it_is_used(case, kind, grid, caplog):
    H, damping, wanted = BAD[case]
    how, source = rule(grid, damping=damping), sources()[kind]
    inverse = safe_inverse(H, how, [NAME, "another"])
    first, *_ = (record.getMessage() for record in caplog.records)
    assert first.startswith(f"{NAME}, another (Hessian of the inputs): the Hessian ")
    assert first.endswith("rounded to nearest instead" if inverse.damping is None else "is taken here")
    encoded, facts = quantize_matrix(NAME, source, H, inverse, how)
    assert {key: facts[key] for key in ("damping", "rounded_to_nearest") if key in facts} == wanted
    assert all(np.isfinite(number) for number in facts.values())
    assert float((value(encoded) - value(source)).norm() / value(source).norm()) < 0.8
    again, _ = quantize_matrix(NAME, source, H, safe_inverse(H, how, [NAME]), how)
    assert all(torch.equal(again.tensors[key], tensor) for key, tensor in encoded.tensors.items())


def test_a_raised_damping_is_that_damping():
    """The bytes are those of a run that was given the higher damping, for this matrix alone."""
    H, source = with_eigenvalue(-0.03), sources()["entries"]
    helped, _ = quantize_matrix(NAME, source, H, safe_inverse(H, rule("paper"), [NAME]), rule("paper"))
    given = rule("paper", damping=0.1)
    asked, facts = quantize_matrix(NAME, source, H, safe_inverse(H, given, [NAME]), given)
    assert torch.equal(helped.tensors["codes"], asked.tensors["codes"]) and "damping" not in facts


def test_a_matrix_rounded_to_nearest_is_that_of_no_error_spread():
    H, source, how = hessian().fill_diagonal_(torch.nan), sources()["entries"], rule("paper")
    encoded, facts = quantize_matrix(NAME, source, H, safe_inverse(H, how, [NAME]), how)
    plain, _ = quantize_matrix(NAME, source, hessian(), nearest(H), how)
    assert torch.equal(encoded.tensors["codes"], plain.tensors["codes"])
    assert facts.keys() == {"rounded_to_nearest", "inner_product"}  # no error: it would be measured with the Hessian


def test_a_good_hessian_leaves_no_note(caplog):
    _, _, facts = quantize("sparse", "paper")
    assert not caplog.records and not {"damping", "rounded_to_nearest"} & set(facts)
