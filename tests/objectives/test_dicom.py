"""A DICOM file is decoded to the picture that a viewer shows, or refused with the kind of object."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import (
    MPEG2MPML,
    UID,
    DeflatedExplicitVRLittleEndian,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from acuity.objectives.errors import InputError, UnreadableImageError
from acuity.objectives.images.decoding import max_resolution_of_file
from acuity.objectives.images.resizing import area_average
from support.image_files import read_grey

PATIENT = "Mustermann^Erika"


def picture(bits: int, *, height: int = 48, width: int = 40) -> np.ndarray:
    """Stored values over the whole range of the bits, with structure in both directions."""
    values = np.linspace(0, (1 << bits) - 1, height * width).astype(np.uint16).reshape(height, width)
    values[::3] = values[::3, ::-1]
    return values if bits > 8 else values.astype(np.uint8)


def radiograph(values: np.ndarray, *, bits: int, syntax: UID = ExplicitVRLittleEndian, **elements: object) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientName = PATIENT
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = 8 * values.dtype.itemsize
    dataset.BitsStored, dataset.HighBit = bits, bits - 1
    dataset.PixelRepresentation = int(values.dtype.kind == "i")
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    dataset.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def lut(values: np.ndarray, *, first: int, bits: int) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(values), first, bits]
    item.LUTData = values.astype(np.uint16).tobytes()
    item["LUTData"].VR = "OW"
    item["LUTDescriptor"].VR = "US"
    return item


def write(folder: Path, dataset: Dataset | bytes) -> Path:
    path = folder / "77000000_000.dcm"
    if isinstance(dataset, bytes):
        path.write_bytes(dataset)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset.save_as(path, enforce_file_format=True)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UnreadableImageError) as caught:
        read_grey(path)
    assert "77000000" not in str(caught.value)
    assert "Mustermann" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
)
@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_whole_range_of_the_bits_goes_from_black_to_white(tmp_path: Path, syntax: UID, bits: int) -> None:
    values = picture(bits)
    path = write(tmp_path, radiograph(values, bits=bits, syntax=syntax))
    grey = read_grey(path)
    assert grey.dtype == np.float32
    np.testing.assert_allclose(grey, values * (255 / ((1 << bits) - 1)), atol=1e-4)
    assert max_resolution_of_file(path, "pad") == 48
    assert max_resolution_of_file(path, "stretch") == 40


def test_eight_bits_are_the_pixels_of_the_png(tmp_path: Path) -> None:
    values = picture(8, width=48)
    grey = read_grey(write(tmp_path, radiograph(values, bits=8)))
    np.testing.assert_array_equal(area_average(grey, 48), values)
    assert np.abs(area_average(grey, 24).astype(int) - area_average(values, 24)).max() <= 1


def test_twelve_bits_in_a_file_that_claims_sixteen_are_not_black(tmp_path: Path) -> None:
    values = picture(12)
    np.testing.assert_allclose(
        read_grey(write(tmp_path, radiograph(values, bits=16))), values * (255 / 4095), atol=1e-4
    )


def test_twelve_bits_in_a_signed_file_that_claims_sixteen_are_not_grey(tmp_path: Path) -> None:
    values = picture(12).astype(np.int16)
    grey = read_grey(write(tmp_path, radiograph(values, bits=16)))
    np.testing.assert_allclose(grey, values * (255 / 4095), atol=1e-4)
    grey = read_grey(write(tmp_path, radiograph(values - 2048, bits=16)))
    np.testing.assert_allclose(grey, values * (255 / 4095), atol=1e-4)
    rescaled = radiograph(values, bits=16, RescaleSlope=-1, RescaleIntercept=0)
    np.testing.assert_allclose(read_grey(write(tmp_path, rescaled)), 255 - values * (255 / 4095), atol=1e-4)


def test_the_whole_range_of_signed_sixteen_bits_goes_from_black_to_white(tmp_path: Path) -> None:
    values = picture(16).astype(np.int32) - 32768
    grey = read_grey(write(tmp_path, radiograph(values.astype(np.int16), bits=16)))
    np.testing.assert_allclose(grey, (values + 32768) * (255 / 65535), atol=1e-3)
    positive = picture(16).astype(np.int32) // 2  # no value below 0
    grey = read_grey(write(tmp_path, radiograph(positive.astype(np.int16), bits=16)))
    np.testing.assert_allclose(grey, positive * (255 / 32767), atol=1e-3)


def test_monochrome1_is_inverted(tmp_path: Path) -> None:
    values = picture(12)
    grey = read_grey(write(tmp_path, radiograph(values, bits=12, PhotometricInterpretation="MONOCHROME1")))
    np.testing.assert_allclose(grey, 255 - values * (255 / 4095), atol=1e-4)


def as_pydicom_shows(dataset: Dataset) -> np.ndarray:
    """Grey in [0, 255] by pydicom's functions, which transform each pixel in stored units."""
    dataset = pydicom.dcmread(io.BytesIO(saved(dataset)))
    rescaled = apply_modality_lut(dataset.pixel_array, dataset)
    if "VOILUTSequence" in dataset:
        rescaled = rescaled.astype(np.int64)
    shown = apply_voi_lut(rescaled, dataset).astype(np.float64)
    bits, signed = dataset.BitsStored, dataset.PixelRepresentation == 1
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    if "RescaleSlope" in dataset:
        least, most = (value * dataset.RescaleSlope + dataset.RescaleIntercept for value in (least, most))
    if "VOILUTSequence" in dataset:
        least, most = 0, 2 ** dataset.VOILUTSequence[0].LUTDescriptor[2] - 1
    grey: np.ndarray = 255 * (shown - least) / (most - least)
    return grey if dataset.PhotometricInterpretation == "MONOCHROME2" else 255 - grey


