"""The port matrix on one node: opens a few ports, and dials those of the other nodes when told.

Everything is bounded: every socket has a deadline, every thread is a daemon, and all of it ends with stdin. Only
those who know the word are answered. Refuses to judge: it tells errno, seconds, segment sizes and who answered.

    ports    then a JSON line a step, an answer each; its own first line says who it is
"""

from __future__ import annotations

import array
import errno
import fcntl
import hmac
import json
import os
import socket
import struct
import sys
import termios
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # Python 3.8 cannot evaluate it
    from collections.abc import Callable

    Body = dict[str, Any]
_SMALL, _LARGE = 1 << 10, 1 << 16
_ECHO = 2.0  # seconds for an echo; a lost segment is sent again within that
_LIFE = 20.0  # seconds of any conversation
_GUESTS = threading.BoundedSemaphore(200)  # conversations at one time
_MANY = 8  # more connections to a port that could not be reached
_NARROW = (1500, 1450, 1400, 1280)  # MTUs that are tried where large packets are lost
_COMPLAIN = threading.excepthook
_HEADERS = {socket.AF_INET: 40, socket.AF_INET6: 60}  # bytes of IP and TCP in each packet


class Self:
    """Who we are to the others."""

    name = word = boot = ""


ME = Self()


# -- who is dialled -----------------------------------------------------------


def listen(asked: Body) -> Body:
    """Open the ports that are asked for, and the first free one of the high ones."""
    ME.name, ME.word = asked["name"], asked["word"]
    wide = bool(asked.get("wide"))
    opened = {str(port): _open(int(port), wide) for port in asked["ports"]}
    for port in (*asked["high"], 0):
        try:
            listener = _listener(int(port), wide)
        except OSError:
            continue  # somebody has it: the next one
        return {"ports": opened, "high": _serving(listener)}
    return {"ports": opened, "high": 0}


def _open(port: int, wide: bool) -> str:
    """Empty, or why not."""
    try:
        _serving(_listener(port, wide))
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return ""


def _listener(port: int, wide: bool) -> socket.socket:
    """On all interfaces, as the rendezvous does, so that a wrong address is answered by whoever has it."""
    family = socket.AF_INET6 if wide else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if wide:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(("::" if wide else "", port))
        listener.listen(256)
    except OSError:
        listener.close()
        raise
    return listener


def _serving(listener: socket.socket) -> int:
    threading.Thread(target=_serve, args=(listener,), daemon=True).start()
    port: int = listener.getsockname()[1]
    return port


def _serve(listener: socket.socket) -> None:
    while True:
        try:
            guest, _ = listener.accept()
        except OSError:
            time.sleep(0.1)  # out of descriptors, or the guest is gone already
            continue
        if _GUESTS.acquire(blocking=False):
            threading.Thread(target=_host, args=(guest,), daemon=True).start()
        else:
            guest.close()


def _host(guest: socket.socket) -> None:
    """Whoever knows the word is told who we are; what they then send comes back, or is counted."""
    try:
        with guest:
            guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            deadline = time.monotonic() + _LIFE
            line = _line(guest, deadline)
            said = json.loads(line)
            if not hmac.compare_digest(str(said.get("word")).encode(), ME.word.encode()):
                return
            guest.sendall(_packed({"name": ME.name, "boot": ME.boot}))
            while True:
                _patience(guest, deadline)
                chunk = guest.recv(_LARGE)
                if not chunk:
                    break
                if said.get("do") != "sink":
                    guest.sendall(chunk)
            guest.sendall(_packed(_again(guest)))
    except (OSError, ValueError, AttributeError):
        pass  # the one who dialled tells what it saw
    finally:
        _GUESTS.release()


# -- who dials ----------------------------------------------------------------


def dial(asked: Body) -> Body:
    """Each peer's ports, all at once; the answers are in the order in which they were asked for."""
    tries = [{"to": peer["to"], "address": peer["address"], "port": port} for peer in asked["peers"]
             for port in peer["ports"]]  # fmt: skip
    seconds, again = float(asked["seconds"]), bool(asked.get("narrow"))
    threads = [threading.Thread(target=_try, args=(one, seconds, again), daemon=True) for one in tries]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(_LIFE)
    return {"dials": [dict(one) for one in tries], "macs": _macs(), "unanswered": _unanswered()}


