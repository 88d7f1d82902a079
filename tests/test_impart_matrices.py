"""Experts in one 3-D tensor are matrices of their own in every step, equal to those of a model that has them apart."""

import json

import pytest
import torch
from checkpoints import write_checkpoint

import delta as delta_script
from impart.architecture import linear_names
from impart.artifact import open_delta
from impart.checkpoint import open_checkpoint
from impart.errors import InputError
from impart.matrices import Place, by_tensor, slice_names, split_name, tensor_of
from impart.overlay import open_overlay
from merge.merge import main as merge
from sparsify.sparsify import main as sparsify

EXPERTS, HIDDEN, INNER, LAYERS = 3, 16, 24, 2
LAYOUTS = {"fused": "qwen3_moe", "transposed": "gpt_oss"}


def model_weights(seed: int) -> dict[str, torch.Tensor]:
    """A mixture with its experts apart: up (24, 16), down (16, 24)."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (20, HIDDEN)}
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"{prefix}.mlp.gate.weight": (EXPERTS, HIDDEN),
        }
        for expert in range(EXPERTS):
            shapes |= {
                f"{prefix}.mlp.experts.{expert}.up_proj.weight": (INNER, HIDDEN),
                f"{prefix}.mlp.experts.{expert}.down_proj.weight": (HIDDEN, INNER),
            }
    return {name: torch.randn(shape, generator=generator).mul_(0.1).bfloat16() for name, shape in shapes.items()}


def stacked(apart: dict[str, torch.Tensor], layout: str) -> dict[str, torch.Tensor]:
    """The same model with its experts in 3-D tensors."""
    weights = {name: tensor for name, tensor in apart.items() if ".experts." not in name}
    for layer in range(LAYERS):
        for kind in ("up_proj", "down_proj"):
            prefix = f"model.layers.{layer}.mlp.experts"
            whole = torch.stack([apart[f"{prefix}.{expert}.{kind}.weight"] for expert in range(EXPERTS)])
            weights[f"{prefix}.{kind}"] = whole.mT if layout == "transposed" else whole
    return weights


def twin(name: str) -> str:
    """The matrix of the model with experts apart that a matrix of the other ones is."""
    tensor, index = split_name(name)
    return name if index is None else tensor.replace(".experts.", f".experts.{index}.") + ".weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """layout -> folders of a base and two fine-tuned models."""
    folder = tmp_path_factory.mktemp("experts")
    base = model_weights(0)
    tuned = [{name: base[name] + model_weights(seed)[name] * 0.1 for name in base} for seed in (1, 2)]
    return {
        layout: [
            write_checkpoint(
                folder / f"{layout}{number}",
                weights if layout == "apart" else stacked(weights, layout),
                form=form,
                config={"model_type": LAYOUTS.get(layout, "qwen3_moe")},
            )
            for number, (weights, form) in enumerate(
                zip((base, *tuned), ("safetensors", "safetensors", "bin"), strict=True)
            )
        ]
        for layout in ("apart", *LAYOUTS)
    }


def test_names_of_slices():
    names = slice_names("mlp.experts.up_proj", 2)
    assert names == ["mlp.experts.up_proj[0]", "mlp.experts.up_proj[1]"]
    assert split_name(names[1]) == ("mlp.experts.up_proj", 1) and split_name("a.weight") == ("a.weight", None)
    assert by_tensor([*names, "b.weight"]) == {"mlp.experts.up_proj": names, "b.weight": ["b.weight"]}


def test_a_place_is_a_view_of_the_stored_tensor():
    stored = torch.arange(24.0).view(2, 3, 4)
    plain, turned = Place("t", 1), Place("t", 1, transposed=True)
    assert torch.equal(plain.of(stored), stored[1]) and plain.shape((2, 3, 4)) == (3, 4)
    assert torch.equal(turned.of(stored), stored[1].T) and turned.shape((2, 3, 4)) == (4, 3)
    turned.of(stored).copy_(torch.zeros(4, 3))
    assert not stored[1].any() and stored[0].any()
    assert Place("t").of(stored) is stored and Place("t").shape((2, 3, 4)) == (2, 3, 4)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matrices_of_a_checkpoint_equal_their_twins(models, layout):
    for folder, apart in zip(models[layout], models["apart"], strict=True):
        checkpoint, other = open_checkpoint(folder), open_checkpoint(apart)
        names = linear_names(checkpoint)
        assert sorted(map(twin, names)) == sorted(linear_names(other)) and len(names) == LAYERS * (1 + 2 * EXPERTS)
        for name in names:
            assert checkpoint.shape(name) == other.shape(twin(name)) and name in checkpoint
            assert torch.equal(checkpoint.tensor(name), other.tensor(twin(name)))
        assert f"model.layers.0.mlp.experts.up_proj[{EXPERTS}]" not in checkpoint
        assert "model.layers.0.self_attn.q_proj.weight[0]" not in checkpoint


def test_a_layout_that_no_family_is_known_for_is_seen_by_its_shape(tmp_path):
    weights = stacked(model_weights(0), "transposed")
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "m", weights))
    assert checkpoint.shape("model.layers.0.mlp.experts.up_proj[0]") == (INNER, HIDDEN)
    assert checkpoint.shape("model.layers.0.mlp.experts.down_proj[0]") == (HIDDEN, INNER)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_svd_of_full_rank_gives_the_twin_s_delta_and_the_model_back(models, layout, tmp_path):
    base, tuned, _ = map(str, models[layout])
    delta_script.main(
        ["--svd", "--base_model", base, "--finetuned_model", tuned, "--save_path", f"{tmp_path}/svd", "--dtype", "fp32"]
    )
    artifact = open_delta(tmp_path / "svd")
    ours, theirs = (open_checkpoint(models["apart"][number]) for number in (0, 1))
    for name in artifact.names():
        expected = theirs.tensor(twin(name)).float() - ours.tensor(twin(name)).float()
        torch.testing.assert_close(artifact.reconstruct(name), expected, atol=1e-5, rtol=1e-4)
    assert not [name for name in artifact.extras() if "experts" in name or "q_proj" in name]
    delta_script.main(["--merge", "--delta_path", f"{tmp_path}/svd", "--save_path", f"{tmp_path}/rebuilt"])
    rebuilt, finetuned = open_checkpoint(tmp_path / "rebuilt"), open_checkpoint(tuned)
    assert rebuilt.names() == finetuned.names()
    for name, value in open_overlay(tmp_path / "svd").tensors():
        assert torch.equal(value, rebuilt.tensor(name))
    for name in finetuned.names():
        assert rebuilt.spec(name) == finetuned.spec(name)
        torch.testing.assert_close(rebuilt.tensor(name), finetuned.tensor(name), atol=1e-3, rtol=0.01)


@pytest.mark.parametrize("method", ["impart", "dare", "lowrank"])
def test_every_sparsification_takes_experts_one_by_one(models, method, tmp_path):
    base, tuned, _ = models["transposed"]
    keys = [f"base_model={base}", f"ftm_dir={tuned}", f"save_dir={tmp_path}/d", "compression_ratio=4"]
    sparsify([*keys, f"method={method}", *(["preprune_ratio=0.5", "C=1"] if method == "impart" else [])])
    artifact = open_delta(tmp_path / "d")
    assert len(artifact.names()) == LAYERS * (1 + 2 * EXPERTS)
    assert artifact.shape("model.layers.1.mlp.experts.down_proj[2]") == (HIDDEN, INNER)


def test_types_that_are_left_out_travel_whole_once(models, tmp_path):
    base, tuned, _ = models["fused"]
    keys = [f"base_model={base}", f"ftm_dir={tuned}", f"save_dir={tmp_path}/d", "method=dare", "compression_ratio=4"]
    sparsify([*keys, "weight_types=[self_attn.q_proj, mlp.experts.up_proj]"])
    artifact = open_delta(tmp_path / "d")
    assert {tensor_of(name) for name in artifact.names() if "experts" in name} == {
        f"model.layers.{i}.mlp.experts.up_proj" for i in (0, 1)
    }
    assert [name for name in artifact.extras() if "experts" in name] == [
        f"model.layers.{i}.mlp.experts.down_proj" for i in (0, 1)
    ]


def test_a_delta_that_lacks_some_experts_leaves_them_as_the_base_has_them(models, tmp_path):
    """Slices are entries of their own: of a delta made elsewhere, some may be missing."""
    from impart.reconstruct import reconstructed

    base, tuned, _ = models["transposed"]
    sparsify(
        [f"base_model={base}", f"ftm_dir={tuned}", f"save_dir={tmp_path}/d", "method=dare", "compression_ratio=1.5"],
    )
    artifact, ours = open_delta(tmp_path / "d"), open_checkpoint(base)
    name = "model.layers.0.mlp.experts.up_proj"
    del artifact.manifest["matrices"][f"{name}[1]"]
    whole = dict(reconstructed(artifact, ours, wanted=lambda one: one == name))[name]
    assert torch.equal(whole[1], ours.tensor(name)[1]) and not torch.equal(whole[0], ours.tensor(name)[0])


@pytest.mark.parametrize("rule", ["ta_0.5", "ties_0.5_1.0"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_merge_equals_the_merge_of_the_twins(models, layout, rule, tmp_path):
    """Task arithmetic and TIES, which trims each expert's matrix by itself."""
    outs = []
    for kind in ("apart", layout):
        base, one, two = models[kind]
        out = tmp_path / kind
        merge(
            [
                f"--merge_method={rule}",
                f"--ptm_pth={base}",
                f"--model=one={one}",
                f"--model=two={two}",
                f"--save_pth={out}",
            ]
        )
        outs.append(open_checkpoint(out))
    for name in linear_names(outs[1]):
        assert torch.equal(outs[1].tensor(name), outs[0].tensor(twin(name)))


