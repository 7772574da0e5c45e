"""Proves what goes into an image and what is made of what comes out, without an engine."""

from __future__ import annotations

import base64
import csv
import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import scenes
from hypothesis import given
from hypothesis import strategies as st

from clusterft import image
from clusterft.errors import UsageError
from clusterft.events import Progress
from clusterft.image import context, recipe, selftest, wheel
from clusterft.image.build import _mend
from clusterft.image.context import Context, Entry
from clusterft.image.selftest import Expected, SelfTest
from clusterft.image.transcript import KEPT, Transcript
from clusterft.spec import ImageSpec
from clusterft_trainer import image_selftest

NEEDS = ("accelerate==1.15.0", "deepspeed==0.19.8", "numpy>=2", "pydantic>=2.9", "torch==2.13.0")
PEM = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"
TRAINER = wheel.make(
    "1.2.3", [("clusterft_trainer/__init__.py", b""), ("clusterft_trainer/a.py", b"x = 1\n")], NEEDS
)


# -- the wheel ----------------------------------------------------------------


def test_the_wheel_is_the_same_bytes_twice_and_installs(tmp_path: Path) -> None:
    built = wheel.build()
    assert built.pack() == wheel.build().pack()
    assert {name.split("/")[0].split("-")[0] for name, _ in built.files} == {"clusterft_trainer"}
    path = tmp_path / built.name
    path.write_bytes(built.pack())
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(tmp_path / "site"),
    ]
    subprocess.run([*pip, str(path)], check=True)
    ask = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import clusterft_trainer.config as c;"
        "from importlib import metadata; print(c.__file__, metadata.version('clusterft-trainer'))"
    )
    out = subprocess.run(
        [sys.executable, "-I", "-c", ask], check=True, capture_output=True, text=True
    ).stdout.split()
    assert out == [str(tmp_path / "site" / "clusterft_trainer" / "config" / "__init__.py"), built.version]


def test_the_record_of_the_wheel_is_true() -> None:
    with zipfile.ZipFile(io.BytesIO(TRAINER.pack())) as packed:
        names = set(packed.namelist())
        info = "clusterft_trainer-1.2.3.dist-info"
        rows = list(csv.reader(packed.read(f"{info}/RECORD").decode().splitlines()))
        assert {row[0] for row in rows} == names
        for name, seal, size in rows[:-1]:
            data = packed.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (seal, size) == (f"sha256={digest}", str(len(data)))
        about = packed.read(f"{info}/METADATA").decode()
        assert "Name: clusterft-trainer\nVersion: 1.2.3\n" in about and "Requires-Dist: torch==2.13.0\n" in about


def test_what_the_trainer_needs_is_its_extra_and_pydantic() -> None:
    names = {need.split("=")[0].split(">")[0] for need in wheel.requirements()}
    assert {"torch", "deepspeed", "pydantic"} <= names and not names & {"typer", "fabric", "docker", "pytest"}


def test_an_installed_controller_carries_all_that_a_build_reads() -> None:
    settings = tomllib.loads((scenes.ROOT / "pyproject.toml").read_text())
    carried = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    ours = {f"images/{path.name}" for path in (scenes.ROOT / "images").iterdir()} | {"constraints.txt"}
    assert set(carried) == ours
    for path, place in carried.items():
        assert place == f"clusterft/image/files/{Path(path).name}"
        assert recipe.text(Path(path).name) == (scenes.ROOT / path).read_text()


# -- the context --------------------------------------------------------------

names = st.text("abc.-_ü", min_size=1, max_size=150).filter(lambda name: name.strip("."))
entries = st.builds(Entry, names, st.binary(max_size=2000), mode=st.sampled_from([0o644, 0o755]))


@given(st.lists(entries, max_size=6, unique_by=lambda entry: entry.name))
def test_what_is_streamed_is_a_tar_of_the_entries(listed: list[Entry]) -> None:
    whole = Context(tuple(listed))
    heard: list[int] = []
    with tarfile.open(fileobj=io.BytesIO(b"".join(whole.stream(heard.append)))) as tar:
        found = {m.name: (m.mode, m.mtime, m.uid, tar.extractfile(m).read()) for m in tar}  # type: ignore[union-attr]
    assert found == {entry.name: (entry.mode, 0, 0, entry.source) for entry in listed}
    assert heard == sorted(heard) and (not heard or heard[-1] == whole.size)


