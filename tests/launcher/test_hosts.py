"""Proves the hostfile contract: what is read, what is refused where and how to mend it, and DeepSpeed agrees."""

from __future__ import annotations

from pathlib import Path

import pytest
import scenes
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft import hosts
from clusterft.errors import InvalidFile, UsageError
from clusterft.hosts import Cluster, Node
from clusterft.ui import text as views

EVERYTHING = (
    "\ufeff# the rack\r\n"
    "\r\n"
    "gpu0 slots=8\r\n"
    '  gpu1\tslots=8 addr=10.0.0.12 user=ubuntu port=2222 identity="~/my keys/id#1" jump=bastion  # a door\r\n'
    "gpu2 slots=2 spare=true\r\n"
    "rig.lan slots=2 gpus=0,3\r\n"
    "home_box slots=2 gpus=GPU-8f3a-11,MIG-9c-2\r\n"
    "here slots=1 transport=local spare=false\r\n"
)


def parse(text: str) -> Cluster:
    """As from a file called rack."""
    return hosts.parse(text, path=Path("rack"), name="rack")


def refusal(text: str) -> UsageError:
    """The one complaint about a text."""
    with pytest.raises(UsageError) as caught:
        parse(text)
    if isinstance(caught.value, InvalidFile):
        assert len(caught.value.problems) == 1, [p.what for p in caught.value.problems]
    return caught.value


def test_everything_that_the_contract_allows_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a rack.txt"
    path.write_bytes(EVERYTHING.encode())
    cluster = hosts.load(path)
    assert cluster.name == "a-rack" and cluster.notes == ()
    assert cluster.nodes == (
        Node("gpu0", 8, line=3),
        Node("gpu1", 8, "10.0.0.12", "ubuntu", 2222, "~/my keys/id#1", "bastion", line=4),
        Node("gpu2", 2, spare=True, line=5),
        Node("rig.lan", 2, gpus=("0", "3"), line=6),
        Node("home_box", 2, gpus=("GPU-8f3a-11", "MIG-9c-2"), line=7),
        Node("here", 1, transport="local", line=8),
    )
    assert [node.name for node in cluster.active] == ["gpu0", "gpu1", "rig.lan", "home_box", "here"]
    assert not cluster.all_local


def test_spares_are_no_part_of_what_deepspeed_is_given() -> None:
    nodes = parse("b slots=2 user=x\ns slots=2 spare=true\na slots=2 addr=10.0.0.1\n").nodes
    assert hosts.deepspeed_hostfile(nodes) == "b slots=2\na slots=2\n"


KNOWN = "known keys: slots, addr, user, port, identity, jump, spare, gpus, transport"
SLOTS_LATE = "slots=N must come right after the name"


