"""Proves that no list of flags, table or text makes a migration break: it is carried over, reported or refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_migrate import loads

from clusterft_trainer import migrate
from clusterft_trainer.config import TrainConfig
from clusterft_trainer.errors import ConfigError
from clusterft_trainer.migrate import known

words = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=12)
values = st.one_of(
    st.sampled_from(
        ["", "0", "1", "-1", "0.5", "1e-5", "nan", "true", "cpu", "bf16", "Prodigy", "cosine", "a/b", "$X"]
    ),
    st.integers().map(str),
    st.floats().map(str),
    words,
)
names = st.one_of(st.sampled_from(sorted(known.KOHYA)), st.from_regex(r"[a-z_]{1,12}", fullmatch=True))


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _complete(migration: migrate.Migration, expected: int) -> None:
    """The job validates, and each flag is on one side or the other."""
    TrainConfig.model_validate_json(json.dumps(migration.settings["train"]), strict=True)
    assert len(migration.carried) + len([e for e in migration.unknown if e.flag.startswith("--")]) >= expected
    assert migrate.report(migration) and migration.yaml


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(names, values), max_size=12))
def test_any_list_of_flags_is_carried_over_or_reported(flags: list[tuple[str, str]]) -> None:
    text = " ".join(f"--{name}={_quoted(value)}" for name, value in flags)
    _complete(migrate.run(f"accelerate launch sdxl_train.py {text}", "t.sh"), len(flags))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(names, values), max_size=12), st.sampled_from(["sdxl_train", "sdxl_train_network"]))
def test_any_combination_of_flags_makes_a_job_that_the_launcher_reads(
    tmp_path_factory: pytest.TempPathFactory, flags: list[tuple[str, str]], script: str
) -> None:
    text = " ".join(f"--{name}={_quoted(value)}" for name, value in flags)
    loads(migrate.run(f"accelerate launch {script}.py {text}", "t.sh"), tmp_path_factory.mktemp("job"))


plain = st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), words, st.lists(words, max_size=3))


@settings(max_examples=80, deadline=None)
@given(st.dictionaries(names, plain, max_size=8), st.dictionaries(names, plain, max_size=8))
@example({}, {"learning_rate_te1": True, "network_dim": True})
def test_any_table_of_settings_is_carried_over_or_reported(table: dict[str, Any], inner: dict[str, Any]) -> None:
    names_of = [*table, *inner]
    migration = migrate.run(json.dumps({"general": inner, "datasets": [{**table, "subsets": [inner]}]}), "d.json")
    TrainConfig.model_validate_json(json.dumps(migration.settings["train"]), strict=True)
    told = {flag.rpartition(" ")[2] for flag in (*migration.carried, *(e.flag for e in migration.unknown))}
    strange = [e for e in migration.unknown if e.reason.startswith(("did you mean", "neither kohya"))]
    assert not [e for e in strange if e.flag.rpartition(" ")[2] in known.KOHYA]
    assert set(names_of) <= told
    again = migrate.run(json.dumps({**table, "section": inner}), "c.json")
    assert set(names_of) <= {*again.carried, *(e.flag for e in again.unknown)}


@settings(max_examples=150, deadline=None)
@given(
    st.text(st.sampled_from("ab-= \\\n'\"$`;&|<>#{}()^*sdxl_train.py"), max_size=60),
    st.sampled_from(["t.sh", "t.toml", "t.yaml", "t"]),
)
def test_any_text_is_migrated_or_refused(text: str, name: str) -> None:
    for whole in (text, f"accelerate launch sdxl_train.py --seed=1 {text}"):
        try:
            migrate.run(whole, name)
        except ConfigError as refusal:
            assert refusal.message and refusal.remedy
