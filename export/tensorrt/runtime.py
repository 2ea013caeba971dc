"""A TensorRT plan on tensors that are on the GPU already: nothing is copied to ask it.

Letters: B histories, L their padded length, k items given back.
"""

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slmc import artefact
from slmc.artefact import Artefact, sha256
from slmc.errors import ArtefactError, BrokenRunError
from slmc.export.graph.interface import INPUT, TOP_ITEMS, TOP_SCORES
from slmc.export.runtime.engine import describe
from slmc.export.tensorrt import flavours
from slmc.export.tensorrt.flavours import FLAVOURS, Capability, Flavour
from slmc.export.tensorrt.plan import TYPED, Profile, logger_of
from slmc.export.triton.repository import PLAN


@dataclass(frozen=True)
class Entry:
    """What ``engine.json`` says of a plan, under ``tensorrt``."""

    flavour: Flavour
    version: str
    compute_capability: str | None
    """Of the GPU that it was built for; none where the plan fits several."""
    precision: str
    profiles: tuple[Profile, ...]
    graph_sha256: str

    @property
    def rebuild(self) -> str:
        """The command that makes the plan again."""
        return (
            "Build it again on this machine: `slmc export MODEL --formats tensorrt "
            f"--tensorrt.flavour {self.flavour.name} --tensorrt.precision {self.precision}`."
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The entry of an engine; raises :class:`ArtefactError` if it has none."""
        file = folder / "engine.json"
        try:
            said = json.loads(file.read_bytes())["tensorrt"]
            return cls(
                flavour=FLAVOURS[said["flavour"]],
                version=said["version"],
                compute_capability=said["compute_capability"],
                precision=said["precision"],
                profiles=tuple(Profile(**one) for one in said["profiles"]),
                graph_sha256=said["graph_sha256"],
            )
        except (OSError, ValueError, KeyError, TypeError):
            raise ArtefactError(
                f"{file} describes no TensorRT plan.",
                "Make one with `slmc export MODEL --formats tensorrt`.",
            ) from None

    def check(self, folder: Path, version: str, gpu: Capability) -> None:
        """See that the plan can be loaded here, before TensorRT sees it.

        Args:
            folder: Of the engine.
            version: Of the installed flavour.
            gpu: Compute capability of this machine.

        Raises:
            ArtefactError: It was built by another version, for another GPU, or from another
                graph than the one beside it.
        """
        here = flavours.dotted(gpu)
        if version != self.version:
            why = f"was built by {self.flavour.name} {self.version}, and {version} is installed"
        elif self.compute_capability not in (None, here):
            why = f"was built for compute capability {self.compute_capability}, and this is {here}"
        elif sha256(folder / TYPED) != self.graph_sha256:
            why = f"was not built from the {TYPED} beside it"
        else:
            return
        raise ArtefactError(f"{folder / PLAN} {why}.", self.rebuild)


class TensorrtEngine:
    """A plan on the GPU. Threads share it: each has an execution context of its own.

    A thread that works on several streams has one for each, since what a context computes in
    is used by one call at a time.
    """

    def __init__(self, folder: Path) -> None:
        """Load the plan of an engine; :meth:`open` checks the hashes of a sealed one first.

        Raises:
            ArtefactError: The engine has no plan, or one that cannot run here.
            MissingError: TensorRT, its flavour or a GPU is not there.
        """
        self.folder, self.file = folder, folder / PLAN
        self.described, self.entry = describe(folder), Entry.read(folder)
        self.module, gpu = flavours.runner(self.entry.flavour)
        self.entry.check(folder, str(self.module.__version__), gpu)
        self.device = torch.device("cuda", torch.cuda.current_device())
        logger = logger_of(self.entry.flavour)
        # The runtime has to outlive its engine.
        self.runtime = self.module.Runtime(logger)
        self.engine = self.runtime.deserialize_cuda_engine(self.file.read_bytes())
        if self.engine is None:
            said = " ".join((logger.errors or ["it says nothing"])[-1].split())
            raise ArtefactError(f"{self.file}: TensorRT cannot load it: {said}", self.entry.rebuild)
        self._own = threading.local()

    @classmethod
    def open(cls, engine: Artefact | Path) -> Self:
        """Load the plan of a sealed engine; a path is checked against its hashes first."""
        sealed = engine if isinstance(engine, Artefact) else artefact.load(engine, kind="engine")
        return cls(sealed.path)

    def top(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The best items of each history, on the current stream; nothing waits for the GPU.

        Args:
            item_ids: ``[B, L]`` int64 on the GPU, padded with 0 on the left, rows in 1..V.

        Returns:
            Rows ``[B, k]`` int64, best first, and scores ``[B, k]`` float32, on the GPU.

        Raises:
            ValueError: The shape fits no profile, or the tensor is another.
        """
        item_ids = self._given(item_ids)
        with torch.cuda.device(self.device):  # each thread has a current GPU of its own
            stream = torch.cuda.current_stream()
            context = self._context(item_ids.shape, stream)
            outputs = self._outputs(len(item_ids))
            self._enqueue(context, item_ids, outputs, stream)
        return outputs

    def answer(self, item_ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As :meth:`top`, from and to the processor, in as many calls as the batch takes."""
        largest = max(profile.batch for profile in self.entry.profiles)
        newest = item_ids[:, -self.described.history :]
        found = []
        for start in range(0, len(newest), largest):
            part = torch.from_numpy(newest[start : start + largest]).to(self.device)
            found.append([one.cpu().numpy() for one in self.top(part)])
        items, scores = (np.concatenate(one) for one in zip(*found, strict=True))
        return items, scores

    def capture(self, batch: int, length: int) -> "Captured":
        """Record one shape as a CUDA graph, which is launched with one call.

        Raises:
            ValueError: The shape fits no profile.
        """
        with torch.cuda.device(self.device):
            return Captured(self, batch, length)

    def _given(self, item_ids: Tensor) -> Tensor:
        if item_ids.dtype != torch.int64 or item_ids.device != self.device or item_ids.ndim != 2:
            raise ValueError(
                f"item_ids: int64 [B, L] on {self.device} is asked for, not {item_ids.dtype} "
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

    def _context(self, shape: tuple[int, ...], stream: torch.cuda.Stream) -> Any:
        """This thread's context, with the smallest profile that the shape fits."""
        number = self._profile(shape)
        if not hasattr(self._own, "contexts"):
            self._own.contexts = {}
        context, profile = self._own.contexts.get(stream.cuda_stream, (None, None))
        if context is None:
            context = self._new_context()
        if profile != number:
            self._checked(context.set_optimization_profile_async(number, stream.cuda_stream))
            self._own.contexts[stream.cuda_stream] = context, number
        return context

    def _new_context(self) -> Any:
        context = self.engine.create_execution_context()
        if context is None:
            raise BrokenRunError(
                f"{self.file}: TensorRT makes no context: the GPU's memory is short.",
                "Free some, or export with a smaller --tensorrt.batch.",
            )
        return context

    def _outputs(self, batch: int) -> tuple[Tensor, Tensor]:
        shape = (batch, self.described.top_k)
        items = torch.empty(shape, dtype=torch.int64, device=self.device)
        return items, torch.empty(shape, dtype=torch.float32, device=self.device)

    def _enqueue(
        self,
        context: Any,
        item_ids: Tensor,
        outputs: tuple[Tensor, Tensor],
        stream: torch.cuda.Stream,
    ) -> None:
        self._checked(context.set_input_shape(INPUT, tuple(item_ids.shape)))
        tensors = {INPUT: item_ids, TOP_ITEMS: outputs[0], TOP_SCORES: outputs[1]}
        for name, tensor in tensors.items():
            self._checked(context.set_tensor_address(name, tensor.data_ptr()))
        self._checked(context.execute_async_v3(stream.cuda_stream))

    def _checked(self, good: bool) -> None:
        """Raise with TensorRT's own words what it answers with false."""
        if not good:
            said = " ".join(
                (logger_of(self.entry.flavour).errors or ["it says nothing"])[-1].split()
            )
            raise BrokenRunError(
                f"{self.file}: TensorRT does not run it: {said}", self.entry.rebuild
            )


class Captured:
    """One shape of a plan as a CUDA graph, with a context and tensors of its own."""

    def __init__(self, engine: TensorrtEngine, batch: int, length: int) -> None:
        """Record it, the engine's GPU being the current one; see :meth:`TensorrtEngine.capture`."""
        self.engine = engine
        self.item_ids = torch.ones((batch, length), dtype=torch.int64, device=engine.device)
        self.outputs = engine._outputs(batch)
        number = engine._profile((batch, length))
        self.context = engine._new_context()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        engine._checked(self.context.set_optimization_profile_async(number, aside.cuda_stream))
        # What a plan does at its first call, such as to allocate, cannot be recorded.
        engine._enqueue(self.context, self.item_ids, self.outputs, aside)
        aside.synchronize()
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may go on asking meanwhile.
        with torch.cuda.graph(self.graph, stream=aside, capture_error_mode="thread_local"):
            engine._enqueue(self.context, self.item_ids, self.outputs, aside)

    def top(self, item_ids: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`TensorrtEngine.top`, for this shape alone.

        The tensors that are given back are the same at every call: use them before the next.
        """
        with torch.cuda.device(self.engine.device):
            self.item_ids.copy_(item_ids)
            self.graph.replay()
        return self.outputs
