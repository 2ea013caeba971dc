"""References for the parity checks.

``precision`` computes the model in PyTorch in the precision of its engine, ``activation_scales``
calibrates static scales of int8 activations on training histories, and ``cpu_emulation`` runs the
graph for TensorRT in ONNX Runtime. Imported by the rest of ``export``.
"""
