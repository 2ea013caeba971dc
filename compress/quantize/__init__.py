"""Weight quantization.

Read ``quantize`` (the stage), ``assignment`` (which layers, how many bits), ``sequential`` (layer
by layer), ``gptq`` and ``rtn`` (the methods), ``item_table``, ``sensitivity`` (which layers the
ranking depends on) and ``storage`` (the files).
"""
