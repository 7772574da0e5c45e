"""The typed job: keys of job.yaml, their defaults and the combinations that cannot work.

The `train:` block is the trainer's own TrainConfig, so a typo in it is found before any node is touched.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from clusterft.errors import InvalidFile
from clusterft.spec import mounts, positions, refusal
from clusterft.spec.amounts import Bytes, Seconds
from clusterft.spec.image import ImageSpec
from clusterft.spec.mounts import Mount
from clusterft.spec.script import ScriptSpec, absolute
from clusterft_trainer.config import Source, TrainConfig, locations, without_gpu

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# The launcher sets these from the plan; a second source would make a run differ from its plan.
_RESERVED = frozenset(
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES".split()
)
_USER = re.compile(r"\d{1,9}:\d{1,9}")
_CONTAINERS_ALONE = "is a container's alone, and runtime is process: remove it, or use runtime: docker"
_FILES = ("kohya", "table", "tars")  # sources that are named by a file, or by a pattern
_LAST_FIRST_PORT = 65535 - 127  # a range for rendezvous, and one for the supervisors' own meeting
_SPAN = {"type": "string", "examples": ["15min", "200 steps", "1 epoch"]}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _not_empty(value: object) -> object:
    """An empty path would silently mean the directory of the job file."""
    if value == "":
        raise ValueError("a directory must be named")
    return value


class Resources(_Section):
    """What a run may use on each node."""

    device: Literal["cuda", "cpu"] = Field("cuda", description="what one slot is")
    threads: Annotated[int, Field(gt=0)] | None = Field(
        None, description="CPU threads per process; default: the node's cores divided by its slots"
    )
    shm: Bytes | None = Field(
        None, description="shared memory of a container of its own, such as '16GB'; default: all that the node has"
    )


def _or_text(schema: dict[str, Any]) -> None:
    """In the JSON Schema: `image: NAME` is short for `image: {use: NAME}`."""
    about: dict[str, Any] = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    whole = dict(schema)
    schema.clear()
    schema.update(about, anyOf=[whole, {"type": "string"}])


def _mountable(text: str) -> str:
    mounts.parse(text)
    return text


class JobSpec(_Section):
    """One training job: the same on every node but for its machine_rank."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$", description="prefix of the run id")
    hosts: Path | None = Field(None, description="hostfile; relative to job.yaml; --hosts wins over it")
    runtime: Literal["docker", "process"] = Field(
        "docker", description="docker: a container on each node; process: plain processes"
    )
    shared: Annotated[Path, BeforeValidator(_not_empty)] = Field(
        description="the same directory on every node; runs are written into it"
    )
    python: str | None = Field(
        None,
        description="python with clusterft[trainer]; default: a container's python3, else what runs clusterft",
    )
    launcher: Literal["accelerate", "torchrun", "deepspeed"] = Field(
        "accelerate", description="what starts the ranks of a node"
    )
    rendezvous: Literal["static", "elastic"] = Field(
        "static",
        description="elastic: torchrun's c10d, which restarts ranks within an attempt, up to `restarts` times in "
        "each; with launcher: torchrun",
    )
    port: Annotated[int, Field(ge=1024, le=_LAST_FIRST_PORT)] = Field(
        29500, description="first of 128 ports on the head of which a run takes two that are free"
    )
    resources: Resources = Resources()
    image: ImageSpec = Field(
        ImageSpec(),
        description="what containers are made from; a name alone means use",
        json_schema_extra=_or_text,
    )
    env: dict[str, str] = Field(default_factory=dict, description="set in every training process")
    secrets: tuple[str, ...] = Field(
        (), description="names only; values come from this machine's environment and travel in 0600 files"
    )
    mounts: tuple[Annotated[str, AfterValidator(_mountable)], ...] = Field(
        (),
        description="more paths of the nodes, the same inside a container as outside; :ro for reading alone; "
        "shared, models and pictures need no mention",
    )
    user: str | None = Field(
        None, description="UID:GID in the containers; default: those of the user who logs in on the head"
    )
    restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="how often a run that failed begins again from its newest checkpoint"
    )
    min_nodes: Annotated[int, Field(gt=0)] | None = Field(
        None, description="a run goes on with this many when others are lost; default: all of them are needed"
    )
    hang_after: Seconds = Field(
        600.0, description="no step for so long is a hang; a script: no line of its log, and nothing computed"
    )
    first_step_after: Seconds = Field(1800.0, description="the same until the first step of an attempt")
    patience: Seconds = Field(300.0, description="how long a node may be out of reach before it counts as lost")
    stagger_seconds: Annotated[float, Field(ge=0, le=600, allow_inf_nan=False)] = Field(
        0.0, description="between the starts of a node's processes, for power supplies that trip"
    )
    train: TrainConfig | None = Field(None, description="what clusterft's own trainer does; this or script")
    script: ScriptSpec | None = Field(
        None, validate_default=True, description="a training program of your own; this or train"
    )

    _document: positions.Document | None = PrivateAttr(None)  # what it was read from

    @property
    def binds(self) -> tuple[Mount, ...]:
        """What a container sees of its node: the shared dir, the job's mounts, and what is read where it lies."""
        given = (Mount(str(self.shared)), *(mounts.parse(text) for text in self.mounts))
        read = sorted({path for _, path in _train_paths(self.train)} if self.train else ())
        alone = [
            one for one in read if not any(mounts.covered(one, [Mount(other)]) for other in read if other != one)
        ]
        kept = self.local_cache
        written = () if kept is None or mounts.covered(kept, given) else (Mount(kept),)
        whole = (*given, *written)
        return (*whole, *(Mount(path, read_only=True) for path in alone if not mounts.covered(path, whole)))

    @property
    def local_cache(self) -> str | None:
        """The folder of each node in which copies of the cache are kept, where the job asks for that."""
        return self.train.data.cache.local if self.train and self.train.data.cache else None

    @property
    def own_paths(self) -> tuple[str, ...]:
        """What the trainer reads on each node outside the shared dir: most likely from the node's own disk."""
        read = sorted({path for _, path in _train_paths(self.train)}) if self.train else []
        return tuple(path for path in read if not mounts.covered(path, [Mount(str(self.shared))]))

    @property
    def named_paths(self) -> tuple[str, ...]:
        """What a run touches on each node outside the shared dir: what it reads, and what is mounted for it."""
        whole = [Mount(str(self.shared))]
        given = (mounts.parse(text).path for text in self.mounts)
        return tuple(dict.fromkeys((*self.own_paths, *(one for one in given if not mounts.covered(one, whole)))))

    @property
    def weight_paths(self) -> tuple[str, ...]:
        """The model's files that lie outside the shared dir: on all nodes they must be the same, to the byte."""
        weights = {"model", "vae", "tokenizers"}
        read = {path for name, path in _train_paths(self.train) if name in weights} if self.train else set()
        return tuple(path for path in self.own_paths if path in read)

    def where(self, *steps: str | int) -> str:
        """FILE:LINE:COLUMN of a setting, or of the nearest above it; nothing of a job that came from no file."""
        if self._document is None:
            return ""
        place = self._document.where(steps)
        return f"{self._document.path}:{place.line}:{place.column}"

    @field_validator("shared")
    @classmethod
    def _may_be_mounted(cls, shared: Path, info: ValidationInfo) -> Path:
        why = mounts.refusal(str(absolute(shared, _base(info))))
        if why and info.data.get("runtime") == "docker":
            raise ValueError(why)
        return shared

    @field_validator("python")
    @classmethod
    def _whole_path(cls, python: str | None) -> str | None:
        if python is not None and not python.startswith("/"):
            raise ValueError("give the whole path on the nodes, from / on")
        return python

    @field_validator("rendezvous")
    @classmethod
    def _has_a_launcher(cls, rendezvous: str, info: ValidationInfo) -> str:
        launcher = info.data.get("launcher")
        if rendezvous == "elastic" and launcher not in ("torchrun", None):
            raise ValueError(f"elastic is torchrun's alone, and launcher is {launcher}: change one of the two")
        return rendezvous

    @field_validator("resources")
    @classmethod
    def _shm_has_a_container(cls, resources: Resources, info: ValidationInfo) -> Resources:
        if resources.shm is not None and info.data.get("runtime") == "process":
            raise ValueError(f"shm: {_CONTAINERS_ALONE}")
        return resources

    @field_validator("mounts", "user")
    @classmethod
    def _has_a_container(cls, value: object, info: ValidationInfo) -> object:
        if value and info.data.get("runtime") == "process":
            raise ValueError(_CONTAINERS_ALONE)
        return value

    @field_validator("mounts")
    @classmethod
    def _each_once(cls, given: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        paths = [mounts.parse(text).path for text in given]
        if "shared" in info.data:
            paths.append(str(absolute(info.data["shared"], _base(info))))
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"{path} is mounted already")
        return given

    @field_validator("user")
    @classmethod
    def _is_numeric(cls, user: str | None) -> str | None:
        if user is not None and not _USER.fullmatch(user):
            raise ValueError('two numbers, such as "1000:1000": names differ from node to node')
        return user

    @field_validator("image")
    @classmethod
    def _fits_device(cls, image: ImageSpec, info: ValidationInfo) -> ImageSpec:
        device = info.data["resources"].device if "resources" in info.data else "cpu"
        if device == "cuda" and image.variant == "cpu":
            raise ValueError("the cpu variant has no CUDA, and resources.device is cuda: change one of the two")
        return image

    @field_validator("env")
    @classmethod
    def _env_names(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            _check_env_name(name)
        return env

    @field_validator("secrets")
    @classmethod
    def _secret_names(cls, secrets: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        for name in secrets:
            _check_env_name(name)
            if name in info.data.get("env", {}):
                raise ValueError(f"{name} is given under env too")
        return secrets

    @field_validator("train")
    @classmethod
    def _paths_are_named(cls, train: TrainConfig | None, info: ValidationInfo) -> TrainConfig | None:
        """An empty path would silently mean the directory of the job file."""
        for name in ("vae", "tokenizers"):
            if getattr(train, name, None) == "":
                raise ValueError(f"{name}: a path must be named")
        if train is not None and info.data.get("runtime") == "docker":
            whole = _with_absolute_train(train, _base(info))
            kept = whole.data.cache.local if whole.data.cache else None
            for name, path in (*_train_paths(whole), *([("data.cache.local", kept)] if kept else [])):
                why = mounts.refusal(path)
                if why:
                    raise ValueError(f"{name}: {why}")
        return train

    @field_validator("train")
    @classmethod
    def _suits_its_slots(cls, train: TrainConfig | None, info: ValidationInfo) -> TrainConfig | None:
        resources = info.data.get("resources")
        told = without_gpu(train) if train and resources and resources.device == "cpu" else []
        if told:
            raise ValueError("; ".join(told))
        return train

    @field_validator("script")
    @classmethod
    def _one_program(cls, script: ScriptSpec | None, info: ValidationInfo) -> ScriptSpec | None:
        if "train" not in info.data:
            return script  # it has been complained about
        if script is None and info.data["train"] is None:
            raise PydanticCustomError("no_program", "neither train nor script")
        if script is not None and info.data["train"] is not None:
            raise ValueError("a job has train or script, not both")
        return script


def _base(info: ValidationInfo) -> Path:
    """The folder of job.yaml; settings that come from no file have whole paths."""
    return Path(info.context["base"]) if isinstance(info.context, dict) else Path("/")


def _train_paths(train: TrainConfig) -> Iterator[tuple[str, str]]:
    """(setting, path) of all that the trainer reads on a node; the paths are whole by now."""
    for name in ("model", "vae", "tokenizers"):
        path = getattr(train, name)
        if path is not None and not path.startswith("builtin:"):
            yield name, path
    for source in train.data.sources:
        for name, place in locations(source).items():
            if "://" not in place:
                yield "data", mounts.seat(place) if name in _FILES else place


def _check_env_name(name: str) -> None:
    if not _ENV_NAME.match(name):
        raise ValueError(f'"{name}" is not the name of an environment variable')
    if name in _RESERVED or name.startswith("CLUSTERFT_"):
        raise ValueError(f"{name} is set from the plan and cannot be given")


def load(path: Path) -> JobSpec:
    """Read job.yaml; every mistake in it is reported at once, with file, line and column."""
    document = positions.read(path)
    raw = document.value
    if not isinstance(raw, dict):
        place = document.where(())
        raise document.problem(place, "a job file is a mapping of keys", "", "clusterft init   writes one")
    if isinstance(raw.get("image"), str):
        raw = {**raw, "image": {"use": raw["image"]}}
    base = path.resolve().parent
    try:
        # As JSON, since only there pydantic is strict about numbers and words and still takes a list for a tuple.
        spec = JobSpec.model_validate_json(json.dumps(raw), strict=True, context={"base": base})
    except ValidationError as error:
        raise InvalidFile(refusal.explain(document, error, JobSpec)) from None
    whole = _with_absolute_paths(_with_variant(spec), base)
    whole._document = document
    return whole


def json_schema() -> dict[str, Any]:
    """The JSON Schema of job.yaml, for editors."""
    schema = JobSpec.model_json_schema()
    found = schema["$defs"]
    names = found["Optimizer"]["properties"]["name"]["enum"]
    # What may be written shorter than it is kept; pydantic tells of the long form alone.
    found["Learn"]["properties"]["optimizer"]["anyOf"] = [
        {"$ref": found["Learn"]["properties"]["optimizer"].pop("$ref")},
        {"type": "string", "enum": names},
    ]
    found["Checkpoints"]["properties"]["rolling"]["anyOf"][0] = _SPAN
    del found["Span"]
    for name in ("train", "script"):
        whole = schema["properties"][name]
        schema["properties"][name] = {"description": whole["description"], **whole["anyOf"][0]}
    schema["oneOf"] = [{"required": ["train"]}, {"required": ["script"]}]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "clusterft job"}


def _with_variant(spec: JobSpec) -> JobSpec:
    """Who says `device: cpu` need not say it again for the image."""
    if "variant" in spec.image.model_fields_set:
        return spec
    return spec.model_copy(update={"image": spec.image.model_copy(update={"variant": spec.resources.device})})


def _with_absolute_paths(spec: JobSpec, base: Path) -> JobSpec:
    """Paths in a job file are relative to the file, not to where the command was typed."""
    train = spec.train and _with_absolute_train(spec.train, base)
    script = spec.script and spec.script.settled(base)
    hosts = None if spec.hosts is None else absolute(spec.hosts, base)
    files = {key: getattr(spec.image, key) for key in ("dockerfile", "ca_bundle", "wheelhouse")}
    here = {key: absolute(path, base) for key, path in files.items() if path is not None}
    image = spec.image.model_copy(update=here)
    whole = {"hosts": hosts, "train": train, "script": script, "image": image}
    return spec.model_copy(update={"shared": absolute(spec.shared, base), **whole})


def _with_absolute_train(train: TrainConfig, base: Path) -> TrainConfig:
    """The paths within `train:`; a model, VAE or folder is then sought there on every node."""
    sources = tuple(_absolute_source(source, base) for source in train.data.sources)
    given = {name: getattr(train, name) for name in ("model", "vae", "tokenizers")}
    paths = {
        name: str(absolute(Path(path), base))
        for name, path in given.items()
        if path is not None and not path.startswith("builtin:")
    }
    cache = train.data.cache
    if cache and cache.local:
        cache = cache.model_copy(update={"local": str(absolute(Path(cache.local), base))})
    data = train.data.model_copy(update={"sources": sources, "cache": cache})
    return train.model_copy(update={**paths, "data": data})


def _absolute_source(source: Source, base: Path) -> Source:
    """URLs are whole as they are."""
    paths = {name: place for name, place in locations(source).items() if "://" not in place}
    return source.model_copy(update={name: str(absolute(Path(place), base)) for name, place in paths.items()})
