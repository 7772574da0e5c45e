"""Proves the model while it is trained: what the UNet is told, what moves, precision and pixels."""

from __future__ import annotations

import os
import time
from itertools import chain, combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import numpy as np  # noqa: E402
import specimens  # noqa: E402
from PIL import Image  # noqa: E402

from clusterft_trainer import buckets, builtin, dataset, decoding  # noqa: E402
from clusterft_trainer.config import Compute, Data, Learn, PartName  # noqa: E402
from clusterft_trainer.corpus import index  # noqa: E402
from clusterft_trainer.corpus.index import Index, Row  # noqa: E402
from clusterft_trainer.engine import groups  # noqa: E402
from clusterft_trainer.errors import ConfigError, DataError, RunError  # noqa: E402
from clusterft_trainer.model import attention, sdxl, text  # noqa: E402
from clusterft_trainer.model.parts import Parts  # noqa: E402

pytestmark = pytest.mark.trainer
PARTS: tuple[PartName, ...] = ("unet", "text_encoder_1", "text_encoder_2")
COMBINATIONS = list(chain.from_iterable(combinations(PARTS, n) for n in (1, 2, 3)))
DATA = {"sources": [{"builtin": "shapes"}], "resolution": 128}
WORDS = ("a", "red", "circle", "on", "white", "blue", "square", "triangle")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("builtin")


@pytest.fixture(scope="module")
def folder(home: Path) -> Path:
    return builtin.materialise("tiny", 0, home)


@pytest.fixture
def parts(folder: Path) -> Parts:
    return specimens.tiny(folder)


def learn(*trained: str, **changes: Any) -> Learn:
    return Learn.model_validate({**{name: {"rate": 1e-3} for name in trained}, **changes})


def build(parts: Parts, *trained: str, tokens: int = 75, **changes: Any) -> tuple[sdxl.Denoiser, sdxl.Encoders]:
    denoiser = sdxl.build_denoiser(parts, learn(*trained, **changes), Compute())
    return denoiser, sdxl.Encoders(parts, denoiser, "cpu", tokens)


def predict(denoiser: sdxl.Denoiser, encoders: sdxl.Encoders, captions: list[str]) -> torch.Tensor:
    noise = torch.randn((len(captions), 4, 16, 16), generator=torch.Generator().manual_seed(1))
    times = torch.tensor([500, 20, 999][: len(captions)])
    found: torch.Tensor = denoiser(noise, times, encoders.condition(captions, torch.zeros((len(captions), 6))))
    return found


