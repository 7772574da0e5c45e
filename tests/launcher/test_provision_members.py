"""Who is let in where: members of a survey, the addresses they come from, the lines of each home."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import pytest
import scenes
from glimpses import glimpse, key

from clusterft import provision
from clusterft.facts.network import Address
from clusterft.places import NodePlaces
from clusterft.provision import Member, Order, admission, install, keyring
from clusterft.provision.keyring import CONTROLLER, edit

PLACES = NodePlaces(PurePosixPath("/home/me/.clusterft"), "rack", "n1")

RACK = (
    "n1 slots=1 addr=10.0.0.1\nn2 slots=1 port=2222\nn3 slots=1 addr=far port=2200\nhere slots=1 transport=local\n"
)


def found() -> dict[str, Member]:
    """The members of a rack whose nodes all have a bridge of the same address."""
    cluster = scenes.cluster(RACK)
    own = {"n1": ["10.0.0.1", "fd00::1", "fe80::1", "127.0.0.1"], "n2": ["10.0.0.2", "192.168.7.2"], "n3": []}
    known = [
        scenes.facts(
            name,
            home=f"/home/{name}",
            addresses=tuple(Address("e", ip, 24) for ip in (*own.get(name, ()), "172.17.0.1")),
        )
        for name in ("n1", "n2", "n3", "here")
    ]
    contacts = {"n1": "10.0.0.1", "n2": "10.0.0.2", "n3": "127.0.0.1"}
    return provision.members(scenes.survey(cluster, *known, contacts=contacts), {"n1": (key("h"),)})


def test_members_of_a_survey() -> None:
    members = found()
    assert members["n1"].sources == ("10.0.0.1", "fd00::1") and members["n1"].host_keys == (key("h"),)
    assert (members["n2"].address, members["n2"].port) == ("10.0.0.2", 2222)
    # A forwarded port of the controller's is not the port at the address that the peers use.
    assert (members["n3"].address, members["n3"].port, members["n3"].sources) == ("far", None, ())
    assert members["here"].local and members["here"].sources == ()


GATEWAY = "203.0.113.1"


@pytest.mark.parametrize("entry", ["", f" addr={GATEWAY}"])
def test_a_gateway_s_address_lets_nobody_in(entry: str) -> None:
    """Two nodes behind one gateway: its ports lead to them, but anybody there may come from its address."""
    cluster = scenes.cluster(f"n1 slots=1 port=2201{entry}\nn2 slots=1 port=2202{entry}\n")
    own = {name: f"10.0.9.{number}" for number, name in enumerate(("n1", "n2"), 1)}
    known = [
        scenes.facts(
            name,
            home="/home/me",
            login_address=own[name],
            addresses=None if name == "n2" else (Address("e", own[name], 24), Address("e", "10.1.0.1", 24)),
            routes=(("far", "e", "10.2.0.2"),) if name == "n2" else (),
        )
        for name in own
    ]
    survey = scenes.survey(cluster, *known, contacts=dict.fromkeys(own, GATEWAY))
    members = provision.members(survey, {})
    assert [(one.address, one.port) for one in members.values()] == [(GATEWAY, 2201), (GATEWAY, 2202)]
    assert members["n1"].sources == ("10.0.9.1", "10.1.0.1") and members["n2"].sources == ("10.0.9.2", "10.2.0.2")
    glimpses = {name: glimpse(name, public=key(name)) for name in own}
    asked = Order(members)
    assert GATEWAY not in str(admission.lines(("n1",), asked, glimpses))
    # Once it was seen, and allowed, it is an address like any other.
    glimpses["n1"] = replace(glimpses["n1"], nat=(("n2", GATEWAY),))
    assert f'from="10.0.9.2,10.2.0.2,{GATEWAY}"' in admission.lines(("n1",), asked, glimpses)["n2"]


def test_who_has_no_home_is_no_member() -> None:
    cluster = scenes.cluster("n1 slots=1\n")
    assert provision.members(scenes.survey(cluster, scenes.facts("n1", home=None)), {}) == {}


def order(**more: Any) -> Order:
    members = {
        name: Member(name, replace(PLACES, node=name), f"10.0.0.{i}", sources=(f"10.0.0.{i}",))
        for i, name in enumerate(("n1", "n2", "n3"), 1)
    }
    return Order(members, **more)


def test_the_lines_of_a_home() -> None:
    known = {name: glimpse(name, public=key(name)) for name in ("n1", "n2", "n3")}
    known["n1"] = replace(known["n1"], nat=(("n2", "10.9.9.9"), ("n3", "x"), ("gone", "10.9.9.8")))
    lines = admission.lines(("n1",), order(), known)
    assert set(lines) == {"n2", "n3"}, "nobody's own key opens his own home"
    assert 'from="10.0.0.2,10.9.9.9"' in lines["n2"] and 'from="10.0.0.3"' in lines["n3"]
    assert set(admission.lines(("n1", "n3"), order(), known)) == {"n1", "n2", "n3"}
    assert "from=" not in admission.lines(("n1",), order(), known, {"n2"})["n2"]


def test_the_controller_s_line_is_for_those_that_a_password_opened() -> None:
    known = {name: glimpse(name, public=key(name)) for name in ("n1", "n2", "n3")}
    mine = order(controller_key=key("c"), controller_for=frozenset({"n3"}))
    assert CONTROLLER not in admission.lines(("n1",), mine, known)
    assert admission.lines(("n2", "n3"), mine, known)[CONTROLLER] == keyring.controller_line("rack", key("c"))
    assert CONTROLLER not in admission.lines(("n3",), replace(mine, controller_key=None), known)
    # Where it once was needed it stays, also as a new key; another cluster's is none of ours.
    old = keyring.controller_line("rack", key("old"))
    known["n1"] = replace(known["n1"], keys=f"ssh-rsa AAAA me\n{old}".encode())
    known["n2"] = replace(known["n2"], keys=old.replace(":rack:", ":other:").encode())
    lines = admission.lines(("n1",), mine, known)
    assert edit(known["n1"].keys or b"", "rack", lines).changed == 1 and key("c") in lines[CONTROLLER]
    assert CONTROLLER not in admission.lines(("n2",), mine, known)


def test_a_caller_without_an_address_gets_no_line_rather_than_an_open_one() -> None:
    members = {name: replace(member, sources=()) for name, member in order().members.items()}
    known = {name: glimpse(name, public=key(name)) for name in members}
    assert admission.lines(("n1",), Order(members), known) == {}


def test_a_login_name_that_nobody_can_write_down_keeps_one_node_out_alone() -> None:
    """Its peers are given no way to it; their own files are written all the same."""
    member = Member("n1", PLACES, "10.0.0.1", None, ("10.0.0.1",), (key("h"),))
    assert install._peer(member, glimpse("word")) is not None
    assert install._peer(member, glimpse("word", user="John Doe")) is None
