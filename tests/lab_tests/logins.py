"""Ways to log in that every lab with a controller's own sshd settings has, as tests.

Owns the typist, the encrypted key, the bastion and MaxStartups. A test file makes a class
of it and gives it a `gated` fixture: two nodes, a bastion, max_startups="2:100:2".
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from lab.access import greets
from lab.base import Lab
from lab.proc import until


class Logins:
    """What a lab brought up with `bastion` and `max_startups` shows."""

    def test_only_the_bastion_is_reached_directly(self, gated: Lab[Any]) -> None:
        one, two = gated.nodes
        assert greets(one.address, 22)
        assert not greets(two.address, 22)
        assert two.run(["hostname"]).stdout == "n2\n"
        two.reboot()
        assert not greets(two.address, 22)
        assert (
            one.run(["sh", "-c", f"ssh-keyscan -T 3 -t ed25519 {two.address} 2>/dev/null | wc -l"]).stdout.strip()
            != "0"
        )
        lines = gated.hostfile.read_text().splitlines()
        assert lines[0].endswith(f" identity={gated.key}")
        assert lines[1].endswith(f" jump=root@{one.address}")

    def test_the_typist_has_a_password_only(self, gated: Lab[Any]) -> None:
        access = gated.access
        typed = access.ssh("n1", ["id", "-un"], timeout=20, options=["-l", "typist"], secret=access.password_file)
        assert (typed.returncode, typed.stdout) == (0, "typist\n")
        with_key = access.ssh("n1", ["true"], timeout=20, options=["-l", "typist"])
        assert with_key.returncode == 255
        assert "Permission denied (publickey,password)" in with_key.stderr
        root = ["-o", "PubkeyAuthentication=no"]
        assert access.ssh("n1", ["true"], timeout=20, options=root, secret=access.password_file).returncode == 255
        assert len(access.password) >= 16

    def test_an_encrypted_key_opens_with_its_passphrase(self, gated: Lab[Any]) -> None:
        access = gated.access
        key = ["-F", "/dev/null", "-i", str(access.encrypted_key)]
        key += ["-o", "IdentitiesOnly=yes", "-o", f"UserKnownHostsFile={access.known_hosts}", "-l", "root"]
        at = gated.nodes[0].address
        assert access.ssh(at, ["true"], timeout=20, options=key, secret=access.passphrase_file).returncode == 0
        assert access.ssh(at, ["true"], timeout=20, options=[*key, "-o", "BatchMode=yes"]).returncode == 255

    def test_logins_beyond_max_startups_are_turned_away(self, gated: Lab[Any]) -> None:
        at = (gated.nodes[0].address, 22)

        def the_third_is_turned_away() -> bool:
            """sshd counts a visitor who left until it has noticed."""
            with contextlib.ExitStack() as held:
                heard = []
                for _ in range(3):
                    visitor = held.enter_context(socket.create_connection(at, timeout=5))
                    try:
                        heard.append(visitor.recv(4))
                    except ConnectionResetError:
                        heard.append(b"")
            return heard[0] == b"SSH-" and heard[2] != b"SSH-"

        until(the_third_is_turned_away, 15, "sshd to greet the first and turn away the third")
        until(lambda: greets(*at), 10, "sshd to forget visitors who left")
