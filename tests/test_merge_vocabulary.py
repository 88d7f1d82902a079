"""Rows of embedding and head matched by token: the pure alignment, and whole merges with real tokenizers."""

import json

import pytest
import torch
from safetensors.torch import load_file
from vocabularies import WORDS, llama_with_rows, moved_weights, small_weights, write_tokenizer

from impart.errors import InputError
from merge import merge
from merge.vocabulary import MISSING, Vocabulary, align, comparable, merge_vocabularies, union

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def vocabulary(*tokens, rows=None):
    return Vocabulary({token: number for number, token in enumerate(tokens)}, len(tokens) if rows is None else rows)


# ---------------------------------------------------------------- the alignment itself


def test_equal_vocabularies_move_nothing():
    found = align({"base": vocabulary("a", "b"), "math": vocabulary("a", "b")}, "base", {})
    assert found.rows == 2 and found.maps == {"base": None, "math": None}


def test_rows_follow_the_token_not_the_position():
    models = {"base": vocabulary("a", "b", "c"), "math": vocabulary("c", "a", "b")}
    assert align(models, "base", {}).maps["math"].tolist() == [1, 2, 0]
    assert align(models, "math", {}).maps["base"].tolist() == [2, 0, 1]


def test_added_tokens_are_united_by_smallest_id_then_by_string():
    models = {
        "base": vocabulary("a", "b"),
        "math": vocabulary("a", "b", "[PAD]"),
        "chat": vocabulary("a", "b", "<x>", "<y>"),
        "code": vocabulary("a", "b", "<y>", "[PAD]"),
    }
    assert union(models, "base") == ["<x>", "<y>", "[PAD]"]
    found = align(models, "base", {"<x>": 2, "<y>": 3, "[PAD]": 4})
    assert found.rows == 5
    assert found.maps["base"].tolist() == [0, 1, MISSING, MISSING, MISSING]
    assert found.maps["math"].tolist() == [0, 1, MISSING, MISSING, 2]
    assert found.maps["chat"].tolist() == [0, 1, 2, 3, MISSING]
    assert found.maps["code"].tolist() == [0, 1, MISSING, 2, 3]


def test_rows_without_a_token_are_kept_and_matched_by_position():
    models = {"base": vocabulary("a", "b", rows=4), "math": vocabulary("a", "b", "[PAD]", rows=6)}
    found = align(models, "base", {"[PAD]": 2})
    assert found.rows == 6
    assert found.maps["base"].tolist() == [0, 1, MISSING, 3, MISSING, MISSING]
    assert found.maps["math"] is None  # its rows are those of the result


def test_a_token_beyond_the_rows_has_no_row():
    models = {"base": vocabulary("a", "b", "<x>", rows=2), "math": vocabulary("a", "b", "<x>", rows=3)}
    assert union(models, "base") == []  # the base's tokenizer knows it
    assert align(models, "base", {}).maps["base"].tolist() == [0, 1, MISSING]


def test_a_model_without_a_tokenizer_is_taken_to_have_the_origins():
    found = comparable({"base": vocabulary("a", "b"), "math": Vocabulary(None, 2)}, "base")
    assert found["math"] == found["base"]
    assert comparable({"base": Vocabulary(None, 2), "math": vocabulary("b", "a")}, "base")["math"].ids is None
    with pytest.raises(InputError, match="no tokenizer that says which is which"):
        comparable({"base": vocabulary("a", "b"), "math": Vocabulary(None, 3)}, "base")


def test_another_tokenizer_altogether_is_an_error():
    with pytest.raises(InputError, match="share 1 of 3 tokens"):
        comparable({"base": vocabulary("a", "b", "c"), "math": vocabulary("a", "x", "y")}, "base")


