"""The fast reader of picture headers against Pillow, which decodes them in training."""

from __future__ import annotations

import io
import struct
import zlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from clusterft_trainer.corpus import headers, picture

pytestmark = [pytest.mark.trainer, pytest.mark.filterwarnings("ignore::UserWarning")]
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF")
few = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def stored(kind: str, width: int, height: int, told: int | None = None, **options: object) -> bytes:
    image = Image.new("RGB", (width, height), (10, 200, 30))
    if told is not None and kind in ("PNG", "JPEG", "WEBP"):
        exif = Image.Exif()
        exif[0x010E] = "a picture"
        exif[274] = told
        options["exif"] = exif
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pillow(data: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(data)) as image:
        told = image.getexif().get(274, 1)
        return image.size[::-1] if told in headers.SIDEWAYS else image.size


@few
@given(
    st.sampled_from(KINDS),
    st.integers(1, 300),
    st.integers(1, 300),
    st.sampled_from([None, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]),
)
def test_every_kind_and_every_orientation_has_the_size_that_pillow_shows(kind, width, height, told):
    data = stored(kind, width, height, told)
    assert picture.size_of(data, len(data)) == pillow(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.parametrize("told", [None, 6])
def test_the_usual_kinds_need_no_decoder(kind, told):
    data = stored(kind, 31, 17, told)
    assert headers.shown(data, len(data)) == pillow(data)


@pytest.mark.parametrize("options", [{"lossless": True}, {"lossless": True, "exact": True}, {"quality": 30}])
def test_webp_of_both_codings_with_and_without_an_alpha_channel(options):
    for mode in ("RGB", "RGBA"):
        out = io.BytesIO()
        Image.new(mode, (37, 21), 0).save(out, "WEBP", **options)
        assert headers.shown(out.getvalue(), len(out.getvalue())) == (37, 21)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_both_orders_and_of_every_colour(progressive):
    for mode in ("L", "RGB", "CMYK"):
        out = io.BytesIO()
        Image.new(mode, (33, 12)).save(out, "JPEG", progressive=progressive)
        assert headers.shown(out.getvalue(), len(out.getvalue())) == (33, 12)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF"])
def test_a_picture_that_lost_its_tail_is_none(kind):
    noise = Image.effect_noise((64, 64), 90).convert("RGB")
    out = io.BytesIO()
    noise.save(out, kind)
    data = out.getvalue()
    for keep in (len(data) // 2, len(data) // 4, 30, 9, 1, 0):
        with pytest.raises(picture.NoPicture):
            picture.size_of(data[:keep], keep)


@few
@given(st.sampled_from(KINDS), st.data())
def test_damaged_bytes_are_a_size_or_no_picture_and_never_a_crash(kind, data):
    body = bytearray(stored(kind, 20, 30, 6))
    for _ in range(data.draw(st.integers(1, 8))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))]
    try:
        width, height = picture.size_of(body, len(body))
    except picture.NoPicture as error:
        assert str(error)
    else:
        assert width > 0 and height > 0


@few
@given(st.binary(max_size=200))
def test_exif_made_of_anything_is_an_orientation_or_left_to_pillow(noise):
    for exif in (noise, b"Exif\0\0II*\0" + noise, b"MM\0*\0\0\0\x08" + noise):
        assert headers.orientation(exif) is None or 0 <= headers.orientation(exif) <= 0xFFFF


@few
@given(
    st.sampled_from(["JPEG", "WEBP", "PNG"]), st.binary(max_size=80), st.sampled_from([b"", b"II*\0\x08\0\0\0"])
)
def test_a_picture_with_an_evil_exif_is_as_pillow_shows_it_or_broken(kind, noise, head):
    data = stored(kind, 20, 30, exif=b"Exif\0\0" + head + noise)
    try:
        found = picture.size_of(data, len(data))
    except picture.NoPicture:
        with pytest.raises(picture.BROKEN):
            pillow(data)
    else:
        assert found == pillow(data)


def test_an_orientation_in_xmp_counts_as_pillow_counts_it():
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    for kind, options in (("JPEG", {"xmp": xmp}), ("WEBP", {"xmp": xmp}), ("PNG", {"pnginfo": info})):
        data = stored(kind, 20, 30, **options)
        assert picture.size_of(data, len(data)) == pillow(data) == (30, 20)


def test_texts_in_a_png_do_not_cost_the_fast_way():
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "a cat, Steps: 20")
    info.add_itxt("prompt", "ein Kätzchen")
    data = stored("PNG", 20, 30, pnginfo=info)
    assert headers.shown(data, len(data)) == (20, 30)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it is huge."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_a_bomb_of_50000_pixels_a_side_is_told_by_its_size_and_not_decoded():
    data = bomb(50_000, 50_000)
    with pytest.raises(picture.TooLarge, match="50000x50000"):
        picture.size_of(data, len(data))


def test_what_is_behind_the_given_size_is_not_looked_at():
    whole = stored("PNG", 9, 9)
    buffer = bytearray(whole + stored("PNG", 20, 20))
    assert picture.size_of(buffer, len(whole)) == (9, 9)
    with pytest.raises(picture.NoPicture):
        picture.size_of(buffer, len(whole) - 40)
