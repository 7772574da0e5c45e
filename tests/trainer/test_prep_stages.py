"""Proves that prep makes what a run would make, as one command that may be stopped, repeated and watched."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import made_cache
import numpy as np
import pytest
from made_cache import pictures, row

torch = pytest.importorskip("torch")

from clusterft_trainer import caching, dist  # noqa: E402
from clusterft_trainer.config import TrainConfig  # noqa: E402
from clusterft_trainer.errors import ConfigError, DataError  # noqa: E402
from clusterft_trainer.latents.catalogue import Catalogue  # noqa: E402
from clusterft_trainer.latents.key import Recipe  # noqa: E402
from clusterft_trainer.latents.session import Stop  # noqa: E402
from clusterft_trainer.prep import command, counting, encoding, stages, status, vae  # noqa: E402
from clusterft_trainer.prep.loading import Desk  # noqa: E402
from clusterft_trainer.prep.telling import Voice, duration  # noqa: E402

pytestmark = pytest.mark.trainer
ROOT = Path(__file__).parents[2] / "trainer"


def _config(data: dict[str, Any], **more: Any) -> TrainConfig:
    body = {
        "model": "builtin:tiny",
        "output": {"name": "x"},
        "data": {"resolution": 64, **data},
        "learn": {"unet": {"rate": 1e-4}},
        "steps": 1,
    }
    return TrainConfig.model_validate(body | more)


def _folder(folder: Path, count: int = 6) -> dict[str, Any]:
    for each in pictures(folder, count):
        Path(each.file).with_suffix(".txt").write_text(f"thing {each.name}")
    return {"sources": [{"folder": str(folder)}]}


def _run(config: TrainConfig, shared: Path, owner: str = "one", only: Any = None) -> None:
    stages.run(stages.asked(config, shared, only, {}), owner, Stop(), Voice(leads=True))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared directory that has the builtin model."""
    return tmp_path_factory.mktemp("prep")


@pytest.fixture(autouse=True)
def _cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLUSTERFT_DEVICE", "cpu")


def test_a_run_finds_all_that_prep_has_made_and_repeats_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = _config({**_folder(tmp_path / "pictures"), "cache": {"text": True}})
    given = stages.asked(config, home, None, {})
    assert counting.count(given).missing is None, "the sources have not been read"
    _run(config, home, only="ingest")
    assert counting.count(given).missing in (None, 12)  # None: the builtin model has not been made
    _run(config, home, owner="two")
    found = counting.count(given)
    assert found.missing == 0 and found.stages["latents"].entries == found.stages["text"].entries == 6
    made = sorted((given.home / "latents").rglob("*.safetensors"))
    capsys.readouterr()
    _run(config, home, owner="three")
    assert sorted((given.home / "latents").rglob("*.safetensors")) == made
    assert capsys.readouterr().out.count("none was missing") == 2  # latents, text states


def _equipped(config: TrainConfig, home: Path) -> encoding.Equipment:
    from clusterft_trainer.latents.session import Session

    given = stages.asked(config, home, None, {})
    with Session(given.home / "work", f"equip-{time.monotonic_ns()}") as session:
        return encoding.equip(given, session, dist.settle())


@pytest.mark.parametrize("take", ["mean", "sample"])
def test_latents_do_not_depend_on_their_company(home: Path, tmp_path: Path, take: str) -> None:
    config = _config({**_folder(tmp_path, 1), "cache": {"take": take, "flip": True}})
    has = _equipped(config, home)
    recipe = caching.latent_recipe(config, has.cache, has.parts)
    painter = vae.Painter(has.parts.vae, recipe, Desk("cpu", "fp32", "none", Stop()))
    inputs = np.random.default_rng(0).integers(0, 256, (3, 3, 64, 64), np.uint8)
    keys = [bytes([n] * 16) for n in range(3)]
    bucket = encoding.placing.Bucket(64, 64)
    together = painter.encode(bucket, inputs, keys)[0]
    assert together.shape == (3, *painter.form(bucket).arrays[0].shape)
    for number in range(3):
        alone = painter.encode(bucket, inputs[number : number + 1], keys[number : number + 1])[0]
        np.testing.assert_array_equal(alone[0], together[number])
    mirrored = painter.encode(bucket, np.ascontiguousarray(inputs[..., ::-1]), keys)[0]
    if take == "mean":
        np.testing.assert_array_equal(mirrored[:, 0], together[:, 1])
    else:
        assert (painter.encode(bucket, inputs, [bytes([9] * 16)] * 3)[0] != together).any(), "noise is the key's"