def _try(one: Body, seconds: float, again: bool) -> None:
    others = _others(one, seconds) if again else None
    began = time.monotonic()
    try:
        guest = _connected(one, seconds)
    except OSError as error:
        one["error"] = _words(error)
        one["seconds"] = time.monotonic() - began
        one["some"] = others() if others else None
        return
    one["seconds"] = time.monotonic() - began
    with guest:
        _talk(one, guest)
    if others:
        one["some"] = others()
    if again and one.get("lost"):
        one["passes"] = _passes(one, seconds)


def _others(one: Body, seconds: float) -> Callable[[], list[int]]:
    """The same from other ports of ours: which of several links a connection takes hangs on its ports."""
    came: list[int] = []
    place = {"address": one["address"], "port": one["port"]}

    def once() -> None:
        try:
            _connected(place, seconds).close()
        except OSError:
            return
        came.append(1)

    threads = [threading.Thread(target=once, daemon=True) for _ in range(_MANY)]
    for thread in threads:
        thread.start()

    def told() -> list[int]:
        for thread in threads:
            thread.join(seconds + 1.0)
        return [len(came), _MANY]

    return told


def _connected(one: Body, seconds: float, mss: int = 0) -> socket.socket:
    family = socket.AF_INET6 if ":" in one["address"] else socket.AF_INET
    guest = socket.socket(family, socket.SOCK_STREAM)
    try:
        guest.settimeout(seconds)
        guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if mss:
            guest.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        guest.connect((one["address"], one["port"]))
    except OSError:
        guest.close()
        raise
    return guest


