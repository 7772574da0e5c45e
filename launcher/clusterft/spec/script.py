"""The `script` block of job.yaml: a training program of the user's own, and the folder that goes with it.

The script and its folder lie on the controller; the nodes get the folder by its content, so nothing has to be
copied there by hand. Refuses a script that is not there, and folders that nobody means to ship.
"""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from clusterft.errors import UsageError


class ScriptSpec(BaseModel):
    """A training program of your own, started once for each slot by the launcher."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code: Path | None = Field(
        None, description="the folder that is shipped to the nodes; default: the script's own folder"
    )
    path: Path = Field(description="the script; relative to job.yaml or to code")
    args: tuple[str, ...] = Field(
        (),
        description="its arguments, each as one text; @RUN_DIR@ is the run's directory; @WORLD@, @MACHINES@, "
        "@MACHINE_RANK@, @MASTER_ADDR@, @MASTER_PORT@, @ATTEMPT@ and @HERE@ (where `hostfile` lies) are filled in "
        "for each attempt",
    )
    workdir: str = Field(".", description="where it starts, relative to code")

    @property
    def folder(self) -> Path:
        """What is shipped. Whole once the job is loaded."""
        return self.code or self.path.parent

    @property
    def inside(self) -> PurePosixPath:
        """The script within that folder."""
        return PurePosixPath(self.path.relative_to(self.folder))

    def settled(self, base: Path) -> ScriptSpec:
        """With whole paths; `base` is the folder of job.yaml."""
        code, path = _whole(self.code, self.path, base)
        return self.model_copy(update={"code": code, "path": path, "workdir": os.path.normpath(self.workdir)})

    @field_validator("code", "path", mode="before")
    @classmethod
    def _named(cls, value: object) -> object:
        if value == "":
            raise ValueError("a path must be named")
        return value

    @field_validator("code")
    @classmethod
    def _is_folder(cls, code: Path | None, info: ValidationInfo) -> Path | None:
        base = _base(info)
        if code is None or base is None:
            return code
        folder = absolute(code, base)
        if not folder.is_dir():
            raise ValueError(f"there is no folder {code}; paths are relative to job.yaml")
        _shippable(folder, "name the folder of the program alone")
        return code

    @field_validator("path")
    @classmethod
    def _is_there(cls, path: Path, info: ValidationInfo) -> Path:
        base, given = _base(info), info.data.get("code")
        if base is None or "code" not in info.data:
            return path
        code, script = _whole(given, path, base)
        if not script.is_file():
            places = "relative to job.yaml or to script.code" if given else "relative to job.yaml"
            raise ValueError(f"there is no file {path}; the path is {places}")
        if not script.is_relative_to(code):
            raise ValueError(f"{path} lies outside script.code, which alone is shipped")
        if not given:
            _shippable(code, "move the script into a folder of its own, or give script.code")
        return path

    @field_validator("workdir")
    @classmethod
    def _within(cls, workdir: str, info: ValidationInfo) -> str:
        if PurePosixPath(workdir).is_absolute() or ".." in PurePosixPath(workdir).parts or not workdir:
            raise ValueError("it is a folder within code: give it relative to that")
        base = _base(info)
        if base is None or not {"code", "path"} <= info.data.keys():
            return workdir
        code, _ = _whole(info.data["code"], info.data["path"], base)
        if not (code / workdir).is_dir():
            raise ValueError(f"there is no folder {workdir} in the folder that is shipped")
        return workdir


def absolute(path: Path, base: Path) -> Path:
    """A path of a job file, which is relative to the file."""
    try:
        path = path.expanduser()
    except RuntimeError:
        raise UsageError(f"{path}: there is no such user here", remedy="write the whole path") from None
    # normpath, not resolve: the path is the nodes' own, and their links are not this machine's.
    plain = os.path.normpath(base / path)
    return Path("/" + plain.lstrip("/"))  # POSIX keeps two leading slashes apart from one; no filesystem here does


def _base(info: ValidationInfo) -> Path | None:
    """The folder of job.yaml; None where settings are judged that come from no file."""
    context = info.context
    return context["base"] if isinstance(context, dict) else None


def _whole(code: Path | None, path: Path, base: Path) -> tuple[Path, Path]:
    script = absolute(path, base)
    if code is None:
        return script.parent, script
    folder = absolute(code, base)
    within = absolute(path, folder)
    beside = script.is_file() and (script.is_relative_to(folder) or not within.is_file())
    return folder, script if beside else within


def _shippable(folder: Path, remedy: str) -> None:
    if folder in (Path(folder.anchor), Path.home()):
        raise ValueError(f"all of {folder} would be shipped: {remedy}")
