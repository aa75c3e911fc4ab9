"""Every door of gradio that our own app opens, tried with what opened it elsewhere."""

import asyncio
import http.client
import json
import os
import urllib.parse
import uuid
from base64 import b64encode
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse

from studio.cli import main
from studio.ui import guard
from studio.ui.app import MAX_UPLOAD, serve
from studio.ui.settings import AppSettings

pytestmark = [
    # gradio imports starlette's test client, which warns; it is not used here
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

PUBLIC = {"render", "loras", "videos", "video", "settings_of", "runs", "run"}
SECRET = "a secret of this machine"


@pytest.fixture(scope="module")
def ask(app_address):
    """ask(method, path, body=None, **headers): (status, headers, body) of the path as it is written."""
    host = app_address.partition("://")[2]

    def request(method, path, body=None, **headers):
        connection = http.client.HTTPConnection(host, timeout=30)
        if isinstance(body, dict):
            body, headers = json.dumps(body).encode(), {"Content-Type": "application/json", **headers}
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        try:
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    return request


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A file below the temporary folder, which gradio would serve to whom a handler tells its path."""
    file = tmp_path_factory.mktemp("secret") / "secret.txt"
    file.write_text(SECRET)
    (file.parent / ".hidden").write_text(SECRET)
    (file.parent / "link.txt").symlink_to(file)
    (file.parent / "passwd").symlink_to("/etc/passwd")
    return file


def paths_to(secret):
    folder = secret.parent
    yield from (secret, folder / "link.txt", folder / "passwd", folder / ".hidden", folder / "x" / ".." / secret.name)
    yield from ("/etc/passwd", "/etc/hostname", "/proc/self/environ", "/proc/self/cwd/app.log", "/proc/self/fd/0")
    yield from (
        "app.log",
        "./app.log",
        "runs",
        "../app.log",
        "../../../../../../etc/passwd",
        "//etc/passwd",
        "C:/boot.ini",
    )
    yield from ("file:///etc/passwd", "https://example.org/", "http://127.0.0.1:1/", "~/.bashrc", "")


@pytest.mark.parametrize(
    "route", ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/es/gradio_api/file=", "/static/"]
)
def test_no_path_is_served_that_someone_types(ask, secret, route):
    for path in map(str, paths_to(secret)):
        twice = urllib.parse.quote(urllib.parse.quote(path, safe=""))
        for written in {path, urllib.parse.quote(path), urllib.parse.quote(path, safe=""), twice}:
            status, headers, body = ask("GET", f"{route}{written.replace(' ', '%20')}")
            assert status in (400, 403, 404), (route, written)
            assert SECRET.encode() not in body
            assert b"root:" not in body
            assert "location" not in {name.lower() for name in headers}


@pytest.mark.parametrize(
    "route", ["proxy=http://127.0.0.1:1/", "proxy=https://example.org/", "stream/x/y/z/playlist-file"]
)
def test_nothing_is_fetched_from_elsewhere(ask, route):
    assert ask("GET", f"/gradio_api/{route}")[0] in (400, 403, 404, 422, 500)


def config(ask, prefix=""):
    return json.loads(ask("GET", f"{prefix}/config")[2])


def test_only_the_documented_events_can_be_called_by_name(ask):
    named = {event["api_name"]: event for event in config(ask)["dependencies"]}
    assert {name for name, event in named.items() if event["api_visibility"] == "public"} == PUBLIC
    assert len(named) > 40
    for name in named.keys() - PUBLIC:
        for way in ("call", "call/v2", "run", "api"):
            said = ask("POST", f"/gradio_api/{way}/{name}", {"data": [], "session_hash": "another"})
            assert said[0] == 403, (way, name)
    assert ask("POST", "/gradio_api/call/loras", {"data": []})[0] == 200
    # A public number beside a private name: this route goes by the name.
    both = {"data": [], "fn_index": named["loras"]["id"]}
    assert ask("POST", "/gradio_api/call/reload", both)[0] == 403
    spanish = {event["api_visibility"] for event in config(ask, "/es")["dependencies"]}
    assert spanish == {"private"}
    assert ask("POST", "/es/gradio_api/call/loras", {"data": []})[0] == 403


def test_no_other_event_can_be_called_by_its_number(ask):
    for event in config(ask)["dependencies"]:
        if event["api_visibility"] == "public":
            continue
        body = {"data": [None] * len(event["inputs"]), "fn_index": event["id"], "session_hash": "another"}
        # The second ends with a line break, which the routes of starlette take no notice of.
        for path in ("queue/join", "queue/join%0A", "queue/join/", "run/predict", "run/loras", "api/loras", "stream/x"):
            assert ask("POST", f"/gradio_api/{path}", body)[0] == 403, (path, event["api_name"])
    for body in (b"", b"[]", b"{", b'"x"', b"[" * 100_000, b'{"fn_index": [1]}', b'{"fn_index": "0"}'):
        assert ask("POST", "/gradio_api/run/predict", body, Content_Type="application/json")[0] in (400, 403)


@pytest.mark.parametrize("route", ["component_server", "process_recording", "stream/x/close", "vibe-edit", "nowhere"])
def test_routes_that_no_page_needs_are_not_served(ask, app_address, route):
    for path in (f"/gradio_api/{route}", f"/gradio_api/{route}%0A", f"/es/gradio_api/{route}/"):
        assert ask("POST", path, {"data": []}, Origin=app_address)[0] == 403
    for path in ("/gradio_api/deep_link?session_hash=x", "/es/gradio_api/deep_link%0A?session_hash=x"):
        assert ask("GET", path, Origin=app_address)[0] == 403


def test_a_page_of_another_site_may_link_here_and_no_more(ask, app_address):
    for site in ("cross-site", "same-site"):
        for dest in ("iframe", "empty", "script", "video", "object", ""):
            for path in ("/", "/es/", "/config", "/gradio_api/startup-events"):
                assert ask("GET", path, Sec_Fetch_Site=site, Sec_Fetch_Dest=dest)[0] == 403, (site, dest, path)
        assert ask("GET", "/robots.txt", Sec_Fetch_Site=site, Sec_Fetch_Dest="document")[0] == 200
        form = {"Sec_Fetch_Site": site, "Sec_Fetch_Dest": "document"}
        assert ask("POST", "/gradio_api/call/loras", {"data": []}, **form)[0] == 403
        assert ask("POST", "/gradio_api/call/loras", {"data": []}, Origin="null")[0] == 403
    assert ask("GET", "/robots.txt", Sec_Fetch_Site="same-origin", Sec_Fetch_Dest="iframe")[0] == 200


def test_a_page_may_call_its_events(ask, app_address):
    (reload,) = [e["id"] for e in config(ask)["dependencies"] if e["api_name"] == "reload"]
    body = {"data": [], "fn_index": reload, "session_hash": "a-page"}
    assert ask("POST", "/gradio_api/run/predict", body, Origin=app_address)[0] == 200
    assert ask("POST", "/gradio_api/run/predict", body, Origin="http://evil.example")[0] == 403


def image_event(ask):
    """(number of an event that takes a picture, its inputs, where the picture is)."""
    page = config(ask)
    kinds = {component["id"]: component["type"] for component in page["components"]}
    for event in page["dependencies"]:
        places = [place for place, one in enumerate(event["inputs"]) if kinds[one] in ("image", "file", "video")]
        if places and event["backend_fn"]:
            yield event["id"], [None] * len(event["inputs"]), places[0]


def test_a_file_is_an_upload_and_never_a_path_or_an_address(ask, app_address, secret):
    tried = 0
    for number, data, place in image_event(ask):
        for path in (str(secret), "/etc/passwd", str(secret.parent / "link.txt"), f"{app_address}/config", "ftp://x/y"):
            # gradio opens a picture without its mark wherever it lies.
            for mark in ({"meta": {"_type": "gradio.FileData"}}, {}, {"meta": {}}):
                file = {"path": path, "url": path, "orig_name": "x.png"} | mark
                body = {"data": [*data[:place], file, *data[place + 1 :]], "fn_index": number, "session_hash": "a-page"}
                status, _, said = ask("POST", "/gradio_api/run/predict", body, Origin=app_address)
                assert status == 403 or (mark.get("meta") and status in (404, 500)), (path, mark)
                assert SECRET.encode() not in said
                assert str(secret.parent).encode() not in said
                tried += 1
    assert tried


def upload(ask, name, content, **headers):
    border = uuid.uuid4().hex
    body = (
        f'--{border}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
        "Content-Type: text/html\r\n\r\n"
    ).encode() + content + f"\r\n--{border}--\r\n".encode()  # fmt: skip
    kind = f"multipart/form-data; boundary={border}"
    return ask("POST", "/gradio_api/upload", body, Content_Type=kind, **headers)


@pytest.mark.parametrize("name", ["../../evil.html", "/etc/evil.svg", "evil.svg", "..%2f..%2fevil.html"])
def test_an_upload_stays_in_its_folder_and_is_never_shown_as_a_page(ask, name):
    status, _, said = upload(ask, name, b"<script>alert(1)</script>")
    assert status == 200
    (path,) = json.loads(said)
    assert ".." not in Path(path).parts
    assert "/gradio/" in path
    status, headers, _ = ask("GET", f"/gradio_api/file={urllib.parse.quote(path)}")
    shown = {name.lower(): value for name, value in headers.items()}
    assert status == 200
    assert shown["content-disposition"].startswith("attachment")
    assert upload(ask, name, b"", Origin="https://evil.example")[0] == 403


def test_uploads_have_a_limit(ask):
    assert MAX_UPLOAD == "200mb"
    assert config(ask)["max_file_size"] == 200 * 1024**2


@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:80", "[::1].evil", ""]
)
def test_the_app_has_no_other_name(ask, name):
    for path in ("/", "/es/", "/config", "/gradio_api/mcp/", "/gradio_api/file=/etc/passwd"):
        assert ask("GET", path, Host=name)[0] in (400, 403)


async def _status(app, path, method="GET", body=b"", **headers):
    """What an app answers in this process; no server runs."""
    given = [(name.replace("_", "-").lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "headers": given,
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    sent, messages = [], [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        return messages.pop() if messages else {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"]


def written(routes):
    """(path, method) of every route, those of routers inside them too."""
    for route in routes:
        if hasattr(route, "original_router"):
            yield from written(route.original_router.routes)
        else:
            yield from ((route.path, method) for method in getattr(route, "methods", None) or ["GET"])


def test_a_password_guards_every_route_of_both_pages(tmp_path):
    def given(text):
        return {"Host": "x", "Authorization": f"Basic {b64encode(text.encode()).decode()}"}

    async def probe(app):
        routes = [
            (mount.path + path, method)
            for mount in app.routes
            for path, method in written(getattr(mount, "routes", ()))
        ]
        assert len(routes) > 100
        assert any(path.startswith("/es/") for path, _ in routes)
        assert any("/mcp" in path for path, _ in routes)
        routes += [("/nowhere", "GET"), ("/gradio_api/mcp/", "POST"), ("/es", "GET")]
        for path, method in routes:
            assert await _status(app, path, method, Host="x") == 401, path
        for wrong in ("ana:", "ana:a:b", "ana:a:b n", "eva:a:b ñ", "", ":", "ana:a:b ñ "):
            assert await _status(app, "/config", **given(wrong)) == 401
        for header in ("Basic", "Basic ???", "Bearer x", "Digest x"):
            assert await _status(app, "/config", Host="x", Authorization=header) == 401
        assert await _status(app, "/config", **given("ana:a:b ñ")) == 200
        assert await _status(app, "/es/config", **given("ana:a:b ñ")) == 200
        assert await _status(app, "/es", **given("ana:a:b ñ")) == 307, "to the address with a slash"

    asyncio.run(probe(serve(AppSettings(output_dir=tmp_path), hosts=frozenset(), auth=("ana", "a:b ñ"))))


def test_a_request_that_is_too_long_ends_there():
    taken = []

    async def swallow(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            taken.append(len(message["body"]))
            if not message.get("more_body"):
                break
        await PlainTextResponse(message["type"])(scope, receive, send)

    app = guard.SmallRequestsOnly(swallow, most=10)
    assert asyncio.run(_status(app, "/", "POST", Content_Length="11")) == 413
    assert asyncio.run(_status(app, "/", "POST", Content_Length="-1")) == 413
    assert asyncio.run(_status(app, "/", "POST", b"x" * 11)) == 200
    assert taken == [], "nothing of it was handed on"
    assert asyncio.run(_status(app, "/", "POST", b"x" * 10)) == 200
    assert taken == [10]


def test_uploads_leave_room_on_the_disk_and_broken_ones_are_removed(tmp_path):
    async def served(scope, receive, send):
        await PlainTextResponse("taken")(scope, receive, send)

    def upload_to(least, path="/gradio_api/upload"):
        app = guard.RoomForUploads(served, folder=tmp_path / "uploads", least=least, seconds=60)
        return asyncio.run(_status(app, path, "POST"))

    assert upload_to(least=0) == 200
    old, new, whole = (tmp_path / "uploads" / name for name in ("tmpold", "tmpnew", "whole.png"))
    for file in (old, new, whole):
        file.write_bytes(b"x")
    for file in (old, whole):
        os.utime(file, (1, 1))
    assert upload_to(least=2**60) == upload_to(2**60, "/gradio_api/upload/") == 507
    assert upload_to(2**60, "/gradio_api/queue/join") == 200
    assert [file.exists() for file in (old, new, whole)] == [False, True, True], "gradio sweeps whole uploads away"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.7", "studio.example"])
def test_a_host_that_others_reach_needs_a_password(host, capsys):
    assert main(["ui", "--no-browser", "--host", host, "--port", "1"]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert host in error
    assert "--auth" in error


@pytest.mark.parametrize("auth", ["ana", "ana:", ":b", ""])
def test_a_password_without_a_name_is_none(auth, capsys):
    assert main(["ui", "--no-browser", "--auth", auth, "--port", "1"]) == 1
    assert "NAME:PASSWORD" in capsys.readouterr().err