@pytest.mark.parametrize(
    ("line", "column", "what", "remedy"),
    [
        ("a slots=two", 9, 'slots must be a whole number from 1 to 1024, not "two"', ""),
        ("a slots=0", 9, 'slots must be a whole number from 1 to 1024, not "0"', ""),
        ("a slots=-1", 9, 'slots must be a whole number from 1 to 1024, not "-1"', ""),
        ("a slots=1025", 9, 'slots must be a whole number from 1 to 1024, not "1025"', ""),
        ("a slots=٣", 9, 'slots must be a whole number from 1 to 1024, not "٣"', ""),
        ("a slots=", 3, '"slots" has no value', ""),
        ("a slots=4 then more", 11, '"then" is not a key=value pair', "DeepSpeed would ignore this text"),
        ("a slots=4 max_slots=4", 11, 'unknown key "max_slots"', 'did you mean "slots"?'),
        ("a slots=4   prot=22", 13, 'unknown key "prot"', 'did you mean "port"?'),
        ("a slots=4 Transport=local", 11, 'unknown key "Transport"', 'did you mean "transport"?'),
        ("a slots=4 zzz=1", 11, 'unknown key "zzz"', KNOWN),
        ("a slots=4 user=x user=y", 18, '"user" is given twice', ""),
        ("a slots=4 slots=4", 11, '"slots" is given twice', ""),
        ("a", 1, SLOTS_LATE, "write: a slots=N   (DeepSpeed cannot read this line as it is)"),
        ("a user=x slots=1", 3, SLOTS_LATE, "write: a slots=N   (DeepSpeed cannot read this line as it is)"),
        ("a slots = 4", 3, SLOTS_LATE, "write: a slots=N   (DeepSpeed cannot read this line as it is)"),
        ("me@a slots=1", 1, '"me@a" is not a node name', "letters, digits, dot, dash, underscore"),
        ("-a slots=1", 1, '"-a" is not a node name', "letters, digits, dot, dash, underscore"),
        ("日本 slots=1", 1, '"日本" is not a node name', "letters, digits, dot, dash, underscore"),
        ("a slots=1 port=70000", 16, 'port must be a whole number from 1 to 65535, not "70000"', ""),
        ("a slots=1 spare=yes", 17, 'spare must be true or false, not "yes"', ""),
        ("a slots=1 transport=docker", 21, 'transport must be ssh or local, not "docker"', ""),
        ("a slots=1 gpus=x", 16, 'gpus must be card numbers or UUIDs, not "x"', "such as gpus=0,1"),
        ("a slots=2 gpus=0,00", 16, 'gpus must be card numbers or UUIDs, not "0,00"', "such as gpus=0,1"),
        ("a slots=2 gpus=1,1", 16, 'gpus names a card twice: "1,1"', ""),
        ("a slots=2 gpus=1", 16, "gpus names 1 cards for slots=2", "one card per slot"),
        ('a slots=1 identity="~/x y', 20, "this quote is never closed", 'such as identity="~/my keys/id_ed25519"'),
        ('a slots=1 "', 11, "this quote is never closed", 'such as identity="~/my keys/id_ed25519"'),
        ('a slots=1 user=""', 11, '"user" has no value', ""),
        ("a slots=1 user=$(id)", 16, '"$(id)" is not a user name', ""),
        ("a slots=1 user=-oX", 16, '"-oX" is not a user name', ""),
        ("a slots=1 addr=10.0.0.1;x", 16, '"10.0.0.1;x" is neither an IP address nor a host name', ""),
        ("a slots=1 jump=-W", 16, '"-W" is not a bastion, such as user@host:port', ""),
        ("a slots=1 addr=x\0y", 11, '"addr" holds a control character', ""),
        ("a slots=1\x0bb slots=1", 11, '"b" is not a key=value pair', "DeepSpeed would ignore this text"),
    ],
)
def test_a_mistake_is_told_with_its_place_and_remedy(line: str, column: int, what: str, remedy: str) -> None:
    problem = refusal(f"# head\n{line}\nz slots=1\n")
    assert (problem.what, problem.where, problem.remedy) == (what, f"rack:2:{column}", remedy)
    caret = problem.excerpt.splitlines()[-1]
    assert caret == "      | " + " " * (column - 1) + "^"


def test_a_hash_inside_a_word_starts_no_comment() -> None:
    (node,) = parse("a slots=1 identity=/keys/id#1 #port=1\n").nodes
    assert (node.identity, node.port) == ("/keys/id#1", None)


def test_a_comment_ends_only_where_an_editor_ends_the_line() -> None:
    assert len(parse("# old:\u2028b slots=1\na slots=1 # c\x0cd slots=2\n").nodes) == 1


def test_a_node_given_twice_names_the_first_line() -> None:
    problem = refusal("a slots=1\nb slots=1\na slots=2\n")
    assert (problem.what, problem.where) == ('node "a" is already on line 1', "rack:3:1")


