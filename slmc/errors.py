"""The errors that users see: each has a message, a remedy and an exit code.

SlmcError
├── VerdictError      1   a gate, a parity check or must_beat failed
├── UsageError        2   wrong option, path or file
│   ├── DataError     2   an interaction log that cannot be read as configured
│   ├── RecipeError   2   a recipe that cannot run
│   └── ArtefactError 2   not an artefact, or changed since it was sealed
├── BrokenRunError    3   failed while running; partial state is kept
├── MissingError      4   the environment lacks an extra, a device, a library
└── UndecidedError    5   there is nothing to decide
"""


class SlmcError(Exception):
    """An error in two lines: what is wrong and where, and how to fix it."""

    exit_code = 3

    def __init__(self, what: str, remedy: str) -> None:
        """Store both lines; ``what`` names the file, line or key."""
        super().__init__(what)
        self.add_note(remedy)  # a traceback of Python shows it below the message
        self.what = what
        self.remedy = remedy


class VerdictError(SlmcError):
    """A gate, a parity check or ``must_beat`` failed, or could not be decided."""

    exit_code = 1


class UsageError(SlmcError):
    """A wrong option, path or file."""

    exit_code = 2


class DataError(UsageError):
    """An interaction log that cannot be read as the configuration says."""


class RecipeError(UsageError):
    """A recipe that cannot run; ``what`` lists every fault, one per line."""


class ArtefactError(UsageError):
    """A directory that is not an artefact, or whose files have changed since it was sealed."""


class BrokenRunError(SlmcError):
    """A run failed; its partial state is kept, and the same command resumes from it."""

    exit_code = 3


class MissingError(SlmcError):
    """The environment lacks something: an extra, a GPU, a driver, the network."""

    exit_code = 4


class UndecidedError(SlmcError):
    """There is nothing to decide: no test user, no gate that matches, no baseline."""

    exit_code = 5
