"""What a container got: locked memory, the shared dir's filesystem, cards, what the image's torch can do.

argv[3]: a JSON object: {"shared": path or null, "cuda": bool, "seconds": for torch}. Says one line at once, and
two more where there are cards to ask about. Where it cannot begin a thread, it says what the kernel says of that
instead, and ends. Writes nothing.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import threading
from typing import Any

_TORCH = """
import json, sys
said = {}
try:
    import torch
    said["torch"] = torch.__version__
    said["cuda"] = torch.version.cuda
    try:
        said["nccl"] = ".".join(str(one) for one in torch.cuda.nccl.version())
    except Exception as error:
        said["nccl"] = None
    said["archs"] = torch.cuda.get_arch_list() or [
        one for one in (getattr(torch._C, "_cuda_getArchFlags", lambda: None)() or "").split()
    ]
    said["available"] = torch.cuda.is_available()
except ImportError as error:
    said["missing"] = str(error)[-500:]
except Exception as error:
    said["error"] = (type(error).__name__ + ": " + str(error))[-1000:]
print("@" + json.dumps(said))
"""


def table(path: str) -> list[str]:
    """The lines of the kernel's table of mounts that a path may lie on; the path itself is not touched."""
    written = "".join(f"\\{ord(one):03o}" if one in " \t\n\\" else one for one in path).rstrip("/") + "/"
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            words = line.split(" ")
            if len(words) > 4 and (words[4] == "/" or written.startswith(words[4] + "/")):
                found.append(line.rstrip("\n"))
    return found


def heard(argv: list[str], seconds: int) -> tuple[int | None, str, str]:
    """Exit code and words of a program; a code of null: it did not end, or is not there."""
    try:
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return None, f"no answer within {seconds} s", ""
    except OSError as error:
        return None, "", str(error)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def of_torch(seconds: int) -> Any:
    """In a process of its own, as its import may hang, or end the process."""
    code, out, complaints = heard([sys.executable, "-c", _TORCH], seconds)
    line = next((one[1:] for one in out.splitlines() if one.startswith("@{")), "")
    said = json.loads(line) if line else {"error": f"exit code {code}: {out[-300:]}"}
    said["complaints"] = complaints[-1500:]
    return said


def tell(body: object) -> None:
    """One line."""
    sys.stdout.write(json.dumps(body) + "\n")
    sys.stdout.flush()


def main() -> None:
    """All of it."""
    asked = json.loads(sys.argv[3])  # after the length of this text and its name
    memlock = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]  # the soft limit; -1 for none
    tell({"memlock": memlock, "mounts": table(asked["shared"]) if asked["shared"] else []})
    if asked["cuda"]:
        code, out, complaints = heard(["nvidia-smi", "-L"], 10)
        tell({"smi": [code, (out + complaints)[-1500:]]})
        tell(of_torch(asked["seconds"]))


def attend() -> None:
    """It ends with its stdin, in the middle of whatever it does."""
    while os.read(0, 65536):
        pass
    os._exit(0)


def clone3() -> str | None:
    """The error of a call without arguments: EINVAL of a kernel that knows it, ENOSYS of one that does not.

    A C library goes back to clone for ENOSYS alone, so what forbids the call in other words forbids threads.
    """
    try:
        import ctypes

        library = ctypes.CDLL(None, use_errno=True)
        library.syscall(435, None, 0)  # the same number on every machine
        return errno.errorcode.get(ctypes.get_errno())
    except (ImportError, OSError, AttributeError):
        return None


def pids() -> int | None:
    """How many processes the container may have; null for no limit."""
    for path in ("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"):
        with contextlib.suppress(OSError, ValueError), open(path, encoding="ascii") as file:
            return int(file.read())
    return None


if __name__ == "__main__":
    try:
        threading.Thread(target=attend, daemon=True).start()
    except RuntimeError as error:
        most = resource.getrlimit(resource.RLIMIT_NPROC)[0]
        tell({"threadless": str(error), "clone3": clone3(), "processes": most, "pids": pids()})
        sys.exit(1)
    main()
