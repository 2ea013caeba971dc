"""TensorRT plans.

Read ``flavours`` (TensorRT and TensorRT-RTX, what is installed), ``graph`` (the strongly typed
graph), ``build`` (from graph to plan), ``runtime`` (run a plan on a GPU); ``plan`` holds what the
last two share. TensorRT is imported inside functions, only when it is used.
"""
