"""The errors a user can meet; each knows what is wrong, how to mend it, and its exit code.

SlmcError
├── VerdictError      1   a gate, a parity check or a baseline said no
├── UsageError        2   called wrongly: an option, a path, a file
│   ├── DataError     2   an interaction log that cannot be read as told
│   ├── RecipeError   2   a recipe that cannot run
│   └── ArtefactError 2   a directory that is no artefact, or no longer the one sealed
├── BrokenRunError    3   it broke while running; partial state is kept
├── MissingError      4   the environment lacks an extra, a device, a library
└── UndecidedError    5   there is nothing to decide
"""


class SlmcError(Exception):
    """An error in two lines: what is wrong and where, and how to mend it."""

    exit_code = 3

    def __init__(self, what: str, remedy: str) -> None:
        """Keep both lines; ``what`` names the file, line or key."""
        super().__init__(what)
        self.add_note(remedy)  # a traceback of Python shows it below the message
        self.what = what
        self.remedy = remedy


class VerdictError(SlmcError):
    """A gate, a parity check or ``must_beat`` said no, or could not tell."""

    exit_code = 1


class UsageError(SlmcError):
    """slmc was called wrongly."""

    exit_code = 2


class DataError(UsageError):
    """An interaction log that cannot be read as the configuration says."""


class RecipeError(UsageError):
    """A recipe that cannot run; ``what`` lists every fault, a line each."""


class ArtefactError(UsageError):
    """A directory that is not an artefact, or whose files are not the sealed ones."""


class BrokenRunError(SlmcError):
    """A run broke; what it had computed is kept and the same command goes on from there."""

    exit_code = 3


class MissingError(SlmcError):
    """The environment lacks something: an extra, a GPU, a driver, the network."""

    exit_code = 4


class UndecidedError(SlmcError):
    """There is nothing to decide: no test user, no gate that matches, no baseline."""

    exit_code = 5
