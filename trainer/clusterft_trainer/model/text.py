"""Captions on their way to the UNet: token ids, and the states that the text encoders make of them.

Owns how a long caption is cut and joined (SDXL's encoders read 77 ids at a time) and which states are used. One
path for trained and for frozen encoders: `states` runs wherever the encoder is. Refuses a model whose second
encoder would look for the caption's end in a wrong place.
"""

from __future__ import annotations

from typing import Any

import torch

from clusterft_trainer.errors import DataError

PIECE = 75  # ids of a caption that fit between the start and the end token
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
