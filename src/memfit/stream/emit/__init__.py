"""Patched models: a `.tflite` file written anew so that the unchanged runtime of TensorFlow Lite Micro needs less.

`nodes` reads the network, `bands` fits kernels on rows, `patch` and `lower` write operators into a `draft`, `search`
chooses what to cut and how often, `place` finds addresses, `write` makes the file, and `emit` does all of it and proves
the result; `outcome` is the command's part.
"""
