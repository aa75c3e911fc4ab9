"""The published bucket tables, number by number, and what a clip gets from them."""

from pathlib import Path

import pytest

from studio.core.config import DataConfig, DatasetConfig
from studio.core.errors import ConfigError
from studio.core.geometry import GridSpec, bucket_size
from studio.core.published_buckets import PUBLISHED_BUCKETS, published_size

PAGE = {
    (480, 16): (
        26,
        "0.26:320x1216 0.31:352x1120 0.38:384x1024 0.43:416x960 0.52:448x864 0.58:480x832 0.67:512x768 0.74:544x736 "
        "0.86:576x672 0.95:608x640 1.05:640x608 1.17:672x576 1.29:704x544 1.35:736x544 1.50:768x512 1.67:800x480 "
        "1.73:832x480 2.00:896x448 2.31:960x416 2.58:992x384 2.75:1056x384 3.09:1088x352 3.70:1184x320 3.80:1216x320 "
        "3.90:1248x320 4.00:1280x320",
    ),
    (480, 64): (
        15,
        "0.26:320x1216 0.38:384x1024 0.50:448x896 0.67:512x768 0.82:576x704 1.00:640x640 1.22:704x576 1.50:768x512 "
        "1.86:832x448 2.00:896x448 2.50:960x384 2.83:1088x384 3.60:1152x320 3.80:1216x320 4.00:1280x320",
    ),
    (480, 128): (
        11,
        "0.25:256x1024 0.38:384x1024 0.43:384x896 0.57:512x896 0.67:512x768 1.00:640x640 1.50:768x512 1.75:896x512 "
        "2.33:896x384 2.67:1024x384 4.00:1024x256",
    ),
    (480, 256): (
        9,
        "0.25:256x1024 0.33:256x768 0.50:256x512 0.67:512x768 1.00:512x512 1.50:768x512 2.00:512x256 3.00:768x256 "
        "4.00:1024x256",
    ),
    (720, 16): (
        31,
        "0.25:480x1920 0.29:512x1792 0.32:544x1696 0.36:576x1600 0.40:608x1504 0.49:672x1376 0.54:704x1312 "
        "0.59:736x1248 0.69:800x1152 0.74:832x1120 0.82:864x1056 0.88:896x1024 0.94:928x992 1.00:960x960 1.07:992x928 "
        "1.14:1024x896 1.22:1056x864 1.31:1088x832 1.35:1120x832 1.44:1152x800 1.70:1248x736 2.00:1344x672 "
        "2.05:1376x672 2.47:1504x608 2.53:1536x608 2.83:1632x576 3.06:1664x544 3.12:1696x544 3.62:1856x512 "
        "3.93:1888x480 4.00:1920x480",
    ),
    (720, 64): (
        21,
        "0.22:448x2048 0.29:512x1792 0.36:576x1600 0.45:640x1408 0.55:704x1280 0.63:768x1216 0.76:832x1088 "
        "0.88:896x1024 1.00:960x960 1.14:1024x896 1.31:1088x832 1.50:1152x768 1.58:1216x768 1.82:1280x704 "
        "1.91:1344x704 2.20:1408x640 2.30:1472x640 2.67:1536x576 2.89:1664x576 3.62:1856x512 3.75:1920x512",
    ),
    (720, 128): (
        17,
        "0.20:384x1920 0.27:512x1920 0.33:512x1536 0.42:640x1536 0.50:640x1280 0.60:768x1280 0.67:768x1152 "
        "0.78:896x1152 1.00:1024x1024 1.29:1152x896 1.50:1152x768 1.67:1280x768 2.00:1280x640 2.40:1536x640 "
        "3.00:1536x512 3.75:1920x512 5.00:1920x384",
    ),
    (720, 256): (
        5,
        "0.33:512x1536 0.60:768x1280 1.00:1024x1024 1.67:1280x768 3.00:1536x512",
    ),
}
"""(resolution, unit): how many sizes, and key:HEIGHTxWIDTH.

Source: `longcat_video/utils/bukcet_config.py` of meituan-longcat/LongCat-Video, read on 2026-11-22.
"""


@pytest.mark.parametrize("at", PAGE)
def test_every_number_is_that_of_the_published_table(at):
    count, rows = PAGE[at]
    published = dict(row.split(":") for row in rows.split())
    assert len(published) == count
    assert {key: f"{height}x{width}" for key, (height, width) in PUBLISHED_BUCKETS[at].items()} == published


@pytest.mark.parametrize("resolution", [480, 720])
def test_the_tables_of_units_16_and_32_are_one(resolution):
    assert PUBLISHED_BUCKETS[resolution, 16] == PUBLISHED_BUCKETS[resolution, 32]


@pytest.mark.parametrize("at", PUBLISHED_BUCKETS)
def test_sizes_lie_on_their_grid(at):
    _, unit = at
    assert all(height % unit == 0 and width % unit == 0 for height, width in PUBLISHED_BUCKETS[at].values())


@pytest.mark.parametrize(
    ("resolution", "keys"),
    [(480, "0.26 0.38 0.67 1.50 2.00 3.80 4.00"), (720, "0.29 0.36 0.88 1.00 1.14 1.31 3.62")],
)
def test_few_sizes_of_the_finest_tables_fill_whole_attention_blocks(resolution, keys):
    grid = GridSpec().bucket_alignment
    table = PUBLISHED_BUCKETS[resolution, 16]
    assert [key for key, size in table.items() if not any(edge % grid for edge in size)] == keys.split()


@pytest.mark.parametrize(
    ("height", "width", "resolution", "unit", "size"),
    [
        (480, 832, 480, 16, (480, 832)),
        (720, 1280, 480, 16, (480, 832)),
        (480, 832, 480, 64, (448, 896)),
        (1280, 720, 480, 64, (832, 448)),
        (512, 512, 480, 64, (640, 640)),
        (480, 640, 480, 64, (576, 704)),
        (720, 1280, 720, 64, (704, 1280)),
        (1000, 1000, 720, 128, (1024, 1024)),
        (100, 1600, 480, 256, (256, 1024)),
    ],
)
def test_a_clip_gets_the_size_whose_key_is_nearest_to_its_height_by_width(height, width, resolution, unit, size):
    found = bucket_size(height, width, resolution=resolution, resolution_type="published", alignment=unit)
    assert found == size


def test_the_first_of_two_keys_as_near_wins():
    assert published_size(250, 100, 480, 256) == (512, 256)
    assert published_size(350, 100, 480, 256) == (768, 256)


@pytest.mark.parametrize(("resolution", "alignment"), [(500, 64), (480, 48), (720, 512)])
def test_a_table_that_does_not_exist_is_an_error_that_lists_those_that_do(resolution, alignment):
    dataset = DatasetConfig(
        id="clips", kind="video", directory=Path("clips"), resolution=resolution, resolution_type="published"
    )
    with pytest.raises(ConfigError, match=f"resolution {resolution} and aspect_bucket_alignment {alignment}") as error:
        DataConfig(datasets=(dataset,), aspect_bucket_alignment=alignment)
    assert "480 or 720" in error.value.remedy
    assert "16, 32, 64, 128, 256" in error.value.remedy
