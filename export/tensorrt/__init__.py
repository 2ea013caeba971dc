"""TensorRT plans.

Read ``flavours`` (TensorRT and TensorRT-RTX, what is installed), ``graph`` (the strongly typed
graph), ``build`` (from graph to plan), ``runtime`` (answer with a plan on a GPU); ``plan`` holds
what the last two share. TensorRT is imported inside functions, and never in a process that did not
ask for it.
"""
