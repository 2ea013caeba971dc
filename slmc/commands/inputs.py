"""The input artefacts of commands."""

from pathlib import Path

from slmc import artefact as artefacts
from slmc.artefact import Artefact, Kind
from slmc.config import StageConfig
from slmc.errors import UsageError


def artefact_at(path: Path, kind: Kind | None = None) -> Artefact:
    """The artefact at a path, its hashes checked.

    Raises:
        ArtefactError: There is none. For a link of a run, the error has the command that makes the
            artefact again.
    """
    if path.is_symlink():
        from slmc.pipeline.inventory import register_moved

        register_moved(path.parent)
    if path.is_symlink() and not path.exists():
        from slmc.serving.opening import broken_link

        raise broken_link(path)
    return artefacts.load(path, kind=kind)


def dataset_for(artefact: Artefact | None, named: Path | None) -> Artefact:
    """The dataset at the path ``named``, or else the one that ``artefact`` was made from.

    Raises:
        UsageError: No path is named, and the artefact's dataset is not in the cache.
    """
    if named is not None:
        return artefact_at(named, "dataset")
    dataset = parent(artefact, "data") if artefact is not None else None
    if dataset is None:
        what = (
            "no dataset is named"
            if artefact is None
            else f"the dataset that {artefact.path} was made from is not in the cache"
        )
        raise UsageError(f"{what}.", "Name it with --data.")
    return dataset


def parent(artefact: Artefact, role: str) -> Artefact | None:
    """The input of an artefact in that role; None if it is not in the cache."""
    from slmc.pipeline import find

    digest = artefact.manifest.parents.get(role)
    cached = find(digest) if digest is not None else None
    return artefacts.load(cached.path) if cached is not None else None


def check_backbone(config: StageConfig, data: Artefact) -> None:
    """Refuse a local backbone or encoder that slmc does not support, before any stage runs."""
    from slmc.distill.config import TeachConfig
    from slmc.pipeline import preflight

    if isinstance(config, TeachConfig):
        preflight.check_backbone(config, data.manifest.config.get("history"))
        preflight.check_encoder(config)
