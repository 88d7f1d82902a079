"""Names of dtypes, the one table: short (fp16), long (float16) and the codes of safetensors (F16)."""

import torch

from impart.errors import InputError

DTYPE_NAMES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
DTYPES = {  # the codes in the header of a safetensors file
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
DTYPE_CODES = {dtype: code for code, dtype in DTYPES.items()}

_SHORT = {dtype: name for name, dtype in DTYPE_NAMES.items()}
_BY_NAME = {**DTYPE_NAMES, **{str(dtype).removeprefix("torch."): dtype for dtype in DTYPE_NAMES.values()}}


def choices(*words: str) -> tuple[str, ...]:
    """What a flag or key may say: the given words (auto), then every dtype in both spellings."""
    return (*words, *_BY_NAME)


def parse_dtype(text: str, key: str = "dtype") -> torch.dtype:
    """The dtype of a name in either spelling; InputError, which names `key`, for any other text."""
    if text not in _BY_NAME:
        raise InputError(f"{key}: {text} is not one of {', '.join(_BY_NAME)}")
    return _BY_NAME[text]


def short_name(dtype: torch.dtype | str) -> str:
    """fp16 for torch.float16, "float16" and "fp16"; dtypes without a short name get the long one, other words stay."""
    known = _BY_NAME.get(dtype) if isinstance(dtype, str) else dtype
    return str(dtype) if known is None else _SHORT.get(known, long_name(known))


def long_name(dtype: torch.dtype | str) -> str:
    """float16 for torch.float16, "float16" and "fp16"; other words (auto) stay as they are."""
    return str(_BY_NAME.get(dtype, dtype) if isinstance(dtype, str) else dtype).removeprefix("torch.")


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether a floating-point tensor holds no NaN or Inf; a finite sum says so many times as fast as a look at each.

    A sum that overflows says nothing.
    """
    exact = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # isfinite and sum lack the 8-bit floats
    return bool(torch.isfinite(exact.sum())) or bool(torch.isfinite(exact).all())