def test_a_digest_hears_of_every_change_but_a_time(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    first = Context((Entry("file", path),)).digest()
    os.utime(path, (1, 1))
    assert Context((Entry("file", path),)).digest() == first
    path.write_text("two")
    others = [
        Entry("file", path),
        Entry("file", b"one", mode=0o755),
        Entry("other", b"one"),
        Entry("file", link="one"),
    ]
    digests = {Context((entry,)).digest() for entry in others}
    assert len(digests) == len(others) and first not in digests


def test_a_file_that_shrinks_on_its_way_is_told(tmp_path: Path) -> None:
    path = tmp_path / "wheel.whl"
    path.write_bytes(bytes(1000))
    stream = Context((Entry("wheel.whl", path),)).stream(lambda gone: None)
    next(stream)
    path.write_bytes(b"")
    with pytest.raises(UsageError, match="changed while it was being sent"):
        list(stream)


def test_a_users_directory_is_read_as_docker_reads_it(tmp_path: Path) -> None:
    for name in ("Dockerfile.gpu", "kept.py", "data/huge.bin", "data/small.txt", "run.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "run.sh").chmod(0o755)
    (tmp_path / "latest").symlink_to("kept.py")
    (tmp_path / ".dockerignore").write_text("# big\n**/*.bin\n\nDockerfile.gpu\n")
    found = {entry.name: entry for entry in context.read(tmp_path, "Dockerfile.gpu").entries}
    assert set(found) == {
        ".dockerignore",
        "Dockerfile.gpu",
        "data",
        "data/small.txt",
        "kept.py",
        "latest",
        "run.sh",
    }
    assert found["latest"].link == "kept.py" and found["run.sh"].mode == 0o755 and found["data"].source is None
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageError, match="neither a file nor a directory") as caught:
        context.read(tmp_path, "Dockerfile.gpu")
    assert caught.value.where == str(tmp_path / "pipe")


# -- the recipe ---------------------------------------------------------------


def _house(tmp_path: Path) -> Path:
    house = tmp_path / "wheels"
    house.mkdir(exist_ok=True)
    (house / "torch-2.13.0+cpu-cp311-cp311-linux_x86_64.whl").write_bytes(b"torch")
    (house / "deepspeed-0.19.8.tar.gz").write_bytes(b"deepspeed")
    (house / f"{recipe.VOCABULARY.replace('==', '-')}-py3-none-any.whl").write_bytes(b"open_clip")
    return house


def _recipe(spec: ImageSpec, environ: dict[str, str] | None = None) -> recipe.Recipe:
    return recipe.foundation(spec, NEEDS, environ or {})


@pytest.mark.parametrize("kind", ["cuda", "cpu", "cpu_offline", "own"])
def test_a_build_is_asked_for_as_it_should(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = "click==8.5.1\nfilelock==4.2.11\ntorch==2.13.0\nJinja2==3.1.6\n"
    read = recipe.text
    monkeypatch.setattr(recipe, "text", lambda name: pins if name == "constraints.txt" else read(name))
    (tmp_path / "ca.pem").write_text(PEM)
    (tmp_path / "Dockerfile").write_text("FROM debian:bookworm-slim\n")
    mine = tmp_path / "own"
    mine.mkdir()
    (mine / "Dockerfile").write_text("FROM debian:bookworm-slim\n")
    spec = {
        "cuda": ImageSpec(packages=("git", "vim"), pip=("xformers==0.0.33",)),
        "cpu": ImageSpec(variant="cpu", base="debian:13", ca_bundle=tmp_path / "ca.pem"),
        "cpu_offline": ImageSpec(variant="cpu", wheelhouse=_house(tmp_path)),
        "own": ImageSpec(variant="cpu", dockerfile=mine / "Dockerfile"),
    }[kind]
    below = _recipe(spec, {"https_proxy": "http://proxy:3128", "PIP_INDEX_URL": "https://pypi.lan/simple"})
    shown = {part.part: _shown(part) for part in (below, recipe.last(spec, below, TRAINER))}
    shown["last"]["arguments"]["FOUNDATION"] = shown["last"]["arguments"]["FOUNDATION"].replace(
        below.key[:12], "KEY"
    )
    scenes.same_as_golden(json.dumps(shown, indent=1) + "\n", scenes.GOLDEN / "image" / f"{kind}.json")


def _shown(one: recipe.Recipe) -> dict[str, Any]:
    listing = []
    for entry in (inner for outer in one.context.entries for inner in _unpacked(outer)):
        small = isinstance(entry.source, bytes) and entry.name.endswith(".txt")
        text = entry.source.decode() if small and isinstance(entry.source, bytes) else None
        listing.append([entry.name, f"{entry.mode:o}", *([text] if text else ())])
    labels = {key: value for key, value in one.labels.items() if key != recipe.KEY}
    return {"arguments": dict(one.arguments), "ways": one.ways, "labels": labels, "context": listing}


def _unpacked(entry: Entry) -> list[Entry]:
    if not isinstance(entry.source, bytes) or not entry.name.endswith(".tar"):
        return [entry]
    with tarfile.open(fileobj=io.BytesIO(entry.source)) as tar:
        return [entry, *(Entry(f"{entry.name}: {m.name}", mode=m.mode) for m in tar)]


def test_only_what_is_inside_makes_another_image(tmp_path: Path) -> None:
    spec = ImageSpec(variant="cpu", wheelhouse=_house(tmp_path))
    first = _recipe(spec)
    assert _recipe(spec, {"http_proxy": "http://other:1", "PIP_INDEX_URL": "https://x"}).key == first.key
    top = recipe.last(spec, first, TRAINER)
    changed = wheel.make("1.2.3", [("clusterft_trainer/__init__.py", b"new")], NEEDS)
    assert recipe.last(spec, first, changed).key != top.key
    assert recipe.last(spec, first, wheel.make("1.2.3", list(TRAINER.files[:2]), NEEDS)).key == top.key
    os.utime(tmp_path / "wheels" / "deepspeed-0.19.8.tar.gz", (1, 1))
    assert _recipe(spec).key == first.key
    (tmp_path / "wheels" / "more-1.0-py3-none-any.whl").write_bytes(b"more")
    below = _recipe(spec)
    assert below.key != first.key and recipe.last(spec, below, TRAINER).key != top.key
    others = [spec.model_copy(update={"packages": ("git",)}), spec.model_copy(update={"pip": ("x",)})]
    assert len({_recipe(one).key for one in [spec, *others]}) == 3


def test_a_pin_of_another_package_leaves_the_layer_of_torch_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    read = recipe.text

    def torch_part(pins: str) -> list[tuple[str, object]]:
        monkeypatch.setattr(recipe, "text", lambda name: pins if name == "constraints.txt" else read(name))
        listed = _recipe(ImageSpec(variant="cpu")).context.entries
        return [(entry.name, entry.source) for entry in listed if entry.name.startswith("torch")]

    pins = read("constraints.txt")
    assert torch_part(pins) == torch_part(pins.replace("ruff==", "ruff==1"))
    assert torch_part(pins) != torch_part(pins.replace("sympy==", "sympy==1"))


@pytest.mark.parametrize("name", ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"])
def test_a_password_never_reaches_a_build(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} holds a password") as caught:
        _recipe(ImageSpec(variant="cpu"), {name: "https://a.lan/simple https://me:secret@pypi.lan/simple"})
    assert "secret" not in f"{caught.value} {caught.value.remedy}" and "wheelhouse" in caught.value.remedy


def test_files_that_are_not_what_they_should_be_are_refused(tmp_path: Path) -> None:
    empty, key, words = tmp_path / "empty", tmp_path / "key.pem", tmp_path / "words.pem"
    empty.mkdir()
    key.write_text(f"{PEM}-----BEGIN PRIVATE KEY-----\n")
    words.write_text("hello\n")
    cases = [
        (ImageSpec(wheelhouse=empty), "wheelhouse lacks deepspeed-0.19.8.tar.gz"),
        (ImageSpec(wheelhouse=tmp_path / "none"), "wheelhouse cannot be read"),
        (ImageSpec(ca_bundle=tmp_path / "none"), "CA bundle cannot be read"),
        (ImageSpec(ca_bundle=words), "no certificate"),
        (ImageSpec(ca_bundle=key), "private key is in the CA bundle"),
        (ImageSpec(dockerfile=tmp_path / "none"), "Dockerfile does not exist"),
    ]
    for spec, told in cases:
        with pytest.raises(UsageError, match=told) as caught:
            _recipe(spec)
        assert caught.value.where.startswith(str(tmp_path))


def test_a_wheelhouse_without_deepspeeds_source_is_refused_before_the_build(tmp_path: Path) -> None:
    house = _house(tmp_path)
    (house / "deepspeed-0.19.8.tar.gz").rename(house / "deepspeed-0.19.8-py3-none-any.whl")
    with pytest.raises(UsageError, match="deepspeed-0.19.8.tar.gz") as caught:
        _recipe(ImageSpec(variant="cpu", wheelhouse=house))
    assert "pip download" in caught.value.remedy and " torch==2.13.0 " in caught.value.remedy


def test_the_vocabulary_comes_into_an_image_without_what_its_package_asks_for(tmp_path: Path) -> None:
    words = {entry.name: entry.source for entry in _recipe(ImageSpec(variant="cpu")).context.entries}
    assert words["stack/vocabulary.txt"] == f"{recipe.VOCABULARY}\n".encode()
    lines = recipe.text("Dockerfile").replace("\\\n", " ").splitlines()
    step = next(line for line in lines if "vocabulary.txt" in line)
    assert "--no-deps -r /stack/vocabulary.txt" in step
    assert f"--no-deps '{recipe.VOCABULARY}'" in (scenes.ROOT / "tools" / "setup.sh").read_text()
    house = _house(tmp_path)
    next(house.glob("open_clip*")).unlink()
    with pytest.raises(UsageError, match="lacks open_clip_torch-3.3.0-py3-none-any.whl") as caught:
        _recipe(ImageSpec(variant="cpu", wheelhouse=house))
    assert caught.value.remedy.endswith(f"--no-deps {recipe.VOCABULARY}")


# -- the builder's words ------------------------------------------------------


def test_progress_is_told_step_by_step() -> None:
    transcript = Transcript("foundation")
    said: list[dict[str, Any]] = [
        {"status": "Pulling from library/debian", "id": "bookworm-slim"},
        {"status": "Downloading", "id": "f0c1", "progressDetail": {"current": 5, "total": 10}},
        {"stream": "Step 2/9 : RUN set -eu;     pip  install\n"},
        {"stream": "\n"},
        {"stream": " ---> Running in 0a1b2c\n"},
        {"stream": "Collec"},
        {"stream": "ting torch\n\x1b[31mInstalling\x1b[0m\r\n"},
        {"aux": {"ID": "sha256:00"}},
        {"stream": "Successfully built 0a1b\n"},
    ]
    shown = [progress for message in said if (progress := transcript.feed(message))]
    assert [one.words for one in shown] == [
        "foundation: Pulling from library/debian bookworm-slim",
        "foundation: Downloading f0c1",
        "foundation 2/9: RUN set -eu; pip install",
        "foundation 2/9: Installing",
    ]
    assert shown[1] == Progress("", "image", "foundation: Downloading f0c1", 5, 10)
    assert transcript.error == ""


def test_a_failed_step_shows_itself_and_the_end_of_its_words() -> None:
    transcript = Transcript("last")
    transcript.feed({"stream": "Step 1/2 : FROM x\n"})
    transcript.feed({"stream": "of another step\n"})
    transcript.feed({"stream": "Step 2/2 : RUN make\n"})
    for number in range(100):
        transcript.feed({"stream": f"line {number}\n"})
    transcript.feed({"stream": "No space left on device, and no line end"})
    transcript.feed({"errorDetail": {"code": 2}, "error": "The command 'make' returned a non-zero code: 2"})
    lines = transcript.evidence().splitlines()
    assert lines[0] == "step 2/2: RUN make" and lines[1] == f"line {100 - KEPT}"
    assert lines[-2:] == [
        "No space left on device, and no line end",
        "The command 'make' returned a non-zero code: 2",
    ]
    assert _mend(transcript) == ("make room on the engine's disk: docker image prune",)


@given(st.lists(st.dictionaries(st.sampled_from(["stream", "status", "error", "id"]), st.text(max_size=40))))
def test_no_words_of_a_builder_break_the_reader(messages: list[dict[str, Any]]) -> None:
    transcript = Transcript("foundation")
    for message in messages:
        transcript.feed(message)
    assert "\x1b" not in transcript.evidence()


# -- identity -----------------------------------------------------------------


def _inspected(**config: Any) -> dict[str, Any]:
    return {
        "Id": "sha256:aa",
        "Architecture": "amd64",
        "Os": "linux",
        "Created": "2026-11-20T14:30:47.660182175Z",
        "Size": 12,
        "RootFS": {"Type": "layers", "Layers": ["sha256:1", "sha256:2", "sha256:3"]},
        "Config": {"Env": ["PATH=/bin"], "Cmd": ["bash"], **config},
    }


def test_engines_that_spell_the_same_image_otherwise_agree() -> None:
    old = image.from_inspect(
        _inspected(Entrypoint=[], User="", Labels={"a": "b", "c": "d"}, Hostname="", Image="x")
    )
    new = image.from_inspect({**_inspected(Labels={"c": "d", "a": "b"}), "Id": "sha256:bb", "Size": 99})
    assert image.differences(old, new) == () and old.size == 12 and old.layers[0] == "sha256:1"


def test_a_difference_is_named() -> None:
    one = image.from_inspect(_inspected())
    other = {**_inspected(), "RootFS": {"Layers": ["sha256:1", "sha256:9"]}, "Architecture": "arm64"}
    assert image.differences(one, image.from_inspect(other)) == (
        "it is for linux/arm64, not linux/amd64",
        "layer 2 of 3 differs",
    )
    assert "configuration" in image.differences(one, image.from_inspect(_inspected(User="me")))[0]


# -- the self-test ------------------------------------------------------------

WELL = SelfTest(
    trainer="1.2.3",
    python="3.11.2",
    modules=dict.fromkeys([*selftest._NEEDED, *selftest._SOME], "1"),
    broken={},
    cuda="13.0",
    nccl="2.28.3",
    cards=("sm_90",),
    vocabulary="3.3.0",
    ops={"cpu_adam": ""},
    programs={"sshd": "/usr/sbin/sshd"},
    host_keys=(),
)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({}, None, ""),
        ({"trainer": None}, "fail fail", "no trainer"),
        ({"trainer": "1.2.2"}, "fail fail", "has trainer 1.2.2, this clusterft needs 1.2.3"),
        ({"modules": dict.fromkeys(selftest._SOME, "1")}, "fail warn", "lacks pydantic, numpy"),
        (
            {"modules": dict.fromkeys(selftest._NEEDED, "1")},
            "fail warn",
            "lacks bitsandbytes (8-bit optimizers), ",
        ),
        ({"vocabulary": None}, "fail warn", "lacks open_clip_torch"),
        (
            {"broken": {"bitsandbytes": "OSError: libcuda"}},
            "fail warn",
            "bitsandbytes is there and cannot be imported",
        ),
        ({"ops": {"cpu_adam": "ImportError: x"}}, "fail warn", "compiled cpu_adam does not work"),
        ({"ops": {}}, "fail ", "none of DeepSpeed's kernels"),
        ({"cuda": None}, "fail warn", "built without CUDA"),
        ({"programs": {"sshd": None}}, "fail warn", "no sshd"),
        ({"host_keys": ("/etc/ssh/ssh_host_rsa_key",)}, "fail warn", "private SSH host keys"),
    ],
)
def test_an_image_is_judged_by_whose_it_is(change: dict[str, Any], status: str | None, words: str) -> None:
    found = dataclasses.replace(WELL, **change)
    for ours, wanted in zip((True, False), (status or " ").split(" "), strict=True):
        told = selftest.judge(found, Expected("1.2.3", "cuda", ours))
        assert [finding.status for finding in told] == ([wanted] if wanted else [])
        assert all(words in finding.summary for finding in told)


def test_a_cpu_image_needs_no_cuda() -> None:
    bare = dataclasses.replace(WELL, cuda=None, nccl=None, cards=())
    assert selftest.judge(bare, Expected("1.2.3", "cpu", True)) == ()


@pytest.mark.parametrize(
    ("code", "out", "err", "words"),
    [
        (1, "", "/usr/bin/python3: No module named clusterft_trainer", "no clusterft trainer"),
        (127, "", "[FATAL tini (7)] exec python3 failed", "no python3"),
        (132, "", "trying DeepSpeed's cpu_adam", "this machine's CPU does not know"),
        (139, "", "trying import torch", "exit code 139"),
        (0, "welcome\n", "", "something else than it should"),
        (0, '{"schema": 2}\n', "", "something else than it should"),
        (0, '{"schema": 1, "modules": []}\n', "", "something else than it should"),
        (0, "[]\n", "", "something else than it should"),
        (0, "", "", "exit code 0"),
    ],
)
def test_an_image_that_says_nothing_is_told_why(code: int, out: str, err: str, words: str) -> None:
    told = selftest.read(code, out, err)
    assert not isinstance(told, SelfTest) and words in told.summary and told.status == "fail"
    assert err.split("\n")[0] in told.evidence


def test_what_the_script_prints_is_what_is_read() -> None:
    done = subprocess.run([sys.executable, *selftest.COMMAND[1:]], capture_output=True, text=True, timeout=120)
    found = selftest.read(done.returncode, done.stdout, done.stderr)
    assert isinstance(found, SelfTest), found
    assert set(found.modules) | set(found.broken) <= set(image_selftest.STACK)
    assert {*selftest._NEEDED, *selftest._SOME} <= set(image_selftest.STACK)
    assert found.modules["pydantic"] and "trying import pydantic" in done.stderr
