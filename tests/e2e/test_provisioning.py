"""Keys, pins, hostfile on real sshds: what `apply` gives, what pairs do with it, what `take_back` leaves."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from provisioning import ALL, Desk, keys, pairs, works

from clusterft import provision
from clusterft.findings import Finding
from lab import LightLab

pytestmark = pytest.mark.lab_light


@pytest.fixture(scope="module")
def lab() -> Iterator[LightLab]:
    """Three nodes that keep their homes from test to test: each test takes back what it gave."""
    with LightLab.up(count=3) as made:
        yield made


@pytest.fixture
def desk(lab: LightLab) -> Iterator[Desk]:
    """A desk whose nodes are as they were afterwards."""
    with Desk.at(lab) as made:
        yield made


def test_up_then_up_then_down(desk: Desk) -> None:
    before = desk.trees()
    done = desk.up()
    assert works(done, *ALL)
    for outcome in done.outcomes.values():
        assert not isinstance(outcome, Finding)
        assert outcome[:2] == ("directory made", "relay key made")
        assert outcome[-1] == "authorized_keys: 2 lines added"
    after = desk.trees(exact=True)
    again = desk.up()
    assert again.outcomes == {"n1": (), "n2": (), "n3": ()}
    assert works(again, *ALL) and desk.trees(exact=True) == after
    assert desk.down()["n1"] == ("authorized_keys: 2 lines removed", "keys and files removed")
    assert desk.trees() == before
    assert set(desk.down().values()) == {()}


def test_what_is_private_is_closed_to_others(desk: Desk) -> None:
    desk.up()
    assert desk.sh("n1", "find ~/.clusterft -perm /077").strip() == ""
    desk.sh("n1", f"chmod 755 {keys('n1')}; chmod 644 {keys('n1')}/relay_ed25519 {keys('n1')}/ssh_config")
    done = desk.up()
    said = ("directory: mode set right", "relay key: mode set right", "ssh_config written")
    assert done.outcomes == {"n1": said, "n2": (), "n3": ()}
    assert desk.sh("n1", "find ~/.clusterft -perm /077").strip() == ""


def test_a_relay_key_opens_nothing_but_the_relay(desk: Desk) -> None:
    desk.up()
    n1, n3 = desk.lab.node("n1"), desk.lab.node("n3")
    config = desk.sh("n1", f"echo {keys('n1')}/ssh_config").strip()
    for way in ("id", "sh -c id", "serve ../../x y 0 0", "hello; id", ""):
        done = n1.run(["ssh", "-F", config, "n2", way])
        assert done.returncode == 65 and "uid=" not in done.stdout + done.stderr, (way, done)
    for options in (["-L", "1:localhost:22", "-N"], ["-R", "0:localhost:22", "-N"], ["-W", "localhost:22"]):
        done = n1.run(["timeout", "5", "ssh", "-F", config, *options, "n2"])
        assert done.returncode != 0 and "SSH-2.0" not in done.stdout, done
    stolen = desk.sh("n1", f"cat {keys('n1')}/relay_ed25519")
    n3.run(["sh", "-c", "umask 077; cat >~/stolen"], stdin=stolen)
    options = "-o BatchMode=yes -o IdentitiesOnly=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"
    ssh = f"ssh -F none {options} -i ~/stolen root@{desk.lab.node('n2').address} hello; rm ~/stolen"
    done = n3.run(["sh", "-c", ssh])
    assert "Permission denied" in done.stderr and "clusterft-relay" not in done.stdout


def test_a_node_that_leaves_and_one_that_joins_change_no_more_than_that(desk: Desk) -> None:
    n3 = desk.lines.pop("n3")
    assert works(desk.up(), "n1", "n2")
    desk.lines["n3"] = n3
    done = desk.up()
    assert works(done, *ALL)
    joined = ("known_hosts written", "ssh_config written", "hostfile written", "authorized_keys: 1 line added")
    assert sorted(done.outcomes["n1"]) == sorted(joined)
    key = desk.sh("n1", f"cat {keys('n1')}/relay_ed25519.pub")
    del desk.lines["n3"]
    done = desk.up()
    assert "authorized_keys: 1 line removed" in done.outcomes["n1"]
    assert desk.sh("n1", f"cat {keys('n1')}/relay_ed25519.pub") == key
    left = desk.sh("n1", f"cat {keys('n1')}/ssh_config {keys('n1')}/known_hosts ~/.ssh/authorized_keys")
    # As a word: within a key the two letters stand there by chance, once in some runs.
    assert re.findall(r"(?<![\w+/=])n3(?![\w+/=])", left) == []
    assert re.findall(r"(?<![\w+/=])n2(?![\w+/=])", left), "n2 is found in that way"
    desk.lines["n3"] = n3


def test_a_node_that_is_away_keeps_its_line(desk: Desk) -> None:
    desk.up()
    n3 = desk.lab.node("n3")
    n3.kill()
    try:
        with desk.fleet() as fleet:
            survey = fleet.survey(lambda node: ())
            done = provision.apply(fleet, desk.order(survey), lambda event: None)
    finally:
        n3.start()
    assert set(done.outcomes) == {"n1", "n2"} and set(done.proof.heard) == pairs("n1", "n2")
    assert "clusterft:rack:n3" in desk.sh("n1", "cat ~/.ssh/authorized_keys")
    assert works(desk.up(), *ALL)


def test_a_new_address_changes_the_lines_about_that_node_alone(desk: Desk, tmp_path: Path) -> None:
    desk.up()
    n1 = desk.lab.node("n1")
    other = n1.address.rpartition(".")[0] + ".201"
    device = desk.device("n1")
    desk.sh("n1", f"ip addr add {other}/24 dev {device}")
    old, desk.lines["n1"] = desk.lines["n1"], desk.lines["n1"].replace(n1.address, other)
    desk.pins = tmp_path / "pins"
    desk.pins.write_text(desk.lab.known_hosts.read_text().replace(n1.address, other))
    try:
        done = desk.up()
    finally:
        desk.lines["n1"], desk.pins = old, desk.lab.known_hosts
        desk.sh("n1", f"ip addr del {other}/24 dev {device}")
    assert works(done, *ALL)
    assert done.outcomes["n1"] == () and "authorized_keys: 1 line changed" in done.outcomes["n2"]
    assert f'from="{n1.address},{other}"' in desk.sh("n2", "cat ~/.ssh/authorized_keys")


NOISE = "ssh-rsa AAAAB3 me@\\xff\\377 clusterft:rack:n1\n\n# \\351\\r\nssh-ed25519 AAAA someone"


def test_what_others_have_in_authorized_keys_stays_byte_for_byte(desk: Desk) -> None:
    desk.sh("n1", f"cd ~/.ssh && cp -p authorized_keys ~/kept && printf '{NOISE}' >>authorized_keys")
    desk.sh("n1", "chmod 640 ~/.ssh/authorized_keys")
    before = desk.trees()
    assert works(desk.up(), *ALL)
    assert "640" in desk.sh("n1", "stat -c %a ~/.ssh/authorized_keys")
    again = desk.up()
    assert again.outcomes["n1"] == ()
    desk.down()
    assert desk.trees() == before
    desk.sh("n1", "mv ~/kept ~/.ssh/authorized_keys")


def test_authorized_keys_that_is_a_link_stays_one(desk: Desk) -> None:
    desk.sh(
        "n2", "mkdir ~/dots && mv ~/.ssh/authorized_keys ~/dots/keys && ln -s ../dots/keys ~/.ssh/authorized_keys"
    )
    before = desk.trees()
    assert works(desk.up(), *ALL)
    assert desk.sh("n2", "readlink ~/.ssh/authorized_keys").strip() == "../dots/keys"
    assert "clusterft:rack:n1" in desk.sh("n2", "cat ~/dots/keys")
    desk.down()
    assert desk.trees() == before
    desk.sh("n2", "rm ~/.ssh/authorized_keys; mv ~/dots/keys ~/.ssh/authorized_keys; rmdir ~/dots")


WEIRD = 'we\'ird "h%home" $x `y` \\n é;&'


def test_a_home_with_any_name(desk: Desk) -> None:
    desk.move_home("n1", f"{desk.lab.shared}/{WEIRD}")
    desk.move_home("n2", f"{desk.lab.shared}/John Doe")
    before = desk.trees()
    assert works(desk.up(), *ALL)
    assert desk.up().outcomes == {"n1": (), "n2": (), "n3": ()}
    desk.down()
    assert desk.trees() == before


def test_a_home_that_all_nodes_share(desk: Desk) -> None:
    for name in ALL:
        desk.move_home(name, f"{desk.lab.shared}/one home")
    before = desk.trees()
    done = desk.up()
    assert works(done, *ALL)
    edits = [
        sentence for outcome in done.outcomes.values() for sentence in outcome if "authorized" in str(sentence)
    ]
    assert edits == ["authorized_keys: 3 lines added (one home for n1, n2, n3)"]
    after = desk.trees(exact=True)
    assert desk.up().outcomes == {"n1": (), "n2": (), "n3": ()} and desk.trees(exact=True) == after
    outcomes = desk.down()
    assert outcomes["n1"][0] == "authorized_keys: 3 lines removed" and desk.trees() == before
    assert outcomes["n2"] == ("keys and files removed",)


def test_homes_that_were_copied_are_not_taken_for_one(desk: Desk) -> None:
    for name in ALL:
        desk.move_home(name, f"{desk.lab.shared}/one home")
    desk.lines, n3 = {name: desk.lines[name] for name in ("n1", "n2")}, desk.lines["n3"]
    desk.up()
    copy = f"{desk.lab.shared}/a copy"
    desk.sh("n2", f"cp -rp ~ {shlex.quote(copy)}")
    desk.moved, moved = {}, desk.moved
    desk.move_home("n2", copy, empty=True)
    desk.moved = moved
    desk.lines["n3"] = n3
    assert works(desk.up(), *ALL)
    assert "clusterft:rack:n3" in desk.sh("n2", "cat ~/.ssh/authorized_keys")
    assert desk.up().outcomes == {"n1": (), "n2": (), "n3": ()}
