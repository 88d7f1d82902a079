"""A base and its fine-tuned model: what may differ, what may not, and which matrices are compressed."""

import logging

import pytest
import torch
from checkpoints import llama_shapes, random_weights, tuned_weights, write_checkpoint

from impart.architecture import linear_names, select_matrices
from impart.checkpoint import open_checkpoint
from impart.comparison import check_comparable, compare
from impart.errors import InputError

Q0, Q1 = (f"model.layers.{layer}.self_attn.q_proj.weight" for layer in (0, 1))
TYPES = [
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
]


@pytest.fixture(scope="module")
def base_weights():
    return random_weights(llama_shapes(hidden=16, intermediate=24, layers=2, kv=8, vocabulary=20))


@pytest.fixture
def opened(tmp_path, base_weights):
    """`opened(changes, config)`: the base, and a fine-tuned model with these tensors replaced (None: left out)."""

    def open_pair(changes=None, config=None, *, base=None, tuned=None):
        tuned = {**(tuned_weights(base_weights) if tuned is None else tuned), **(changes or {})}
        tuned = {name: tensor for name, tensor in tuned.items() if tensor is not None}
        return (
            open_checkpoint(write_checkpoint(tmp_path / "base", base or base_weights)),
            open_checkpoint(write_checkpoint(tmp_path / "tuned", tuned, config=config)),
        )

    return open_pair


def checked(base, tuned):
    matrices = linear_names(tuned)
    check_comparable(base, tuned, matrices)
    return compare(base, tuned, matrices)


def refused(base, tuned) -> str:
    with pytest.raises(InputError) as error:
        checked(base, tuned)
    return str(error.value)


def test_a_plain_pair_has_fourteen_matrices_and_no_extras(opened, base_weights):
    pair = checked(*opened())
    assert len(pair.matrices) == 14 and pair.extras == [] and pair.dropped == []
    assert pair.unchanged == {name for name in base_weights if ".layers." not in name or "norm" in name}
    expected = tuned_weights(base_weights)[Q0].float() - base_weights[Q0].float()
    assert pair.delta(Q0).dtype == torch.float32 and torch.equal(pair.delta(Q0), expected)


def test_what_changed_outside_the_matrices_is_an_extra(opened, base_weights):
    changes = {
        "model.norm.weight": base_weights["model.norm.weight"] + 1,
        "model.embed_tokens.weight": torch.ones(21, 16),
        "model.layers.0.self_attn.q_proj.bias": torch.ones(16),
        "lm_head.weight": None,
        "model.layers.1.input_layernorm.weight": base_weights["model.layers.1.input_layernorm.weight"].float(),
    }
    pair = checked(*opened(changes))
    assert pair.extras == [
        "model.embed_tokens.weight",
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.1.input_layernorm.weight",
        "model.norm.weight",
    ]
    assert pair.dropped == ["lm_head.weight"]


def test_matrices_that_did_not_change_are_known_as_such(opened, base_weights):
    pair = checked(*opened({Q1: base_weights[Q1]}))
    assert Q1 in pair.unchanged and Q0 not in pair.unchanged and Q1 in pair.matrices
    assert not pair.delta(Q1).any()


def test_identical_models_are_said_to_be(opened, base_weights, caplog):
    with caplog.at_level(logging.WARNING):
        pair = checked(*opened(tuned=base_weights))
    assert pair.extras == [] and len(pair.unchanged) == len(base_weights)
    assert "are identical: the delta is empty" in caplog.text


def test_a_pair_that_differs_is_not_called_identical(opened, caplog):
    with caplog.at_level(logging.WARNING):
        checked(*opened())
    assert caplog.text == ""


@pytest.mark.parametrize("key, value", [("model_type", "mistral"), ("hidden_size", 32), ("num_hidden_layers", 3)])
def test_another_architecture_is_named_with_both_values(opened, key, value):
    message = refused(*opened(config={key: value}))
    assert f"{key}=" in message and f"has {value};" in message and "one architecture" in message


def test_wrong_shapes_are_listed_with_both(opened):
    changes = {
        f"model.layers.{layer}.mlp.{kind}_proj.weight": torch.ones(26, 16)
        for layer in (0, 1)
        for kind in ("up", "gate")
    }
    message = refused(*opened(changes))
    assert "model.layers.0.mlp.gate_proj.weight (24, 16) against (26, 16)" in message
    assert "and 1 more" in message and "equal shapes" in message
    assert message.count("against") == 3


