"""The routing core: a chain while all is well, every byte once from the controller, healing without cycles."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft.ship.route import CONTROLLER, STALL_SECONDS, WIDTH, Fetch, Route, Stop

BLOB = "a"


def fetches(route: Route, now: float = 0.0) -> list[tuple[str, str, str]]:
    return [(f.node, f.blob, f.source) for f in route.next(now) if isinstance(f, Fetch)]


def test_a_chain_forms() -> None:
    route = Route({BLOB: 100}, {"n1": BLOB, "n2": BLOB, "n3": BLOB})
    assert fetches(route) == [("n1", BLOB, CONTROLLER), ("n2", BLOB, "n1"), ("n3", BLOB, "n2")]
    assert route.next(0.0) == []


def test_all_blobs_take_the_same_way_and_a_few_at_a_time() -> None:
    route = Route(dict.fromkeys("abcd", 10), {"n1": "abcd", "n2": "abcd"})
    first = fetches(route)
    assert first == [(n, b, s) for n, s in (("n1", CONTROLLER), ("n2", "n1")) for b in "ab"]
    route.arrived("n1", "a")
    assert fetches(route) == [("n1", "c", CONTROLLER)]


def test_only_those_who_lack_a_blob_are_in_its_chain() -> None:
    route = Route({"a": 10, "b": 10}, {"n1": "a", "n2": "b", "n3": "ab"})
    assert set(fetches(route)) == {
        ("n1", "a", CONTROLLER),
        ("n2", "b", CONTROLLER),
        ("n3", "a", "n1"),
        ("n3", "b", "n2"),
    }


def test_a_dead_relay_is_bypassed_from_the_last_good_node() -> None:
    route = Route({BLOB: 100}, dict.fromkeys(("n1", "n2", "n3", "n4"), BLOB))
    fetches(route)
    for node, have in (("n1", 80), ("n2", 60), ("n3", 50), ("n4", 40)):
        route.grew(node, BLOB, have, 1.0)
    route.lose("n2")
    assert route.next(1.0) == [Stop("n2", BLOB), Stop("n3", BLOB), Fetch("n3", BLOB, "n1")]


def test_the_first_node_dies_and_the_controller_goes_on_with_the_next() -> None:
    route = Route({BLOB: 100}, dict.fromkeys(("n1", "n2", "n3"), BLOB))
    fetches(route)
    route.lose("n1")
    assert fetches(route) == [("n2", BLOB, CONTROLLER)]
    assert route.source("n3", BLOB) == "n2"


def test_a_stalled_edge_is_left_and_one_that_starves_is_not() -> None:
    route = Route({BLOB: 100}, dict.fromkeys(("n1", "n2", "n3"), BLOB))
    fetches(route)
    route.grew("n1", BLOB, 50, 1.0)
    route.grew("n2", BLOB, 20, 1.0)
    route.grew("n3", BLOB, 20, 1.0)  # all that n2 has
    late = 1.0 + STALL_SECONDS + 0.1
    route.grew("n1", BLOB, 60, late)
    assert route.next(late) == [Stop("n2", BLOB), Fetch("n2", BLOB, "n1")], (
        "once more the same, if there is no other"
    )
    for _ in range(3):
        late += STALL_SECONDS + 0.1
        route.grew("n1", BLOB, route.have("n1") + 1, late)
        route.next(late)
    assert route.source("n2", BLOB) == CONTROLLER
    assert route.source("n3", BLOB) == "n2"


def test_a_cut_edge_is_never_tried() -> None:
    route = Route({BLOB: 100}, dict.fromkeys(("n1", "n2", "n3"), BLOB), cut=[("n3", "n2"), ("n2", "n1")])
    assert fetches(route) == [("n1", BLOB, CONTROLLER), ("n2", BLOB, CONTROLLER), ("n3", BLOB, "n1")]


def test_a_head_that_has_all_of_it_is_the_first_source() -> None:
    route = Route({BLOB: 100}, {"n2": BLOB, "n3": BLOB}, holders={"n1": [BLOB]})
    assert fetches(route) == [("n2", BLOB, "n1"), ("n3", BLOB, "n2")]
    route.lose("n1")
    assert route.stuck() == ("n2",)
    route.lose("n2")
    assert route.stuck() == ("n3",)


def test_what_an_earlier_try_left_leads() -> None:
    """A node with more bytes than the one before it in the chain."""
    route = Route({BLOB: 100}, dict.fromkeys(("n1", "n2"), BLOB), had={("n2", BLOB): 70})
    assert fetches(route) == [("n2", BLOB, CONTROLLER), ("n1", BLOB, "n2")]


def test_a_node_that_never_gets_it_right_is_given_up() -> None:
    route = Route({BLOB: 100}, {"n1": BLOB})
    now = 0.0
    for _ in range(3):
        assert fetches(route, now) == [("n1", BLOB, CONTROLLER)]
        route.spoiled("n1", BLOB, now)
        now += 10
    assert fetches(route, now) == [] and route.stuck() == ("n1",)


@dataclass
class World:
    """Nodes that do what the route says, and break as the draw says."""

    route: Route
    active: dict[tuple[str, str], str] = field(default_factory=dict)
    have: dict[tuple[str, str], int] = field(default_factory=dict)
    from_controller: dict[str, int] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    broken: set[tuple[str, str]] = field(default_factory=set)
    now: float = 0.0

    def obey(self) -> None:
        """Carry out the actions, and see that they make sense."""
        for action in self.route.next(self.now):
            key = (action.node, action.blob)
            if isinstance(action, Stop):
                self.active.pop(key, None)
                continue
            assert key not in self.active, "one writer at a time"
            assert action.node != action.source
            self.active[key] = action.source
        for (node, blob), source in self.active.items():
            seen, at = {node}, source
            while at:
                assert at not in seen, f"a cycle: {self.active}"
                seen.add(at)
                at = self.active.get((at, blob), CONTROLLER)
            assert sum(other == node for other, _ in self.active) <= WIDTH

    def move(self, step: int) -> None:
        """Every way that works carries up to that many bytes."""
        self.now += 1.0
        for (node, blob), source in list(self.active.items()):
            if node in self.dead:
                continue
            total = self.route.blobs[blob]
            there = total if source == CONTROLLER else self.have.get((source, blob), 0)
            if source in self.dead or (node, source) in self.broken:
                del self.active[node, blob]
                self.route.broke(node, blob, self.now)
                continue
            have = self.have.get((node, blob), 0)
            more = max(0, min(step, there - have))
            if source == CONTROLLER:
                self.from_controller[blob] = self.from_controller.get(blob, 0) + more
            self.have[node, blob] = have + more
            self.route.grew(node, blob, have + more, self.now)
            if have + more == total:
                del self.active[node, blob]
                self.route.arrived(node, blob)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_breaks_all_who_live_get_everything(data: st.DataObject) -> None:
    nodes = [f"n{i}" for i in range(1, data.draw(st.integers(2, 6)) + 1)]
    blobs = {f"b{i}": data.draw(st.integers(1, 40)) for i in range(data.draw(st.integers(1, 4)))}
    needs = {node: data.draw(st.sets(st.sampled_from(sorted(blobs)), min_size=1)) for node in nodes}
    edges = [(a, b) for a in nodes for b in nodes if a != b]
    cut = data.draw(st.sets(st.sampled_from(edges), max_size=4))
    world = World(Route(blobs, needs, cut=cut))
    victims = data.draw(st.lists(st.sampled_from(nodes), max_size=len(nodes) - 1, unique=True))
    deaths = {data.draw(st.integers(1, 30)): victim for victim in victims}
    broken = data.draw(st.sets(st.sampled_from(edges), max_size=3))
    for turn in range(400):
        world.obey()
        world.move(data.draw(st.integers(0, 9)) if turn < 40 else 7)
        if turn in deaths:
            world.dead.add(deaths[turn])  # it takes the controller a moment to notice
        for when, victim in deaths.items():
            if turn == when + 3:
                world.route.lose(victim)
        if turn == 5:
            world.broken = set(broken)
        assert not set(world.route.stuck()) - world.dead
        if turn > 45 and all(world.route.complete(node) for node in world.route.live()):
            break
    alive = [node for node in nodes if node not in world.dead]
    assert all(world.route.complete(node) for node in alive), (alive, world)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_while_all_is_well_the_controller_sends_each_byte_once(data: st.DataObject) -> None:
    nodes = [f"n{i}" for i in range(1, data.draw(st.integers(1, 6)) + 1)]
    blobs = {f"b{i}": data.draw(st.integers(1, 40)) for i in range(data.draw(st.integers(1, 5)))}
    needs = {node: data.draw(st.sets(st.sampled_from(sorted(blobs)))) for node in nodes}
    world = World(Route(blobs, needs))
    for _ in range(200):
        world.obey()
        world.move(data.draw(st.integers(1, 9)))
    assert all(world.route.complete(node) for node in nodes)
    wanted = {blob for need in needs.values() for blob in need}
    assert world.from_controller == {blob: blobs[blob] for blob in wanted}
