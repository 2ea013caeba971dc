"""Run a TensorRT plan on tensors that are already on the GPU, without copies.

Letters: B histories, L their padded length, k returned items.
"""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmc import artefact
from slmc.artefact import Artefact, sha256
from slmc.errors import ArtefactError, BrokenRunError
from slmc.export.graph.interface import INPUT, TOP_ITEMS, TOP_SCORES
from slmc.export.runtime.engine import read_description
from slmc.export.tensorrt import flavours
from slmc.export.tensorrt.flavours import FLAVOURS, Capability, Flavour
from slmc.export.tensorrt.plan import PLAN, PLAN_GRAPH, Logger, Profile, logger_of, one_line

if TYPE_CHECKING:
    from tensorrt import IExecutionContext


@dataclass(frozen=True)
class Entry:
    """The entry ``tensorrt`` of ``engine.json``, which describes a plan."""

    flavour: Flavour
    version: str
    compute_capability: str | None
    """Compute capability of the GPU that built it; None if the plan is not bound to one."""
    precision: str
    profiles: tuple[Profile, ...]
    graph_sha256: str

    @property
    def rebuild(self) -> str:
        """How to build the plan again, for error messages."""
        return (
            "Build it again on this machine: `slmc export MODEL --formats tensorrt "
            f"--tensorrt.flavour {self.flavour.name} --tensorrt.precision {self.precision}`."
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the entry of an engine; raises :class:`ArtefactError` if it has none."""
        file = folder / "engine.json"
        try:
            entry = json.loads(file.read_bytes())["tensorrt"]
            return cls(
                flavour=FLAVOURS[entry["flavour"]],
                version=entry["version"],
                compute_capability=entry["compute_capability"],
                precision=entry["precision"],
                profiles=tuple(Profile(**one) for one in entry["profiles"]),
                graph_sha256=entry["graph_sha256"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise ArtefactError(
                f"{file} describes no TensorRT plan.",
                "Build one with `slmc export MODEL --formats tensorrt`.",
            ) from None

    def check(self, folder: Path, version: str, gpu: Capability) -> None:
        """Check that the plan can be loaded here, before TensorRT reads it.

        Args:
            folder: Folder of the engine.
            version: Version of the installed flavour.
            gpu: Compute capability of this machine.

        Raises:
            ArtefactError: It was built by another version, for another GPU, or from another
                graph than the one in the folder.
        """
        here = flavours.dotted(gpu)
        if version != self.version:
            why = f"was built by {self.flavour.name} {self.version}, but {version} is installed"
        elif self.compute_capability not in (None, here):
            why = f"was built for compute capability {self.compute_capability}, this GPU has {here}"
        elif sha256(folder / PLAN_GRAPH) != self.graph_sha256:
            why = f"was not built from {PLAN_GRAPH} in the same folder"
        else:
            return
        raise ArtefactError(f"{folder / PLAN} {why}.", self.rebuild)


class TensorrtEngine:
    """A plan on the GPU, which threads can share.

    Each thread has one execution context per CUDA stream, since the working memory of a context
    can serve only one call at a time.
    """

    def __init__(self, folder: Path) -> None:
        """Load the plan of an engine; :meth:`open` first checks the hashes of a sealed one.

        Raises:
            ArtefactError: The engine has no plan, or one that cannot run here.
            MissingError: The flavour of TensorRT or a GPU is missing.
        """
        self.folder, self.file = folder, folder / PLAN
        self.description, self.entry = read_description(folder), Entry.read(folder)
        self.module, gpu = flavours.module_for_running(self.entry.flavour)
        self.entry.check(folder, str(self.module.__version__), gpu)
        self.device = torch.device("cuda", torch.cuda.current_device())
        logger = logger_of(self.entry.flavour)
        # The runtime must outlive its engine.
        self.runtime = self.module.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(self.file.read_bytes())
        if self.engine is None:
            raise ArtefactError(
                f"{self.file}: TensorRT cannot load it: {_last_error(logger)}", self.entry.rebuild
            )
        self._per_thread = threading.local()

    @classmethod
    def open(cls, engine: Artefact | Path) -> Self:
        """Load the plan of a sealed engine; the hashes of a path are checked first."""
        sealed = engine if isinstance(engine, Artefact) else artefact.load(engine, kind="engine")
        return cls(sealed.path)

    def top(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Enqueue the computation of the best items on the current stream, without waiting.

        Args:
            item_ids: ``[B, L]`` int64 on the GPU, padded with 0 on the left, rows in 1..V.

        Returns:
            Rows ``[B, k]`` int64, best first, and scores ``[B, k]`` float32, on the GPU.

        Raises:
            ValueError: The shape fits no profile, or the tensor has another type or device.
        """
        item_ids = self._checked_input(item_ids)
        with torch.cuda.device(self.device):  # each thread has its own current GPU
            stream = torch.cuda.current_stream()
            context = self._context(item_ids.shape, stream)
            outputs = self._outputs(len(item_ids))
            self._enqueue(context, item_ids, outputs, stream)
        return outputs

    def answer(self, item_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As :meth:`top`, with arrays in CPU memory, for any number and length of histories.

        Large batches are split into several calls; a history without items is one padding item.
        """
        largest = max(profile.batch for profile in self.entry.profiles)
        newest = item_ids[:, -self.description.history :]
        if not newest.shape[1]:
            newest = np.zeros((len(newest), 1), dtype=np.int64)
        k = self.description.top_k
        parts = [[np.empty((0, k), dtype=np.int64), np.empty((0, k), dtype=np.float32)]]
        for start in range(0, len(newest), largest):
            part = torch.from_numpy(newest[start : start + largest]).to(self.device)
            parts.append([tensor.cpu().numpy() for tensor in self.top(part)])
        items, scores = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return items, scores

    def capture(self, batch: int, length: int) -> "CapturedShape":
        """Record one shape as a CUDA graph, which runs with a single launch.

        Raises:
            ValueError: The shape fits no profile.
        """
        with torch.cuda.device(self.device):
            return CapturedShape(self, batch, length)

    def _checked_input(self, item_ids: Tensor) -> Tensor:
        if item_ids.dtype != torch.int64 or item_ids.device != self.device or item_ids.ndim != 2:
            raise ValueError(
                f"item_ids must be int64 [B, L] on {self.device}, not {item_ids.dtype} "
                f"{list(item_ids.shape)} on {item_ids.device}"
            )
        return item_ids.contiguous()

    def _profile(self, shape: tuple[int, ...]) -> int:
        batch, length = shape
        for number, profile in enumerate(self.entry.profiles):
            if 1 <= batch <= profile.batch and 1 <= length <= profile.length:
                return number
        fits = ", ".join(f"{one.batch} x {one.length}" for one in self.entry.profiles)
        raise ValueError(f"item_ids: {batch} x {length} fits no profile of the plan ({fits})")

    def _context(self, shape: tuple[int, ...], stream: torch.cuda.Stream) -> "IExecutionContext":
        """Return this thread's context, set to the smallest profile that fits the shape."""
        number = self._profile(shape)
        if not hasattr(self._per_thread, "contexts"):
            self._per_thread.contexts = {}
        context, profile = self._per_thread.contexts.get(stream.cuda_stream, (None, None))
        if context is None:
            context = self._new_context()
        if profile != number:
            self._checked(context.set_optimization_profile_async(number, stream.cuda_stream))
            self._per_thread.contexts[stream.cuda_stream] = context, number
        return context

    def _new_context(self) -> "IExecutionContext":
        context = self.engine.create_execution_context()
        if context is None:
            raise BrokenRunError(
                f"{self.file}: TensorRT cannot create a context: GPU memory is short.",
                "Free GPU memory, or export with a smaller --tensorrt.batch.",
            )
        return context

    def _outputs(self, batch: int) -> tuple[Tensor, Tensor]:
        shape = (batch, self.description.top_k)
        items = torch.empty(shape, dtype=torch.int64, device=self.device)
        return items, torch.empty(shape, dtype=torch.float32, device=self.device)

    def _enqueue(
        self,
        context: "IExecutionContext",
        item_ids: Tensor,
        outputs: tuple[Tensor, Tensor],
        stream: torch.cuda.Stream,
    ) -> None:
        self._checked(context.set_input_shape(INPUT, tuple(item_ids.shape)))
        tensors = {INPUT: item_ids, TOP_ITEMS: outputs[0], TOP_SCORES: outputs[1]}
        for name, tensor in tensors.items():
            self._checked(context.set_tensor_address(name, tensor.data_ptr()))
        self._checked(context.execute_async_v3(stream.cuda_stream))

    def _checked(self, succeeded: bool) -> None:
        """Raise an error with TensorRT's message if a call of it failed."""
        if not succeeded:
            message = _last_error(logger_of(self.entry.flavour))
            raise BrokenRunError(
                f"{self.file}: TensorRT cannot run it: {message}", self.entry.rebuild
            )


def _last_error(logger: Logger) -> str:
    return one_line((logger.errors or ["no message"])[-1])


class CapturedShape:
    """One shape of a plan as a CUDA graph, with its own context and tensors."""

    def __init__(self, engine: TensorrtEngine, batch: int, length: int) -> None:
        """Record it on the engine's GPU; call :meth:`TensorrtEngine.capture` instead."""
        self.engine = engine
        self.item_ids = torch.ones((batch, length), dtype=torch.int64, device=engine.device)
        self.outputs = engine._outputs(batch)
        number = engine._profile((batch, length))
        self.context = engine._new_context()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        engine._checked(self.context.set_optimization_profile_async(number, stream.cuda_stream))
        # The first call, which for example allocates memory, cannot be recorded.
        engine._enqueue(self.context, self.item_ids, self.outputs, stream)
        stream.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        # With "thread_local", other threads can run the plan during the recording.
        with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
            engine._enqueue(self.context, self.item_ids, self.outputs, stream)

    def top(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`TensorrtEngine.top`, for this shape only.

        Every call returns the same tensors, so use their values before the next call.
        """
        with torch.cuda.device(self.engine.device):
            self.item_ids.copy_(item_ids)
            self.graph.replay()
        return self.outputs