def test_deltas_and_masks_merge_expert_by_expert(models, tmp_path):
    base, one, two = models["transposed"]
    delta_script.main(
        ["--svd", "--base_model", str(base), "--finetuned_model", str(one), "--save_path", f"{tmp_path}/svd"]
    )
    command = ["--merge_method=ta_1", f"--ptm_pth={base}", f"--model=one={tmp_path}/svd", f"--save_pth={tmp_path}/m"]
    merge(command)
    merged, tuned = open_checkpoint(tmp_path / "m"), open_checkpoint(one)
    for name in linear_names(tuned):
        torch.testing.assert_close(merged.tensor(name), tuned.tensor(name), atol=2e-3, rtol=0.02)
    masked = [f"--model=two={two}", f"--save_pth={tmp_path}/masked", "mask=dare", "sparsity=0.5"]
    merge(["--merge_method=ta_1", f"--ptm_pth={base}", *masked])
    report = json.loads((tmp_path / "masked" / "report.json").read_text())
    zeros = report["by_type"]["mlp.experts.up_proj"]["models"]["two"]["zeros"]
    assert 0.4 < zeros < 0.6


def test_two_forms_of_one_mixture_are_no_pair(models, tmp_path):
    keys = [f"base_model={models['apart'][0]}", f"ftm_dir={models['fused'][1]}", f"save_dir={tmp_path}/d"]
    with pytest.raises(InputError, match="in one tensor in the other .then save both in one form"):
        sparsify([*keys, "method=dare", "compression_ratio=2"])


