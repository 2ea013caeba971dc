"""Train an LLM teacher and distil it, block by block, into a student with few layers.

Read ``config``, ``teach`` (the stage), ``must_beat`` (compares the teacher with the baselines),
``distill`` (the stage), ``student`` (how models are initialised), ``states`` (the teacher's cached
hidden states) and ``losses``; ``existing`` reads a teacher that slmc did not train. ``depth`` (the
stage) measures how a teacher ranks with fewer layers, ``depth_curve`` compares and chooses,
``depth_plot`` draws; ``selection`` chooses the layers that a student starts from. Only ``stages``,
``recipe``, ``pipeline`` and ``commands`` import from here; other stage folders never do.
"""
