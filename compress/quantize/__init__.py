"""Weight-only quantization.

Read ``quantize`` (the stage), ``assignment`` (bits of each layer), ``sequential`` (layer by layer),
``gptq`` and ``rtn`` (the methods), ``layer_report`` (errors of each layer), ``item_table``,
``sensitivity`` (how much the ranking depends on each layer) and ``storage`` (the file format).
"""