def test_what_is_cached_is_what_a_run_encodes(home: Path, tmp_path: Path) -> None:
    from clusterft_trainer.model import sdxl

    config = _config({**_folder(tmp_path / "p"), "cache": {"text": True}})
    _run(config, home, owner=f"w{time.monotonic_ns()}")
    has = _equipped(config, home)
    recipe = caching.latent_recipe(config, has.cache, has.parts)
    text_recipe = caching.text_recipe(config, has.cache, has.parts)
    from clusterft_trainer.corpus import ingest
    from clusterft_trainer.corpus.index import Index

    given = stages.asked(config, home, None, {})
    found = Index.open(given.home / "index" / ingest.index_key(config.data.sources, config.data.problems))
    order = encoding.latents_order(given, found, has.cache, has.parts)
    held = Catalogue.open(order.folder, recipe.to_json())
    wanted = order.wanted()
    for number, place in enumerate(held.locate(wanted.keys).tolist()):
        from clusterft_trainer import decoding
        from clusterft_trainer.buckets import Bucket, Fit

        fit, bucket = Fit(*wanted.fits[number].tolist()), Bucket(*wanted.sizes[number].tolist())
        pixels = torch.from_numpy(decoding.pixels(found.row(number), fit, bucket)).permute(2, 0, 1)[None]
        with torch.no_grad():
            scaled = pixels.float() / 127.5 - 1
            mean = has.parts.vae.encode(scaled).latent_dist.parameters.float().contiguous().chunk(2, 1)[0]
        np.testing.assert_array_equal(held.read(place, check=True), mean[0].numpy())
    texts = Catalogue.open(caching.text_folder(given.home, text_recipe), text_recipe.to_json())
    from clusterft_trainer.latents.key import text_key
    from clusterft_trainer.model import text

    caption = found.caption(2)
    place = int(texts.locate(np.frombuffer(text_key(caption, text_recipe), np.uint8)[None])[0])
    ids = text.token_ids(has.parts.tokenizers[1], [caption], 75)
    with torch.no_grad():
        hidden, pooled = text.states(has.parts.text_encoder_2, ids)
    arrays = texts.arrays(place, check=True)
    np.testing.assert_array_equal(arrays["hidden_state2"], hidden[0].numpy())
    np.testing.assert_array_equal(arrays["pool2"], pooled[0].numpy())
    assert sdxl.identity([has.parts.vae], "fp32") == recipe.vae


def test_noise_is_another_for_each_entry_and_side() -> None:
    seeds = {vae.noise_seed(bytes([n] * 16), side) for n in range(8) for side in (0, 1)}
    assert len(seeds) == 16 and all(0 <= seed < 2**63 for seed in seeds)


def test_pictures_that_cannot_be_encoded_are_told_when_all_others_are_done(home: Path, tmp_path: Path) -> None:
    data = _folder(tmp_path / "p", 5)
    whole = next((tmp_path / "p").glob("*.bmp")).read_bytes()
    whole = whole[:-1] + bytes([whole[-1] ^ 1])  # the same picture as another would be the same entry
    row(tmp_path / "p", "torn.bmp", whole, (64, 64))
    (tmp_path / "p" / "torn.txt").write_text("torn")
    config = _config({**data, "cache": {}})
    _run(config, home, owner=f"i{time.monotonic_ns()}", only="ingest")
    (tmp_path / "p" / "torn.bmp").write_bytes(whole[:-9])  # after it was indexed
    given = stages.asked(config, home, None, {})
    with pytest.raises(DataError, match="torn.bmp"):
        from clusterft_trainer.latents.session import Session

        with Session(given.home / "work", f"x{time.monotonic_ns()}") as session:
            from clusterft_trainer.corpus import ingest
            from clusterft_trainer.corpus.index import Index

            key = ingest.index_key(config.data.sources, config.data.problems)
            index = Index.open(given.home / "index" / key)
            has = encoding.equip(given, session, dist.settle())
            made = encoding.latents(given, session, index, has, Voice(leads=True))
        assert len(made.problems) == 1
        stages._refuse(given, list(made.problems))
    assert counting.count(given).stages["latents"].missing == 1, "a changed file is asked for again"


def test_a_stage_without_settings_is_refused(tmp_path: Path) -> None:
    config = _config({"sources": [{"folder": "/nowhere"}]})
    with pytest.raises(ConfigError, match="data.cache is not set"):
        stages.asked(config, tmp_path, "latents", {})
    with pytest.raises(ConfigError, match=r"data.cache.text is not set"):
        stages.asked(_config({"sources": [{"folder": "/nowhere"}], "cache": {}}), tmp_path, "text", {})


_MAIN = """
import argparse, sys
from clusterft_trainer.prep import command
from clusterft_trainer.errors import TrainerError
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    try:
        command.main(parser.parse_args())
    except TrainerError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    heavy = [name for name in ("torch", "diffusers", "PIL.Image") if name in sys.modules]
    print("heavy:", *heavy)
"""