def test_matrices_that_only_one_of_the_two_has(opened):
    message = refused(*opened({Q1: None}))
    assert Q1 in message and "tuned' lacks" in message and "more" not in message


def test_matrices_that_the_base_lacks(opened, base_weights):
    message = refused(*opened(base={name: tensor for name, tensor in base_weights.items() if name not in (Q0, Q1)}))
    assert "base' lacks" in message and f"{Q0} and 1 more" in message


@pytest.mark.parametrize("who", ["base", "tuned"])
@pytest.mark.parametrize("name", [Q0, "model.embed_tokens.weight"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_anywhere_are_refused(opened, base_weights, who, name, bad):
    broken = base_weights[name].clone()
    broken[0, 0] = bad
    pair = opened({name: broken}) if who == "tuned" else opened(base={**base_weights, name: broken})
    message = refused(*pair)
    assert name in message and f"{who}' holds 1 NaN or Inf" in message


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantized_weights_are_refused(opened, base_weights, dtype):
    message = refused(*opened({Q0: base_weights[Q0].to(dtype)}))
    assert f"{Q0} of" in message and str(dtype).removeprefix("torch.") in message and "before quantization" in message


def test_dtypes_may_differ(opened, base_weights):
    tuned = {name: tensor.half() for name, tensor in tuned_weights(base_weights).items()}
    pair = checked(*opened(tuned=tuned))
    assert torch.equal(pair.delta(Q0), tuned[Q0].float() - base_weights[Q0].float())


# Which matrices

NAMES = [f"model.layers.{layer}.{kind}.weight" for layer in range(3) for kind in TYPES]


def chosen(**keys):
    return select_matrices(NAMES, "m", **keys)


def not_chosen(names=NAMES, **keys) -> str:
    with pytest.raises(InputError) as error:
        select_matrices(names, "m", **keys)
    return str(error.value)


def test_all_matrices_unless_told_otherwise():
    assert chosen() == NAMES
    assert chosen(weight_types=TYPES) == NAMES


def test_the_authors_three_keys_spell_names_out():
    pattern = "model.layers.{layer_num}.{weight_type}"
    assert chosen(weight_types=TYPES, layer_num=3, weight_name=pattern) == NAMES
    assert chosen(weight_types=TYPES, layer_num=3, weight_name=pattern + ".weight") == NAMES
    assert chosen(weight_types=["mlp.up_proj", "self_attn.q_proj"], layer_num=2, weight_name=pattern) == [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ]
    assert chosen(layer_num=1, weight_name=pattern) == NAMES[:7]


def test_types_alone():
    assert chosen(weight_types=["mlp.down_proj"]) == [
        f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(3)
    ]


@pytest.mark.parametrize(
    "keys, words",
    [
        ({"weight_types": ["mlp.upproj"]}, "'mlp.upproj' is not in 'm', which has mlp.down_proj, mlp.gate_proj"),
        ({"weight_types": []}, "weight_types is empty; 'm' has mlp.down_proj"),
        ({"layer_num": 3}, "layer_num and weight_name belong together"),
        ({"weight_name": "model.layers.{layer_num}.{weight_type}"}, "layer_num and weight_name belong together"),
        (
            {"layer_num": 40, "weight_name": "model.layers.{layer_num}.{weight_type}"},
            "which has 3 layers; check layer_num=40 and weight_name",
        ),
        ({"layer_num": 1, "weight_name": "layers.{layer_num}.{weight_type}"}, "is not among the linear weights of 'm'"),
        ({"layer_num": 1, "weight_name": "model.{layer}.{weight_type}"}, "is no pattern"),
        ({"layer_num": 1, "weight_name": "model.{}.{weight_type}"}, "is no pattern"),
        ({"layer_num": 1, "weight_name": "model.{layer_num.{weight_type}"}, "is no pattern"),
        ({"layer_num": 1, "weight_name": "model.{layer_num.x}.{weight_type}"}, "is no pattern"),
        ({"layer_num": 1, "weight_name": "model.{layer_num:q}.{weight_type}"}, "is no pattern"),
    ],
)
def test_keys_that_choose_nothing_sensible(keys, words):
    assert words in not_chosen(**keys)
