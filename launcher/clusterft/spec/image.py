"""The `image` block of job.yaml: the one image that all nodes run, and how it comes to be.

Owns names, types, defaults and the combinations that cannot be. Refuses what would put a password into an image,
and any key that would be ignored beside another. Pure: whether a file or an image exists is asked when it is used.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

# torch 2.13 from PyPI is built for CUDA 13.0; its devel flavour has the compiler that DeepSpeed's kernels need.
BASES = {"cuda": "nvidia/cuda:13.0.1-cudnn-devel-ubuntu24.04", "cpu": "debian:bookworm-slim"}

_REFERENCE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,250}(@sha256:[0-9a-f]{64})?")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+~:-]+)?")
_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(\[[A-Za-z0-9._,\s-]*\])?\s*([<>=!~;@(].*)?")
_PASSWORD = re.compile(r"://[^/\s]*@")


class ImageSpec(BaseModel):
    """How the image of a cluster is made, or which existing one it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    variant: Literal["cuda", "cpu"] = Field("cuda", description="default: what resources.device says")
    use: str | None = Field(
        None, description="an existing image, by name or digest, that the engine here has; nothing is built"
    )
    dockerfile: Path | None = Field(
        None, description="your own Dockerfile, built in its directory; clusterft's last layers go on top"
    )
    base: str | None = Field(
        None, description=f"what the image is built on; default: {BASES['cuda']}, for cpu {BASES['cpu']}"
    )
    packages: tuple[str, ...] = Field((), description="more Debian or Ubuntu packages")
    pip: tuple[str, ...] = Field((), description="more Python packages, as requirements")
    ca_bundle: Path | None = Field(
        None, description="certificates that the build and the image trust besides the public ones; PEM"
    )
    wheelhouse: Path | None = Field(
        None, description="folder with all wheels; with it the build asks no Python package index"
    )
    registry: str | None = Field(
        None,
        description="repository that the image is pushed to and that nodes pull from by digest; default: none",
    )
    build_on: Literal["controller", "head"] = Field("controller", description="whose Docker engine builds it")

    @property
    def foundation(self) -> str:
        """The image that the build starts from."""
        return self.base or BASES[self.variant]

    @field_validator("dockerfile", "base", "packages", "pip", "ca_bundle", "wheelhouse", "build_on")
    @classmethod
    def _not_beside_use(cls, value: object, info: ValidationInfo) -> object:
        if info.data.get("use") and value not in (None, (), "controller"):
            raise ValueError("nothing is built when use names an existing image: keep one of the two")
        return value

    @field_validator("base", "packages", "pip", "ca_bundle", "wheelhouse")
    @classmethod
    def _not_beside_dockerfile(cls, value: object, info: ValidationInfo) -> object:
        if info.data.get("dockerfile") and value not in (None, ()):
            raise ValueError("the Dockerfile takes the place of all that we would build: write it there")
        return value

    @field_validator("use", "base")
    @classmethod
    def _is_reference(cls, value: str | None) -> str | None:
        if value is not None and not _REFERENCE.fullmatch(value):
            raise ValueError(f'"{value}" is not the name of an image, such as name:tag or name@sha256:...')
        return value

    @field_validator("registry")
    @classmethod
    def _is_repository(cls, value: str | None) -> str | None:
        if value is None:
            return None
        if not _REFERENCE.fullmatch(value) or "@" in value or ":" in value.rpartition("/")[2]:
            raise ValueError(f'"{value}" is not a repository, such as registry.lan:5000/team/clusterft; no tag')
        return value

    @field_validator("packages")
    @classmethod
    def _are_packages(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not _PACKAGE.fullmatch(value):
                raise ValueError(f'"{value}" is not the name of a package')
        return values

    @field_validator("pip")
    @classmethod
    def _are_requirements(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if _PASSWORD.search(value):
                raise ValueError("a password would stay in the image: put the wheel into a wheelhouse")
            if not _REQUIREMENT.fullmatch(value):
                raise ValueError(f'"{value}" is not a requirement, such as bitsandbytes==0.49.0')
        return values

    @field_validator("dockerfile", "ca_bundle", "wheelhouse", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        """An empty path would silently mean the directory of the job file."""
        if value == "":
            raise ValueError("a path must be named")
        return value
