"""One file for each quantization that reads the two models themselves and no sparse delta, such as BitDelta.

A file defines a `OneStepMethod`; sparse_llama.py runs it as method=NAME, and tables find its label by walking this
folder.
"""