def test_all_mistakes_of_a_file_are_told_at_once_in_order() -> None:
    with pytest.raises(InvalidFile) as caught:
        parse("a slots=two\nb slots=1\nc slots=1 prot=1\r\nb slots=1\n")
    assert [p.where for p in caught.value.problems] == ["rack:1:9", "rack:3:11", "rack:4:1"]
    assert list(views.error(caught.value))[-1] == "3 mistakes; nothing was started"


def test_the_excerpt_stands_under_the_mistake_also_after_a_tab() -> None:
    problem = refusal("gpu0\tslots=two\n")
    assert problem.excerpt == "    1 | gpu0 slots=two\n      |            ^"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the hostfile names no node"),
        ("# nothing\n\n", "the hostfile names no node"),
        ("a slots=1 spare=true\n", "every node is a spare, so none would train"),
    ],
)
def test_a_file_without_a_node_that_trains_is_refused(text: str, what: str) -> None:
    assert refusal(text).what == what


@pytest.mark.parametrize("line", ["localhost slots=1", "localhost slots=1 addr=10.0.0.1"])
def test_localhost_means_this_machine_and_that_is_said(line: str) -> None:
    cluster = parse(f"{line}\nb slots=1\n")
    assert [node.transport for node in cluster.nodes] == ["local", "ssh"]
    assert cluster.notes == ("localhost is this machine: it is used without SSH",)


def test_localhost_over_ssh_is_possible_when_asked_for() -> None:
    cluster = parse("localhost slots=1 transport=ssh\n")
    assert cluster.nodes[0].transport == "ssh" and cluster.notes == ()


def test_a_file_that_cannot_be_read_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    latin = tmp_path / "latin"
    latin.write_bytes(b"b\xfcro slots=1\n")
    for path, words in ((tmp_path / "none", "does not exist"), (tmp_path, "cannot be read"), (latin, "utf-8")):
        with pytest.raises(UsageError, match=words) as caught:
            hosts.load(path)
        assert caught.value.where == str(path)


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".", "-x"])
def test_a_cluster_name_cannot_leave_its_directory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "hostfile"
    path.write_text("a slots=1\n")
    with pytest.raises(UsageError, match="is not a cluster name"):
        hosts.load(path, name=name)
    assert hosts.load(path, name="rack-2").name == "rack-2"


@pytest.mark.parametrize("path", sorted((scenes.ROOT / "hostfiles").iterdir()), ids=lambda path: path.name)
def test_our_own_hostfiles_are_right(path: Path) -> None:
    assert hosts.load(path).active


# Arbitrary text rarely gets past the name; pieces of real lines reach every rule.
pieces = st.sampled_from(
    [
        "a",
        "b",
        "localhost",
        " slots=",
        "1",
        "8",
        "two",
        " ",
        "\t",
        "\n",
        "\r\n",
        "\x0b",
        "\u2028",
        '"',
        "#",
        " #",
        "=",
    ]
    + [
        " port=",
        " gpus=",
        "0,1",
        " spare=true",
        " spare=",
        " transport=local",
        " addr=",
        " identity=",
        "\ufeff",
        "\0",
    ]
)
lines = st.one_of(st.text(), st.lists(pieces, max_size=30).map("".join))


@settings(max_examples=300)
@given(lines)
def test_no_text_breaks_the_reader(text: str) -> None:
    try:
        cluster = parse(text)
    except UsageError as error:
        assert "".join(views.error(error)).strip()
    else:
        assert cluster.active and all(node.slots >= 1 for node in cluster.nodes)


@pytest.mark.trainer
def test_deepspeed_reads_what_we_accept_just_as_we_do() -> None:
    from deepspeed.launcher import runner

    @settings(max_examples=300)
    @given(lines)
    def agree(text: str) -> None:
        try:
            cluster = parse(text)
        except UsageError:
            return
        given_to_deepspeed = hosts.deepspeed_hostfile(cluster.nodes)
        pool = runner._parse_hostfile(given_to_deepspeed.splitlines(keepends=True))
        assert list(pool.items()) == [(node.name, node.slots) for node in cluster.active]

    agree()
