"""What an engine is compared with.

``precision`` computes the model in PyTorch in the precision of its engine, ``activation_scales``
finds the fixed scales of int8 activations on training histories, and ``cpu_emulation`` runs the
graph that TensorRT builds in ONNX Runtime. Imported by the rest of ``export``.
"""
