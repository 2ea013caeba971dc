"""From a path to a model or an engine that recommends."""

import os
from pathlib import Path

from slmc import artefact as artefacts
from slmc.artefact import WITH_ARTICLE, Artefact
from slmc.errors import ArtefactError, UsageError
from slmc.pipeline import saved_run
from slmc.pipeline.rundir import LINK, RunDir
from slmc.serving.index_ranker import IndexRanker
from slmc.serving.ranking import EngineRanker, ModelRanker
from slmc.serving.recommender import Engine, Recommender


def load(
    path: str | os.PathLike[str] | Artefact,
    *,
    device: str = "auto",
    threads: int | None = None,
    index: bool = False,
) -> Recommender | Engine:
    """Open a model, an engine, a step of a run, or a run: then its last engine, else last model.

    Every file is checked against its hash. A model needs PyTorch, an engine only ONNX Runtime.

    Args:
        path: Folder of an artefact or of a run, such as ``runs/movies`` or
            ``runs/movies/09-export``; or an artefact.
        device: Where a model computes: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        threads: Cores of an engine, one session for each; by default one session on all cores,
            which answers a single history fastest. A model uses the threads of PyTorch.
        index: Search the index of an engine (``export: {index: hnsw}``) instead of scoring all
            items: faster in a large catalogue, and a few of the best items can be missing.

    Raises:
        ArtefactError: There is no model or engine at the path, or it has changed.
        UsageError: An argument has a wrong type or value, or there is no index.
        MissingError: onnxruntime, faiss or the device is missing.

    Example::

        import slmc

        engine = slmc.load("runs/movies")
        engine.recommend([50, 181, 172])
    """
    if threads is not None and (isinstance(threads, bool) or threads < 1):
        raise UsageError(f"threads: expected a number from 1 on, not {threads!r}.", "Pass 2, say.")
    sealed = path if isinstance(path, Artefact) else served_at(path)
    if sealed.manifest.kind == "engine":
        ranker = IndexRanker if index else EngineRanker
        return Engine(sealed, ranker(sealed.path, threads))
    if index:
        raise UsageError(
            f"{sealed.path} is {WITH_ARTICLE[sealed.manifest.kind]}: only an engine has an index.",
            "Name an engine that was exported with --index, or load it without index.",
        )
    if sealed.manifest.kind == "model":
        from slmc.model.device import choose
        from slmc.model.loading import load_model

        return Recommender(sealed, ModelRanker(load_model(sealed, choose(device, "fp32").device)))
    raise ArtefactError(
        f"{sealed.path} is {WITH_ARTICLE[sealed.manifest.kind]} (stage {sealed.manifest.stage}): "
        "it recommends nothing.",
        "Name a model, an engine or a run.",
    )


def served_at(path: object) -> Artefact:
    """The artefact at a path, or the last engine, else the last model, of the run there.

    Raises:
        ArtefactError: There is none, or its hashes do not fit.
        UsageError: It is not a path.
    """
    if not isinstance(path, str | os.PathLike) or not str(path).strip():
        raise UsageError(
            f"path: expected the folder of a model, an engine or a run, not {path!r}.",
            'Name it, as in slmc.load("runs/movies").',
        )
    folder = Path(path).expanduser()
    if saved_run.is_run(folder):
        return artefacts.load(last_served(folder))
    if folder.is_symlink() and not folder.exists():
        raise broken_link(folder)
    return artefacts.load(folder)


def last_served(run: Path) -> Path:
    """The last engine of a run, or its last model if it has no engine.

    Raises:
        ArtefactError: The run has neither, or a link of it leads nowhere.
    """
    links = sorted(
        (link for link in run.iterdir() if LINK.fullmatch(link.name) and link.is_symlink()),
        key=lambda link: int(link.name.partition("-")[0]),
    )
    kinds: dict[str, Path] = {}
    for link in links:
        if not link.exists():
            raise broken_link(link)
        kinds[artefacts.peek(link).manifest.kind] = link
    for kind in ("engine", "model"):
        if kind in kinds:
            return kinds[kind]
    raise ArtefactError(
        f"the run {run} has no model and no engine.", "Run its recipe again, up to such a step."
    )


def broken_link(link: Path) -> ArtefactError:
    """The error for a link of a run whose artefact is gone; it says how to make it again."""
    again = RunDir(link.parent).again(link.name)
    return ArtefactError(
        f"{link} links to {link.readlink()}, which no longer exists.",
        f"Make it again with {again}." if again else "Run its recipe again.",
    )