def _talk(one: Body, guest: socket.socket) -> None:
    """Who it is, a small echo, a large one: a path that loses large packets lets small ones through."""
    try:
        guest.settimeout(_ECHO)
        guest.sendall(_packed({"word": ME.word, "do": "echo"}))
        said = json.loads(_line(guest, time.monotonic() + _ECHO))
        one["name"], one["boot"] = str(said["name"]), str(said["boot"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        one["stranger"] = _words(error) if isinstance(error, OSError) else "it answers something else"
        return
    for size, key in ((_SMALL, "small"), (_LARGE, "large")):
        began = time.monotonic()
        try:
            _exchange(guest, size, began + _ECHO)
        except OSError as error:
            one["lost"] = [key, _words(error), _way(guest)]
            break
    else:
        one["large"] = time.monotonic() - began
    one["mss"] = guest.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG)


def _exchange(guest: socket.socket, size: int, deadline: float) -> None:
    _patience(guest, deadline)
    guest.sendall(bytes(size))
    while size > 0:
        _patience(guest, deadline)
        chunk = guest.recv(size)
        if not chunk:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the other side")
        size -= len(chunk)


def _way(guest: socket.socket) -> str:
    """In which direction the last message is stuck: there while its own part is not acknowledged, else back."""
    return "there" if _queued(guest) else "back"


def _passes(one: Body, seconds: float) -> int:
    """The largest MTU of those tried with which the large echo comes back; 0 for none."""
    family = socket.AF_INET6 if ":" in one["address"] else socket.AF_INET
    for mtu in _NARROW:
        try:
            with _connected(one, seconds, mss=mtu - _HEADERS[family]) as guest:
                guest.settimeout(1.0)
                guest.sendall(_packed({"word": ME.word, "do": "echo"}))
                _line(guest, time.monotonic() + 1.0)
                _exchange(guest, _LARGE, time.monotonic() + 1.0)
                return mtu
        except (OSError, ValueError):
            continue
    return 0


def measure(asked: Body) -> Body:
    """Small messages one at a time, which never fill a queue, for what is lost; then as fast as it goes."""
    one = {"address": asked["address"], "port": asked["port"]}
    answer: Body = {}
    with _connected(one, float(asked["seconds"]) + 2.0) as guest:
        answer.update(_pings(guest, int(asked["pings"]), float(asked["ping_seconds"])))
    with _connected(one, float(asked["seconds"]) + 2.0) as guest:
        answer.update(_flood(guest, int(asked["bytes"]), float(asked["seconds"])))
    return answer


def _pings(guest: socket.socket, count: int, seconds: float) -> Body:
    guest.settimeout(3.0)
    guest.sendall(_packed({"word": ME.word, "do": "echo"}))
    _line(guest, time.monotonic() + 3.0)
    done = 0
    until = time.monotonic() + seconds
    while done < count and (began := time.monotonic()) < until:
        _exchange(guest, _SMALL, began + 3.0)
        done += 1
    own = _again(guest)
    guest.shutdown(socket.SHUT_WR)
    theirs = json.loads(_line(guest, time.monotonic() + 3.0))
    return {
        "pings": done,
        "again": own["again"],
        "again_there": theirs.get("again"),
    }


def _flood(guest: socket.socket, count: int, seconds: float) -> Body:
    """What was acknowledged by the end, over the time; then it is cut off, whatever still lies in queues."""
    guest.settimeout(3.0)
    guest.sendall(_packed({"word": ME.word, "do": "sink"}))
    _line(guest, time.monotonic() + 3.0)
    block = bytes(1 << 17)
    sent, began = 0, time.monotonic()
    until = began + seconds
    while sent < count and time.monotonic() < until:
        guest.settimeout(max(0.01, until - time.monotonic()))
        try:
            sent += guest.send(block)
        except socket.timeout:  # noqa: UP041 - Python 3.8 has no other name for it
            break
    while _queued(guest) and time.monotonic() < until:
        time.sleep(0.001)
    took, left = time.monotonic() - began, _queued(guest)
    guest.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return {"rate": (sent - left) / max(took, 1e-6), "sent": sent - left}


# -- what the kernel says -----------------------------------------------------


def _again(guest: socket.socket) -> Body:
    """Segments that were sent more than once, without those that had arrived the first time."""
    info = guest.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    if len(info) < 104:
        return {"again": None}
    sent_again = struct.unpack_from("=I", info, 100)[0]
    needless = struct.unpack_from("=I", info, 216)[0] if len(info) >= 220 else 0
    return {"again": max(0, sent_again - needless)}


def _queued(guest: socket.socket) -> int:
    """Bytes that the other side has not acknowledged."""
    held = array.array("i", [0])
    fcntl.ioctl(guest.fileno(), termios.TIOCOUTQ, held)
    return held[0]


def _macs() -> Body:
    """Address -> MAC of the neighbours that the kernel knows, IPv4."""
    found = {}
    for line in _read("/proc/net/arp").splitlines()[1:]:
        words = line.split()
        if len(words) >= 6 and words[2] != "0x0" and words[3] != "00:00:00:00:00:00":
            found[words[0]] = words[3].lower()
    return found


def _unanswered() -> Body:
    """Address -> interface of those that the kernel has asked for by ARP without an answer, now or just before."""
    rows = (line.split() for line in _read("/proc/net/arp").splitlines()[1:])
    return {words[0]: words[5] for words in rows if len(words) >= 6 and words[2] == "0x0"}


def _patience(guest: socket.socket, deadline: float) -> None:
    guest.settimeout(max(0.01, deadline - time.monotonic()))


def _line(guest: socket.socket, deadline: float) -> bytes:
    """Up to a newline, a few hundred bytes at most; whoever sends it waits for an answer before sending more."""
    said = b""
    while not said.endswith(b"\n"):
        _patience(guest, deadline)
        chunk = guest.recv(512)
        if not chunk or len(said) > 512:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the other side")
        said += chunk
    return said


def _packed(body: Body) -> bytes:
    return (json.dumps(body) + "\n").encode()


def _words(error: OSError) -> str:
    if isinstance(error, socket.timeout):
        return "timed out"
    return error.strerror or str(error)


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return ""


def _tell(body: Body) -> None:
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()


def _ended(error: threading.ExceptHookArgs) -> None:
    """A conversation that a limit of this node stopped is no answer: the others would take it for a firewall's."""
    _COMPLAIN(error)
    sys.stderr.flush()
    os._exit(1)


def main() -> None:
    """Answer until stdin ends."""
    threading.excepthook = _ended
    steps = {"listen": listen, "dial": dial, "measure": measure}
    ME.boot = _read("/proc/sys/kernel/random/boot_id")
    _tell({"boot": ME.boot, "range": _read("/proc/sys/net/ipv4/ip_local_port_range").split()})
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        try:
            _tell(steps[asked["do"]](asked))
        except (OSError, ValueError) as error:
            _tell({"trouble": _words(error) if isinstance(error, OSError) else str(error)})
    os._exit(0)


if __name__ == "__main__":
    main()
