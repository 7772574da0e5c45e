"""What the trainer raises when it must stop, and the exit code that follows.

    TrainerError            a cause that the user can act on: class, message, remedy
      ConfigError           the settings contradict each other or the machine   (exit code 2)
      DataError             the pictures, captions or model folder are not usable (exit code 2)
      RunError              training itself cannot go on: nan, resume, disk-full, rendezvous (exit code 5)

Refuses to print or to exit: `__main__` does both, in one place.
"""

from __future__ import annotations

USAGE = 2
RUN_FAILED = 5


class TrainerError(Exception):
    """A reason to stop, in the user's terms; `everywhere` tells that all ranks raise it together."""

    exit_code = RUN_FAILED

    def __init__(self, failure: str, message: str, remedy: str, *, everywhere: bool = True) -> None:
        super().__init__(message)
        self.failure = failure
        self.message = message
        self.remedy = remedy
        self.everywhere = everywhere

    def __reduce__(self) -> tuple[object, ...]:
        """Travel between ranks by pickle, keyword argument included."""
        return _restore, (type(self), self.failure, self.message, self.remedy, self.everywhere)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}"


class ConfigError(TrainerError):
    """A setting that this trainer, model or machine cannot honour."""

    exit_code = USAGE

    def __init__(self, message: str, remedy: str, *, everywhere: bool = True) -> None:
        super().__init__("config", message, remedy, everywhere=everywhere)


class DataError(TrainerError):
    """Pictures, captions or a model folder that cannot be used as they are."""

    exit_code = USAGE

    def __init__(self, message: str, remedy: str, *, everywhere: bool = True) -> None:
        super().__init__("data", message, remedy, everywhere=everywhere)


class RunError(TrainerError):
    """Training started and cannot go on."""


def _restore(kind: type[TrainerError], failure: str, message: str, remedy: str, everywhere: bool) -> TrainerError:
    error = kind.__new__(kind)
    TrainerError.__init__(error, failure, message, remedy, everywhere=everywhere)
    return error
