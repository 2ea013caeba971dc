"""Several processes that train one model together: ``torchrun``, ``accelerate launch``, MPI.

Every process runs the same command. The first one, the main process, makes all artefacts; the
others join it where a model is trained. They follow what the main process announces, since only
its view of the cache decides what has to be trained. If a process fails, the launcher ends the
others.
"""

import logging
import os
from datetime import timedelta
from typing import Any, Literal

Announcement = Literal["train", "ready"]
"""train: all processes train the step now; ready: its artefact is in the cache."""

log = logging.getLogger("slmc.processes")

LONGEST_WAIT = timedelta(days=7)
"""How long a process waits for another one, such as for a step that the main process makes."""


class Trained(Exception):  # noqa: N818 - ends a step, which is no error
    """Raised at the end of a training in every process but the main one, which saves the model."""


SIZE = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
LOCAL = ("LOCAL_RANK", "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK")
"""Variables that torchrun and the MPI launchers set, as Accelerate reads them."""


def count() -> int:
    """Return the number of processes that run this command together; 1 without a launcher."""
    return _number(SIZE, 1)


def rank() -> int:
    """Return the number of this process, from 0."""
    return _number(RANK, 0) if count() > 1 else 0


def local_rank() -> int:
    """Return the number of this process on its machine, from 0, which is that of its GPU."""
    return _number(LOCAL, 0) if count() > 1 else 0


def is_main() -> bool:
    """Return whether this process makes the artefacts and prints."""
    return rank() == 0


def check_launcher() -> None:
    """Warn if a launcher was asked for several processes and started one."""
    if count() == 1 and os.environ.get("MASTER_ADDR") and "ACCELERATE_USE_CPU" in os.environ:
        log.warning(
            "this is the only process: `accelerate launch --cpu` starts several ones through MPI "
            "only. Use `torchrun --nproc_per_node N -m slmc …`."
        )


def announce(what: Announcement) -> None:
    """Tell the other processes how a step goes on."""
    agreed(what)


def next_announcement() -> Announcement:
    """Return the next announcement of the main process, as soon as it comes."""
    announcement: Announcement = agreed(None)
    return announcement


def leave_to_main() -> None:
    """End a step in every process but the main one, once the model is trained.

    Raises:
        Trained: This is not the main process.
    """
    if not is_main():
        raise Trained


def agreed(value: Any) -> Any:
    """Return the main process's value in every process; in a single process the value itself."""
    if count() == 1:
        return value
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    values = [value]
    broadcast_object_list(values, from_process=0)
    return values[0]


def _number(variables: tuple[str, ...], default: int) -> int:
    values = [os.environ[name] for name in variables if os.environ.get(name, "").isdigit()]
    return int(values[0]) if values else default
