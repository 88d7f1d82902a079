"""What tables call a delta's method, and a benchmark: they say it themselves."""

from eval.run.descriptions import by_result_name
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


def title_of(benchmark: str) -> str:
    """What a benchmark calls itself; its name, where no script of eval/ has it any more."""
    known = by_result_name()
    return known[benchmark].title if benchmark in known else benchmark
