"""Train an LLM teacher and distil it, block by block, into a student of a few layers.

Read ``config``, ``teach`` (the stage), ``must_beat`` (is the teacher worth it), ``distill`` (the
stage), ``student``, ``states`` (the teacher's cached hidden states) and ``losses``; ``own`` reads a
teacher that slmc did not train. Only ``stages``, ``recipe``, ``pipeline`` and ``commands`` import
from here; other stage folders never do.
"""
