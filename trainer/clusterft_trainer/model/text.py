"""Captions on their way to the UNet: token ids, and the states that the text encoders make of them.

Owns how a long caption is cut and joined (SDXL's encoders read 77 ids at a time) and which states are used. One
path for trained and for frozen encoders: `states` runs wherever the encoder is. Refuses a model whose second
encoder would look for the caption's end in a wrong place.
"""

from __future__ import annotations

from typing import Any

import torch

from clusterft_trainer.errors import DataError
from clusterft_trainer.words import PIECE as PIECE
from clusterft_trainer.words import Encode, Marks, Words

# CLIP's configurations carried this wrong id for years; transformers then takes the highest id for the end.
_LEGACY_END = 2


def token_ids(tokenizer: Any, captions: list[str], longest: int) -> torch.Tensor:
    """(B, pieces, 77) int64: each piece is start, up to 75 ids, end, and the encoder's own padding.

    The same ids that kohya makes by cutting one long padded row and mending the ends, but for captions that hold
    the padding's own character ("!" of the second encoder), where mending can cut the caption off.
    """
    rows = tokenizer(captions, add_special_tokens=False, truncation=True, max_length=longest).input_ids
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ids = torch.full((len(captions), longest // PIECE, PIECE + 2), pad, dtype=torch.int64)
    ids[:, :, 0] = start
    for number, row in enumerate(rows):
        for piece in range(longest // PIECE):
            words = row[piece * PIECE : (piece + 1) * PIECE]
            ids[number, piece, 1 : len(words) + 2] = torch.tensor([*words, end])
    return ids


def words(tokenizers: tuple[Any, Any], longest: int, **bound: int) -> tuple[Words, ...]:
    """What gives the same ids as `token_ids`, much faster; one for both encoders where their vocabulary is one."""
    one, two = tokenizers
    ends = [(t.bos_token_id, t.eos_token_id) for t in tokenizers]
    if ends[0] == ends[1] and _rules(one) == _rules(two):
        marks = Marks(*ends[0], (one.pad_token_id, two.pad_token_id))
        return (Words(_encoder(one), marks, longest, **bound),)
    return tuple(
        Words(_encoder(t), Marks(*both, (t.pad_token_id,)), longest, **bound)
        for t, both in zip(tokenizers, ends, strict=True)
    )


def all_ids(dictionaries: tuple[Words, ...], captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, pieces, 77) for each of both encoders."""
    one, two = (torch.from_numpy(row) for each in dictionaries for row in each.ids(captions))
    return one, two


def rules(tokenizers: tuple[Any, Any]) -> str:
    """All that decides the ids of captions."""
    return "".join(f"{_rules(t)}{t.bos_token_id},{t.eos_token_id},{t.pad_token_id}" for t in tokenizers)


def _rules(tokenizer: Any) -> str:
    found: str = tokenizer.backend_tokenizer.to_str()
    return found


def _encoder(tokenizer: Any) -> Encode:
    backend = tokenizer.backend_tokenizer

    def encode(texts: list[str]) -> list[list[int]]:
        backend.no_truncation()  # a call of the tokenizer itself leaves its limit behind
        backend.no_padding()
        return [found.ids for found in backend.encode_batch(texts, add_special_tokens=False)]

    return encode


def states(encoder: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """(B, 75 x pieces + 2, width) states, and (B, projection) pooled ones if the encoder has them.

    The states are those before the last layer, without the final norm. The pooled one is the projection of what
    the last layer and the norm make of the first end token, in the caption's first piece.
    """
    found = encoder(ids.flatten(0, 1), output_hidden_states=True)
    pieces = found.hidden_states[-2].unflatten(0, ids.shape[:2])
    pooled: torch.Tensor | None = getattr(found, "text_embeds", None)
    return _joined(pieces), None if pooled is None else pooled[:: ids.shape[1]]


def check_end(encoder: Any, tokenizer: Any) -> None:
    """Without this check a wrong id would pool the start token, the same for every caption."""
    known = encoder.config.eos_token_id
    if known not in (_LEGACY_END, tokenizer.eos_token_id):
        raise DataError(
            f"The second text encoder ends captions with id {known}, its tokenizer with {tokenizer.eos_token_id}.",
            "Give tokenizers: the folder that belongs to this model.",
        )


def unused(first: Any) -> tuple[Any, ...]:
    """What of the first encoder nothing reads, since only the states before its last layer are used."""
    inner = getattr(first, "text_model", first)  # transformers 5.6 dropped this level
    return inner.encoder.layers[-1], inner.final_layer_norm


def _joined(pieces: torch.Tensor) -> torch.Tensor:
    """One row of states: the first start, all that lies between, the last end."""
    middle = pieces[:, :, 1:-1].flatten(1, 2)
    return torch.cat([pieces[:, 0, :1], middle, pieces[:, -1, -1:]], 1)
