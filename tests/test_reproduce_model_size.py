"""A model's size from its config.json, against the parameters that transformers makes of it."""

import pytest
import torch

from impart.architecture import linear_names
from reproduce.model_size import model_size

SHAPE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3, "vocab_size": 96}
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 16}
KINDS = {
    "Llama": {},
    "Qwen3": {"tie_word_embeddings": True},
    "Qwen3Moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "mlp_only_layers": [1]},
    "Qwen2Moe": {"num_experts": 8, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40},
    "Mixtral": {"num_local_experts": 4},
    "Gemma3Text": {},
}


class Shapes:
    """The shapes of a model of transformers, as a checkpoint has them."""

    def __init__(self, model):
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}

    def names(self):
        return list(self._shapes)

    def shape(self, name):
        tensor, bracket, _ = name.partition("[")
        return self._shapes[tensor][1:] if bracket else self._shapes[tensor]


@pytest.mark.parametrize("family", KINDS)
def test_matrices_and_embeddings_are_those_of_the_model(family):
    import transformers

    config = getattr(transformers, f"{family}Config")(**SHAPE, **HEADS, **KINDS[family])
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    found, shapes = model_size(config.to_dict()), Shapes(model)
    matrices = []
    for name in linear_names(shapes):
        m, n = shapes.shape(name)
        # transformers joins an expert's gate and up; published checkpoints have them as two.
        matrices += [(m // 2, n)] * 2 if "gate_up_proj" in name else [(m, n)]
    assert sum(one.entries for one in found.linear) == sum(m * n for m, n in matrices)
    cubes = sum(m * n * min(m, n) for m, n in matrices)
    assert found.side == pytest.approx(cubes / sum(m * n for m, n in matrices))
    rest = sum(parameter.numel() for parameter in model.parameters()) - found.parameters
    assert 0 <= rest < 0.02 * found.parameters  # norms, biases and routers