def saved(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "elements",
    [
        pytest.param({"WindowCenter": 1500, "WindowWidth": 900}, id="linear"),
        pytest.param({"WindowCenter": 1500, "WindowWidth": 900, "VOILUTFunction": "LINEAR_EXACT"}, id="exact"),
        pytest.param({"WindowCenter": 1500, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"}, id="sigmoid"),
        pytest.param({"WindowCenter": [1500, 100], "WindowWidth": [900, 50]}, id="the first of two"),
        pytest.param(
            {"RescaleSlope": 2, "RescaleIntercept": -1000, "WindowCenter": 900, "WindowWidth": 2000}, id="rescaled"
        ),
        pytest.param({"RescaleSlope": "0.5", "RescaleIntercept": "100"}, id="rescaled without window"),
        pytest.param(
            {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 1500, "WindowWidth": 900}, id="monochrome1"
        ),
        pytest.param({"VOILUTSequence": Sequence([lut(np.arange(3000) % 1021, first=500, bits=10)])}, id="lut"),
        pytest.param(
            {
                "VOILUTSequence": Sequence([lut(np.arange(3000) % 1021, first=-100, bits=10)]),
                "RescaleSlope": 1,
                "RescaleIntercept": -300,
                "WindowCenter": 3,
                "WindowWidth": 2,
            },
            id="lut before window",
        ),
    ],
)
def test_window_and_luts_agree_with_pydicoms_functions(tmp_path: Path, elements: dict[str, object]) -> None:
    if "VOILUTSequence" in elements:
        elements["VOILUTSequence"][0]["LUTDescriptor"].VR = "SS" if "RescaleSlope" in elements else "US"  # type: ignore[index]
    dataset = radiograph(picture(12), bits=12, **elements)
    grey = read_grey(write(tmp_path, dataset))
    np.testing.assert_allclose(grey, as_pydicom_shows(dataset), atol=1e-3)
    assert np.ptp(grey) > 200


def test_signed_values_and_a_negative_slope(tmp_path: Path) -> None:
    values = picture(12).astype(np.int16) - 2048
    dataset = radiograph(values, bits=12, RescaleSlope=2, RescaleIntercept=10, WindowCenter=0, WindowWidth=3000)
    np.testing.assert_allclose(read_grey(write(tmp_path, dataset)), as_pydicom_shows(dataset), atol=1e-3)
    dataset = radiograph(values, bits=12, RescaleSlope=-1, RescaleIntercept=0)
    np.testing.assert_allclose(read_grey(write(tmp_path, dataset)), 255 * (2047.0 - values) / 4095, atol=1e-3)


def test_modality_lut_is_applied(tmp_path: Path) -> None:
    curve = np.round(65535 * (np.arange(4096) / 4095) ** 0.5)
    dataset = radiograph(picture(12), bits=12, ModalityLUTSequence=Sequence([lut(curve, first=0, bits=16)]))
    grey = read_grey(write(tmp_path, dataset))
    np.testing.assert_allclose(grey, 255 * (picture(12) / 4095) ** 0.5, atol=0.01)


def test_eight_bit_lut_of_many_entries(tmp_path: Path) -> None:
    """pydicom's own lookup wraps around here."""
    dataset = radiograph(picture(12), bits=12, VOILUTSequence=Sequence([lut(np.arange(4096) // 16, first=0, bits=8)]))
    np.testing.assert_array_equal(read_grey(write(tmp_path, dataset)), picture(12) // 16)


@pytest.mark.parametrize("window", [("", ""), (None, None), (100, 0), ("", 100)])
def test_unusable_window_is_ignored(tmp_path: Path, window: tuple[object, object]) -> None:
    dataset = radiograph(picture(12), bits=12, WindowCenter=window[0], WindowWidth=window[1])
    np.testing.assert_allclose(read_grey(write(tmp_path, dataset)), picture(12) * (255 / 4095), atol=1e-4)


def test_overlay_in_the_unused_bits_is_not_shown(tmp_path: Path) -> None:
    values = picture(12) | (np.arange(40) % 2 << 15).astype(np.uint16)
    np.testing.assert_allclose(
        read_grey(write(tmp_path, radiograph(values, bits=12))), picture(12) * (255 / 4095), atol=1e-4
    )


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_compression_changes_nothing(tmp_path: Path, syntax: UID, bits: int) -> None:
    values = picture(bits)
    dataset = radiograph(values, bits=bits)
    dataset.compress(syntax, generate_instance_uid=False)
    np.testing.assert_allclose(read_grey(write(tmp_path, dataset)), values * (255 / ((1 << bits) - 1)), atol=1e-4)


def jpeg(values: np.ndarray, **elements: object) -> Dataset:
    coded = encapsulate([cv2.imencode(".jpg", values)[1].tobytes()])
    dataset = radiograph(values, bits=8, syntax=JPEGBaseline8Bit, **({"PixelData": coded} | elements))
    dataset["PixelData"].VR = "OB"
    return dataset


def test_jpeg_in_dicom_equals_the_jpeg(tmp_path: Path) -> None:
    values = cv2.GaussianBlur(picture(8), (5, 5), 0)
    same = cv2.imdecode(cv2.imencode(".jpg", values)[1], cv2.IMREAD_GRAYSCALE)
    assert np.abs(read_grey(write(tmp_path, jpeg(values))) - same).max() <= 1


def lossless_jpeg(values: np.ndarray, bits: int) -> bytes:
    """ITU-T T.81, process 14, selection value 1, with a Huffman table in which each category is a code of 5 bits."""
    predicted = values.astype(int).copy()
    predicted[:, 1:] = values[:, :-1]
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 1 << (bits - 1)
    code = ""
    for difference in (values.astype(int) - predicted).ravel():
        category = int(abs(difference)).bit_length()
        code += f"{category:05b}"
        if category:
            code += f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}"
    code += "1" * (-len(code) % 8)
    scan = int(code, 2).to_bytes(len(code) // 8).replace(b"\xff", b"\xff\0")
    height, width = values.shape
    segments = {
        0xC3: bytes([bits]) + height.to_bytes(2) + width.to_bytes(2) + bytes([1, 1, 0x11, 0]),
        0xC4: bytes([0, *(17 if length == 5 else 0 for length in range(1, 17)), *range(17)]),
        0xDA: bytes([1, 1, 0, 1, 0, 0]),
    }
    head = b"".join(bytes([0xFF, marker]) + (len(data) + 2).to_bytes(2) + data for marker, data in segments.items())
    return b"\xff\xd8" + head + scan + b"\xff\xd9"


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_changes_nothing(tmp_path: Path, bits: int) -> None:
    """Most radiography devices send this syntax. No installed package writes it."""
    values = picture(bits)
    coded = encapsulate([lossless_jpeg(values, bits)])
    dataset = radiograph(values, bits=bits, syntax=JPEGLosslessSV1, PixelData=coded)
    dataset["PixelData"].VR = "OB"
    np.testing.assert_allclose(read_grey(write(tmp_path, dataset)), values * (255 / ((1 << bits) - 1)), atol=1e-4)


@pytest.mark.parametrize(
    "name",
    ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm"],
)
def test_other_programs_files_show_what_the_uncompressed_one_shows(name: str) -> None:
    """pydicom's samples, among them JPEG-LS, which no installed package writes."""
    paths = [get_testdata_file(sample) for sample in ("MR_small.dcm", name)]
    shown = [read_grey(Path(str(path))) for path in paths]
    np.testing.assert_array_equal(shown[0], shown[1])


@pytest.mark.parametrize("name", ["JPGExtended.dcm", "JPEG2000.dcm", "image_dfl.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_samples_of_other_syntaxes_are_read(name: str) -> None:
    grey = read_grey(Path(str(get_testdata_file(name))))
    assert grey.min() >= 0
    assert grey.max() <= 255.001
    assert np.ptp(grey) > 1


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    colour = np.stack([picture(8), picture(8)[::-1], picture(8)[:, ::-1]], axis=2)
    dataset = radiograph(colour, bits=8, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    expected = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_grey(write(tmp_path, dataset)) - expected).max() <= 1


def test_frames_and_objects_without_an_image_are_refused_by_name(tmp_path: Path) -> None:
    frames = np.stack([picture(8)] * 3)
    dataset = radiograph(frames[0], bits=8, NumberOfFrames=3, PixelData=frames.tobytes())
    assert refusal(write(tmp_path, dataset)) == (
        "Digital X-Ray Image Storage - For Presentation: a DICOM of 3 frames, must be one radiograph a file"
    )
    for sample, name in (("test-SR.dcm", "SR Storage"), ("rtplan.dcm", "RT Plan Storage"), ("waveform_ecg.dcm", "ECG")):
        path = Path(str(get_testdata_file(sample)))
        assert refusal(path).endswith(": a DICOM object without an image")
        assert name in refusal(path)
        with pytest.raises(UnreadableImageError, match="without an image"):
            max_resolution_of_file(path, "pad")
    without = radiograph(picture(8), bits=8)
    del without.PixelData
    assert "without an image" in refusal(write(tmp_path, without))


def test_palette_and_deeper_pixels_are_refused_by_name(tmp_path: Path) -> None:
    dataset = radiograph(picture(8), bits=8, PhotometricInterpretation="PALETTE COLOR")
    assert "a DICOM in PALETTE COLOR, must be" in refusal(write(tmp_path, dataset))
    dataset = radiograph(picture(12).astype(np.uint32), bits=32)
    assert "a DICOM of 32 bits a pixel" in refusal(write(tmp_path, dataset))


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGBaseline8Bit])
@pytest.mark.parametrize("damage", [half, lambda data: data[:-200], lambda data: data[:140], lambda data: data[:900]])
def test_file_that_lacks_pixels_is_refused(tmp_path: Path, syntax: UID, damage: Callable[[bytes], bytes]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    dataset = jpeg(noise) if syntax == JPEGBaseline8Bit else radiograph(noise, bits=8)
    if syntax in (RLELossless, JPEG2000Lossless):
        dataset.compress(syntax)
    data = saved(dataset)
    read_grey(write(tmp_path, data))
    refusal(write(tmp_path, damage(data)))


def test_truncated_codestream_in_a_whole_file_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    coded = cv2.imencode(".jpg", noise)[1].tobytes()
    dataset = jpeg(noise, PixelData=encapsulate([coded[: len(coded) // 2]]))
    assert "damaged or incomplete" in refusal(write(tmp_path, dataset))


def test_bombs_are_refused_before_they_unpack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = radiograph(picture(8), bits=8, Rows=60_000, Columns=60_000)
    assert "more than 134,217,728 pixels" in refusal(write(tmp_path, dataset))
    # The file declares 48 x 40 pixels, its codestream 65,000 x 65,000.
    coded = cv2.imencode(".jpg", picture(8))[1].tobytes()
    frame = coded.index(b"\xff\xc0")
    huge = coded[: frame + 5] + (65_000).to_bytes(2) * 2 + coded[frame + 9 :]
    assert "damaged" in refusal(write(tmp_path, jpeg(picture(8), PixelData=encapsulate([huge]))))
    monkeypatch.setattr("acuity.objectives.images.dicom._MAX_INFLATED_BYTES", 1 << 24)
    deflated = radiograph(picture(8), bits=8, syntax=DeflatedExplicitVRLittleEndian, PixelData=bytes(1 << 25))
    path = write(tmp_path, deflated)
    assert path.stat().st_size < 1 << 18
    assert "a deflated DICOM of more than 128 MiB" in refusal(path)


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), MemoryError()])
def test_error_of_the_process_is_not_reported_as_a_bad_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    path = write(tmp_path, radiograph(picture(8), bits=8))
    monkeypatch.setattr("pydicom.dcmread", fail)
    with pytest.raises(type(error)) as caught:
        read_grey(path)
    assert caught.value is error


def test_without_pydicom_the_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, radiograph(picture(8), bits=8))
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(InputError, match=r"need pydicom to be read: pip install 'acuity-hpo\[dicom\]'"):
        read_grey(path)


def test_without_a_decoder_the_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(str(get_testdata_file("MR_small_jpeg_ls_lossless.dcm")))
    decoder = pydicom.pixels.decoders.base.get_decoder(JPEGLSLossless)
    monkeypatch.setattr(decoder, "_available", {})
    with pytest.raises(InputError, match=r"in JPEG-LS Lossless Image Compression, which need a decoder: pip install"):
        read_grey(path)
    film = radiograph(picture(8), bits=8, syntax=MPEG2MPML, PixelData=encapsulate([bytes(100)]))
    film["PixelData"].VR = "OB"
    assert "a DICOM in MPEG2" in refusal(write(tmp_path, film))


@pytest.mark.parametrize(
    "elements",
    [
        pytest.param({"RescaleSlope": 0, "RescaleIntercept": 7}, id="slope 0"),
        pytest.param({"RescaleSlope": "1e-4", "RescaleIntercept": 0}, id="slope 1e-4"),
        pytest.param({"RescaleSlope": "1e-9", "RescaleIntercept": 100_000}, id="slope 1e-9"),
        pytest.param({"WindowCenter": "nan", "WindowWidth": 100}, id="centre nan"),
        pytest.param({"WindowCenter": 100, "WindowWidth": "nan"}, id="width nan"),
        pytest.param({"WindowCenter": 100, "WindowWidth": "inf"}, id="width infinite"),
        pytest.param({"RescaleSlope": "nan", "RescaleIntercept": 0}, id="slope nan"),
        pytest.param(
            {"RescaleSlope": f"{1 / 4095:.12f}", "RescaleIntercept": 0, "WindowCenter": 0.5, "WindowWidth": 1},
            id="width 1 of fractions",
        ),
    ],
)
def test_rescale_and_window_that_would_hide_the_picture_are_ignored(
    tmp_path: Path, elements: dict[str, object]
) -> None:
    # Strings such as "nan" are no valid decimal strings, but files contain them.
    with pydicom.config.disable_value_validation():
        path = write(tmp_path, radiograph(picture(12), bits=12, **elements))
    np.testing.assert_allclose(read_grey(path), picture(12) * (255 / 4095), atol=1e-3)


def test_width_below_one_is_the_exact_linear_window(tmp_path: Path) -> None:
    rescaled = {"RescaleSlope": f"{1 / 4095:.12f}", "RescaleIntercept": 0, "WindowCenter": 0.5, "WindowWidth": 0.913}
    grey = read_grey(write(tmp_path, radiograph(picture(12), bits=12, **rescaled)))
    np.testing.assert_allclose(grey, 255 * np.clip((picture(12) / 4095 - 0.5) / 0.913 + 0.5, 0, 1), atol=1e-3)
    exact = radiograph(picture(12), bits=12, VOILUTFunction="LINEAR_EXACT", **rescaled)
    np.testing.assert_allclose(read_grey(write(tmp_path, exact)), grey, atol=1e-4)


@pytest.mark.parametrize("centre", [-900, 90_000])
def test_window_beside_the_values_is_refused(tmp_path: Path, centre: int) -> None:
    dataset = radiograph(picture(12), bits=12, WindowCenter=centre, WindowWidth=400)
    assert refusal(write(tmp_path, dataset)) == "shows nothing: every pixel has the same grey"


def test_constant_picture_and_picture_of_padding_are_refused(tmp_path: Path) -> None:
    flat = np.full((48, 40), 900, np.uint16)
    assert "every pixel has the same grey" in refusal(write(tmp_path, radiograph(flat, bits=12)))
    assert "every pixel is padding" in refusal(write(tmp_path, radiograph(flat, bits=12, PixelPaddingValue=900)))
    framed = flat.copy()
    framed[:9] = 0
    assert "every pixel has the same grey" in refusal(write(tmp_path, radiograph(framed, bits=12, PixelPaddingValue=0)))


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_declared_padding_is_black_and_does_not_decide_the_depth(tmp_path: Path, photometric: str) -> None:
    values = picture(12).astype(np.int16)
    padded, expected = values.copy(), values * (255 / 4095)
    padded[:20], padded[20:24] = -32768, -30000
    dataset = radiograph(padded, bits=16, PhotometricInterpretation=photometric)
    dataset.add_new("PixelPaddingValue", "SS", -32768)
    dataset.add_new("PixelPaddingRangeLimit", "SS", -30000)
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    expected[:24] = 0
    np.testing.assert_allclose(read_grey(write(tmp_path, dataset)), expected, atol=1e-4)
    high = np.where(padded < 0, 65535, padded).astype(np.uint16)
    dataset = radiograph(high, bits=16, PhotometricInterpretation=photometric, PixelPaddingValue=65535)
    np.testing.assert_allclose(read_grey(write(tmp_path, dataset)), expected, atol=1e-4)
    # A negative value in a file of unsigned pixels, and the reverse.
    signed = radiograph(padded, bits=16, PhotometricInterpretation=photometric)
    signed.add_new("PixelPaddingValue", "US", 32768)
    signed.add_new("PixelPaddingRangeLimit", "US", 65536 - 30000)
    np.testing.assert_allclose(read_grey(write(tmp_path, signed)), expected, atol=1e-4)


@pytest.mark.parametrize("value", [-1, -9000, 5000, 32767])
def test_one_pixel_does_not_decide_the_depth(tmp_path: Path, value: int) -> None:
    values = picture(12).astype(np.int16)
    values[5, 5] = value
    expected = np.clip(values, 0, 4095) * (255 / 4095)
    np.testing.assert_allclose(read_grey(write(tmp_path, radiograph(values, bits=16))), expected, atol=1e-4)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
def test_left_justified_values_are_moved_by_the_bits_that_they_use(tmp_path: Path, syntax: UID, signed: bool) -> None:
    values = picture(12).astype(np.int32) - (2048 if signed else 0)
    moved = (values << 4).astype(np.int16 if signed else np.uint16)
    native = ExplicitVRBigEndian if syntax == ExplicitVRBigEndian else ExplicitVRLittleEndian
    dataset = radiograph(moved, bits=16, syntax=native)
    if syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    dataset.BitsStored, dataset.HighBit = 12, 15
    np.testing.assert_allclose(read_grey(write(tmp_path, dataset)), picture(12) * (255 / 4095), atol=1e-4)


@pytest.mark.parametrize("signed", [False, True])
def test_right_justified_values_under_the_header_of_left_justified_ones_are_kept(tmp_path: Path, signed: bool) -> None:
    values = (picture(12).astype(np.int32) - (2048 if signed else 0)).astype(np.int16 if signed else np.uint16)
    for stored in (values, values & 4095):  # negative values with the bits above the sign set, and cleared
        dataset = radiograph(stored, bits=12, HighBit=15)
        np.testing.assert_allclose(read_grey(write(tmp_path, dataset)), picture(12) * (255 / 4095), atol=1e-4)


def test_pixels_that_contradict_the_high_bit_are_refused(tmp_path: Path) -> None:
    assert refusal(write(tmp_path, radiograph(picture(16), bits=12, HighBit=15))) == (
        "a DICOM whose BitsStored is 12 and HighBit 15, but whose pixels use other bits"
    )
    few = radiograph(picture(10), bits=12, HighBit=9)
    np.testing.assert_allclose(read_grey(write(tmp_path, few)), picture(10) * (255 / 1023), atol=1e-4)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_pixels_of_another_shape_than_the_header_are_refused(tmp_path: Path, syntax: UID) -> None:
    frames = np.stack([picture(8)] * 3)
    colour = np.dstack([picture(8)] * 3)
    several = radiograph(picture(8), bits=8, NumberOfFrames=3, PixelData=frames.tobytes())
    grey = radiograph(colour, bits=8, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    for dataset in (several, grey):
        if syntax.is_encapsulated:
            dataset.compress(syntax, generate_instance_uid=False)
    del several.NumberOfFrames
    grey.PhotometricInterpretation = "MONOCHROME2"
    assert "damaged" in (why := refusal(write(tmp_path, several))) or "do not have the size" in why
    assert refusal(write(tmp_path, grey)) == "a DICOM of 3 samples a pixel in MONOCHROME2"
    grey.SamplesPerPixel = 1
    assert "damaged" in (why := refusal(write(tmp_path, grey))) or "do not have the size" in why


@pytest.mark.parametrize("trailing", [b"\0\0", b"\x12\x34", b"after the end", bytes(400)])
def test_bytes_behind_the_end_of_a_codestream_do_not_matter(tmp_path: Path, trailing: bytes) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    coded = cv2.imencode(".jpg", noise)[1].tobytes()
    plain = read_grey(write(tmp_path, jpeg(noise)))
    np.testing.assert_array_equal(
        read_grey(write(tmp_path, jpeg(noise, PixelData=encapsulate([coded + trailing])))), plain
    )
    assert "damaged" in refusal(write(tmp_path, jpeg(noise, PixelData=encapsulate([coded[:-300] + trailing]))))
    dataset = radiograph(noise, bits=8)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    coded = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([coded.rstrip(b"\0") + trailing])
    np.testing.assert_array_equal(read_grey(write(tmp_path, dataset)), noise)
    dataset.PixelData = encapsulate([coded[:-300] + trailing])
    assert "damaged" in refusal(write(tmp_path, dataset))


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_file_without_preamble_is_read(tmp_path: Path, syntax: UID) -> None:
    values = picture(12)
    data = saved(radiograph(values, bits=12, syntax=syntax))
    path = write(tmp_path, data[132:])
    np.testing.assert_allclose(read_grey(path), values * (255 / 4095), atol=1e-4)
    assert max_resolution_of_file(path, "pad") == 48
    if not syntax.is_deflated:  # without the meta group too
        meta = 12 + int.from_bytes(data[140:144], "little")
        path = write(tmp_path, data[132 + meta :])
        np.testing.assert_allclose(read_grey(path), values * (255 / 4095), atol=1e-4)
    assert "without an image" in refusal(write(tmp_path, data[132:300])) or "damaged" in refusal(path)
