"""Files on this machine or behind a URL, through one door.

Owns which storage client a location needs and how often a failing read is tried again. S3 goes through Arrow's
own client, so nothing beside pyarrow and fsspec is needed for it; the endpoint is AWS_ENDPOINT_URL. A read that
fails for good names the object.
"""

from __future__ import annotations

import errno
import glob
import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from clusterft_trainer.errors import DataError, RunError

TRIES = 4
_PAUSE = 0.5  # seconds before the second try, then twice as long each time
Given = TypeVar("Given")


def is_url(location: str) -> bool:
    """Whether a location is not a path of this machine."""
    return "://" in location


@cache
def _client(scheme: str, process: int) -> Any:
    # one for each process: clients do not survive a fork
    if scheme != "s3":
        import fsspec

        return fsspec.filesystem(scheme)
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    endpoint = urlsplit(os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "")
    options: dict[str, Any] = {"retry_strategy": AwsStandardS3RetryStrategy(max_attempts=3)}
    if endpoint.netloc:
        options |= {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme}
        # an endpoint of one's own has no regions to be asked for
        options["region"] = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return ArrowFSWrapper(S3FileSystem(**options))


def client(location: str) -> Any:
    """The fsspec filesystem of a URL."""
    scheme = location.partition("://")[0]
    try:
        return _client(scheme, os.getpid())
    except (ValueError, ImportError) as error:
        raise DataError(f"{location} cannot be reached: {error}.", "Use a path, or s3://bucket/prefix.") from error


def path_of(location: str) -> str:
    """A URL as its filesystem names it."""
    return location.partition("://")[2].rstrip("/")


def tried(what: str, act: Callable[[], Given]) -> Given:
    """Do it, again if storage fails for a moment; what is not there stays so."""
    for attempt in range(TRIES):
        try:
            return act()
        except FileNotFoundError:
            raise
        except (OSError, TimeoutError) as error:
            if _is_absence(error):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), what) from error
            if attempt + 1 == TRIES:
                raise RunError(
                    "storage",
                    f"{what} could not be read in {TRIES} tries: {error}.",
                    "Check that storage, then start again: what was read is kept.",
                ) from error
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError


def _is_absence(error: OSError) -> bool:
    """Arrow's client tells some absences by words only."""
    return "does not exist" in str(error) or "NO_SUCH_KEY" in str(error) or "Not Found" in str(error)


def opened(location: str) -> BinaryIO:
    """A file to read from start to end."""
    if is_url(location):
        return tried(location, lambda: client(location).open(path_of(location), "rb"))
    return open(location, "rb")


def below(location: str) -> list[dict[str, Any]]:
    """All files below a URL, with size and time of change."""

    def listed() -> list[dict[str, Any]]:
        storage = client(location)
        # what cannot be listed must not look like what is not there
        strict = {"on_error": "raise"} if location.startswith("s3:") else {}
        found = storage.find(path_of(location), detail=True, **strict)
        return [entry for entry in found.values() if entry["type"] == "file"]

    try:
        return tried(location, listed)
    except FileNotFoundError as error:
        raise DataError(
            f"{location} is not there.", "Set data.sources to a bucket and prefix that are."
        ) from error


def matching(location: str, suffix: str) -> list[str]:
    """The files that a folder, a pattern or a name stands for, sorted; locations like the one given."""
    if any(letter in location for letter in "*?["):
        if not is_url(location):
            return sorted(p for p in glob.glob(location, recursive=True) if os.path.isfile(p))
        scheme = location.partition("://")[0]
        found = tried(location, lambda: client(location).glob(path_of(location)))
        return sorted(f"{scheme}://{path}" for path in found)
    if is_url(location):
        if location.endswith(suffix):
            return [location]
        scheme = location.partition("://")[0]
        return sorted(f"{scheme}://{e['name']}" for e in below(location) if e["name"].endswith(suffix))
    if os.path.isdir(location):
        return sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(location)
            for name in names
            if name.endswith(suffix)
        )
    return [location]


def common_folder(locations: list[str]) -> str:
    """The deepest folder that all files lie below."""
    parts = [folder_of(location).split("/") for location in locations]
    shared = 0
    while all(len(p) > shared and p[shared] == parts[0][shared] for p in parts):
        shared += 1
    return "/".join(parts[0][:shared])


def folder_of(location: str) -> str:
    """Where a file lies."""
    return location.rpartition("/")[0] or "."
