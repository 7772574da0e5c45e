"""ImageSpec -> what the engine is asked to build: two steps, each with its context, arguments and key.

First the foundation (ours, or the user's Dockerfile), then the last layers with the trainer. The key is a digest
of what goes in: an engine that has an image with that key has nothing to do. Talks to no engine.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clusterft.errors import ClusterftError, UsageError
from clusterft.image.context import Context, Entry, folder, read, wheels
from clusterft.image.wheel import Wheel
from clusterft.spec import ImageSpec

KEY, PART = "clusterft.image-key", "clusterft.image-part"
VARIANT, VERSION = "clusterft.image-variant", "clusterft.image-trainer"
FOUNDATION, LAST = "foundation", "last"

_SYSTEM = (
    "ca-certificates python3 python3-venv openssh-server openssh-client iproute2 procps "
    # InfiniBand and RoCE from user space; NCCL opens them at run time
    "libibverbs1 ibverbs-providers ibverbs-utils librdmacm1"
).split()
# Triton and DeepSpeed compile GPU code on the nodes; the CPU image compiles nothing there.
_COMPILER = "gcc g++ python3-dev".split()
_OPS = {
    "cuda": "FUSED_ADAM FUSED_LAMB FUSED_LION CPU_ADAM CPU_ADAGRAD CPU_LION UTILS",
    "cpu": "SHM_COMM CPU_ADAM CPU_ADAGRAD CPU_LION",
}
# Ampere to Blackwell; newer cards compile the last one's PTX.
_CARDS = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"
_TRAINER = "opt/clusterft/trainer"  # on sys.path by a .pth file
# What DeepSpeed is compiled with; not in the image.
BUILD = ("setuptools==80.9.0", "wheel==0.45.1")
# CLIP's vocabulary, for models that are a single file: the one file of the package that is read. Without what the
# package asks for: torchvision and timm are for code that nothing here imports. tools/setup.sh has the same pin.
VOCABULARY = "open_clip_torch==3.3.0"
# torch alone with these: a pin of anything else must not make a new layer of gigabytes.
_WITH_TORCH = frozenset("torch filelock typing_extensions sympy mpmath networkx jinja2 markupsafe fsspec".split())
_PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_DEFAULT_TIMEOUT")
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
_PASSWORD = re.compile(r"://[^/\s]*@")


@dataclass(frozen=True, slots=True)
class Recipe:
    """One build: what goes in, and the key that stands for all of it."""

    part: str
    dockerfile: str
    context: Context = field(repr=False)
    arguments: dict[str, str]
    labels: dict[str, str]
    key: str
    # Ways to reach the world from inside the build; they do not change what comes out, so the key leaves them out.
    ways: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def tag(self) -> str:
        """What the image is called on the engine that builds it."""
        name = "clusterft" if self.part == LAST else "clusterft-foundation"
        return f"{name}:{self.key[:12]}"


def foundation(spec: ImageSpec, needs: tuple[str, ...], environ: Mapping[str, str]) -> Recipe:
    """Our own foundation, or the user's."""
    if spec.dockerfile:
        return _users(spec.dockerfile, spec, environ)
    return _ours(spec, needs, environ)


def last(spec: ImageSpec, below: Recipe, wheel: Wheel) -> Recipe:
    """The last layers on a foundation: sessions, then the trainer."""
    tree = _with_folders([Entry(f"{_TRAINER}/{name}", data) for name, data in wheel.files])
    archive = Entry("trainer.tar", b"".join(tree.stream(lambda gone: None)))
    context = Context((Entry("Dockerfile", text("Dockerfile.last").encode()), archive))
    labels = {VARIANT: spec.variant, VERSION: wheel.version}
    return _recipe(LAST, "Dockerfile", context, {"FOUNDATION": below.tag}, labels)


def text(name: str) -> str:
    """What a file of images/ says."""
    return _file(name).read_text(encoding="utf-8")


def _file(name: str) -> Path:
    """A file of images/, in the installed package or in a checkout."""
    here = Path(__file__)
    root = here.parents[3]
    for path in (here.with_name("files") / name, root / "images" / name, root / name):
        if path.is_file():
            return path
    raise ClusterftError(f"this installation of clusterft lacks {name}")


def _ours(spec: ImageSpec, needs: tuple[str, ...], environ: Mapping[str, str]) -> Recipe:
    offline = spec.wheelhouse is not None
    cuda = spec.variant == "cuda"
    arguments = {
        "BASE": spec.foundation,
        "SYSTEM_PACKAGES": " ".join([*_SYSTEM, *(_COMPILER if cuda else ())]),
        "BUILD_PACKAGES": " ".join(_COMPILER),
        "PACKAGES": " ".join(spec.packages),
        "PIP_NO_INDEX": "1" if offline else "",
        "PIP_FIND_LINKS": "/wheelhouse" if offline else "",
        "DEEPSPEED_OPS": _OPS[spec.variant],
        "DS_ACCELERATOR": spec.variant,
        "TORCH_CUDA_ARCH_LIST": _CARDS if cuda else "",
    }
    entries = [Entry("Dockerfile", text("Dockerfile").encode()), *_python(spec, needs, offline)]
    entries += [folder("ca"), *_certificates(spec.ca_bundle)]
    entries += [folder("wheelhouse"), *_wheelhouse(spec, needs)]
    ways = _proxies(environ) if offline else {**_proxies(environ), **_pip_settings(environ)}
    return _recipe(FOUNDATION, "Dockerfile", _with_folders(entries), arguments, {VARIANT: spec.variant}, ways)


