"""The app: one page a language, four rooms, one workshop behind them."""

from __future__ import annotations

import ipaddress
import os
import socket
import threading
import webbrowser
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import fastapi
import gradio as gr
import torch
import uvicorn
from starlette.requests import Request
from starlette.responses import RedirectResponse

from studio.core.config import ModelConfig
from studio.core.errors import ConfigError, StudioError
from studio.core.model.load import ModelBundle, resolve_device
from studio.ui import markup
from studio.ui.api import add_api
from studio.ui.dataset_tab import build_dataset_tab
from studio.ui.guard import CheckedCalls, OwnSiteOnly, PasswordOnly
from studio.ui.runs_tab import RunsTab, build_runs_tab
from studio.ui.sample_tab import IDLE_SECONDS, build_sample_tab
from studio.ui.settings import AppSettings
from studio.ui.theme import CSS, HEAD, studio_theme
from studio.ui.train_tab import POLL_SECONDS, Seen, build_train_tab
from studio.ui.workshop import Workshop
from studio.view.terminal import write
from studio.view.words import LANGUAGES, Language, Words, words

MAX_UPLOAD = "200mb"
LAST_SECONDS = 3
"""For answers that are under way when the app ends."""
LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


def build_app(
    settings: AppSettings | None = None, *, workshop: Workshop | None = None, language: Language | None = None
) -> gr.Blocks:
    """One page in one language; pages that are given the same workshop share datasets, model and run."""
    settings = settings or AppSettings()
    shop = workshop or Workshop(settings)
    here = language or settings.language
    w = words(here)
    with gr.Blocks(title=w("app.name"), analytics_enabled=False, delete_cache=(3600, 86400)) as app:
        if here == settings.language:
            # First: an event of a page may not take a name of theirs.
            add_api(shop)
        links = _language_links(settings, here) if workshop else []
        header = gr.HTML(markup.header(w, _chips(shop, w), links), elem_id="header")
        pulse = gr.HTML(elem_id="pulse")
        rendering = gr.HTML(elem_id="sample-pulse")
        timer = gr.Timer(POLL_SECONDS)
        # Here too: what is in a room runs once it was opened.
        desk_timer = gr.Timer(IDLE_SECONDS, active=False)
        # Here, and not in the room: what a browser keeps is read when the page begins.
        kept = gr.BrowserState({}, storage_key="studio-chart", secret="studio")
        with gr.Tabs(selected="dataset") as tabs:
            with gr.Tab(w("tab.dataset"), id="dataset") as dataset_room:
                dataset = build_dataset_tab(shop, w)
            with gr.Tab(w("tab.train"), id="train") as train_room:
                train = build_train_tab(shop, w, dataset.path, pulse, timer, kept)
            with gr.Tab(w("tab.sample"), id="sample") as sample_room:
                sample = build_sample_tab(shop, w, rendering, desk_timer)
            with gr.Tab(w("tab.runs"), id="runs") as runs_room:
                runs = build_runs_tab(shop, w, tabs)

        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
        chips: dict[str, Any] = {"fn": lambda: markup.header(w, _chips(shop, w), links), "outputs": header, **quiet}
        for look in sample.open:
            sample_room.select(**look)
        restored = app.load(dataset.reload, None, dataset.outputs, **quiet)
        restored.then(**chips)
        restored.then(**sample.watch)
        sample.rendered(**chips)
        changed = dataset.path.change(train.plan, dataset.path, train.plan_outputs, **quiet)
        changed.then(**chips).then(**train.watch)
        dataset.train.click(lambda: gr.Tabs(selected="train"), None, tabs, **quiet).then(
            train.plan, dataset.path, train.plan_outputs, **quiet
        )
        train.to_sample.click(lambda: gr.Tabs(selected="sample"), None, tabs, **quiet).then(**sample.take_newest)
        restored.then(train.plan, dataset.path, train.plan_outputs, **quiet)
        restored.then(**train.watch)
        train.clips.click(lambda: gr.Tabs(selected="dataset"), None, tabs, **quiet)
        train.clips.click(dataset.find, dataset.path, dataset.find_outputs, **{**quiet, "queue": True})
        opened = [tabs, *runs.open_outputs]
        train.chart.click(_opens_checkpoint(runs), train.seen, opened, **quiet)
        runs_room.select(runs.refresh, runs.refresh_inputs, runs.outputs, **quiet)
        for other in (dataset_room, train_room, sample_room):
            other.select(runs.leave, None, runs.timer, **quiet)
        for continued in runs.continued:
            continued.then(**train.watch)
    app.queue(max_size=32, default_concurrency_limit=2)
    return app


