"""What stands before the pages: own hosts and sites only, the password, and the documented API for everyone else."""

from __future__ import annotations

import hmac
import json
import re
import shutil
import time
from base64 import b64decode
from binascii import Error as BadBase64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_CALL = 32 * 2**20
"""Bytes of a call: room for a start frame as text."""
CALLS = re.compile(r"/gradio_api/(?:queue/join|stream/[^/]+|(?P<way>run|api|call/v2|call)/(?P<name>[^/]+))")
"""Routes of gradio that run an event."""
UPLOAD = "/gradio_api/upload"
OTHERS = re.compile(UPLOAD + r"|/gradio_api/(?:cancel|reset|mcp(?:/.*)?)")
"""What else is sent to gradio here; its other routes are for what no page of ours has."""
KEEPS = "/gradio_api/deep_link"
"""Read, it leaves a file that nobody sweeps away."""


class OwnSiteOnly:
    """Refuses requests under a foreign host name (DNS rebinding) and from the pages of other sites."""

    def __init__(self, app: ASGIApp, hosts: frozenset[str]) -> None:
        self.app = app
        self.hosts = hosts
        """Host names that are served; none means all."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 403."""
        if scope["type"] in ("http", "websocket") and not self._is_own(scope):
            await _refuse("This address is not served here.", 403)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_own(self, scope: Scope) -> bool:
        host = _header(scope, b"host") or ""
        name = host.rsplit(":", 1)[0].strip("[]") if not host.endswith("]") else host.strip("[]")
        if self.hosts and name not in self.hosts:
            return False
        is_reading = scope["type"] == "http" and scope["method"] in ("GET", "HEAD", "OPTIONS")
        if _header(scope, b"sec-fetch-site") in ("cross-site", "same-site"):
            # A link may lead here; nothing else of another site may ask for anything, or show it in a frame.
            return is_reading and _header(scope, b"sec-fetch-dest") == "document"
        return is_reading or _header(scope, b"origin") is None or is_of_own_page(scope)


