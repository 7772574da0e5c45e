"""Both of SDXL's tokenizers, found on this machine: in a folder, the hub's local cache or an installed package.

They share CLIP's vocabulary and differ in padding: the first encoder's is the end token, the second's "!", id 0.
Owns the order of the search; from a folder it takes the vocabulary alone. Refuses to ask a hub, and tokenizers
that do not fit the text encoders' vocabulary; the error names every place that was looked at.
"""

from __future__ import annotations

import gzip
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from transformers.models.clip.tokenization_clip import CLIPTokenizer

from clusterft_trainer.errors import DataError

LENGTH = 77  # tokens of one piece of text, both ends included
_NAMES = ("tokenizer", "tokenizer_2")
_PADDING = ("<|endoftext|>", "!")
_BASE = "stabilityai/stable-diffusion-xl-base-1.0"
_REPOSITORIES = ("openai/clip-vit-large-patch14", "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k")
_PACKAGE, _PACKED = "open_clip_torch", "open_clip/bpe_simple_vocab_16e6.txt.gz"
_MERGES = 49152 - 256 - 2  # how many of the file's lines CLIP was trained with
_REMEDY = (
    "Set tokenizers: to a folder that holds tokenizer/ and tokenizer_2/ of SDXL (or CLIP's vocab.json and "
    f"merges.txt), put those beside the model, or install {_PACKAGE}, which brings the vocabulary."
)


def load(near: Path, given: str | None, vocabulary: tuple[int, int]) -> tuple[Any, Any]:
    """The pair; `near` is the model's folder, `vocabulary` how many tokens each text encoder knows."""
    if given is not None:
        pair = _from_folder(Path(given))
        if pair is None:
            raise DataError(
                f"tokenizers: {given} holds neither {_NAMES[0]}/ nor vocab.json and merges.txt.", _REMEDY
            )
        return _fitting(pair, vocabulary, given)
    looked = [f"{near / _NAMES[0]} and {_NAMES[1]}"]
    pair = _beside(near)
    if pair is not None:
        return _fitting(pair, vocabulary, str(near))
    for name, found in (
        (f"the local hub cache ({_BASE}, {', '.join(_REPOSITORIES)})", _from_cache()),
        (f"the package {_PACKAGE}", _from_package()),
    ):
        if found is not None:
            return _fitting(found, vocabulary, name)
        looked.append(name)
    raise DataError(f"SDXL's tokenizers were not found: not in {'; '.join(looked)}.", _REMEDY)


def save(tokenizer: Any, folder: Path) -> None:
    """Write a tokenizer for every version of transformers: before 5 it is read from vocab.json and merges.txt."""
    tokenizer.save_pretrained(str(folder))
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in _pairs(model["merges"]))]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _beside(folder: Path) -> tuple[Any, Any] | None:
    if not all((folder / name).is_dir() for name in _NAMES):
        return None
    return _read(folder / _NAMES[0], _PADDING[0]), _read(folder / _NAMES[1], _PADDING[1])


def _from_folder(folder: Path) -> tuple[Any, Any] | None:
    """Both from a model's folder, or from one folder with CLIP's vocabulary."""
    pair = _beside(folder)
    if pair is None and _has_vocabulary(folder):
        return _read(folder, _PADDING[0]), _read(folder, _PADDING[1])
    return pair


def _has_vocabulary(folder: Path) -> bool:
    both = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return both or (folder / "tokenizer.json").is_file()


def _read(folder: Path, padding: str) -> Any:
    """A tokenizer from the vocabulary in a folder, in either of the forms that transformers writes."""
    if not _has_vocabulary(folder):
        raise DataError(f"{folder} holds neither vocab.json and merges.txt nor tokenizer.json.", _REMEDY)
    try:
        if (folder / "merges.txt").is_file() and (folder / "vocab.json").is_file():
            vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
            lines = (folder / "merges.txt").read_text(encoding="utf-8").split("\n")
            merges = _pairs([line for line in lines if line.strip() and not line.startswith("#version")])
        else:
            body = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            added = {token["content"]: token["id"] for token in body.get("added_tokens", [])}
            vocabulary, merges = body["model"]["vocab"] | added, _pairs(body["model"]["merges"])
        return _made(vocabulary, merges, padding)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"The tokenizer in {folder} cannot be read: {error}", "Copy that folder again.") from error


def _pairs(merges: list[Any]) -> list[tuple[str, str]]:
    split = (merge.split() if isinstance(merge, str) else merge for merge in merges)
    return [(first, second) for first, second in split]


def _made(vocabulary: dict[str, int], merges: list[tuple[str, str]], padding: str) -> Any:
    missing = [token for token in ("<|startoftext|>", "<|endoftext|>", padding) if token not in vocabulary]
    if missing:
        raise ValueError(f"its vocabulary has no {missing[0]}")
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
    # Only now: a padding that is known while it is made would be cut out of captions as a special token, and an
    # exclamation mark would get another id than open_clip, with which SDXL was trained, gives it.
    tokenizer.pad_token = padding
    return tokenizer


def _from_cache() -> tuple[Any, Any] | None:
    """What an earlier download left in the hub's cache on this machine."""
    for repository, folders in ((_BASE, _NAMES), (_REPOSITORIES[0], ("", "")), (_REPOSITORIES[1], ("", ""))):
        found = [_cached(repository, folder) for folder in folders]
        if found[0] is not None and found[1] is not None:
            return _read(found[0], _PADDING[0]), _read(found[1], _PADDING[1])
    return None


def _cached(repository: str, folder: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    for name in ("vocab.json", "tokenizer.json"):
        path = try_to_load_from_cache(repository, f"{folder}/{name}" if folder else name)
        if isinstance(path, str) and _has_vocabulary(Path(path).parent):
            return Path(path).parent
    return None


def _from_package() -> tuple[Any, Any] | None:
    """CLIP's vocabulary as open_clip ships it; the package is not imported, which would cost seconds."""
    try:
        files = importlib.metadata.distribution(_PACKAGE).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    for file in files:
        if file.as_posix() == _PACKED:
            path = Path(str(file.locate()))
            return built(path, _PADDING[0]), built(path, _PADDING[1])
    return None


def built(path: Path, padding: str) -> Any:
    """A tokenizer from the list of merges that OpenAI published with CLIP."""
    try:
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", f"Install {_PACKAGE} again.") from error
    merges = _pairs(lines[1 : _MERGES + 1])
    symbols = _byte_symbols()
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return _made({token: number for number, token in enumerate(tokens)}, merges, padding)


def _byte_symbols() -> list[str]:
    """The alphabet of byte pairs: printable bytes stand for themselves, the others are moved up behind them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]


def _fitting(pair: tuple[Any, Any], vocabulary: tuple[int, int], where: str) -> tuple[Any, Any]:
    for tokenizer, tokens in zip(pair, vocabulary, strict=True):
        if len(tokenizer) != tokens:
            raise DataError(
                f"The tokenizers from {where} know {len(tokenizer)} tokens, the model's text encoder {tokens}.",
                "Set tokenizers: to the folder of those that the model was trained with.",
            )
    return pair
