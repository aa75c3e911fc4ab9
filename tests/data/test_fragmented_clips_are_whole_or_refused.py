"""A fragmented MP4 that ends early is refused wherever it was cut, and a whole one is not."""

import re
import struct
import subprocess

import imageio_ffmpeg
import pytest

from studio.core.data.probe import probe_clip
from studio.core.errors import DamagedClipError, MediaError

KINDS = {
    "fragmented": "frag_keyframe+empty_moov",
    "offsets_from_each_fragment": "frag_keyframe+empty_moov+default_base_moof",
    "first_fragment_in_the_index": "frag_keyframe",
    "every_frame": "frag_every_frame+empty_moov",
    "dash": "dash+frag_keyframe",
    "dash_index_in_front": "dash+frag_keyframe+global_sidx",
}
NUM_FRAMES, PER_FRAGMENT = 30, 6


@pytest.fixture
def fragmented(tmp_path, draw_clip):
    """fragmented(movflags): the content of a clip of 30 frames, every sixth a key frame."""

    def make(movflags, *arguments):
        source, target = draw_clip(tmp_path / "source.mp4", num_frames=NUM_FRAMES), tmp_path / "fragmented.mp4"
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", source, *arguments, "-c:v", "libx264"]
        command += ["-g", str(PER_FRAGMENT), "-sc_threshold", "0", "-movflags", movflags, target]
        subprocess.run(list(map(str, command)), check=True)
        return target.read_bytes()

    return make


def boxes(content):
    """(kind, start, end) of the boxes of a file."""
    start = 0
    while start < len(content):
        end = start + struct.unpack_from(">I", content, start)[0]
        yield content[start + 4 : start + 8], start, end
        start = end


def probe(path, content):
    path.write_bytes(content)
    return probe_clip(path)


@pytest.mark.parametrize("movflags", KINDS.values(), ids=KINDS)
def test_a_whole_one_is_accepted_and_one_cut_inside_any_box_is_not(tmp_path, fragmented, movflags):
    whole = fragmented(movflags)
    assert probe(tmp_path / "a.mp4", whole).num_frames == NUM_FRAMES
    parts = list(boxes(whole))
    first = next(index for index, (kind, _, _) in enumerate(parts) if kind == b"mdat")
    for kind, start, end in parts[first + 1 :][:: 5 if "every_frame" in movflags else 1]:
        places = {start + 4, start + 8, (start + end) // 2, end - 1, *([end] if kind == b"moof" else [])}
        for place in places if kind != b"mfra" else ():
            with pytest.raises(MediaError, match="cut off") as caught:
                probe(tmp_path / "a.mp4", whole[:place])
            if isinstance(caught.value, DamagedClipError):  # where FFmpeg opens it at all
                readable = re.findall(r"readable up to frame (\d+)", caught.value.message)
                assert all(int(number) < NUM_FRAMES for number in readable)
                assert readable


def test_notes_behind_the_last_fragment_are_not_missed(tmp_path, fragmented):
    whole = fragmented("frag_keyframe+empty_moov")
    kind, start, end = list(boxes(whole))[-1]
    assert kind == b"mfra"
    for place in (start, (start + end) // 2, end - 1):
        assert probe(tmp_path / "a.mp4", whole[:place]).num_frames == NUM_FRAMES


def test_an_index_in_front_tells_of_fragments_that_are_gone(tmp_path, fragmented):
    whole = fragmented("dash+frag_keyframe+global_sidx")
    between = [start for kind, start, _ in boxes(whole) if kind == b"moof"][2]
    with pytest.raises(DamagedClipError, match="readable up to frame 12"):
        probe(tmp_path / "a.mp4", whole[:between])


def with_duration(content, seconds):
    """The file with a duration of all fragments (mehd), as packagers write it."""
    index, extends = content.index(b"moov") - 4, content.index(b"mvex") - 4
    (scale,) = struct.unpack_from(">I", content, content.index(b"mvhd") + 4 + 12)
    stated = struct.pack(">I4sII", 16, b"mehd", 0, round(seconds * scale))
    longer = bytearray(content[: extends + 8] + stated + content[extends + 8 :])
    for box in (index, extends):
        struct.pack_into(">I", longer, box, struct.unpack_from(">I", longer, box)[0] + len(stated))
    return bytes(longer)


def test_a_stated_duration_tells_how_many_frames_there_should_be(tmp_path, fragmented):
    whole = with_duration(fragmented("frag_keyframe+empty_moov+default_base_moof"), NUM_FRAMES / 15)
    assert probe(tmp_path / "a.mp4", whole).num_frames == NUM_FRAMES
    between = [start for kind, start, _ in boxes(whole) if kind == b"moof"][2]
    for place in (between, between + 50):
        with pytest.raises(DamagedClipError, match="cut off: readable up to frame 12 of 30"):
            probe(tmp_path / "a.mp4", whole[:place])


def test_sound_that_lasts_longer_than_the_pictures_is_no_damage(tmp_path, fragmented):
    sound = ("-f", "lavfi", "-t", "4", "-i", "anullsrc")
    whole = fragmented("frag_keyframe+empty_moov+default_base_moof", *sound)
    assert probe(tmp_path / "a.mp4", with_duration(whole, 4)).num_frames == NUM_FRAMES