def caption(length: int) -> str:
    """So many tokens: every word of these is one."""
    return " ".join(WORDS[(n * n + n // 7) % len(WORDS)] for n in range(length))


def kohyas_ids(tokenizer: Any, words: str, longest: int) -> torch.Tensor:
    """The rules as kohya has them: one padded row, cut, its ends mended where padding is no end token."""
    row = tokenizer(
        [words], padding="max_length", truncation=True, max_length=longest + 2, return_tensors="pt"
    ).input_ids[0]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    if longest == 75:
        return row[None]
    pieces = []
    for start in range(1, longest + 1, 75):
        piece = torch.cat([row[:1], row[start : start + 75], row[-1:]])
        if pad != end and piece[-2] not in (end, pad):
            piece[-1] = end
        if pad != end and piece[1] == pad:
            piece[1] = end
        pieces.append(piece)
    return torch.stack(pieces)


@pytest.fixture(scope="module")
def tokenizers(folder: Path) -> tuple[Any, Any]:
    return specimens.tiny(folder).tokenizers


@pytest.mark.parametrize("longest", [75, 150, 225])
@pytest.mark.parametrize("length", [0, 5, 74, 75, 76, 149, 150, 151, 224, 225, 300])
def test_token_ids_are_those_that_kohya_makes(tokenizers: tuple[Any, Any], longest: int, length: int) -> None:
    for tokenizer in tokenizers:
        words = caption(length)
        assert len(tokenizer([words], add_special_tokens=False).input_ids[0]) == length
        found = text.token_ids(tokenizer, [words, ""], longest)
        assert found.shape == (2, longest // 75, 77) and found.dtype == torch.int64
        assert torch.equal(found[0], kohyas_ids(tokenizer, words, longest))
        assert torch.equal(found[1], kohyas_ids(tokenizer, "", longest))


def test_padding_is_each_encoders_own(tokenizers: tuple[Any, Any]) -> None:
    one, two = (text.token_ids(t, [""], 75)[0, 0].tolist() for t in tokenizers)
    start, end = tokenizers[0].bos_token_id, tokenizers[0].eos_token_id
    assert one == [start] + [end] * 76, "the first encoder pads with its end token"
    assert two == [start, end] + [0] * 75, "the second pads with id 0"


def test_a_caption_that_holds_the_padding_sign_is_not_cut_off(tokenizers: tuple[Any, Any]) -> None:
    second = tokenizers[1]
    ids = text.token_ids(second, ["!! " + caption(80)], 150)
    assert ids[0, 0, 1] == second.pad_token_id and ids[0, 0, 2] != second.eos_token_id
    assert (ids[0, 0] == second.eos_token_id).nonzero().flatten().tolist() == [76]


@pytest.mark.parametrize(("longest", "lengths"), [(75, (5, 0, 90)), (225, (5, 100, 225)), (150, (0, 75, 149))])
def test_text_states_are_the_penultimate_ones_and_the_first_end_is_pooled(
    parts: Parts, longest: int, lengths: tuple[int, ...]
) -> None:
    """Against the plain way: each piece alone through the encoder's layers, by hand."""
    _, encoders = build(parts, "unet", tokens=longest)
    captions = [caption(n) for n in lengths]
    found = encoders.condition(captions, torch.zeros((3, 6)))
    assert found.hidden_1 is not None and found.hidden_2 is not None and found.pooled is not None
    assert found.tokens_1 is None and found.tokens_2 is None
    assert found.hidden_1.shape == (3, longest + 2, 32) and found.hidden_2.shape == (3, longest + 2, 64)
    second = parts.text_encoder_2
    inner = second.text_model
    for row, words in enumerate(captions):
        for encoder, tokenizer, hidden in (
            (
                getattr(parts.text_encoder_1, "text_model", parts.text_encoder_1),
                parts.tokenizers[0],
                found.hidden_1,
            ),
            (inner, parts.tokenizers[1], found.hidden_2),
        ):
            pieces = kohyas_ids(tokenizer, words, longest)
            alone = [layers_by_hand(encoder, piece, len(encoder.encoder.layers) - 1) for piece in pieces]
            joined = torch.cat([alone[0][:1], *(states[1:76] for states in alone), alone[-1][-1:]])
            assert torch.allclose(hidden[row], joined, atol=1e-5)
        first = kohyas_ids(parts.tokenizers[1], words, longest)[0]
        with torch.no_grad():
            last = inner.final_layer_norm(layers_by_hand(inner, first, len(inner.encoder.layers)))
            pooled = second.text_projection(last[first.tolist().index(parts.tokenizers[1].eos_token_id)])
        assert torch.allclose(found.pooled[row], pooled, atol=1e-5)
    assert not torch.allclose(found.pooled[0], found.pooled[1], atol=0.1), "captions look alike"


@torch.no_grad()
def layers_by_hand(inner: Any, ids: torch.Tensor, count: int) -> torch.Tensor:
    """The states after so many layers, for one row of ids, with no word seeing a later one."""
    states = inner.embeddings(input_ids=ids[None])
    mask = torch.full((77, 77), float("-inf")).triu(1)[None, None]
    for layer in inner.encoder.layers[:count]:
        states = layer(states, mask)
    found: torch.Tensor = states[0]
    return found


def test_frozen_states_are_remembered_and_the_same(parts: Parts) -> None:
    _, encoders = build(parts, "text_encoder_1")
    calls: list[int] = []
    parts.text_encoder_2.register_forward_hook(lambda _, args, out: calls.append(len(args[0])))
    some = encoders.condition([caption(5), "", caption(5)], torch.zeros((3, 6)))
    more = encoders.condition(["", caption(6)], torch.zeros((2, 6)))
    again = encoders.condition([caption(6), caption(5)], torch.zeros((2, 6)))
    assert calls == [1, 1, 1], "each caption once, and alone: kernels differ with the batch"
    for name in ("hidden_2", "pooled"):
        one, two, three = (getattr(given, name) for given in (some, more, again))
        assert torch.equal(one[0], one[2]) and torch.equal(one[1], two[0])
        assert torch.equal(three[0], two[1]) and torch.equal(three[1], one[0])
    assert some.hidden_1 is None and some.tokens_1 is not None and some.tokens_2 is None


def test_a_second_encoder_that_ends_captions_otherwise_is_refused(parts: Parts) -> None:
    parts.text_encoder_2.config.eos_token_id = 7
    with pytest.raises(DataError, match="ends captions with id 7, its tokenizer with 550"):
        build(parts, "unet")


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "computed-twice"])
@pytest.mark.parametrize("trained", COMBINATIONS, ids="+".join)
def test_every_trained_weight_gets_a_gradient_and_no_other(
    folder: Path, trained: tuple[PartName, ...], checkpointing: bool
) -> None:
    parts = specimens.tiny(folder)
    denoiser, encoders = build(parts, *trained, tokens=150, gradient_checkpointing=checkpointing)
    predict(denoiser, encoders, [caption(5), caption(100)]).square().mean().backward()
    for name, weight in denoiser.named_parameters():
        assert (weight.grad is not None) == weight.requires_grad, name
    for module in (parts.vae, *(parts.module(name) for name in PARTS if name not in trained)):
        assert not any(p.requires_grad or p.grad is not None for p in module.parameters())
    given = groups.of(denoiser, learn(*trained))
    assert tuple(group["name"] for group in given) == trained
    moving = {id(weight) for group in given for weight in group["params"]}
    assert moving == {id(p) for p in denoiser.parameters() if p.requires_grad}
    idle = [n for n, p in denoiser.named_parameters() if not p.requires_grad and not n.startswith("unet.")]
    expected = ("text_encoder_1.encoder.layers.1.", "text_encoder_1.final_layer_norm.")
    assert bool(idle) == ("text_encoder_1" in trained)
    assert all(n.replace(".text_model.", ".").startswith(expected) for n in idle)
    assert ("unet" in trained) == denoiser.unet.conv_in.weight.requires_grad


@pytest.mark.parametrize("trained", COMBINATIONS, ids="+".join)
def test_what_is_trained_does_not_change_what_is_predicted(
    folder: Path, plain: torch.Tensor, trained: tuple[PartName, ...]
) -> None:
    denoiser, encoders = build(specimens.tiny(folder), *trained, tokens=150, gradient_checkpointing=True)
    found = predict(denoiser, encoders, [caption(5), caption(100), ""])
    assert torch.allclose(found, plain, atol=1e-5)


@pytest.fixture(scope="module")
def plain(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return predict(*build(specimens.tiny(folder), "unet", tokens=150), [caption(5), caption(100), ""])


def test_computing_twice_gives_the_same_gradients(folder: Path) -> None:
    def gradients(twice: bool) -> dict[str, torch.Tensor]:
        denoiser, encoders = build(specimens.tiny(folder), *PARTS, gradient_checkpointing=twice)
        predict(denoiser, encoders, [caption(5)]).square().mean().backward()
        return {n: p.grad for n, p in denoiser.named_parameters() if p.grad is not None}

    once, twice = gradients(False), gradients(True)
    assert once.keys() == twice.keys()
    assert all(torch.allclose(once[n], twice[n], atol=1e-6) for n in once)


@pytest.mark.parametrize("choice", ["unet-71", ["input_blocks.4", "*.attn2.*"], ["out"]], ids=str)
def test_frozen_parts_of_the_unet_cost_no_gradient(parts: Parts, choice: Any) -> None:
    denoiser, encoders = build(parts, unet={"rate": 1e-3, "parts": choice}, gradient_checkpointing=True)
    predict(denoiser, encoders, [caption(5)]).square().mean().backward()
    moving = {n for n, p in denoiser.named_parameters() if p.requires_grad}
    assert {n for n, p in denoiser.named_parameters() if p.grad is not None} == moving
    assert 0 < len(moving) < sum(1 for _ in denoiser.parameters())
    if choice == "unet-71":
        assert not denoiser.unet.down_blocks[0].resnets[0].conv1.weight.requires_grad
        assert denoiser.unet.conv_in.weight.requires_grad


def test_data_parallelism_waits_for_no_weight(parts: Parts, tmp_path: Path) -> None:
    """DistributedDataParallel raises in the second step if a trained weight had no gradient in the first."""
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    unet = {"rate": 1e-3, "parts": "unet-71"}
    denoiser, encoders = build(parts, unet=unet, text_encoders={"rate": 1e-4}, gradient_checkpointing=True)
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(denoiser)
        for _ in range(2):
            predict(wrapped, encoders, [caption(5)]).square().mean().backward()
    finally:
        distributed.destroy_process_group()
    assert all(p.grad is not None for p in denoiser.parameters() if p.requires_grad)


def test_size_ids_stay_float32_in_a_bfloat16_model(parts: Parts) -> None:
    denoiser = build(parts, "unet")[0].to(torch.bfloat16)
    seen: list[Any] = []
    denoiser.unet.add_time_proj.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    given = sdxl.Conditioning(
        torch.tensor([[1100.0, 2893.0, 0.0, 64.0, 128.0, 128.0]]),
        hidden_1=torch.randn((1, 77, 32)),
        hidden_2=torch.randn((1, 77, 64)),
        pooled=torch.randn((1, 48)),
    )
    out = denoiser(torch.randn((1, 4, 16, 16)), torch.tensor([3]), given)
    ((ids, embedded),) = seen
    assert out.dtype == torch.bfloat16
    assert ids.dtype == embedded.dtype == torch.float32
    assert ids.tolist()[:2] == [1100.0, 2893.0]


def test_a_missing_state_is_told(parts: Parts) -> None:
    denoiser, _ = build(parts, "text_encoder_2")
    with pytest.raises(ValueError, match="for each text encoder"):
        denoiser(torch.zeros((1, 4, 8, 8)), torch.tensor([1]), sdxl.Conditioning(torch.zeros((1, 6))))


@pytest.mark.skipif(torch.cuda.is_available(), reason="shows what is refused without a GPU")
@pytest.mark.parametrize("kind", ["flash", "xformers"])
def test_a_kernel_that_is_not_here_is_refused(parts: Parts, kind: str) -> None:
    with pytest.raises(ConfigError, match=f"attention: {kind} needs an NVIDIA GPU") as error:
        sdxl.build_denoiser(parts, learn("unet"), Compute.model_validate({"attention": kind}))
    assert error.match("compute.attention: auto")


def test_attention_by_diffusers_table_is_the_same_attention(parts: Parts, plain: torch.Tensor) -> None:
    denoiser, encoders = build(parts, "unet", tokens=150)
    processor = attention.Dispatched()
    processor._attention_backend = "native"
    denoiser.unet.set_attn_processor(processor)
    with torch.no_grad():
        found = predict(denoiser, encoders, [caption(5), caption(100), ""])
    assert torch.allclose(found, plain, atol=1e-5)


@pytest.mark.long
def test_blocks_are_compiled_once_for_each_kind_and_size_under_their_own_names(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    graphs: list[Any] = []
    real = torch.compile

    def counting(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend=counting, **options))
    denoiser, encoders = build(parts, "unet", "text_encoder_2")
    names, blocks = (
        list(denoiser.state_dict()),
        [m for m in denoiser.modules() if type(m).__name__ in sdxl._BLOCKS],
    )
    sdxl.compile_blocks(denoiser, sizes=2)
    assert list(denoiser.state_dict()) == names
    given = encoders.condition([caption(5)], torch.zeros((1, 6)))
    totals = []
    for shape in ((8, 8), (8, 16), (8, 8)):
        denoiser(torch.randn((1, 4, *shape)), torch.tensor([3]), given).sum().backward()
        totals.append(len(graphs))
    assert 0 < totals[0] < len(blocks) and totals[0] < totals[1] == totals[2] < 2 * len(blocks)


@pytest.mark.long
def test_a_compiled_backward_hands_over_gradients_block_by_block(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a step fused into the backward would save nothing."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: real(f, backend="aot_eager", **options))
    denoiser, encoders = build(parts, "unet", "text_encoder_2")
    sdxl.compile_blocks(denoiser, sizes=1)
    alive: set[Any] = set()
    most = handed = 0

    def ready(weight: Any) -> None:
        nonlocal most, handed
        handed += 1
        alive.update(w for w in denoiser.parameters() if w.grad is not None)
        most = max(most, sum(w.numel() for w in alive))
        alive.clear()
        weight.grad = None

    trained = [w for w in denoiser.parameters() if w.requires_grad]
    for weight in trained:
        weight.register_post_accumulate_grad_hook(ready)
    given = encoders.condition([caption(5)], torch.zeros((1, 6)))
    denoiser(torch.randn((1, 4, 8, 8)), torch.tensor([3]), given).sum().backward()
    assert handed == len(trained) and most < sum(w.numel() for w in trained) / 4


def test_a_vae_in_half_precision_gives_nearly_the_same(folder: Path) -> None:
    pixels = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))
    batch, drawn = a_batch(range(2), pixels), a_draw(torch.zeros((2, 4, 8, 12)))
    found = []
    for kind in ("fp32", "bf16"):
        parts = specimens.tiny(folder)
        denoiser = sdxl.build_denoiser(parts, learn("unet"), Compute())
        encoders = sdxl.Encoders(parts, denoiser, "cpu", formats=sdxl.Formats(vae=kind, text=kind))  # type: ignore[arg-type]
        found.append(encoders.latents(batch, drawn))
        given = encoders.condition([caption(5)], torch.zeros((1, 6)))
        assert given.hidden_1 is not None and given.hidden_1.dtype == sdxl.DTYPES[kind]
        assert given.time_ids.dtype == torch.float32 and encoders.known(1)
        assert encoders.decode(found[-1]).shape == (2, 64, 96, 3)
    assert found[1].dtype == torch.float32
    assert 0 < (found[0] - found[1]).abs().max() < 0.1 * found[0].abs().max()


def test_latents_do_not_depend_on_what_shares_the_batch(parts: Parts) -> None:
    with torch.no_grad():  # the builtin VAE is so plain that no order of summing shows
        for weight in parts.vae.parameters():
            weight.normal_(0.0, 0.1)
    _, encoders = build(parts, "unet")
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    drawn = torch.randn((3, 4, 8, 8))
    together = encoders.latents(a_batch(range(3), pixels), a_draw(drawn))
    for n in range(3):
        alone = encoders.latents(a_batch([n], pixels[n : n + 1]), a_draw(drawn[n : n + 1]))
        assert torch.equal(alone[0], together[n])


def a_batch(indices: Any, pixels: torch.Tensor | None, latents: torch.Tensor | None = None, **places: Any) -> Any:
    """A batch of which nothing is cached, unless it is given."""
    numbers = list(indices)
    given = {"places": tuple(range(len(numbers)))} | places
    return SimpleNamespace(indices=numbers, keys=numbers, pixels=pixels, latents=latents, **given)


def test_cached_latents_are_scaled_and_stand_beside_those_that_are_made(parts: Parts) -> None:
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    noise, scale = a_draw(torch.randn((3, 4, 8, 8))), parts.vae.config.scaling_factor
    denoiser, encoders = build(parts, "unet")
    made = encoders.latents(a_batch(range(3), pixels), noise)
    stored = torch.randn((3, 4, 8, 8))
    whole = encoders.latents(a_batch(range(3), None, stored, places=()), noise)
    assert torch.equal(whole, stored * scale)
    for known in (pixels[1:2], None):  # made now, and remembered
        mixed = encoders.latents(a_batch(range(3), known, stored, places=(1,)), noise)
        assert torch.equal(mixed[[0, 2]], whole[[0, 2]]) and torch.equal(mixed[1], made[1])
    assert torch.equal(stored * scale, whole), "what was cached is left as it was"
    mean = sdxl.Encoders(parts, denoiser, "cpu", formats=sdxl.Formats(take="mean"))
    for drawn in (torch.randn((3, 4, 8, 8)), torch.zeros((3, 4, 8, 8))):
        found = mean.latents(a_batch(range(3), pixels), a_draw(drawn))
        assert torch.equal(found, encoders.latents(a_batch(range(3), pixels), a_draw(torch.zeros((3, 4, 8, 8)))))


@pytest.mark.parametrize("trained", COMBINATIONS)
def test_what_the_loader_gives_with_a_batch_is_what_the_encoders_would_have_made(
    parts: Parts, trained: tuple[PartName, ...]
) -> None:
    _, encoders = build(parts, *trained, tokens=150)
    _, frozen = build(parts, "unet", tokens=150)
    captions, ids = [caption(80), "", caption(3)], torch.zeros((3, 6))
    tokens = text.all_ids(encoders.words, captions)
    all_states = frozen.condition(captions, ids)
    states = (all_states.hidden_1, all_states.hidden_2, all_states.pooled)
    plain = encoders.condition(captions, ids)
    _, fresh = build(parts, *trained, tokens=150)
    for given in (fresh.condition(captions, ids, tokens), encoders.condition(captions, ids, tokens, states)):  # type: ignore[arg-type]
        for name in ("hidden_1", "hidden_2", "pooled", "tokens_1", "tokens_2"):
            one, other = getattr(plain, name), getattr(given, name)
            assert (one is None) == (other is None) and (one is None or torch.equal(one, other)), name


def a_draw(latent_noise: torch.Tensor) -> Any:
    return SimpleNamespace(latent_noise=latent_noise)


def test_latents_that_are_no_numbers_name_the_sample_and_the_setting(parts: Parts) -> None:
    _, encoders = build(parts, "unet")
    with torch.no_grad():
        parts.vae.quant_conv.bias[0] = float("inf")
    batch = a_batch([41], torch.zeros((1, 3, 64, 64), dtype=torch.uint8))
    with pytest.raises(RunError, match="latents of sample 41 are not finite in float32") as error:
        encoders.latents(batch, a_draw(torch.zeros((1, 4, 8, 8))))
    assert "compute.vae_dtype" in error.value.remedy and not encoders.known(41)


def test_builtin_parts_are_made_once_and_survive_a_kill(home: Path, folder: Path) -> None:
    leftover = home / ".new-tiny-killed"
    leftover.mkdir()
    (leftover / "half").write_bytes(b"x")
    young = home / ".new-tiny-at-work"
    young.mkdir()
    long_ago = time.time() - 3600
    os.utime(leftover, (long_ago, long_ago))
    stamp = (folder / "unet" / "config.json").stat().st_mtime_ns
    assert builtin.materialise("tiny", 0, home) == folder
    assert (folder / "unet" / "config.json").stat().st_mtime_ns == stamp
    pictures = builtin.materialise("shapes", 5, home)
    assert len(list(pictures.glob("*.png"))) == len(list(pictures.glob("*.txt"))) == 5
    assert young.exists() and not leftover.exists()
    young.rmdir()


def a_row(path: Path, width: int, height: int, caption: str = "", name: str = "") -> Row:
    return Row(0, name or path.name, str(path), -1, 0, b"", width, height, caption, None, "")


def shapes(home: Path, times: int = 1) -> Index:
    """The builtin pictures, each so many times."""
    files = sorted(builtin.materialise("shapes", 5, home).glob("*.png")) * times
    rows = [
        a_row(f, *Image.open(f).size, f.with_suffix(".txt").read_text(), f"{n:05d}") for n, f in enumerate(files)
    ]
    return index.write(home / f"index-{times}", rows)


def test_the_builtin_vae_gives_pictures_back(home: Path, parts: Parts) -> None:
    pictures = dataset.Pictures(shapes(home), Data.model_validate(DATA), seed=0)
    _, encoders = build(parts, "unet")
    for sample in range(5):
        batch = pictures.batch([buckets.Slot(sample, 1)], 0, lambda _: False)
        shape = encoders.latent_shape(batch.bucket.width, batch.bucket.height)
        noise = torch.randn((1, *shape), generator=torch.Generator().manual_seed(sample))
        drawn = a_draw(noise)
        latents = encoders.latents(batch, drawn)
        assert latents.shape[1:] == shape
        again = pictures.batch([buckets.Slot(sample, 1)], 0, encoders.known)
        assert again.pixels is None and torch.equal(encoders.latents(again, drawn), latents)
        back = encoders.decode(latents).float()
        assert batch.pixels is not None
        difference = (back - batch.pixels.permute(0, 2, 3, 1).float()).abs().mean()
        assert difference < 12, "of 255: edges are soft, colours are right"


def test_transparency_lies_on_white_and_the_middle_is_cut_out(tmp_path: Path) -> None:
    image = Image.new("RGBA", (400, 100), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (150, 0, 250, 100))
    image.save(tmp_path / "p.png")
    row = a_row(tmp_path / "p.png", 400, 100)
    bucket = buckets.Bucket(64, 64)
    pixels = decoding.pixels(row, buckets.fit(400, 100, bucket), bucket)
    assert pixels.shape == (64, 64, 3)
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 2
    wide = buckets.Bucket(128, 32)
    edge = decoding.pixels(row, buckets.fit(400, 100, wide), wide)[:, 0]
    assert edge.tolist() == [[255, 255, 255]] * 32


def test_a_cut_picture_is_named(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "p.png")
    data = (tmp_path / "p.png").read_bytes()
    (tmp_path / "p.png").write_bytes(data[: len(data) // 2])
    row = a_row(tmp_path / "p.png", 64, 64)
    with pytest.raises(DataError, match=r"p\.png cannot be decoded"):
        decoding.pixels(row, buckets.Fit(64, 64, 0, 0), buckets.Bucket(64, 64))


def test_a_picture_that_was_put_in_anothers_place_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("RGB", (64, 32)).save(tmp_path / "p.png")
    fit, bucket = buckets.Fit(64, 64, 0, 0), buckets.Bucket(64, 64)
    with pytest.raises(DataError, match=r"p\.png is 64x32 now; when it was indexed, 32x32 were to be shown"):
        decoding.pixels(a_row(tmp_path / "p.png", 32, 32), fit, bucket)


def test_a_picture_in_a_tar_is_read_in_its_place(tmp_path: Path) -> None:
    Image.effect_noise((64, 64), 50).convert("RGB").save(tmp_path / "p.png")
    alone = (tmp_path / "p.png").read_bytes()
    (tmp_path / "a.tar").write_bytes(b"x" * 512 + alone + b"y" * 77)
    whole = Row(0, "p.png", str(tmp_path / "p.png"), -1, len(alone), b"", 64, 64, "", None, "")
    inside = Row(0, "p.png", str(tmp_path / "a.tar"), 512, len(alone), b"", 64, 64, "", None, "")
    fit, bucket = buckets.Fit(64, 64, 0, 0), buckets.Bucket(64, 64)
    assert np.array_equal(decoding.pixels(whole, fit, bucket), decoding.pixels(inside, fit, bucket))
    cut = Row(0, "p.png", str(tmp_path / "a.tar"), 512, len(alone) + 78, b"", 64, 64, "", None, "")
    with pytest.raises(DataError, match=r"a\.tar \(p\.png\) cannot be decoded \(it ends 1 bytes too soon"):
        decoding.pixels(cut, fit, bucket)


def test_dropout_empties_the_stated_share_of_captions(home: Path) -> None:
    found = shapes(home, 200)
    data = Data.model_validate(DATA | {"captions": {"dropout": 0.3}})
    pictures = dataset.Pictures(found, data, seed=1)
    captions = [pictures._settled("a", i, 0, None) for i in range(1000)]
    assert captions.count("") == pytest.approx(300, abs=60)
    assert captions == [pictures._settled("a", i, 0, None) for i in range(1000)]
    assert captions != [pictures._settled("a", i, 1, None) for i in range(1000)]
