"""The artefacts that a single-stage command takes."""

from pathlib import Path

from slmc import artefact as artefacts
from slmc.artefact import Artefact, Kind
from slmc.config import StageConfig
from slmc.errors import ArtefactError, UsageError


def taken(path: Path, kind: Kind | None = None) -> Artefact:
    """The artefact at a path, its hashes checked.

    Raises:
        ArtefactError: There is none; of a link of a run, with the command that makes it again.
    """
    if path.is_symlink() and not path.exists():
        from slmc.pipeline.rundir import RunDir

        again = RunDir(path.parent).again(path.name)
        raise ArtefactError(
            f"{path} links to {path.readlink()}, which is not there any more.",
            f"Make it again with {again}." if again else "Run its recipe again.",
        )
    return artefacts.load(path, kind=kind)


def data_for(made_from_it: Artefact | None, named: Path | None) -> Artefact:
    """The dataset that is named, or else that from which an artefact was made.

    Raises:
        UsageError: None is named, and the cache does not have the artefact's own.
    """
    if named is not None:
        return taken(named, "dataset")
    found = parent(made_from_it, "data") if made_from_it is not None else None
    if found is None:
        what = (
            "no dataset is named"
            if made_from_it is None
            else f"the dataset that {made_from_it.path} was made from is not in the cache"
        )
        raise UsageError(f"{what}.", "Name it with --data.")
    return found


def parent(artefact: Artefact, role: str) -> Artefact | None:
    """What an artefact was made from in that role, if the cache has it."""
    from slmc.pipeline import find

    digest = artefact.manifest.parents.get(role)
    found = find(digest) if digest is not None else None
    return artefacts.load(found.path) if found is not None else None


def check_backbone(config: StageConfig, data: Artefact) -> None:
    """Refuse a backbone that lies here and cannot be one, before anything is made for it."""
    from slmc.distill.config import TeachConfig
    from slmc.pipeline.preflight import check_backbone as check

    if isinstance(config, TeachConfig):
        check(config, data.manifest.config.get("history"))
