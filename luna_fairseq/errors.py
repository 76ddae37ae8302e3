"""The errors that a user can do something about; each message is one sentence that says what.

The arithmetic and the models raise ``ValueError`` for an option or a shape that cannot work.
"""


class CheckpointError(RuntimeError):
    """A checkpoint file cannot be read or written, or is not allowed to be read."""


class CheckpointMismatch(RuntimeError):
    """A checkpoint holds another model than the options describe."""


class DataError(ValueError):
    """Prepared data does not fit the options, or is damaged."""


class PreparationError(Exception):
    """Data cannot be prepared from what was given."""


class OutputError(OSError):
    """What is to be written would take the place of something that is no file."""


class FolderInUse(RuntimeError):
    """Another process trains into the folder."""
