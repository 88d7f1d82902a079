"""The merging methods, one file each, and as functions of the tensors of one parameter.

The files are not called like the functions, so that `from merge.methods import ties` is the function in any case.
"""

from merge.methods.avg import average
from merge.methods.ta import task_arithmetic
from merge.methods.ties_merging import ties

__all__ = ["average", "task_arithmetic", "ties"]