def _command(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    program = tmp_path / "prep_main.py"
    program.write_text(_MAIN)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command_line = [sys.executable, str(program), *arguments]
    return subprocess.Popen(command_line, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _json(tmp_path: Path, config: TrainConfig) -> str:
    path = tmp_path / "train.json"
    path.write_text(json.dumps(config.model_dump(mode="json")))
    return str(path)


def test_ingest_alone_imports_nothing_heavy(tmp_path: Path) -> None:
    config = _json(tmp_path, _config(_folder(tmp_path / "p")))
    out, err = _command(tmp_path, config, "--shared", str(tmp_path / "s"), "--only", "ingest").communicate()
    assert "6 pictures are indexed" in out and err == ""
    assert "heavy:\n" in out


def test_what_a_worker_says_at_its_end_names_who_did_what() -> None:
    cases = ((0, 0), (9, 9), (9, 4), (9, 0))
    said = [stages.completed("latents", missing, made, 0.934, who="rank 0") for missing, made in cases]
    assert said == [
        "The latents are complete: none was missing.",
        "The latents are complete: 9 were missing, rank 0 has made 9, its encoder busy 93%.",
        "The latents are complete: 9 were missing, rank 0 has made 4, its encoder busy 93%; "
        "the other ranks have made the rest.",
        "The latents are complete: 9 were missing, and other ranks have made them.",
    ]


@pytest.mark.long
def test_several_workers_of_one_command_share_the_work_and_the_status_tells_it(tmp_path: Path) -> None:
    config = _json(tmp_path, _config({**_folder(tmp_path / "p", 30), "cache": {}}))
    shared = str(tmp_path / "s")
    process = _command(tmp_path, config, "--shared", shared, "--workers", "2")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, out + err
    assert out.count("The latents are complete") == 2
    told, _ = _command(tmp_path, config, "--shared", shared, "--status", "--json").communicate()
    body = json.loads(told.splitlines()[0])
    assert body["schema"] == 1 and body["missing"] == 0 and body["index"]["pictures"] == 30
    assert body["latents"] == {"entries": 30, "missing": 0, "broken": 0}
    # one that comes when all is done plans anew, and finds nothing
    assert [(one["kind"], one["over"]) for one in body["work"]] == [("latents", True)]
    assert "latents: 30 entries, 0 missing" in command.lines(body)


def test_a_stopped_command_dies_of_the_signal_after_goodbye(tmp_path: Path) -> None:
    config = _json(tmp_path, _config({**_folder(tmp_path / "p", 80), "resolution": 512, "cache": {}}))
    process = _command(tmp_path, config, "--shared", str(tmp_path / "s"))
    assert process.stdout is not None
    for line in process.stdout:
        if '"latents"' in line:
            break
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    out, _ = process.communicate(timeout=20)
    assert time.monotonic() - began < 5
    assert process.returncode == -signal.SIGTERM and "Stopped as asked" in out
    workers = [p.read_text() for p in (tmp_path / "s" / ".clusterft" / "work" / "workers").iterdir()]
    assert [json.loads(text)["state"] for text in workers] == ["left"]


def test_a_worker_whose_beat_stands_still_is_told_as_silent(tmp_path: Path) -> None:
    folder = tmp_path / "workers"
    folder.mkdir()
    for name in ("one", "two"):
        told = {"state": "works", "beat": 1, "plan": "latents-x/1", "entries": 5, "open": "x", "rate": None}
        (folder / name).write_text(json.dumps(told))
    (folder / "bye").write_text(json.dumps({"state": "left"}))
    (folder / "torn").write_bytes(b'{"state": "wo')
    standing = status.Standing(tmp_path)
    assert [(one.name, one.alive) for one in standing.workers()] == [("one", True), ("two", True)]
    (folder / "two").write_text(json.dumps({"state": "works", "beat": 2}))
    assert [(one.name, one.alive) for one in standing.workers()] == [("one", False), ("two", True)]


def test_durations_are_told_as_people_do() -> None:
    assert [duration(s) for s in (3.9, 61, 7_384)] == ["3 s", "1 min 01 s", "2 h 03 min"]


def test_recipes_name_all_that_decides(home: Path, tmp_path: Path) -> None:
    config = _config({**_folder(tmp_path, 1), "cache": {"take": "sample"}}, seed=5)
    has = _equipped(config, home)
    made = caching.latent_recipe(config, has.cache, has.parts)
    assert isinstance(made, Recipe) and made.seed == 5 and made.take == "sample"


def test_work_under_way_is_told_with_its_rate_and_its_worker(tmp_path: Path) -> None:
    found = made_cache.indexed(tmp_path / "index", pictures(tmp_path / "p", 300))
    thread = threading.Thread(target=made_cache.work, args=(tmp_path, found, made_cache.Stub(0.01)))
    thread.start()
    standing = status.Standing(tmp_path / "work")
    told, end = "", time.monotonic() + 10
    while not re.fullmatch(
        r"latents: [1-9]\d* of 300 entries, [1-9][\d.]* a second by 1 worker, \d+ s to go\.", told
    ):
        assert time.monotonic() < end, told
        time.sleep(0.05)
        standing = status.Standing(tmp_path / "work")  # an observer that has seen nothing before
        told = standing.sentence("latents")
    workers = standing.watched()
    assert [one.alive for one in workers] == [True]
    assert 0 < standing.plans(workers)[0].done <= 300
    thread.join()
    assert standing.sentence("latents") == ""
    assert [(one.done, one.over) for one in standing.plans(standing.workers())] == [(300, True)]


def test_json_without_status_is_refused(tmp_path: Path) -> None:
    out, err = _command(tmp_path, "none.json", "--shared", str(tmp_path), "--json").communicate()
    assert "--json belongs to --status" in err and out == ""
