"""One file for each sparsification method: its keys, its budget, what it reads, and how it encodes a matrix.

A file defines one class or two: a `SparseMethod` (sparsify.py, values in 16 bit; a `PlainMethod` where there is no
ratio) and a `QuantizedMethod` (sparsify_quant.py, sized for what sparse GPTQ will make of it). Both faces, the tables
and merge.py's masks find it by walking this folder.
"""
