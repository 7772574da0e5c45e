"""Proves that job.yaml is read as people mean it, and that every mistake is told with its place and a way out."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
import scenes
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterft import spec
from clusterft.errors import InvalidFile, UsageError
from clusterft.spec import combination, positions
from clusterft.ui import text as views
from clusterft_trainer.config import (
    Checkpoints,
    Compute,
    Ddp,
    Ema,
    FolderSource,
    Fsdp,
    Learn,
    Lora,
    Optimizer,
    Output,
    TrainConfig,
    UnetPart,
    Zero,
    refusals,
)
from clusterft_trainer.config.learn import OptimizerName

EXAMPLE = scenes.ROOT / "launcher" / "clusterft" / "spec" / "example.yaml"
EXAMPLES = sorted((scenes.ROOT / "examples").glob("*.yaml"))
MIGRATED = sorted((scenes.GOLDEN / "migrate").glob("*/job.yaml"))
MISTAKES = sorted((scenes.GOLDEN / "job").glob("*.yaml"))


@pytest.mark.parametrize("path", [EXAMPLE, *EXAMPLES], ids=lambda path: path.name)
def test_our_own_jobs_are_right(path: Path) -> None:
    train = spec.load(path).train
    assert train is not None and train.data.sources


@pytest.mark.parametrize("path", MISTAKES, ids=lambda path: path.stem)
def test_a_mistake_reads_as_it_should(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    with pytest.raises(UsageError) as caught:
        spec.load(Path(path.name))
    scenes.same_as_golden("\n".join(views.error(caught.value)) + "\n", path.with_suffix(".txt"))


def test_the_sketch_of_a_typo_is_what_one_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(scenes.GOLDEN / "job")
    with pytest.raises(UsageError) as caught:
        spec.load(Path("typo.yaml"))
    assert list(views.error(caught.value)) == [
        'typo.yaml:12:7  unknown key "learning_rate" under train.learn.unet',
        '   11 |     unet:\n   12 |       learning_rate: 4e-7\n      |       ^ did you mean "rate"?',
    ]


def _schema_keys(node: dict[str, Any], root: dict[str, Any], path: str = "") -> Iterator[str]:
    if "$ref" in node:
        node = root["$defs"][node["$ref"].rpartition("/")[2]]
    for name, inner in node.get("properties", {}).items():
        yield f"{path}{name}"
        yield from _schema_keys(inner, root, f"{path}{name}.")
    for inner in (*node.get("anyOf", ()), *node.get("oneOf", ()), *([node["items"]] if "items" in node else ())):
        yield from _schema_keys(inner, root, path)


def _file_keys(value: object, path: str = "") -> Iterator[str]:
    for item in value if isinstance(value, list) else ():
        yield from _file_keys(item, path)
    for name, inner in value.items() if isinstance(value, dict) else ():
        yield f"{path}{name}"
        yield from _file_keys(inner, f"{path}{name}.")


# `#key: value` is a setting left out; `# words` is a comment.
LEFT_OUT = re.compile(r"^(\s*)#(?=\S)", re.MULTILINE)


def test_the_example_shows_every_key_and_no_other() -> None:
    text = EXAMPLE.read_text(encoding="utf-8")
    shown = set(_file_keys(yaml.safe_load(LEFT_OUT.sub(r"\1", text))))
    schema = spec.json_schema()
    known = set(_schema_keys(schema, schema))
    assert len(known) > 100
    assert known - shown == set()
    assert {key for key in shown - known if not key.startswith("env.")} == set()  # its names are the user's own


def _one_more(lines: list[str], number: int) -> str:
    """The example with one of its settings put in, and the sections around that."""
    chosen, depth = {number}, len(lines[number])
    for above in range(number, -1, -1):
        plain = LEFT_OUT.sub(r"\1", lines[above])
        here = len(plain) - len(plain.lstrip())
        if here < depth and plain.strip():
            chosen.add(above)
            depth = here
    return "\n".join(LEFT_OUT.sub(r"\1", line) if i in chosen else line for i, line in enumerate(lines)) + "\n"


COMBINED = "not both ways|exactly one of|has no meaning|have no meaning|needs? |two weightings|nothing is built"
COMBINED += "|there is no f|is missing|not both"
SETTING = re.compile(r"\s*#\w+: [^\s#]|\s*#- ")


SETTINGS = [n for n, line in enumerate(EXAMPLE.read_text("utf-8").splitlines()) if SETTING.match(line)]


@pytest.mark.parametrize("number", SETTINGS)
def test_each_setting_of_the_example_may_be_put_in(number: int, tmp_path: Path) -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    try:
        scenes.job(_one_more(lines, number), tmp_path)
    except UsageError as error:
        assert re.search(COMBINED, error.what), lines[number]


def test_paths_are_relative_to_the_job_and_know_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.chdir("/")
    text = scenes.JOB.replace("/mnt/out", "~/out").replace("builtin:tiny", "../models/base")
    text = text.replace("{builtin: shapes}", "{folder: ./pictures}, {folder: /data}") + "hosts: my hosts\n"
    job = scenes.job(text, tmp_path)
    assert job.shared == Path("/home/someone/out")
    assert job.hosts == tmp_path / "my hosts"
    assert job.train is not None and job.train.model == str(tmp_path.parent / "models" / "base")
    folders = [source.folder for source in job.train.data.sources if isinstance(source, FolderSource)]
    assert folders == [str(tmp_path / "pictures"), "/data"]


def test_every_path_of_the_trainer_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    more = "  tokenizers: ~/clip\n  vae: vae/fixed.safetensors\n"
    train = scenes.train(scenes.JOB.replace("builtin:tiny", "../base.safetensors") + more, tmp_path)
    assert train.model == str(tmp_path.parent / "base.safetensors")
    assert (train.tokenizers, train.vae) == ("/home/someone/clip", str(tmp_path / "vae" / "fixed.safetensors"))
    assert scenes.train(scenes.JOB, tmp_path).vae is None


def test_what_is_written_short_arrives_as_it_is_meant(tmp_path: Path) -> None:
    learn = "{unet: {rate: 4e-7, parts: [middle_block, '*.attn2.*']}, optimizer: adafactor}"
    more = "  engine: {kind: ddp}\n  checkpoints: {rolling: 15min, every_epochs: 1}\n"
    train = scenes.train(scenes.JOB.replace("{unet: {rate: 4e-7}}", learn) + more, tmp_path)
    assert train.learn.optimizer.name == "adafactor" and train.learn.unet is not None
    assert train.learn.unet.parts == ("middle_block", "*.attn2.*")
    assert str(train.checkpoints.rolling) == "15 minutes"
    assert [str(span) for span in train.checkpoints.cadences] == ["1 epochs"]


ENGINES = st.sampled_from([Zero(), Zero(stage=3, offload="optimizer"), Ddp(kind="ddp"), Fsdp(kind="fsdp")])


@settings(max_examples=300, deadline=None)
@given(ENGINES, st.data())
def test_each_sentence_of_the_trainer_is_found_and_named(engine: Zero | Ddp | Fsdp, data: st.DataObject) -> None:
    some = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    optimizer = Optimizer(
        name=some(*get_args(OptimizerName)),
        betas=some(None, (0.9, 0.9)),
        eps=some(None, 1e-8),
        fused_backward=True,
    )
    learn = Learn(
        unet=UnetPart(rate=1e-5, parts=some("all", "unet-71")), lora=some(None, Lora()), ema=some(None, Ema())
    )
    learn = learn.model_copy(update={"optimizer": optimizer, "schedule": some("constant", "cosine")})
    example = spec.load(EXAMPLE).train
    assert example is not None
    config = example.model_copy(
        update={
            "engine": engine,
            "learn": learn,
            "precision": some("fp16", "bf16", "fp32"),
            "weights": some("fp32", "bf16"),
            "compute": Compute(attention="flash", compile=some(True, False)),
            "checkpoints": Checkpoints(best="held_out"),
            "output": Output(name="x", diffusers=True),
        }
    )
    told = tuple(refusals.refusals(config))
    assert told and combination.apart("; ".join(told), (TrainConfig,)) == told
    for sentence in told:
        path = combination.named(sentence, (TrainConfig,))[0]
        assert sentence.startswith(".".join(map(str, path)))


@pytest.mark.parametrize("path", MIGRATED, ids=lambda path: path.parent.name)
def test_a_migrated_job_is_one_of_ours(path: Path) -> None:
    train = spec.load(path).train
    assert train is not None and train.model


def test_a_builtin_model_is_no_path(tmp_path: Path) -> None:
    assert scenes.train(scenes.JOB, tmp_path).model == "builtin:tiny"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("4e-7", 4e-7),
        ("1.", 1.0),
        (".5", 0.5),
        ("+5", 5),
        ("017", 17),
        ("-3", -3),
        ("-.inf", float("-inf")),
        ("true", True),
        ("null", None),
        ("~", None),
        ("", None),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("True", "True"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0x1F", "0x1F"),
        ("2026-11-20", "2026-11-20"),
        ("=", "="),
        ('"4e-7"', "4e-7"),
        ("!!str 5", "5"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: object) -> None:
    read = positions.parse(f"a: {text}\n", Path("job.yaml")).value
    assert read == {"a": value} and isinstance(read, dict) and type(read["a"]) is type(value)


def test_line_ends_marks_and_anchors_of_other_tools_are_understood(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    text = scenes.JOB.replace("/mnt/out", "&out /mnt/out") + "hosts: *out\n"
    path.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
    assert spec.load(path).hosts == Path("/mnt/out")


def test_every_key_and_value_knows_its_place() -> None:
    document = positions.parse("a:\r\n  - b: 1\r\n    c: [x, y]\r\n", Path("job.yaml"))
    assert document.where(("a", 0, "c"), key=True) == positions.Place(3, 5)
    assert document.where(("a", 0, "c", 1)) == positions.Place(3, 12)
    assert document.where(("a", 0, "absent")) == positions.Place(1, 1)


@pytest.mark.parametrize("depth", [40, 400, 4000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ("{a: ", "}"), ("[", "")])
def test_depth_is_refused_in_words(opening: str, closing: str, depth: int) -> None:
    with pytest.raises(UsageError, match="nested too deeply|not valid YAML"):
        positions.parse(opening * depth + closing * depth, Path("job.yaml"))


def test_a_character_that_is_no_text_is_told_with_its_place() -> None:
    with pytest.raises(UsageError, match="character 0x0000 is not text") as caught:
        positions.parse("a: 1\nbc: \0\n", Path("job.yaml"))
    assert caught.value.where == "job.yaml:2:5"


def test_files_that_cannot_be_read_are_mistakes_of_the_user(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"name: b\xfcro\n")
    for path, words in ((tmp_path / "none", "does not exist"), (tmp_path, "cannot be read"), (latin, "utf-8")):
        with pytest.raises(UsageError, match=words):
            spec.load(path)


@pytest.mark.parametrize(
    "name", ["RANK", "MASTER_PORT", "CUDA_VISIBLE_DEVICES", "CLUSTERFT_RUN_DIR", "a b", "1A", ""]
)
@pytest.mark.parametrize("where", ["env: {%s: x}", "secrets: [%s]"])
def test_names_that_the_plan_sets_or_no_shell_takes_are_refused(name: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidFile, match="is set from the plan|is not the name of"):
        scenes.job(scenes.JOB + where % json.dumps(name) + "\n", tmp_path)


def test_what_is_given_arrives(tmp_path: Path) -> None:
    job = scenes.job(scenes.JOB + "env: {NCCL_DEBUG: no, X: ''}\nsecrets: [HF_TOKEN]\nport: 4000\n", tmp_path)
    assert job.env == {"NCCL_DEBUG": "no", "X": ""} and job.secrets == ("HF_TOKEN",) and job.port == 4000
    assert job.train is not None and job.train.learn.unet is not None and job.train.learn.unet.rate == 4e-7


words = st.sampled_from(
    "name shared train model learn unet rate env secrets data sources folder builtin shapes engine kind".split()
    + "script path args code workdir mounts hang_after 10min user".split()
    + ["steps", "<<", "process", "4e-7", "1", "no", "true", "~", "'x'", '"\\ud800"', "!!int", "!!set", "!!bool"]
)
signs = st.sampled_from(
    [": ", "\n", "\n  ", "\n    ", "- ", "{", "}", "[", "]", ", ", "&a ", "*a", "? ", "#", "\t", "|\n"]
)
texts = st.one_of(st.text(max_size=60), st.lists(words | signs, max_size=40).map("".join))


@settings(max_examples=300, deadline=None)
@given(texts)
def test_no_text_breaks_the_reader(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    for body in (text, scenes.JOB + text, scenes.JOB.replace("{builtin: shapes}", text)):
        path.write_text(body, encoding="utf-8", errors="replace", newline="")
        try:
            spec.load(path)
        except UsageError as error:
            assert "".join(views.error(error)).strip()


FOREIGN = ("pydantic", "dictionary", "instance of")  # the words of our parser's library, which nobody should read
# A message repeats what the user wrote: had these words been drawn, nobody could tell who said them.
written = st.text(max_size=8).filter(lambda text: not any(word in text for word in FOREIGN))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | written,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(written, inner, max_size=3),
    max_leaves=6,
)
spots = st.sampled_from(
    "name shared env secrets port resources image train python zzz script mounts user restarts min_nodes".split()
    + "hang_after first_step_after patience stagger_seconds launcher rendezvous runtime".split()
)
inner_spots = st.sampled_from(
    ["model", "output", "data", "learn", "engine", "batch", "samples", "steps", "seed", "zzz"]
)


@settings(max_examples=200, deadline=None)
@given(spots, inner_spots, values)
def test_no_value_anywhere_breaks_the_judgement(
    tmp_path_factory: pytest.TempPathFactory, spot: str, inner: str, value: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.yaml"
    body = yaml.safe_load(scenes.JOB)
    for target, key in ((body, spot), (body["train"], inner)):
        kept = dict(target)
        target[key] = value
        path.write_text(json.dumps(body, allow_nan=True), encoding="utf-8")
        try:
            spec.load(path)
        except UsageError as error:
            told = "".join(views.error(error))
            assert not [word for word in FOREIGN if word in told], told
        target.clear()
        target.update(kept)


def test_an_image_is_a_name_or_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    digest = f"registry.lan:5000/team/clusterft@sha256:{'0a' * 32}"
    assert scenes.job(scenes.JOB + f"image: {digest}\n", tmp_path).image.use == digest
    recipe = (
        "image: {base: 'debian:13', pip: ['a[b,c]>=1,<2', 'd @ https://host/d.whl'], packages: ['x1:arm64=1:2~3']}"
    )
    image = scenes.job(f"{scenes.JOB}{recipe}\n", tmp_path).image
    assert image.foundation == "debian:13" and image.pip[1].endswith(".whl") and image.use is None
    recipe = "image: {ca_bundle: ~/ca.pem, wheelhouse: ../wheels}\n"
    image = scenes.job(scenes.JOB + recipe, tmp_path).image
    assert (image.ca_bundle, image.wheelhouse) == (Path("/home/someone/ca.pem"), tmp_path.parent / "wheels")
    assert scenes.job(scenes.JOB + "image: {dockerfile: my/Dockerfile}\n", tmp_path).image.dockerfile == (
        tmp_path / "my" / "Dockerfile"
    )


def test_the_variant_follows_the_device_until_it_is_given(tmp_path: Path) -> None:
    on_cards = scenes.JOB.replace("resources: {device: cpu}\n", "")
    assert scenes.job(scenes.JOB, tmp_path).image.variant == "cpu"
    assert scenes.job(scenes.JOB + "image: {packages: [git]}\n", tmp_path).image.variant == "cpu"
    assert scenes.job(scenes.JOB + "image: {variant: cuda}\n", tmp_path).image.variant == "cuda"
    assert scenes.job(on_cards, tmp_path).image.foundation.startswith("nvidia/cuda:13.0")


def test_the_schema_for_editors_knows_the_short_forms() -> None:
    found = spec.json_schema()["$defs"]
    rolling, optimizer = found["Checkpoints"]["properties"]["rolling"], found["Learn"]["properties"]["optimizer"]
    assert [option["type"] for option in rolling["anyOf"]] == ["string", "null"] and "Span" not in found
    assert optimizer["anyOf"][0] == {"$ref": "#/$defs/Optimizer"} and "adafactor" in optimizer["anyOf"][1]["enum"]


def test_the_schema_for_editors_is_one() -> None:
    schema = spec.json_schema()
    assert schema["$schema"].startswith("https://json-schema.org/") and "shared" in schema["required"]
    assert {"required": ["script"]} in schema["oneOf"] and "null" not in json.dumps(schema["properties"]["train"])
    assert json.loads(json.dumps(schema)) == schema
