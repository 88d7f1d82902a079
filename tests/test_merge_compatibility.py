"""What cannot be merged is told before the first weight is merged, by the first difference."""

import json

import pytest
import torch
from checkpoints import llama_shapes, random_weights, tuned_weights, write_checkpoint

from impart.architecture import is_vocabulary
from impart.checkpoint import open_checkpoint
from impart.errors import InputError
from merge import merge
from merge.compatibility import check_architectures, check_bases, check_distinct, delta_ratio
from merge.models import CheckpointModel
from merge.settings import ModelEntry

WEIGHTS = random_weights(llama_shapes())


def opened(folder, weights, name="base", **config):
    checkpoint = open_checkpoint(write_checkpoint(folder / name, weights, config=config))
    base = open_checkpoint(folder / "base")
    entry = ModelEntry(name, str(folder / name), 1.0, None)
    return CheckpointModel(checkpoint, base, entry, folder, torch.device("cpu"))


@pytest.fixture
def base(tmp_path):
    return opened(tmp_path, WEIGHTS)


@pytest.mark.parametrize(
    ("weights", "config", "message"),
    [
        (random_weights(llama_shapes(hidden=32)), {}, r"'math' .* has hidden_size=32, the base .* has 64"),
        (random_weights(llama_shapes(layers=3)), {}, "has num_hidden_layers=3, the base .* has 2"),
        (WEIGHTS, {"model_type": "qwen2"}, "has model_type=qwen2"),
        (
            random_weights(llama_shapes(intermediate=160)),
            {},
            r"model.layers.0.mlp.down_proj.weight is \(64, 160\) in model "
            r"'math' .*, \(64, 176\) in the base",
        ),
        (
            {**WEIGHTS, "model.layers.1.self_attn.q_proj.bias": torch.zeros(64)},
            {},
            "has a tensor model.layers.1.self_attn.q_proj.bias",
        ),
        (
            {name: w for name, w in WEIGHTS.items() if name != "model.norm.weight"},
            {},
            "has no tensor model.norm.weight",
        ),
    ],
    ids=["hidden size", "layers", "type", "shape", "one more", "one less"],
)
def test_the_first_difference_is_named(tmp_path, base, weights, config, message):
    with pytest.raises(InputError, match=message):
        check_architectures(base, [opened(tmp_path, weights, "math", **config)])


def test_more_token_rows_and_stored_rotary_buffers_are_no_difference(tmp_path, base):
    weights = random_weights(llama_shapes(vocabulary=101))
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    check_architectures(base, [opened(tmp_path, weights, "math")])


def test_vocabulary_parameters():
    assert is_vocabulary("model.embed_tokens.weight") and is_vocabulary("lm_head.weight")
    assert not is_vocabulary("model.layers.0.mlp.up_proj.weight") and not is_vocabulary("model.norm.weight")


def test_delta_ratio_measures_the_size_of_the_step(tmp_path, base):
    grown = {name: (weight.float() * 1.25).to(weight.dtype) for name, weight in WEIGHTS.items()}
    model = opened(tmp_path, grown, "math")
    assert delta_ratio(base.checkpoint, model.checkpoint) == pytest.approx(0.25, abs=0.01)
    assert delta_ratio(base.checkpoint, base.checkpoint) == 0


def test_a_model_of_another_base_is_refused_and_forced(tmp_path, base, caplog):
    foreign = opened(tmp_path, random_weights(llama_shapes(), seed=9), "code")
    tuned = opened(tmp_path, tuned_weights(WEIGHTS), "math")
    with pytest.raises(InputError, match=r"'code' .* does not seem to be fine-tuned from .*1\.4\d times .*--force"):
        check_bases(base, [tuned, foreign], force=False)
    ratios = check_bases(base, [tuned, foreign], force=True)
    assert "warning: model 'code'" in caplog.text and ratios["math"] < 0.1 < ratios["code"]


def test_a_step_far_larger_than_the_others_is_refused(tmp_path, base):
    def moved(scale, seed):
        generator = torch.Generator().manual_seed(seed)
        return {
            name: (w.float() + scale * 0.05 * torch.randn(w.shape, generator=generator)).to(w.dtype)
            for name, w in WEIGHTS.items()
        }

    models = [
        opened(tmp_path, moved(scale, seed), name)
        for seed, (name, scale) in enumerate((("math", 0.01), ("chat", 0.012), ("code", 0.3)))
    ]
    with pytest.raises(InputError, match="'code' .* 0.[23].. times the base's norm, the other models' by 0.01"):
        check_bases(base, models, force=False)
    check_bases(base, models[2:], force=False)  # alone, 0.3 is within what fine-tuning does


def test_another_rotary_base_gives_a_code_model_away(tmp_path, base):
    model = opened(tmp_path, tuned_weights(WEIGHTS), "code", rope_theta=1e6)
    with pytest.raises(InputError, match="rope_theta=1e\\+06, the base's 10000"):
        check_bases(base, [model], force=False)
    nested = opened(tmp_path, tuned_weights(WEIGHTS), "math", rope_parameters={"rope_theta": 10000.0})
    check_bases(base, [nested], force=False)


def test_one_model_under_two_names_is_refused_and_forced(tmp_path, base, caplog):
    weights = tuned_weights(WEIGHTS, 1)
    models = [opened(tmp_path, weights, "math"), opened(tmp_path, weights, "code")]
    check_distinct([base, models[0]], force=False)
    with pytest.raises(InputError, match=r"'math' and 'code' are the same model .*--model code=PATH:2.*--force"):
        check_distinct(models, force=False)
    check_distinct(models, force=True)
    assert "the same model" in caplog.text


def test_the_script_refuses_before_it_writes_and_goes_on_with_force(tmp_path, base, called):
    opened(tmp_path, random_weights(llama_shapes(), seed=9), "code")
    arguments = (
        "--merge_method",
        "ta_0.5",
        "--ptm_pth",
        tmp_path / "base",
        "--code_pth",
        tmp_path / "code",
        "--save_pth",
        tmp_path / "out",
        "--threads",
        1,
    )
    ended = called(merge.main, *arguments)
    assert ended.code == 2 and ended.err.count("\n") == 1 and "--force" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "code"]
    assert called(merge.main, *arguments, "--force").code == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["delta_ratios"]["code"] > 1
