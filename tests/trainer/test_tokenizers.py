"""Proves that both tokenizers give the ids that SDXL was trained with, wherever on this machine they are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from modelfiles import CONFIG, needs_vocabulary, refused  # noqa: E402

from clusterft_trainer import builtin, export  # noqa: E402
from clusterft_trainer.model import files, tokenizers  # noqa: E402
from clusterft_trainer.model.parts import Parts  # noqa: E402

pytestmark = pytest.mark.trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builtin.materialise("tiny", 0, tmp_path_factory.mktemp("builtin"))


@pytest.fixture(scope="module")
def parts(folder: Path) -> Parts:
    return files.load(str(folder), None, None)


@pytest.fixture(scope="module")
def single(parts: Parts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    export.single_file(parts, {}, CONFIG, path)
    return path


@needs_vocabulary
def test_the_packaged_vocabulary_gives_clips_own_ids() -> None:
    one, two = tokenizers.load(Path("/nonexistent"), None, (49408, 49408))
    known = {
        "a photo of a cat": [320, 1125, 539, 320, 2368],
        "a photo of a dog": [320, 1125, 539, 320, 1929],
        "Hello, World!": [3306, 267, 1002, 256],
        "": [],
    }  # "!" too: that it is the second one's padding must not make it special within a caption
    for text, ids in known.items():
        for tokenizer in (one, two):
            assert tokenizer(text).input_ids == [49406, *ids, 49407]
    padded = [t("a", padding="max_length", max_length=77).input_ids for t in (one, two)]
    assert [len(p) for p in padded] == [77, 77]
    assert padded[0][3:] == [49407] * 74 and padded[1][3:] == [0] * 74
    assert (one.model_max_length, two.model_max_length) == (77, 77)


@needs_vocabulary
def test_tokenizers_are_looked_for_in_order(folder: Path, single: Path, tmp_path: Path) -> None:
    beside = tmp_path / "model"
    beside.mkdir()
    shutil.copy(single, beside / "x.safetensors")
    # the packaged vocabulary is there, but this is not its model
    known = tiny_vocabulary(folder)
    assert f"know 49408 tokens, the model's text encoder {known}" in refused(beside / "x.safetensors")
    shutil.copytree(folder / "tokenizer", beside / "tokenizer")
    shutil.copytree(folder / "tokenizer_2", beside / "tokenizer_2")
    files.check(str(beside / "x.safetensors"), None, None)
    one, two = tokenizers.load(Path("/nonexistent"), str(folder / "tokenizer"), (tiny_vocabulary(folder),) * 2)
    assert (one.pad_token, two.pad_token) == ("<|endoftext|>", "!"), "one vocabulary serves both"
    assert "holds neither tokenizer/ nor vocab.json" in refused(beside / "x.safetensors", tmp_path)
    again = tmp_path / "again"
    tokenizers.save(two, again)
    for name in ("vocab.json", "merges.txt", ""):  # from either form, and with both
        read = tokenizers.load(Path("/nonexistent"), str(again), (tiny_vocabulary(folder),) * 2)[1]
        assert read("a red circle!").input_ids == two("a red circle!").input_ids
        if name:
            (again / name).unlink()
    (beside / "tokenizer" / "merges.txt").unlink()
    assert "holds neither vocab.json and merges.txt" in refused(beside / "x.safetensors")


def tiny_vocabulary(folder: Path) -> int:
    return len(json.loads((folder / "tokenizer" / "vocab.json").read_text()))


def test_tokenizers_come_from_the_hubs_cache_without_the_hub(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    snapshot = tmp_path / "models--stabilityai--stable-diffusion-xl-base-1.0" / "snapshots" / "abc"
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(folder / name, snapshot / name)
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("abc")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    one, two = tokenizers.load(Path("/nonexistent"), None, (tiny_vocabulary(folder),) * 2)
    assert (one.pad_token, two.pad_token) == ("<|endoftext|>", "!")


def test_missing_tokenizers_name_every_place_that_was_looked_at(
    single: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizers, "_PACKAGE", "open_clip_torch_not_installed")
    monkeypatch.setattr(tokenizers, "_from_cache", lambda: None)
    said = refused(single)
    assert str(single.parent / "tokenizer") in said and "openai/clip-vit-large-patch14" in said
    assert "the package" in said and "Set tokenizers:" in said


def test_nothing_is_asked_of_the_network(folder: Path, single: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    files.load(str(folder), None, None)
    files.load(str(single), str(folder), None)