def test_an_architecture_that_nobody_knows_is_refused_with_its_kinds_and_compressed_by_shape(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = {
        "model.embed_tokens.weight": torch.randn(70, 64, generator=generator),
        **{f"model.blocks.{i}.rnn.w_in.weight": torch.randn(128, 64, generator=generator) for i in (0, 1)},
        **{f"model.blocks.{i}.rnn.w_gate.weight": torch.randn(8, 64, generator=generator) for i in (0, 1)},
    }
    for name, scale in (("base", 1.0), ("tuned", 1.01)):
        write_checkpoint(
            tmp_path / name, {key: value * scale for key, value in weights.items()}, config={"num_hidden_layers": 2}
        )
    keys = [
        f"base_model={tmp_path}/base",
        f"ftm_dir={tmp_path}/tuned",
        f"save_dir={tmp_path}/d",
        "method=dare",
        "compression_ratio=2",
    ]
    with pytest.raises(InputError, match=r"rnn\.w_in \(128 x 64, 2\).*weight_types=all"):
        sparsify(keys)
    sparsify([*keys, "weight_types=all"])
    artifact = open_delta(tmp_path / "d")
    assert artifact.names() == [f"model.blocks.{i}.rnn.w_in.weight" for i in (0, 1)]
    assert "model.embed_tokens.weight" in artifact.extras()
