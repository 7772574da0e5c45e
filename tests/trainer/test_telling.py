"""Proves that of a problem all ranks know which of them met it, and that this one tells it: its log is to be read.

With real processes that is proven in test_resume.py, and through the launcher in e2e/test_train_over_ssh.py.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest

from clusterft_trainer import __main__ as command
from clusterft_trainer import build, dist, progress
from clusterft_trainer.errors import DataError, TrainerError


def gathering(monkeypatch: pytest.MonkeyPatch, *items: object) -> None:
    """What a gather of these ranks would give to each of them."""
    monkeypatch.setattr(dist, "gather", lambda _: [pickle.loads(pickle.dumps(item)) for item in items])


def raised(action: Callable[[], object]) -> TrainerError:
    with pytest.raises(TrainerError) as caught:
        action()
    return caught.value


def test_all_ranks_raise_the_first_problem_and_know_whose_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    gathering(monkeypatch, None, None, DataError("7.png is broken.", "Mend it."), DataError("x", "y"))
    error = raised(lambda: dist.agree(None))
    assert (error.message, error.everywhere, error.met_by) == ("7.png is broken.", True, 2)


def test_what_was_agreed_upon_before_stays_its_first_rank_s(monkeypatch: pytest.MonkeyPatch) -> None:
    agreed = DataError("7.png is broken.", "Mend it.", everywhere=True)
    agreed.met_by = 3
    gathering(monkeypatch, agreed, agreed, agreed, agreed)
    assert raised(lambda: dist.agree(agreed)).met_by == 3


@pytest.mark.parametrize(
    ("rank", "everywhere", "met_by", "speaks"),
    [
        ("2", True, 2, True),
        ("0", True, 2, False),
        ("0", True, 0, True),  # what all have met together
        ("1", True, 0, False),
        ("1", False, 0, True),  # what the others know nothing of
    ],
)
def test_the_rank_that_met_it_speaks_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: str,
    everywhere: bool,
    met_by: int,
    speaks: bool,
) -> None:
    def fails(_: object) -> object:
        error = DataError("7.png is broken.", "Mend it.", everywhere=everywhere)
        error.met_by = met_by
        raise error

    def leaves(code: int, _: object) -> None:
        raise SystemExit(code)

    monkeypatch.setenv("RANK", rank)
    monkeypatch.setitem(command._COMMANDS, "train", fails)
    monkeypatch.setattr(command, "_leave", leaves)  # which would end this very process
    with pytest.raises(SystemExit) as left:
        command.main(["train", "c.json", "--run-dir", "r"])
    told = [progress.decode(line) for line in capsys.readouterr().out.splitlines()]
    assert left.value.code == 2
    assert [one.message for one in told if isinstance(one, progress.Failed)] == ["7.png is broken."] * speaks


@pytest.mark.parametrize(
    ("models", "whose"), [(("a", "a", "b", "b"), 2), (("a", "b"), 1), (("a", "b", "b"), 0), (("a", "b", "c"), 0)]
)
def test_another_model_than_most_have_is_told_by_who_has_it(
    monkeypatch: pytest.MonkeyPatch, models: tuple[str, ...], whose: int
) -> None:
    gathering(monkeypatch, *models)
    error = raised(lambda: build._refuse_other_models("/m", models[0]))
    assert (error.everywhere, error.met_by) == (True, whose)