class PasswordOnly:
    """Asks for a name and a password (HTTP Basic) before anything at all is served."""

    def __init__(self, app: ASGIApp, name: str, password: str) -> None:
        self.app = app
        self.secret = f"{name}:{password}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 401."""
        if scope["type"] in ("http", "websocket") and not self._is_known(scope):
            headers = {"WWW-Authenticate": 'Basic realm="LongCat Studio", charset="UTF-8"'}
            await _refuse("A name and a password are needed.", 401, headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        scheme, _, text = (_header(scope, b"authorization") or "").partition(" ")
        try:
            given = b64decode(text.strip(), validate=True)
        except (BadBase64, ValueError):
            return False
        return scheme.lower() == "basic" and hmac.compare_digest(given, self.secret)


class SmallRequestsOnly:
    """Refuses requests of more than `most` bytes, however many files they carry."""

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app = app
        self.most = most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 413; one that does not say how long it is ends where it is too long."""
        said = _header(scope, b"content-length") or "0" if scope["type"] == "http" else "0"
        if not said.isdecimal() or int(said) > self.most:
            await _refuse("The request is too long.", 413)(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            return {"type": "http.disconnect"} if taken > self.most else message

        await self.app(scope, counted, send)


class RoomForUploads:
    """Refuses uploads where the disk is nearly full, and removes what broken ones have left in `folder`."""

    def __init__(self, app: ASGIApp, folder: Path, least: int, seconds: float) -> None:
        self.app = app
        self.folder = folder
        """Of gradio; it may not be there yet."""
        self.least = least
        """Bytes that stay free."""
        self.seconds = seconds
        """An upload that took longer is none any more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or answers 507."""
        if scope["type"] == "http" and scope["path"].rstrip("/").endswith(UPLOAD):
            self.folder.mkdir(parents=True, exist_ok=True)
            # gradio sweeps away whole uploads only.
            for left in self.folder.glob("tmp*"):
                if left.is_file() and left.stat().st_mtime < time.time() - self.seconds:
                    left.unlink(missing_ok=True)
            if shutil.disk_usage(self.folder).free < self.least:
                await _refuse("There is no room for uploads now.", 507)(scope, receive, send)
                return
        await self.app(scope, receive, send)


class CheckedCalls:
    """Refuses calls with files that are no uploads, calls of events that the caller may not call, and what is no call.

    Programs may call the public events; all others are for the pages, whose requests say where they come from.
    """

    def __init__(self, app: ASGIApp, pages: Mapping[str, gr.Blocks] | None = None, most: int = MAX_CALL) -> None:
        self.app = app
        self.pages = pages
        """By the path that each is mounted under, filled before the first request; None: all may call all events."""
        self.most = most
        """Bytes of a call."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a call on, or answers 403, or 413 to one that is too long."""
        if scope["type"] != "http" or (scope["method"] != "POST" and KEEPS not in scope["path"]):
            await self.app(scope, receive, send)
            return
        prefix, mark, rest = scope["path"].rstrip("/").partition("/gradio_api/")
        call = CALLS.fullmatch(mark + rest)
        if call is None:
            served = self.app if OTHERS.fullmatch(mark + rest) else _refuse("This is not served here.", 403)
            await served(scope, receive, send)
            return
        body = await _body(receive, self.most)
        if body is None:
            await _refuse("The call is too long.", 413)(scope, receive, send)
            return
        try:
            asked = json.loads(body)
            is_unchecked = _has_unchecked_file(asked)
        except (ValueError, RecursionError):
            await _refuse("The call cannot be read.", 400)(scope, receive, send)
            return
        is_of_page = call["way"] in (None, "run", "api") and is_of_own_page(scope)
        if is_unchecked or not (
            self.pages is None or is_of_page or self._is_public(prefix or "/", call["name"], asked)
        ):
            await _refuse("This is not part of the documented API.", 403)(scope, receive, send)
            return
        await self.app(scope, _again(body, receive), send)

    def _is_public(self, prefix: str, name: str | None, asked: Any) -> bool:
        events = (self.pages or {})[prefix].fns if prefix in (self.pages or {}) else {}
        public = {event.api_name: number for number, event in events.items() if event.api_visibility == "public"}
        number = asked.get("fn_index") if isinstance(asked, dict) else None
        # Some routes of gradio go by the name in the address, others by the number.
        is_named, is_numbered = name in public, number in public.values()
        return (is_named or name is None) and (is_numbered or number is None) and (is_named or is_numbered)


def _has_unchecked_file(asked: Any) -> bool:
    """True where a part of a call has a path that gradio would fetch from elsewhere, or open without looking whether
    it was uploaded: a picture without the mark of an upload.
    """
    if isinstance(asked, dict):
        path, meta = asked.get("path"), asked.get("meta")
        is_marked = isinstance(meta, dict) and meta.get("_type") == "gradio.FileData"
        if isinstance(path, str) and ("://" in path or not is_marked):
            return True
        return any(map(_has_unchecked_file, asked.values()))
    return isinstance(asked, list) and any(map(_has_unchecked_file, asked))


def is_of_own_page(scope: Scope) -> bool:
    """True for a request that a browser sends from a page of this very address."""
    origin = _header(scope, b"origin")
    return origin is not None and origin.partition("://")[2] == _header(scope, b"host")


def _header(scope: Scope, name: bytes) -> str | None:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


async def _body(receive: Receive, most: int) -> bytes | None:
    """The whole body of a request; None where it has more than `most` bytes, or was broken off."""
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if message["type"] != "http.request" or len(body) > most:
            return None
        if not message.get("more_body"):
            return bytes(body)


def _again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body once more, and then what comes after it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


def _refuse(why: str, status: int, headers: Mapping[str, str] | None = None) -> PlainTextResponse:
    return PlainTextResponse(why, status_code=status, headers=headers)
