"""docker's SDK over the way that is open already: `docker system dial-stdio` on a channel a pooled connection.

Needs no port, no socket forwarded and no second login. Refuses engines older than API 1.41, and asks all others in
the oldest version that both know, so that one engine answers like the next.
"""

from __future__ import annotations

import http.client
from types import TracebackType
from typing import Any

import docker
import requests
import urllib3
from docker.transport.basehttpadapter import BaseHTTPAdapter
from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from clusterft.engine.refusal import OLDEST_API, NoEngine, refusal, too_old
from clusterft.remote import Remote, Stream

_URL = "http+docker://engine"
_SESSIONS = 5  # at once; sshd allows 10 on one connection, and commands need some too
_PATIENCE = 60.0  # seconds that a call waits for one of them
_LAST_WORDS = 5.0  # seconds for a client that failed to say why
_SHORT = 200  # characters of an answer that is no HTTP


class Engine:
    """One machine's engine; NoEngine says why there is none.

    Calls raise that too, or Unreachable; or `docker.errors.APIError` where the engine itself said no.
    """

    def __init__(self, remote: Remote, command: tuple[str, ...] = ("docker",), *, seconds: float = 60.0) -> None:
        self.command = command
        self._client = _Client(_Adapter(remote, command), seconds)
        try:
            self.about = self._client.greet()
        except BaseException:
            self._client.close()
            raise

    @property
    def api(self) -> docker.APIClient:
        """The SDK's low-level client."""
        return self._client

    def close(self) -> None:
        """Let go of its channels; the connection stays."""
        self._client.close()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Client(docker.APIClient):
    """The SDK's client, reaching the engine by our adapter alone."""

    def __init__(self, adapter: _Adapter, seconds: float) -> None:
        super().__init__(base_url="http://engine:1", version=_words(OLDEST_API), timeout=seconds)  # type: ignore[arg-type]
        self._custom_adapter = adapter
        self.base_url = _URL
        self.trust_env = False  # a proxy of this machine's environment is not on the way
        for scheme in list(self.adapters):
            self.adapters.pop(scheme)
        self.mount("http+docker://", adapter)

    def greet(self) -> dict[str, Any]:
        """Ask for the versions and agree on one."""
        about: dict[str, Any] = self.version(api_version=False)
        api = str(about["ApiVersion"])
        if _numbers(api) < OLDEST_API:
            raise too_old(str(about.get("Version")), api)
        self._version = _words(max(OLDEST_API, _numbers(str(about.get("MinAPIVersion") or "1.0"))))
        return about


class _Adapter(BaseHTTPAdapter):
    """Where requests sends what is meant for the engine."""

    def __init__(self, remote: Remote, command: tuple[str, ...]) -> None:
        super().__init__()
        self._pool = _Pool(remote, command)

    def get_connection(self, url: str | bytes, proxies: Any = None) -> HTTPConnectionPool:
        """There is one place to go to."""
        return self._pool

    def request_url(self, request: Any, proxies: Any) -> str:
        """The path alone."""
        return str(request.path_url)

    def send(self, request: Any, *rest: Any, **options: Any) -> requests.Response:
        """One request; what is said about the way there is ours, what the engine said stays the SDK's."""
        try:
            return super().send(request, *rest, **options)
        except requests.exceptions.ReadTimeout:
            raise NoEngine("dk.down", f"no answer to {request.method} {request.path_url}") from None
        except requests.exceptions.ConnectionError as error:
            raise NoEngine("dk.down", f"{request.method} {request.path_url}: {error}") from None

    def close(self) -> None:
        """Close the pooled connections."""
        super().close()
        self._pool.close()


class _Pool(HTTPConnectionPool):
    """At most a few connections at once; who finds none waits for one."""

    def __init__(self, remote: Remote, command: tuple[str, ...]) -> None:
        super().__init__("engine", maxsize=_SESSIONS, block=True)
        self._remote = remote
        self._argv = (*command, "system", "dial-stdio")

    def _new_conn(self) -> HTTPConnection:
        self.num_connections += 1
        return _Connection(self._remote, self._argv)

    def _get_conn(self, timeout: float | None = None) -> Any:
        try:
            return super()._get_conn(timeout=timeout or _PATIENCE)
        except urllib3.exceptions.EmptyPoolError:
            words = f"{_SESSIONS} calls to this engine are under way, and none ended within {_PATIENCE:g} s"
            raise NoEngine("ssh.maxsessions", words) from None


class _Connection(HTTPConnection):
    """HTTP on a command's stdin and stdout."""

    sock: Any

    def __init__(self, remote: Remote, argv: tuple[str, ...]) -> None:
        super().__init__("engine")
        self._remote = remote
        self._argv = argv

    def connect(self) -> None:
        """Start the command; whether it reaches an engine shows at the first answer."""
        self.sock = self._remote.stream(self._argv)

    def getresponse(self) -> Any:
        """The answer; where none came, what the command says about it."""
        stream: Stream = self.sock
        try:
            return super().getresponse()
        except http.client.BadStatusLine as error:  # RemoteDisconnected is one
            raise self._told(stream, str(error)) from None

    def _told(self, stream: Stream, instead: str) -> NoEngine:
        if not isinstance(instead, str) or "without response" not in instead:
            words = f"{' '.join(self._argv)} answered with something else than HTTP: {instead[:_SHORT]}"
            return NoEngine("ssh.noisy-shell", words)
        return refusal(stream.code(_LAST_WORDS), stream.complaint(), self._argv)


def _numbers(version: str) -> tuple[int, int]:
    major, _, minor = version.partition(".")
    return int(major), int(minor)


def _words(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