def serve(
    settings: AppSettings, *, hosts: frozenset[str] = LOCAL_HOSTS, auth: tuple[str, str] | None = None
) -> fastapi.FastAPI:
    """The pages of all languages on one server.

    Requests for other hosts, from other sites, or without the name and password of `auth` are refused, and what is no
    page may call the documented API only.
    """
    shop = Workshop(settings)
    if settings.project is not None:
        _open_quietly(shop, str(settings.project))
    os.environ.setdefault("GRADIO_TEMP_DIR", str(shop.folder / "gradio"))
    server = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    pages: dict[str, gr.Blocks] = {}
    server.add_middleware(CheckedCalls, pages=pages)
    if auth is not None:
        server.add_middleware(PasswordOnly, name=auth[0], password=auth[1])
    # The one added last comes first.
    server.add_middleware(OwnSiteOnly, hosts=hosts)
    for language in sorted(LANGUAGES, key=lambda language: language == settings.language):
        path = _address(settings, language)
        pages[path] = build_app(settings, workshop=shop, language=language)
        if path != "/":
            server.add_route(path, partial(_with_slash, language), include_in_schema=False)
        gr.mount_gradio_app(
            server,
            pages[path],
            path=path,
            theme=studio_theme(),
            css_paths=CSS,
            head=HEAD,
            max_file_size=MAX_UPLOAD,
            blocked_paths=_blocked(shop),
            footer_links=[],
            show_error=False,
            run_history=False,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=path == "/" and find_spec("mcp") is not None,
        )
    return server


def _with_slash(language: Language, _: Request) -> RedirectResponse:
    """To the page of a language; relative, for a proxy may put something before it."""
    return RedirectResponse(f"{language}/")


def launch(
    settings: AppSettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    auth: tuple[str, str] | None = None,
    open_browser: bool = False,
) -> None:
    """Serves the app until it is interrupted. `auth` is a name and a password.

    Raises ConfigError: a host that others reach without a password, or a port in use.
    """
    settings = settings or AppSettings()
    if not _is_loopback(host) and auth is None:
        raise ConfigError(
            f"The host {host} can be reached by others, and no password is set.",
            "Use 127.0.0.1, or give --auth NAME:PASSWORD.",
        )
    _check_port(host, port)
    server = serve(settings, hosts=LOCAL_HOSTS | {host} if _is_loopback(host) else frozenset(), auth=auth)
    if open_browser:
        threading.Timer(1.5, webbrowser.open, (f"http://{host}:{port}/",)).start()
    write(words(settings.language)("app.serving", address=f"http://{host}:{port}/"))
    # An open page keeps a connection for as long as it is open.
    uvicorn.run(server, host=host, port=port, log_level="warning", timeout_graceful_shutdown=LAST_SECONDS)


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"The app cannot use port {port} of {host}: {error.strerror}.", "Give another --port."
            ) from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(settings: AppSettings, language: Language) -> str:
    return "/" if language == settings.language else f"/{language}"


def _language_links(settings: AppSettings, here: Language) -> list[tuple[str, str, str, bool]]:
    """(code, name, address, is this one) of every language."""
    return [(code, name, _address(settings, code).rstrip("/") + "/", code == here) for code, name in LANGUAGES.items()]


def _opens_checkpoint(runs: RunsTab) -> Callable[..., list[Any]]:
    """What a press on the mark of a checkpoint does: its run is shown in the room Runs."""

    def open_checkpoint(last: Seen | None, event: gr.EventData) -> list[Any]:
        step = event._data.get("checkpoint")
        if last is None or last.standing.run is None or not isinstance(step, int):
            return [gr.skip()] * (1 + len(runs.open_outputs))
        return [gr.Tabs(selected="runs"), *runs.open_run(last.standing.run.name, step)]

    return open_checkpoint


def _chips(shop: Workshop, w: Words) -> list[tuple[str, str]]:
    """Model, device and attention in use."""
    model = shop.model
    bundle = shop.loaded(model)
    chips = [(w("chip.model"), model.source), (w("chip.device"), _device_name(model))]
    if bundle is not None and bundle.device.type == "cuda":
        used = torch.cuda.memory_allocated(bundle.device) / 2**30
        chips.append((w("chip.memory"), f"{w.number(used, 1)} GiB"))
    chips.append((w("chip.attention"), _attention(bundle, w) if bundle else w("chip.attention_later")))
    return chips


def _attention(bundle: ModelBundle, w: Words) -> str:
    """What a video of the checkpoint's own size gets; with every video stands what it got itself."""
    size = bundle.defaults
    used = bundle.attention_of(size.num_frames, size.height, size.width)
    if used.sparsity is None or used.block is None:
        return w("chip.dense")
    block = "x".join(str(edge) for edge in used.block)
    return w("chip.sparse_blocks", sparsity=w.number(100 * used.sparsity, 2), block=block)


def _device_name(model: ModelConfig) -> str:
    try:
        return str(resolve_device(model.device)).upper()
    except StudioError:
        return model.device


def _blocked(shop: Workshop) -> list[str]:
    """The working directory, which gradio would serve from otherwise."""
    here = os.path.realpath(os.curdir)
    return [] if str(shop.folder.resolve()).startswith(here.rstrip("/") + "/") else [here]


def _open_quietly(shop: Workshop, path: str) -> None:
    """Opens the project; one that cannot be read is left for the page to say so."""
    try:
        shop.open(path)
    except StudioError:
        return
