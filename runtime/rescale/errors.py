"""Every error this toolkit raises on purpose.

All derive from `RescaleError`; a command turns one into a single line on stderr and a non-zero exit code.
"""

from __future__ import annotations


class RescaleError(Exception):
    """Base of all errors. The message names the file, what came, what was wanted, and what to do."""

    exit_code = 1


class UnknownModelError(RescaleError):
    """A model, scale or size that does not exist."""


class InputError(RescaleError):
    """A picture or a folder given by the user cannot be used.

    Args:
        reason: what was found and wanted.
        advice: which option of a command helps; the message ends in it. Callers that do not have the option say something else.
    """

    def __init__(self, reason: str, advice: str = "") -> None:
        super().__init__(f"{reason}; {advice}" if advice else reason)
        self.reason = reason
        self.advice = advice


class DamagedPictureError(InputError):
    """The bytes of a file could be read, but are no whole picture: empty, truncated, damaged, or none at all."""


class OutputError(RescaleError):
    """A result cannot be written. `errno` is the system's reason, where it gave one."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno

    @classmethod
    def of(cls, path: object, error: OSError | ValueError) -> OutputError:
        """What a system says that cannot write `path`; a ValueError is its name's, which holds a null byte."""
        return cls(f"{path}: cannot write: {getattr(error, 'strerror', None) or error}", getattr(error, "errno", None))


class BundleError(RescaleError):
    """A bundle is missing, damaged, or of a format that this version does not read."""


class BackendError(RescaleError):
    """A backend that was asked for is missing or failed."""


class LoadError(BackendError):
    """A backend cannot load a graph of a bundle, whatever the picture."""


class OutOfMemoryError(BackendError):
    """The backend could not get the memory it needed."""


class EngineError(BackendError):
    """An engine cannot be built, or its file is truncated, changed, foreign, stale or incomplete."""


class ForeignEngineError(EngineError):
    """An engine of another bundle: in order perhaps, but not for this one."""


class CheckpointError(RescaleError):
    """A training checkpoint is missing, damaged, or of another model."""


class ConfigError(RescaleError):
    """A recipe or configuration holds an unknown key or a value of the wrong type."""


class ParityError(RescaleError):
    """An exported graph does not agree with PyTorch."""


class MissingExtraError(RescaleError):
    """An optional dependency is not installed. The message holds the one install command that cures it."""


class LrFileError(RescaleError):
    """An LR file that cannot be restored exactly. `state` tells why; see `rescale.container.State`."""

    exit_code = 3

    def __init__(self, message: str, state: str) -> None:
        super().__init__(message)
        self.state = state

    def __reduce__(self) -> tuple[type[LrFileError], tuple[str, str]]:
        # An exception is rebuilt from `args`, which hold the message alone; a process pool breaks on one that cannot be.
        return type(self), (str(self), self.state)
