"""Family J: config.json and multidatabackend.json as people and programs break them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from studio.core.types import IssueCode
from tests.data.bad_input.corpus import Case, Said, error, good_clip, good_image, warning

INVALID, UNKNOWN, UNUSED = IssueCode.VALUE_INVALID, IssueCode.KEY_UNKNOWN, IssueCode.KEY_NOT_USED
CLIPS = {"id": "a", "type": "local", "dataset_type": "video", "instance_data_dir": "clips", "conditioning_data": "s"}
START_FRAMES = {"id": "s", "dataset_type": "conditioning", "instance_data_dir": "start_frames"}


def _files(config: bytes | None, datasets: bytes | None) -> dict[str | bytes, bytes]:
    written = {"config.json": config, "multidatabackend.json": datasets}
    pair = {"clips/a.mp4": good_clip(), "clips/a.txt": b"it moves", "start_frames/a.png": good_image()}
    return {name: content for name, content in written.items() if content is not None} | pair


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def unreadable() -> Iterable[Case]:
    """Files that are no JSON: the whole configuration is refused, with `words` in the message."""
    whole = _json({"lora_rank": 8, "output_dir": "out"})
    for name, content, words in (
        ("empty", b"", "line 1, column 1"),
        ("blank", b" \n\n", "line 3, column 1"),
        ("nothing_but_a_comment", b"// nothing", "the file ends here"),
        ("cut_10", whole[:4], "line 1"),
        ("cut_50", whole[: len(whole) // 2], "line 1"),
        ("cut_last_byte", whole[:-1], "the bracket was opened on line 1"),
        ("not_a_number", b'{"lora_rank": NaN}', "'NaN'"),
        ("infinity", b'{"lora_rank": -Infinity}', "a value was expected"),
        ("1e999", b'{"learning_rate": 1e999}', "too large"),
        ("many_digits", b'{"seed": ' + b"9" * 100_000 + b"}", "too large"),
        ("digits_of_no_double", b'{"seed": ' + b"9" * 399 + b"}", "too large"),
        ("hex", b'{"seed": 0x10}', '"," or "}"'),
        ("leading_zero", b'{"seed": 007}', '"," or "}"'),
        ("plus", b'{"seed": +1}', "a value was expected"),
        ("lists_in_lists", b"[" * 100_000, "deeper than 64"),
        ("objects_in_objects", b'{"a":' * 100_000, "deeper than 64"),
        ("huge", b" " * 5_000_000 + b"{}", "larger than 1 MB"),
        ("latin1", b'{"output_dir": "caf\xe9"}', "not UTF-8 at byte 19"),
        ("utf16", '{"seed": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
        ("nul", b'{"seed": \0 1}', "line 1, column 10"),
        ("nul_escaped", b'{"output_dir": "a\\u0000b"}', "NUL"),
        ("half_surrogate", b'{"output_dir": "\\ud800"}', "surrogate"),
        ("windows_path", b'{"output_dir": "C:\\data"}', "escape"),
        ("line_in_string", b'{"output_dir": "a\nb"}', "control character"),
        ("unclosed_string", b'{"output_dir": "a', "not closed"),
        ("unclosed_comment", b'{"seed": 1} /* and', "comment is not closed"),
        ("single_quotes", b"{'seed': 1}", "double quotes"),
        ("python", b"{'seed': None, 'a': True}", "double quotes"),
        ("True", b'{"seed": True}', "'True'"),
        ("no_comma", b'{"seed": 1\n "lora_rank": 2}', "line 2, column 2"),
        ("no_colon", b'{"seed" 1}', '":" was expected'),
        ("two_commas", b'{"seed": 1,,}', "a key in double quotes"),
        ("key_is_a_number", b"{1: 2}", "a key in double quotes"),
        ("two_documents", b'{"seed": 1} {"seed": 2}', "more text"),
        ("yaml", b"seed: 1\nlora_rank: 2\n", "a value was expected"),
        ("toml", b"seed = 1\n", "a value was expected"),
        ("html", b"<!DOCTYPE html>", "a value was expected"),
        ("picture", good_image(), "not UTF-8"),
        ("a_number", b"3", "neither an object"),
        ("a_string", b'"config"', "neither an object"),
        ("null", b"null", "neither an object"),
        ("comments_by_the_thousand", b"/* " * 200_000, "comment is not closed"),
        ("quotes_by_the_thousand", b'["' + b'\\"' * 400_000, "not closed"),
    ):
        yield Case(name=name, files=_files(content, _json([CLIPS, START_FRAMES])), words=words)


def readable() -> Iterable[Case]:
    """Files that are JSON: every mistake in them is an issue, and the rest is read."""
    yield from _accepted()
    yield from _wrong_values()
    yield from _wrong_datasets()


def _config(name: str, config: bytes, *says: Said, words: str = "", datasets: object = None) -> Case:
    listed = [CLIPS, START_FRAMES] if datasets is None else datasets
    return Case(name=name, files=_files(config, _json(listed)), says=frozenset(says), words=words)


def _accepted() -> Iterable[Case]:
    yield _config("plain", b"{}")
    yield _config("byte_order_mark", b'\xef\xbb\xbf{"seed": 1}')
    yield _config("comments", b'// c\n{"seed": 1, /* "lora_rank": 0 */ // more\n}\n// end')
    yield _config("trailing_comma", b'{"seed": 1,}')
    yield _config("crlf", b'{\r\n"seed": 1\r\n}\r\n')
    yield _config("nulls", b'{"lora_alpha": null, "seed": null}')
    yield _config("dashes", b'{"--seed": 1, "--lora_rank": 4}')
    yield Case(name="no_configuration", files=_files(None, None))
    yield Case(name="datasets_only", files=_files(None, _json([CLIPS, START_FRAMES])))


def _wrong_values() -> Iterable[Case]:
    yield _config("twice", b'{"seed": 1,\n"seed": 2}', error(INVALID, "seed"), words="line 2: seed is written twice")
    values: Mapping[str, tuple[object, ...]] = {
        "lora_rank": (0, -1, 8.5, "8", True, [8], {"rank": 8}),
        "learning_rate": ("1e-4", 0, -1, [1e-4]),
        "lora_dropout": (1, 1.5, -0.1),
        "gradient_checkpointing": ("False", 1, "yes"),
        "train_batch_size": (0, "1"),
        "aspect_bucket_alignment": (24, 0, 1e308),
        "validation_resolution": ("wide", "480x830", True, [480, 832], "99999x99999"),
        "validation_num_video_frames": (3, -93, "93", 1e308),
        "output_dir": ("", "s3://bucket/a", "file:///etc", "a" * 300, "a/" * 3000, 3),
        "pretrained_model_name_or_path": ("../../nothing", "https://example.org/model"),
        "model_family": ("wan", 3),
        "lr_scheduler": ("sine",),
        "data_backend_config": ("nothing.json", "clips", "s3://a", "\u0007"),
    }
    for key, wrong in values.items():
        for index, value in enumerate(wrong):
            says = [error(INVALID, key)]
            if key == "data_backend_config" and not value.startswith("s3:"):
                says.append(error(IssueCode.NO_CLIPS, "datasets"))
            yield _config(f"{key}_{index}", _json({key: value}), *says, words=key)
    for written, nearest in (("learning_rat", "learning_rate"), ("lorarank", "lora_rank"), ("zzzz", "spelling")):
        yield _config(f"unknown_{written}", _json({written: 1}), warning(UNKNOWN, written), words=nearest)
    markup = "<script>alert(1)</script>"
    yield _config("unknown_markup", _json({markup: 1}), warning(UNKNOWN, markup), words=markup)
    yield _config("unknown_empty", _json({"": 1}), warning(UNKNOWN, ""))
    yield _config("unknown_nested", _json({"zzzz": [[[{"a": [1]}]]]}), warning(UNKNOWN, "zzzz"))
    many = {f"zzzz{index}": index for index in range(2000)}
    yield _config("unknown_2000", _json(many), *(warning(UNKNOWN, key) for key in many))
    nobody = warning(IssueCode.DATASET_UNKNOWN, "eval_dataset_id")
    yield _config("eval_of_nothing", _json({"eval_dataset_id": "nobody"}), nobody, words="nobody")
    yield _config("eval_of_start_frames", _json({"eval_dataset_id": "s"}), nobody, words="holds no clips")
    both = _json({"max_train_steps": 0, "num_train_epochs": 0})
    yield _config("nothing_to_do", both, error(INVALID, "num_train_epochs"), words="nothing to do")
    yield _config("refused", _json({"controlnet": True}), error(UNUSED, "controlnet"), words="cannot be done")


def _wrong_datasets() -> Iterable[Case]:
    no_clips, unknown = IssueCode.NO_CLIPS, IssueCode.DATASET_UNKNOWN
    nothing = [error(no_clips, "multidatabackend.json"), error(no_clips, "datasets")]

    def listed(name: str, datasets: object, *says: Said, words: str = "") -> Case:
        return _config(name, b'{"output_dir": "out"}', *says, words=words, datasets=datasets)

    def clips(**changed: object) -> list[object]:
        return [{key: value for key, value in {**CLIPS, **changed}.items() if value is not None}, START_FRAMES]

    yield listed("empty_list", [], *nothing, words="nothing to train on")
    yield listed("object", CLIPS, error(INVALID, "multidatabackend.json"), error(no_clips, "datasets"), words="list")
    strings = [error(INVALID, "[0]"), error(INVALID, "[1]"), error(INVALID, "[2]"), *nothing]
    yield listed("list_of_strings", ["clips", 3, None], *strings, words="in braces")
    yield listed("no_id", clips(id=None), error(INVALID, "[0].id"), words="id is missing")
    yield listed("id_is_a_number", clips(id=3), error(INVALID, "[0].id"), words="id")
    yield listed("id_is_empty", clips(id=""), error(INVALID, "[0].id"), words="id")
    twice = [CLIPS, {**CLIPS, "instance_data_dir": "clips"}, START_FRAMES]
    yield listed("id_twice", twice, error(INVALID, "a.id"), words="two datasets")
    orphan = warning(UNUSED, "s")
    gone = error(unknown, "a.conditioning_data")
    missing = error(IssueCode.START_FRAME_MISSING, "a.mp4")
    yield listed("unknown_reference", clips(conditioning_data="stills"), gone, orphan, missing, words="stills")
    yield listed("reference_to_itself", clips(conditioning_data="a"), gone, orphan, missing, words="conditioning")
    wrong_kind = [error(INVALID, "a.conditioning_data"), orphan, missing]
    yield listed("reference_is_a_number", clips(conditioning_data=3), *wrong_kind, words="conditioning_data")
    yield listed("disabled", clips(disabled=True), orphan, *nothing, words="nothing to train on")
    yield listed("no_type", clips(dataset_type=None), error(INVALID, "a.dataset_type"), orphan, *nothing)
    for name, kind in (("image", "image"), ("wrong", "vidoe")):
        wrong = [error(INVALID, "a.dataset_type"), orphan, *nothing]
        yield listed(f"type_{name}", clips(dataset_type=kind), *wrong, words=kind)
    yield listed("no_folder", clips(instance_data_dir=None), error(INVALID, "a.instance_data_dir"), orphan, *nothing)
    for name, folder in (("gone", "nothing"), ("a_file", "clips/a.mp4"), ("too_deep", "d/" * 1900)):
        missing_folder = error(IssueCode.FOLDER_MISSING, "a")
        yield listed(f"folder_{name}", clips(instance_data_dir=folder), missing_folder, words="folder")
    for index, folder in enumerate(("s3://bucket/clips", "file:///etc", "", 3, ["clips"])):
        refused = [error(INVALID, "a.instance_data_dir"), orphan, *nothing]
        yield listed(f"folder_refused_{index}", clips(instance_data_dir=folder), *refused)
    yield listed("cloud", clips(type="aws"), error(INVALID, "a.type"), words="aws")
    yield listed(
        "unknown_key", clips(instance_data_di="x"), warning(UNKNOWN, "a.instance_data_di"), words="Did you mean"
    )
    yield listed("markup_id", clips(id="<b>a</b>"))
    for index, value in enumerate(("a", -1, 1.5)):
        yield listed(f"repeats_{index}", clips(repeats=value), error(INVALID, "a.repeats"))
    counts = ("93", 0, 4, 92.5, 3602, 1e308, True)
    for index, video in enumerate((3, "93", [93], *({"num_frames": count} for count in counts))):
        subject = "a.video.num_frames" if isinstance(video, dict) else "a.video"
        yield listed(f"video_{index}", clips(video=video), error(INVALID, subject))
    off = warning(IssueCode.FRAMES_OFF_STRIDE, "a.video.num_frames")
    yield listed("ninety_frames", clips(video={"num_frames": 90}), off, words="89 or 93")
    for index, resolution in enumerate((0, -480, 1e308, "480", 5000)):
        yield listed(f"resolution_{index}", clips(resolution=resolution), error(INVALID, "a.resolution"))
    no_prompt = error(INVALID, "a.instance_prompt")
    yield listed("no_prompt", clips(caption_strategy="instanceprompt"), no_prompt, words="instance_prompt")