def _python(spec: ImageSpec, needs: tuple[str, ...], offline: bool) -> list[Entry]:
    """The requirements, apart by the layer that they become."""
    pins = text("constraints.txt")
    alone = [line for line in pins.splitlines() if _name(line) in _WITH_TORCH]
    by_name = {_name(need): need for need in needs}
    torch = by_name.pop("torch")
    # Elsewhere this version means CUDA; the index of CPU builds marks its own.
    torch += "" if offline or spec.variant == "cuda" else "+cpu"
    deepspeed = by_name.pop("deepspeed")
    compiler = text("portable-compiler").encode()
    listed: dict[str, Sequence[str]] = {
        "torch/constraints.txt": alone,
        "torch/requirements.txt": [torch],
        "stack/constraints.txt": pins.splitlines(),
        "stack/build.txt": BUILD,
        "stack/requirements.txt": sorted(by_name.values()),
        "stack/vocabulary.txt": [VOCABULARY],
        "stack/deepspeed.txt": [deepspeed],
        "extra/requirements.txt": spec.pip,
    }
    entries = [Entry(name, _lines(lines)) for name, lines in listed.items()]
    return entries + [Entry(f"stack/portable/{name}", compiler, mode=0o755) for name in ("gcc", "g++")]


def _wheelhouse(spec: ImageSpec, needs: tuple[str, ...]) -> tuple[Entry, ...]:
    """All its files; DeepSpeed must be there as source, since its kernels are compiled in the build."""
    if spec.wheelhouse is None:
        return ()
    found = wheels(spec.wheelhouse)
    pinned = next(need for need in needs if _name(need) == "deepspeed").replace("==", "-")
    vocabulary = VOCABULARY.replace("==", "-")
    wanted = (f"{pinned}.tar.gz", f"{vocabulary}-py3-none-any.whl")
    missing = [name for name in wanted if f"wheelhouse/{name}" not in {entry.name for entry in found}]
    if missing:
        fill = ["pip", "download", "--dest", str(spec.wheelhouse)]
        pins = ["--constraint", str(_file("constraints.txt"))]
        raise UsageError(
            f"the wheelhouse lacks {', '.join(missing)}",
            where=str(spec.wheelhouse),
            remedy=shlex.join([*fill, *pins, *needs, *BUILD, *spec.pip])
            + " && "
            + shlex.join([*fill, "--no-deps", VOCABULARY]),
        )
    return found


def _users(path: Path, spec: ImageSpec, environ: Mapping[str, str]) -> Recipe:
    if not path.is_file():
        raise UsageError("the Dockerfile does not exist", where=str(path), remedy="mend image.dockerfile")
    context = read(path.parent, path.name)
    return _recipe(FOUNDATION, path.name, context, {}, {VARIANT: spec.variant}, _proxies(environ))


def _recipe(
    part: str,
    dockerfile: str,
    context: Context,
    arguments: dict[str, str],
    labels: dict[str, str],
    ways: dict[str, str] | None = None,
) -> Recipe:
    whole = json.dumps([part, dockerfile, context.digest(), arguments, labels], sort_keys=True)
    key = hashlib.sha256(whole.encode()).hexdigest()
    return Recipe(part, dockerfile, context, arguments, {**labels, KEY: key, PART: part}, key, ways or {})


def _with_folders(entries: list[Entry]) -> Context:
    """Every directory is an entry of its own, so that its mode and time are fixed as well."""
    have = {entry.name for entry in entries}
    parents = {str(parent) for entry in entries for parent in Path(entry.name).parents} - have - {"."}
    return Context(tuple(sorted([*entries, *map(folder, parents)], key=lambda entry: entry.name)))


def _certificates(bundle: Path | None) -> list[Entry]:
    if bundle is None:
        return []
    try:
        data = bundle.read_bytes()
    except OSError as error:
        raise UsageError(f"the CA bundle cannot be read: {error.strerror}", where=str(bundle)) from None
    if b"-----BEGIN CERTIFICATE-----" not in data:
        raise UsageError("no certificate is in the CA bundle", where=str(bundle), remedy="it must be PEM text")
    if b"PRIVATE KEY-----" in data:
        raise UsageError("a private key is in the CA bundle: it would stay in the image", where=str(bundle))
    return [Entry("ca/bundle.crt", data)]


def _pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The index that this machine uses; an address with a password would stay in the build's history."""
    given = {name: environ[name] for name in _PIP if environ.get(name)}
    for name, value in given.items():
        if _PASSWORD.search(value):
            raise UsageError(
                f"{name} holds a password, which would stay in the image's history",
                remedy="pip download into a folder here, and name the folder as image.wheelhouse",
            )
    return given


def _proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Arguments that every builder knows and keeps out of the history, in both spellings."""
    names = [spelt for name in _PROXIES for spelt in (name, name.upper())]
    return {name: environ[name] for name in names if environ.get(name)}


def _name(line: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", line)
    return found[0].lower().replace("-", "_") if found else ""


def _lines(lines: Iterable[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
