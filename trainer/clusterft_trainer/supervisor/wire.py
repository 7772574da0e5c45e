"""One connection between two supervisors: both prove that they know the run's token, then lines with a seal each.

Owns framing, the handshake, bounds, and how silence is told from absence. Nothing in here blocks: `pump` moves
what can be moved. The token itself never travels; a line that was not sealed with it, or not in its turn, ends
the connection.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
from typing import Literal

from clusterft_trainer.supervisor import messages
from clusterft_trainer.supervisor.messages import Beat, Message

Side = Literal["head", "member"]
BEAT = 5.0  # seconds between signs of life
SILENT = 20.0  # seconds without one, after which the connection is given up
_INTRODUCTION = 10.0  # seconds for the handshake
_LONGEST = 1 << 18  # bytes of one line
_LONGEST_STRANGER = 512  # of one who has proven nothing yet
_QUEUE = 1 << 20  # bytes that may wait to be sent: more, and nobody reads there
_CHUNK = 1 << 16


class Channel:
    """A non-blocking connection. Once `closed` says why, it is of no more use."""

    def __init__(self, sock: socket.socket, side: Side, token: str, now: float) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.closed = ""
        self.proven = False  # the other side knows the token
        self._side: Side = side
        self._other: Side = "member" if side == "head" else "head"
        self._key = token.encode()
        self._nonce = secrets.token_hex(16)
        self._their_nonce = ""
        self._seal = b""
        self._sent = self._received = 0
        self._in, self._out = b"", bytearray()
        self._began = self._heard = self._beat = now
        self._waiting: list[Message] = []  # said before the other side was proven
        if side == "head":
            self._out += self._frame({"nonce": self._nonce})

    def send(self, message: Message) -> None:
        """Say something, as soon as the other side is proven."""
        if not self.proven:
            self._waiting.append(message)
            return
        body = messages.encode(message).encode()
        self._out += self._sealed(self._side, self._sent, body) + b" " + body + b"\n"
        self._sent += 1
        if len(self._out) > _QUEUE:
            self.close("nobody reads there")

    def pump(self, now: float) -> list[Message]:
        """Send what waits, take what came; heartbeats are for this class alone."""
        if self.closed:
            return []
        came: list[Message] = []
        try:
            self._read(now, came)
            self._keep_alive(now)
            self._write()
        except (OSError, ValueError) as error:
            self.close(str(error) or type(error).__name__)
        return came

    def drain(self) -> None:
        """Send what the network takes at once, and listen no more."""
        try:
            self._write()
        except OSError as error:
            self.close(str(error))

    def close(self, why: str) -> None:
        """End it; the first reason stays."""
        self.closed = self.closed or why
        self.socket.close()

    def wants_to_write(self) -> bool:
        """Whether something waits for the network."""
        return bool(self._out)

    def _read(self, now: float, came: list[Message]) -> None:
        while True:
            try:
                chunk = self.socket.recv(_CHUNK)
            except (BlockingIOError, InterruptedError):
                return
            if not chunk:
                raise ConnectionError("closed by the other side")
            self._heard = now
            self._in += chunk
            self._take_lines(came)
            if len(self._in) > (_LONGEST if self.proven else _LONGEST_STRANGER):
                raise ValueError("a line without an end")

    def _take_lines(self, came: list[Message]) -> None:
        *lines, self._in = self._in.split(b"\n")
        for line in lines:
            if not self.proven:
                self._introduce(line)
            else:
                message = self._open(line)
                if not isinstance(message, Beat):
                    came.append(message)

    def _introduce(self, line: bytes) -> None:
        """The head's nonce; the member's nonce with its proof; the head's proof."""
        if len(line) > _LONGEST_STRANGER:
            raise ValueError("no introduction")
        try:
            body = json.loads(line)
            nonce = str(body.get("nonce", self._their_nonce))
        except AttributeError:
            raise ValueError("no introduction") from None
        if self._side == "member" and not self._their_nonce:
            self._their_nonce = nonce
            self._out += self._frame({"nonce": self._nonce, "proof": self._proof(self._side)})
            return
        self._their_nonce = nonce
        if not hmac.compare_digest(str(body.get("proof", "")), self._proof(self._other)):
            raise ValueError("the other side does not know this run's token")
        if self._side == "head":
            self._out += self._frame({"proof": self._proof(self._side)})
        self._seal = self._digest(b"seal").encode()
        self.proven = True
        waiting, self._waiting = self._waiting, []
        for message in waiting:
            self.send(message)

    def _proof(self, side: Side) -> str:
        return self._digest(side.encode())

    def _digest(self, purpose: bytes) -> str:
        nonces = [self._nonce, self._their_nonce]
        ordered = nonces if self._side == "head" else nonces[::-1]
        return hmac.digest(self._key, purpose + "/".join(ordered).encode(), "sha256").hex()

    def _sealed(self, side: Side, number: int, body: bytes) -> bytes:
        return hmac.digest(self._seal, f"{side} {number} ".encode() + body, "sha256").hex()[:32].encode()

    def _open(self, line: bytes) -> Message:
        seal, _, body = line.partition(b" ")
        if not hmac.compare_digest(seal, self._sealed(self._other, self._received, body)):
            raise ValueError("a line with a wrong seal")
        self._received += 1
        return messages.decode(body.decode())

    def _keep_alive(self, now: float) -> None:
        if not self.proven and now - self._began > _INTRODUCTION:
            raise TimeoutError("no introduction in time")
        if now - self._heard > SILENT:
            raise TimeoutError(f"silent for {SILENT:.0f} s")
        if self.proven and now - self._beat >= BEAT:
            self._beat = now
            self.send(Beat())

    def _write(self) -> None:
        while self._out:
            try:
                count = self.socket.send(self._out)
            except (BlockingIOError, InterruptedError):
                return
            del self._out[:count]

    @staticmethod
    def _frame(body: dict[str, str]) -> bytes:
        return json.dumps(body, separators=(",", ":")).encode() + b"\n"
