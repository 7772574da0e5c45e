"""The typed job: keys of job.yaml, their defaults and the combinations that cannot work.

The `train:` block is the trainer's own TrainConfig, so a typo in it is found before any node is touched.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from clusterft.errors import InvalidFile, UsageError
from clusterft.spec import positions, refusal
from clusterft.spec.image import ImageSpec
from clusterft_trainer.config import BuiltinSource, FolderSource, TrainConfig

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
# The launcher sets these from the plan; a second source would make a run differ from its plan.
_RESERVED = frozenset(
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES".split()
)
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


def _or_text(schema: dict[str, Any]) -> None:
    """In the JSON Schema: `image: NAME` is short for `image: {use: NAME}`."""
    about: dict[str, Any] = {key: schema.pop(key) for key in ("description", "default") if key in schema}
    whole = dict(schema)
    schema.clear()
    schema.update(about, anyOf=[whole, {"type": "string"}])


class JobSpec(_Section):
    """One training job: the same on every node but for its machine_rank."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$", description="prefix of the run id")
    hosts: Path | None = Field(None, description="hostfile; relative to job.yaml; --hosts wins over it")
    shared: Annotated[Path, BeforeValidator(_not_empty)] = Field(
        description="the same directory on every node; runs are written into it"
    )
    runtime: Literal["process"] = Field(description="process: plain processes on the nodes")
    python: str | None = Field(
        None, description="python with clusterft[trainer] on the nodes; default: the one that runs clusterft"
    )
    launcher: Literal["accelerate", "torchrun"] = "accelerate"
    rendezvous: Literal["static"] = "static"
    port: Annotated[int, Field(ge=1024, le=65535)] = Field(
        29500, description="first rendezvous port to try on the head"
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
    train: TrainConfig

    @field_validator("python")
    @classmethod
    def _whole_path(cls, python: str | None) -> str | None:
        if python is not None and not python.startswith("/"):
            raise ValueError("give the whole path on the nodes, from / on")
        return python

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
    def _paths_are_named(cls, train: TrainConfig) -> TrainConfig:
        """An empty path would silently mean the directory of the job file."""
        for name in ("vae", "tokenizers"):
            if getattr(train, name) == "":
                raise ValueError(f"{name}: a path must be named")
        return train


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
        raise document.problem(place, "a job file is a mapping of keys", "", "clusterft init writes one")
    if isinstance(raw.get("image"), str):
        raw = {**raw, "image": {"use": raw["image"]}}
    try:
        # As JSON, since only there pydantic is strict about numbers and words and still takes a list for a tuple.
        spec = JobSpec.model_validate_json(json.dumps(raw), strict=True)
    except ValidationError as error:
        raise InvalidFile(refusal.explain(document, error, JobSpec)) from None
    return _with_absolute_paths(_with_variant(spec), path.resolve().parent)


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
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "clusterft job"}


def _with_variant(spec: JobSpec) -> JobSpec:
    """Who says `device: cpu` need not say it again for the image."""
    if "variant" in spec.image.model_fields_set:
        return spec
    return spec.model_copy(update={"image": spec.image.model_copy(update={"variant": spec.resources.device})})


def _with_absolute_paths(spec: JobSpec, base: Path) -> JobSpec:
    """Paths in a job file are relative to the file, not to where the command was typed."""
    train = _with_absolute_train(spec.train, base)
    hosts = None if spec.hosts is None else _absolute(spec.hosts, base)
    files = {key: getattr(spec.image, key) for key in ("dockerfile", "ca_bundle", "wheelhouse")}
    here = {key: _absolute(path, base) for key, path in files.items() if path is not None}
    image = spec.image.model_copy(update=here)
    shared = _absolute(spec.shared, base)
    return spec.model_copy(update={"shared": shared, "hosts": hosts, "train": train, "image": image})


def _with_absolute_train(train: TrainConfig, base: Path) -> TrainConfig:
    """The paths within `train:`; a model, VAE or folder is then sought there on every node."""
    sources = tuple(_absolute_source(source, base) for source in train.data.sources)
    given = {name: getattr(train, name) for name in ("model", "vae", "tokenizers")}
    paths = {
        name: str(_absolute(Path(path), base))
        for name, path in given.items()
        if path is not None and not path.startswith("builtin:")
    }
    return train.model_copy(update={**paths, "data": train.data.model_copy(update={"sources": sources})})


def _absolute_source(source: FolderSource | BuiltinSource, base: Path) -> FolderSource | BuiltinSource:
    if isinstance(source, FolderSource):
        return source.model_copy(update={"folder": _absolute(source.folder, base)})
    return source


def _absolute(path: Path, base: Path) -> Path:
    try:
        path = path.expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: there is no such user here", remedy="write the whole path") from None
    # normpath, not resolve: the path is the nodes' own, and their links are not this machine's.
    return Path(os.path.normpath(base / path))
