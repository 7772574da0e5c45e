"""Making a key pair on the controller. The private half never leaves this machine, and never goes into a log."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from clusterft.remote import private


def make(path: Path, comment: str = "clusterft") -> str:
    """The public line of the ed25519 key pair at `path`; made, 0600, if it is not there yet."""
    public = path.with_name(path.name + ".pub")
    if path.exists() and public.exists():
        return public.read_text(encoding="utf-8").strip()
    key = Ed25519PrivateKey.generate()
    line = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode("ascii") + f" {comment}"
    # The public half first: a pair without its private half is made anew, one without its public half is lost.
    private.write(public, f"{line}\n".encode())
    private.write(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    return line
