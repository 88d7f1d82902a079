"""The one table of dtype names: both spellings everywhere, one of them in what is recorded."""

import ast

import pytest
import torch

from impart import dtypes
from impart.config import load
from impart.errors import InputError
from impart.pair import Pair
from merge.settings import load_config


@pytest.mark.parametrize("short, long", [("fp16", "float16"), ("bf16", "bfloat16"), ("fp32", "float32")])
def test_both_spellings_are_one_dtype(short, long):
    dtype = getattr(torch, long)
    assert dtypes.parse_dtype(short) is dtypes.parse_dtype(long) is dtypes.DTYPE_NAMES[short] is dtype
    assert {dtypes.short_name(name) for name in (short, long, dtype)} == {short}
    assert {dtypes.long_name(name) for name in (short, long, dtype)} == {long}
    assert {short, long} <= set(dtypes.choices())


def test_other_words_stay_and_other_dtypes_have_their_long_name():
    assert dtypes.choices("auto")[0] == "auto" and "auto" not in dtypes.choices()
    assert dtypes.short_name("auto") == dtypes.long_name("auto") == "auto"
    assert dtypes.short_name(torch.float64) == dtypes.long_name(torch.float64) == "float64"
    with pytest.raises(InputError, match="--dtype: half is not one of fp16, bf16, fp32, float16"):
        dtypes.parse_dtype("half", "--dtype")


def test_every_safetensors_code_goes_back_and_forth():
    assert {code: dtypes.DTYPE_CODES[dtype] for code, dtype in dtypes.DTYPES.items()} == {c: c for c in dtypes.DTYPES}


def test_pairs_and_merges_take_both_spellings(tmp_path):
    words = ["name=x", "base_model=a", "benchmarks=[gsm8k]"]
    assert [load(Pair, None, [*words, f"eval_dtype={name}"]).eval_dtype for name in ("bf16", "bfloat16")] == [
        "bf16",
        "bfloat16",
    ]
    with pytest.raises(InputError, match="eval_dtype: half is not one of auto, fp16"):
        load(Pair, None, [*words, "eval_dtype=half"])
    merging = ["merge_method=ta_1", "ptm_pth=a", "save_pth=b"]
    for given, kept in (("fp16", "float16"), ("float16", "float16"), ("auto", "auto")):
        assert load_config(None, {}, [], [*merging, f"dtype={given}"]).dtype == kept


def test_no_other_file_has_a_table_of_dtypes(modules):
    """No other dict has dtypes of torch, or two short names, among its keys and values."""
    found = []
    for name, text in modules.items():
        for node in ast.walk(ast.parse(text)) if name != "impart/dtypes.py" else ():
            if isinstance(node, ast.Dict):
                parts = {ast.unparse(part) for part in (*node.keys, *node.values) if part is not None}
                spelled = {"'fp16'", "'bf16'"} <= parts or {"torch.float16", "torch.bfloat16"} <= parts
                found += [f"{name}:{node.lineno}"] if spelled else []
    assert found == []
