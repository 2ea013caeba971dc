"""The libraries that each stage's result depends on: one list, for its key and its manifest."""

TORCH = ("torch", "transformers", "numpy")
TRAINING = (*TORCH, "accelerate")

LIBRARIES: dict[str, tuple[str, ...]] = {
    "prepare": ("polars",),
    "sasrec": TRAINING,
    "baselines": TORCH,
    "teach": (*TRAINING, "peft"),
    "distill": TRAINING,
    "prune": (*TORCH, "torch-pruning"),
    "quantize": (*TORCH, "compressed-tensors", "llmcompressor"),
    "export": (*TORCH, "onnx", "onnxscript", "onnxruntime"),
    "bench": (*TORCH, "onnxruntime"),
    "evaluate": TORCH,
    "evaluate_engine": ("numpy", "onnxruntime"),
}
"""Stage -> distributions, as they are called on PyPI."""
