"""Names and captions of mended clips: readable, free, and never leading out of their folder."""

from __future__ import annotations

import re
import string
import unicodedata

from studio.core.data.captions import MAX_CAPTION_BYTES
from studio.core.data.scan import CAPTION_SUFFIX, CLIP_SUFFIXES, IMAGE_SUFFIXES, loose_form
from studio.core.errors import ConfigError

PLACEHOLDERS = ("name", "folder")
_MAX_NAME_BYTES = 200
"""Of one part of a path; Linux takes 255, endings and numbers included."""
_UNSAFE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff<>:"|?*\\]')
"""What some file system refuses, and what would give orders to a terminal."""

_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


class FreeNames:
    """Hands out names that differ in more than case and Unicode form, so that every file system holds them."""

    def __init__(self, *taken: str) -> None:
        self._taken = {loose_form(name) for name in taken}

    def take(self, name: str) -> str:
        """The name, made safe; where it is taken, with `-2`, `-3`, ... behind it."""
        safe = safe_name(name)
        free, number = safe, 1
        while loose_form(free) in self._taken:
            number += 1
            free = f"{safe}-{number}"
        self._taken.add(loose_form(free))
        return free


def safe_name(name: str) -> str:
    """A relative path, POSIX separators, that stays below its folder and is not hidden there: Unicode NFC."""
    *folders, last = [_safe_part(part) for part in unicodedata.normalize("NFC", name).split("/") if part] or ["_"]
    # A folder called a.mp4 would stand in the way of a clip called a.
    media = CLIP_SUFFIXES | IMAGE_SUFFIXES | {CAPTION_SUFFIX}
    folders = [part.replace(".", "_") if part[part.rfind(".") :].lower() in media else part for part in folders]
    return "/".join((*folders, last))


def _safe_part(part: str) -> str:
    part = _UNSAFE.sub("_", part)
    part = "_" + part.lstrip(".") if part.startswith(".") else part
    return part.encode()[:_MAX_NAME_BYTES].decode(errors="ignore")


def check_template(template: str) -> None:
    """Refuses a template of captions that is empty, not readable or asks for what is not known. Raises ConfigError."""
    allowed = " and ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    remedy = f"Use {allowed}; write {{{{ and }}}} for braces."
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ConfigError(f"The caption template {template} cannot be read: {error}.", remedy) from error
    for _, name, form, conversion in parts:
        if name is not None and (name not in PLACEHOLDERS or form or conversion):
            written = name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else "")
            raise ConfigError(f"The caption template asks for {{{written}}}, which is not known.", remedy)
    if _NO_TEXT.search(template):
        raise ConfigError("The caption template holds a character that is no text.", remedy)
    if not template.strip():
        raise ConfigError("The caption template is empty.", remedy)
    if len(template.encode(errors="replace")) > MAX_CAPTION_BYTES // 100:
        raise ConfigError("The caption template is longer than 1000 bytes.", "Shorten it.")


def filled_template(template: str, clip: str, dataset_folder: str) -> str:
    """The caption of a clip: `{name}` is its file name with blanks for underscores, `{folder}` its folder's name."""
    *folders, name = clip.split("/")
    folder = folders[-1] if folders else dataset_folder
    words = {"name": name.replace("_", " ").strip() or name, "folder": folder}
    return " ".join(template.format_map(words).split()) or name
