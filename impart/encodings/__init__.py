"""What the stored tensors of one matrix mean: one file for each encoding that an artifact may hold.

An encoding is the module of its name. It says

    TENSORS                           the tensors that it stores of a matrix: suffix -> what --info calls it
    FACTS                             what delta.json says of such a matrix, each checked by impart/manifest.py
    OPTIONAL                          those of TENSORS that a matrix may lack; where all are stored, it is left out
    PARTS                             of a sum: part -> the encodings that it may have, its facts under its name
    layout(shape, facts) -> Layout    dtype and shape of every tensor, so that a shard is checked by its header
    write(...) -> Encoded             a matrix as it is stored
    dense(name, encoded) -> dW        (m, n) in fp32, on the device of the tensors; where it stores a delta
    restored(name, encoded, base)     the fine-tuned weight from the base's, bit for bit; where that is what it stores
    factors(name, encoded)            U (m, r), s (r,), V (n, r) in fp32, masked and rescaled; where it stores factors
    overhead_bytes(...) -> int        what it stores besides codes or values, so that a budget is met before writing

and is found by its name, which stands in delta.json: a new file here is a new encoding.
"""
