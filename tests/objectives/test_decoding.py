"""An image file is decoded completely and averaged over areas, or refused with a reason."""

import errno
import io
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from acuity.objectives.errors import InputError, UnreadableImageError
from acuity.objectives.images.decoding import decode_grey, max_resolution_of_file
from acuity.objectives.images.resizing import Fit, area_average, fit_square
from support.image_files import read_grey

Damage = Callable[[bytes], bytes]


def exact_average(image: np.ndarray, resolution: int) -> np.ndarray:
    """Mean of the area that each pixel covers, in float64: rows and columns are weighted by their covered length."""

    def weights(side: int) -> np.ndarray:
        edges = np.linspace(0, side, resolution + 1)
        pixels = np.arange(side)
        covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
        return np.clip(covered, 0, None) * resolution / side

    return weights(image.shape[0]) @ image.astype(np.float64) @ weights(image.shape[1]).T


def radiograph(side: int, seed: int = 0) -> np.ndarray:
    """A smooth image with sharp edges and noise, on which an inexact average differs."""
    random = np.random.default_rng(seed)
    smooth = cv2.resize(random.integers(0, 256, (5, 5), dtype=np.uint8), (side, side), interpolation=cv2.INTER_CUBIC)
    noisy = np.where(random.random((side, side)) < 0.2, random.integers(0, 256, (side, side)), smooth)
    noisy[side // 3, :] = 255
    return noisy.astype(np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write(folder: Path, data: bytes) -> Path:
    path = folder / "00000007_001.png"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("side", [100, 128, 251])
@pytest.mark.parametrize("resolution", [16, 25, 32, 64, 96, 100])
def test_average_is_the_true_area_average(side: int, resolution: int) -> None:
    square = radiograph(side)
    averaged = area_average(square, resolution)
    assert averaged.dtype == np.uint8
    assert np.abs(averaged - exact_average(square, resolution)).max() <= 1


def test_average_at_the_images_resolution_is_the_image() -> None:
    square = radiograph(96)
    np.testing.assert_array_equal(area_average(square, 96), square)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("resolution", [24, 50, 100])
def test_deep_images_are_averaged_before_they_are_rounded(tmp_path: Path, bits: int, resolution: int) -> None:
    deep = (radiograph(100).astype(np.uint16) << (bits - 8)) | 3
    read = read_grey(write(tmp_path, encoded(Image.fromarray(deep), "PNG")))
    np.testing.assert_allclose(read, deep * (255 / (2**bits - 1)), rtol=1e-6)
    expected = exact_average(deep, resolution) * 255 / (2**bits - 1)
    assert np.abs(area_average(read, resolution) - expected).max() <= 0.51


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_grey_is_unchanged_in_every_mode(tmp_path: Path, mode: str) -> None:
    grey = radiograph(64)
    path = write(tmp_path, encoded(Image.fromarray(grey).convert(mode), "PNG"))
    np.testing.assert_array_equal(read_grey(path), grey)


def test_alpha_is_ignored(tmp_path: Path) -> None:
    image = Image.fromarray(radiograph(64)).convert("RGBA")
    image.putalpha(Image.fromarray(radiograph(64, seed=1)))
    np.testing.assert_array_equal(read_grey(write(tmp_path, encoded(image, "PNG"))), radiograph(64))


def test_palette_and_colour_become_luminance(tmp_path: Path) -> None:
    colour = Image.fromarray(np.dstack([radiograph(64, seed) for seed in range(3)]))
    for image in (colour, colour.quantize(64)):
        read = read_grey(write(tmp_path, encoded(image, "PNG")))
        assert np.abs(read.astype(int) - np.asarray(image.convert("RGB").convert("L"))).max() <= 1


def test_jpeg_agrees_with_another_decoder(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(radiograph(101)), "JPEG", quality=85)
    assert np.abs(read_grey(write(tmp_path, data)).astype(int) - np.asarray(Image.open(io.BytesIO(data)))).max() <= 1


@pytest.mark.parametrize(("height", "width"), [(60, 100), (100, 60), (99, 64)])
def test_images_that_are_not_square_get_black_bands_or_are_stretched(tmp_path: Path, height: int, width: int) -> None:
    image = np.maximum(radiograph(100)[:height, :width], 1)
    path = write(tmp_path, encoded(Image.fromarray(image), "PNG"))
    side = max(height, width)
    square = fit_square(read_grey(path), "pad")
    assert square.shape == (side, side)
    assert max_resolution_of_file(path, "pad") == side
    top, left = (side - height) // 2, (side - width) // 2
    np.testing.assert_array_equal(square[top : top + height, left : left + width], image)
    assert (square == 0).sum() == side * side - height * width

    assert max_resolution_of_file(path, "stretch") == min(height, width)
    for resolution in (16, 60 if min(height, width) == 60 else 64):
        stretched = area_average(fit_square(read_grey(path), "stretch"), resolution)
        assert np.abs(stretched - exact_average(image, resolution)).max() <= 1


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    grey = radiograph(64)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn 90 degrees clockwise
    path = write(tmp_path, encoded(Image.fromarray(grey), "JPEG", quality=100, exif=exif))
    assert np.abs(read_grey(path).astype(int) - np.rot90(grey, -1)).max() <= 4


@pytest.mark.parametrize("fit", ["pad", "stretch"])
def test_max_resolution_of_a_rotated_image_is_that_of_its_header(tmp_path: Path, fit: Fit) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    path = write(tmp_path, encoded(Image.fromarray(radiograph(64)[:40]), "JPEG", exif=exif))
    turned = read_grey(path)
    assert turned.shape == (64, 40)
    assert max_resolution_of_file(path, fit) == (64 if fit == "pad" else 40)


def hole(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + data[middle + 512 :]


def zeros(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes(512) + data[middle + 512 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda data: data[: len(data) // 2], id="half of it"),
        pytest.param(lambda data: data[:-100], id="all but the last 100 bytes"),
        pytest.param(lambda data: data[:-2], id="all but the last 2 bytes"),
        pytest.param(hole, id="a block lost"),
        pytest.param(zeros, id="a block of zeros"),
    ],
)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "progressive JPEG"])
def test_image_that_lacks_pixels_is_refused(tmp_path: Path, kind: str, damage: Damage) -> None:
    options = {"progressive": True} if kind.startswith("progressive") else {}
    data = encoded(Image.fromarray(radiograph(256)), kind.split()[-1], **options)
    read_grey(write(tmp_path, data))
    with pytest.raises(UnreadableImageError) as caught:
        read_grey(write(tmp_path, damage(data)))
    assert "00000007" not in str(caught.value)


def test_truncated_jpeg_with_an_end_mark_is_refused(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(radiograph(256)), "JPEG")
    with pytest.raises(UnreadableImageError, match="Corrupt JPEG data"):
        read_grey(write(tmp_path, data[: len(data) // 2] + b"\xff\xd9"))


def test_whole_jpeg_with_a_thumbnail_and_a_truncated_one(tmp_path: Path) -> None:
    """The thumbnail has an end mark, which must not count as the image's."""
    thumbnail = encoded(Image.fromarray(radiograph(32)), "JPEG")
    exif = b"Exif\0\0" + thumbnail
    data = encoded(Image.fromarray(radiograph(256)), "JPEG", exif=exif)
    assert data.count(b"\xff\xd9") >= 2
    read_grey(write(tmp_path, data))
    with pytest.raises(UnreadableImageError):
        read_grey(write(tmp_path, data[: len(data) * 2 // 3]))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"not an image", "not a PNG, JPEG or DICOM image"),
        (encoded(Image.new("L", (9, 9)), "GIF"), "not a PNG, JPEG or DICOM image"),
        (encoded(Image.new("L", (9, 9)), "PNG")[:20], "not a PNG, JPEG or DICOM image|truncated|damaged"),
        (encoded(Image.new("1", (16_000, 16_000)), "PNG"), "more than 134,217,728 pixels"),
    ],
)
def test_files_that_are_not_images_are_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason):
        read_grey(write(tmp_path, data))


def test_missing_file_and_folder_give_the_systems_reason(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "00000007_001.png", "no such file"), (tmp_path, "is a directory")):
        for read in (read_grey, lambda path: max_resolution_of_file(path, "pad")):
            with pytest.raises(UnreadableImageError, match=reason) as caught:
                read(path)
            assert str(tmp_path) not in str(caught.value)


def test_error_of_the_disk_is_not_reported_as_a_bad_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(_: Path) -> bytes:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    path = write(tmp_path, b"")
    monkeypatch.setattr(Path, "read_bytes", stale)
    with pytest.raises(InputError, match=r"images cannot be read now \(Stale file handle\)"):
        read_grey(path)


def test_standard_error_is_restored(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(Image.fromarray(radiograph(64)), "PNG")
    with pytest.raises(UnreadableImageError):
        read_grey(write(tmp_path, hole(data)))
    os.write(2, b"afterwards")
    assert capfd.readouterr().err == "afterwards"


@pytest.mark.parametrize("name", ["nih-cxr-1024", "nih-cxr-128"])
def test_average_of_real_radiographs_is_the_area_average(name: str) -> None:
    """Compared with the exact average at every resolution and with Pillow's reduction at whole ratios."""
    folder = Path(os.environ.get("ACUITY_NIH_DIR", "../shared/data")) / name / "images"
    if not folder.exists():
        pytest.skip(f"needs NIH's images: {folder} is not there")
    for path in sorted(folder.iterdir())[:400:50]:
        square = read_grey(path)
        side = len(square)
        np.testing.assert_array_equal(square, np.asarray(Image.open(path)))
        for resolution in (32, 64, 96, 128, 224, 256, 320, 512, 600):
            if resolution > side:
                continue
            averaged = area_average(square, resolution)
            assert np.abs(averaged - exact_average(square, resolution)).max() <= 1
            if side % resolution == 0:
                reduced = np.asarray(Image.open(path).reduce(side // resolution))
                assert np.abs(averaged.astype(int) - reduced).max() <= 1


def ramp(bits: int, side: int = 64) -> np.ndarray:
    """Every value of the bits from dark to bright, in uint16."""
    return np.linspace(0, (1 << bits) - 1, side * side).astype(np.uint16).reshape(side, side)


def test_marker_in_a_deep_image_does_not_dim_the_others(tmp_path: Path) -> None:
    marked = ramp(12)
    marked[2:8, 2:8] = 65535
    read = read_grey(write(tmp_path, encoded(Image.fromarray(marked), "PNG")))
    expected = ramp(12) * (255 / 4095)
    expected[2:8, 2:8] = 255
    np.testing.assert_allclose(read, expected, rtol=1e-6)


@pytest.mark.parametrize("value", [4096, 5000, 16383, 16384, 65535])
def test_one_pixel_of_any_value_does_not_decide_the_depth(tmp_path: Path, value: int) -> None:
    spotted = ramp(12)
    spotted[10, 10] = value
    image = decode_grey(write(tmp_path, encoded(Image.fromarray(spotted), "PNG")).read_bytes())
    assert image.depth == 12
    assert abs(np.median(image.pixels) - 127.5) < 1


def test_bright_structure_of_a_deep_image_keeps_its_shades(tmp_path: Path) -> None:
    """1 % of the pixels are far brighter than the others, with values in between: no marker."""
    deep = ramp(12)
    deep[:1, :41] = np.linspace(4096, 65535, 41)
    image = decode_grey(write(tmp_path, encoded(Image.fromarray(deep), "PNG")).read_bytes())
    assert image.depth == 16
    np.testing.assert_allclose(image.pixels, deep * (255 / 65535), rtol=1e-6)


@pytest.mark.parametrize("level", [0, 130, 255])
def test_picture_of_one_grey_is_refused(tmp_path: Path, level: int) -> None:
    for image in (Image.new("L", (40, 40), level), Image.fromarray(np.full((40, 40), level * 257, np.uint16))):
        with pytest.raises(UnreadableImageError, match="shows nothing: every pixel has the same grey"):
            read_grey(write(tmp_path, encoded(image, "PNG")))


def png_with_chunk(image: Image.Image, name: bytes, content: bytes) -> bytes:
    """The PNG with a chunk behind its header."""
    data = encoded(image, "PNG")
    chunk = len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize(("name", "content"), [(b"sRGB", b"\0"), (b"gAMA", (45455).to_bytes(4))])
def test_colour_with_a_colour_space_is_the_colour_without_it(
    tmp_path: Path, mode: str, name: bytes, content: bytes
) -> None:
    colour = Image.fromarray(np.dstack([radiograph(64, seed) for seed in range(3)]))
    image = colour.quantize(64) if mode == "P" else colour.convert(mode)
    marked = read_grey(write(tmp_path, png_with_chunk(image, name, content)))
    assert np.abs(marked.astype(int) - np.asarray(image.convert("RGB").convert("L"))).max() <= 1
    np.testing.assert_array_equal(marked, read_grey(write(tmp_path, encoded(image, "PNG"))))


def test_whole_jpeg_with_surplus_bytes_between_its_segments_is_read(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(radiograph(64)), "JPEG", exif=b"Exif\0\0" + bytes(40))
    plain = read_grey(write(tmp_path, data))
    for marker in (b"\xff\xdb", b"\xff\xc4", b"\xff\xe1"):
        place = data.index(marker)
        surplus = data[:place] + b"\0\0\x12" + data[place:]
        np.testing.assert_array_equal(read_grey(write(tmp_path, surplus)), plain)
        for damage in (hole(surplus), surplus[: len(surplus) // 2], surplus[: len(surplus) // 2] + b"\xff\xd9"):
            with pytest.raises(UnreadableImageError):
                read_grey(write(tmp_path, damage))


@pytest.mark.parametrize("trailer", [b"\xff\xda", b"\xff\xd8\xff\xda\0\x08trailer", bytes(99), b"\xff"])
def test_whole_jpeg_with_a_trailer_is_read_and_a_truncated_one_is_not(tmp_path: Path, trailer: bytes) -> None:
    data = encoded(Image.fromarray(radiograph(64)), "JPEG")
    np.testing.assert_array_equal(read_grey(write(tmp_path, data + trailer)), read_grey(write(tmp_path, data)))
    with pytest.raises(UnreadableImageError):
        read_grey(write(tmp_path, data[:-300] + trailer))


def test_surplus_bytes_before_a_restart_marker_are_lost_pixels(tmp_path: Path) -> None:
    done, coded = cv2.imencode(".jpg", radiograph(128), [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])
    assert done
    data = coded.tobytes()
    read_grey(write(tmp_path, data))
    place = data.index(b"\xff\xd3")
    with pytest.raises(UnreadableImageError, match="extraneous bytes before marker 0xd3"):
        read_grey(write(tmp_path, data[:place] + b"\x55" * 30 + data[place:]))


def test_named_pipe_and_device_are_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero")):
        for read in (read_grey, lambda path: max_resolution_of_file(path, "pad")):
            with pytest.raises(UnreadableImageError, match="not a regular file"):
                read(path)


def test_unforeseen_error_of_a_decoder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of 00000007")

    path = write(tmp_path, encoded(Image.fromarray(radiograph(64)), "PNG"))
    monkeypatch.setattr("cv2.imdecode", fail)
    with pytest.raises(UnreadableImageError, match=r"^the decoder failed \(ZeroDivisionError\)$"):
        read_grey(path)