def test_equal_tokenizer_files_are_not_even_loaded(tmp_path):
    for name in ("base", "math"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text("not a tokenizer")
    small = {name: [tmp_path / name / "tokenizer.json"] for name in ("base", "math")}
    assert merge_vocabularies(small, {"base": 5, "math": 5}, "base", tmp_path) is None
    with pytest.raises(InputError, match="cannot be loaded"):
        merge_vocabularies(small, {"base": 5, "math": 6}, "base", tmp_path)


# ---------------------------------------------------------------- whole merges


@pytest.fixture
def base(tmp_path):
    return llama_with_rows(tmp_path / "base", small_weights())


def merged(called, tmp_path, *arguments):
    out = tmp_path / "out"
    ended = called(merge.main, *arguments, "--ptm_pth", tmp_path / "base", "--save_pth", out, "--threads", 1)
    assert ended.code == 0, ended.err
    return load_file(out / "model.safetensors"), json.loads((out / "config.json").read_text()), out


def loads_and_runs(out):
    """The folder as a user loads it: the model runs on what its tokenizer gives."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    GenerationConfig.from_pretrained(out)
    ids = tokenizer("the fox sings [PAD] <|end|> home", return_tensors="pt").input_ids
    assert int(ids.max()) < model.config.vocab_size
    logits = model(ids).logits
    assert logits.shape[-1] == model.config.vocab_size and bool(torch.isfinite(logits).all())
    return tokenizer, model


def test_an_added_token_takes_the_base_mean_row_where_it_is_unknown(called, tmp_path, base):
    weights = small_weights()
    math, code = moved_weights(weights, 1, rows=11), moved_weights(weights, 2)
    llama_with_rows(tmp_path / "math", math, added=("[PAD]",))
    llama_with_rows(tmp_path / "code", code)
    result, config, out = merged(
        called, tmp_path, "--merge_method", "ta_0.5", "--math_pth", tmp_path / "math", "--code_pth", tmp_path / "code"
    )
    assert config["vocab_size"] == 11
    for name in (EMBEDDING, HEAD):
        old, mean = weights[name].float(), weights[name].float().mean(dim=0)
        expected = old + 0.5 * (math[name][:10].float() - old) + 0.5 * (code[name].float() - old)
        torch.testing.assert_close(result[name][:10].float(), expected, rtol=0.01, atol=1e-4)
        torch.testing.assert_close(
            result[name][10].float(), mean + 0.5 * (math[name][10].float() - mean), rtol=0.01, atol=1e-4
        )
    tokenizer, _ = loads_and_runs(out)
    assert tokenizer.convert_tokens_to_ids("[PAD]") == 10
    assert "[PAD]" in tokenizer.all_special_tokens or tokenizer.added_tokens_decoder[10].special


def test_two_models_that_add_different_tokens_at_one_id(called, tmp_path, base):
    weights = small_weights()
    math, chat = moved_weights(weights, 1, rows=11), moved_weights(weights, 2, rows=12)
    llama_with_rows(tmp_path / "math", math, added=("[PAD]",))
    llama_with_rows(tmp_path / "chat", chat, added=("<|end|>", "[PAD]"))
    result, _, out = merged(
        called, tmp_path, "--merge_method", "ta_1", "--math_pth", tmp_path / "math", "--chat_pth", tmp_path / "chat"
    )
    tokenizer, model = loads_and_runs(out)
    end, pad = tokenizer.convert_tokens_to_ids(["<|end|>", "[PAD]"])
    assert {end, pad} == {10, 11} and model.config.vocab_size == 12
    mean = weights[EMBEDDING].float().mean(dim=0)
    torch.testing.assert_close(result[EMBEDDING][end], chat[EMBEDDING][10])  # only chat has a say: mean + (row - mean)
    torch.testing.assert_close(
        result[EMBEDDING][pad].float(),
        math[EMBEDDING][10].float() + chat[EMBEDDING][11].float() - mean,
        rtol=0.01,
        atol=1e-3,
    )


def test_a_model_that_moved_its_tokens_is_read_by_token(called, tmp_path, base):
    order = torch.randperm(len(WORDS), generator=torch.Generator().manual_seed(3))
    tuned = moved_weights(small_weights(), 1)
    shuffled = {name: weight[order] if name in (EMBEDDING, HEAD) else weight for name, weight in tuned.items()}
    llama_with_rows(tmp_path / "math", shuffled, words=[WORDS[number] for number in order])
    result, _, _ = merged(called, tmp_path, "--merge_method", "ta_1", "--math_pth", tmp_path / "math")
    assert all(torch.equal(result[name], tuned[name]) for name in tuned)


@pytest.mark.parametrize("rows", [11, 16])
def test_one_model_with_an_added_token_and_padded_rows_comes_out_bit_for_bit(called, tmp_path, base, rows):
    math = moved_weights(small_weights(), 1, rows=rows)
    llama_with_rows(tmp_path / "math", math, added=("[PAD]",))
    result, config, out = merged(called, tmp_path, "--merge_method", "ta_1.0", "--math_pth", tmp_path / "math")
    assert config["vocab_size"] == rows and result.keys() == math.keys()
    assert all(torch.equal(result[name], math[name]) for name in math)
    loads_and_runs(out)


def test_padded_rows_of_the_base_take_the_added_token(called, tmp_path):
    weights = small_weights(rows=16)
    llama_with_rows(tmp_path / "base", weights)
    math = moved_weights(weights, 1)
    llama_with_rows(tmp_path / "math", math, added=("[PAD]",))
    result, config, out = merged(called, tmp_path, "--merge_method", "ta_1", "--math_pth", tmp_path / "math")
    assert config["vocab_size"] == 16
    assert all(torch.equal(result[name], math[name]) for name in math)
    loads_and_runs(out)


@pytest.mark.parametrize("method", ["ta_0.5", "ties_0.5_1.0", "avg"])
def test_tied_embeddings_stay_tied(called, tmp_path, method):
    weights = small_weights(tied=True)
    llama_with_rows(tmp_path / "base", weights, tied=True)
    llama_with_rows(tmp_path / "math", moved_weights(weights, 1, rows=11), tied=True, added=("[PAD]",))
    llama_with_rows(tmp_path / "code", moved_weights(weights, 2), tied=True)
    result, config, out = merged(
        called, tmp_path, "--merge_method", method, "--math_pth", tmp_path / "math", "--code_pth", tmp_path / "code"
    )
    assert HEAD not in result and config["tie_word_embeddings"] is True
    _, model = loads_and_runs(out)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_a_model_that_untied_its_head_unties_the_merged_one(called, tmp_path):
    weights = small_weights(tied=True)
    llama_with_rows(tmp_path / "base", weights, tied=True)
    untied = moved_weights({**weights, HEAD: weights[EMBEDDING]}, 1)
    llama_with_rows(tmp_path / "math", untied)
    llama_with_rows(tmp_path / "code", moved_weights(weights, 2), tied=True)
    result, config, out = merged(called, tmp_path, "--merge_method", "ta_1", "--math_pth", tmp_path / "math")
    assert config["tie_word_embeddings"] is False
    assert torch.equal(result[HEAD], untied[HEAD]) and torch.equal(result[EMBEDDING], untied[EMBEDDING])
    loads_and_runs(out)


def test_the_tokenizer_key_says_whose_layout_template_and_config_the_result_has(called, tmp_path, base):
    weights = small_weights()
    chat = moved_weights(weights, 1, rows=11)
    llama_with_rows(tmp_path / "chat", chat, added=("<|end|>",), template="{{ messages[0].content }}<|end|>")
    (tmp_path / "chat" / "generation_config.json").write_text('{"eos_token_id": 10}')
    math = moved_weights(weights, 2, rows=11)
    llama_with_rows(tmp_path / "math", math, added=("[PAD]",))
    result, _, out = merged(
        called,
        tmp_path,
        "--merge_method",
        "ta_1",
        "--math_pth",
        tmp_path / "math",
        "--chat_pth",
        tmp_path / "chat",
        "tokenizer=chat",
    )
    tokenizer, _ = loads_and_runs(out)
    assert tokenizer.chat_template == "{{ messages[0].content }}<|end|>"
    assert tokenizer.convert_tokens_to_ids(["<|end|>", "[PAD]"]) == [10, 11]
    assert json.loads((out / "generation_config.json").read_text()) == {"eos_token_id": 10}
    assert torch.equal(result[EMBEDDING][10], chat[EMBEDDING][10])
    assert torch.equal(result[EMBEDDING][11], math[EMBEDDING][10])


def test_without_it_the_note_names_the_model_that_has_a_template(called, tmp_path, base, caplog):
    llama_with_rows(tmp_path / "chat", moved_weights(small_weights(), 1), template="{{ messages[0].content }}")
    with caplog.at_level("INFO"):
        merged(called, tmp_path, "--merge_method", "ta_1", "--chat_pth", tmp_path / "chat")
    assert "tokenizer=chat" in caplog.text


def test_rows_that_no_tokenizer_explains_are_an_error(called, tmp_path, base):
    math = llama_with_rows(tmp_path / "math", moved_weights(small_weights(), 1, rows=12))
    for file in math.glob("*token*"):
        file.unlink()
    ended = called(
        merge.main, "--merge_method", "ta_1", "--ptm_pth", base, "--math_pth", math, "--save_pth", tmp_path / "out"
    )
    assert ended.code == 2 and "'math' has 12 token rows" in ended.err and not (tmp_path / "out").exists()


def test_a_word_that_only_one_tokenizer_knows_becomes_an_added_token(called, tmp_path, base, caplog):
    math = moved_weights(small_weights(), 1, rows=11)
    llama_with_rows(tmp_path / "math", math)
    write_tokenizer(tmp_path / "math", words=[*WORDS, "integral"])
    with caplog.at_level("WARNING"):
        result, _, out = merged(called, tmp_path, "--merge_method", "ta_1", "--math_pth", tmp_path / "math")
    assert "'integral'" in caplog.text
    tokenizer, _ = loads_and_runs(out)
    assert tokenizer("the integral runs").input_ids == [3, 10, 7]
    assert torch.equal(result[EMBEDDING][10], math[EMBEDDING][10])


@pytest.mark.parametrize("key", ["text_config", "llm_config"])
def test_a_multimodal_model_keeps_the_merged_rows_with_its_language_models_settings(called, tmp_path, base, key):
    llama_with_rows(tmp_path / "math", moved_weights(small_weights(), 1, rows=11), added=("[PAD]",))
    before = {}
    for folder in (base, tmp_path / "math"):
        file = folder / "config.json"
        before = json.loads(file.read_text())
        file.write_text(json.dumps({"model_type": "some", "torch_dtype": "bfloat16", key: before}))
    _, config, _ = merged(called, tmp_path, "--merge_method", "ta_0.5", "--math_pth", tmp_path / "math")
    assert config[key] == {**before, "vocab_size": 11} and "vocab_size" not in config
