"""What tables call a delta's method: the methods say it themselves."""

from quantize.one_step import one_step_methods
from sparsify.settings import methods

SVD = "SVD"


def label_of(kind: str | None, method: str | None) -> str:
    """The label of a delta of this kind (svd, sparse, quantized) and method; its name where no file defines it."""
    if kind == "svd":
        return SVD
    quantized, sparse = {**methods("quantized"), **one_step_methods()}, methods("sparse")
    known = {**sparse, **quantized} if kind == "quantized" else {**quantized, **sparse}
    return known[method].label if method in known else str(method)
