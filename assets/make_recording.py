"""Records the app on the tiny checkpoint, from a check to a comparison, as one animated picture for the README.

python assets/make_recording.py                # assets/recording.webp
python assets/make_recording.py --clips 6 --steps 60    # quicker; the LoRA then hardly hops
python assets/make_recording.py --frames DIR   # the pictures that it is made of, too

It starts the app in a new folder, drives it in Chromium as a visitor does, and shows what takes long in a shorter time:
the line at the foot says so.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont
from playwright.sync_api import Locator, Page, sync_playwright

from studio.core.assets import asset_path

WINDOW = {"width": 1280, "height": 760}
SIZE = (960, 570)
"""Pixels of the window in the picture."""
FOOT = 34
MOST_BYTES = 3_200_000
QUALITIES = (70, 60, 50, 40, 30, 20)
"""Of WebP; the first one that is small enough is taken."""
PATIENCE = 30 * 60
"""Seconds for what trains or renders on a busy CPU."""
POINTER_WITHOUT_PATHS = """
addEventListener("DOMContentLoaded", () => {
  const dot = document.createElement("div");
  dot.style.cssText = "position:fixed;z-index:99999;width:22px;height:22px;margin:-11px;border-radius:50%;" +
    "background:#1f5fd055;border:2px solid #1f5fd0;pointer-events:none;left:-50px;top:-50px";
  const style = document.createElement("style");
  style.textContent = ".summary .path { opacity: 0 }";
  document.body.append(dot, style);
  addEventListener("mousemove", (e) => { dot.style.left = e.clientX + "px"; dot.style.top = e.clientY + "px"; }, true);
});
"""


class Recorder:
    """Takes pictures of a page, and how long each is shown."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.caption = ""
        self.pictures: list[Image.Image] = []
        self.milliseconds: list[int] = []

    def begin(self, caption: str) -> None:
        """What the line at the foot says from now on."""
        self.caption = caption
        print(f"{sum(self.milliseconds) / 1000:5.1f} s  {caption}", flush=True)

    def show(self, milliseconds: int) -> None:
        """The page as it is now, for so long."""
        picture = self._with_foot(Image.open(io.BytesIO(self.page.screenshot())).convert("RGB"))
        if self.pictures and ImageChops.difference(picture, self.pictures[-1]).getbbox() is None:
            self.milliseconds[-1] += milliseconds
            return
        self.pictures.append(picture)
        self.milliseconds.append(milliseconds)

    def play(self, seconds: float, every: float = 0.25) -> None:
        """The page as it moves, in its own time."""
        until = time.monotonic() + seconds
        while (began := time.monotonic()) < until:
            self.show(round(1000 * every))
            self.page.wait_for_timeout(max(1.0, 1000 * (every - time.monotonic() + began)))

    def lapse(self, is_over: Callable[[], bool], *, every: float, shown: float) -> None:
        """The page once in `every` seconds, shown for `shown` seconds, until something is over."""
        deadline = time.monotonic() + PATIENCE
        while not is_over():
            if time.monotonic() > deadline:
                raise TimeoutError(f"The page did not come to: {self.caption}")
            self.show(round(1000 * shown))
            self.page.wait_for_timeout(1000 * every)
        self.show(round(1000 * shown))

    def click(self, what: Locator) -> None:
        """The pointer goes there, and clicks."""
        what.scroll_into_view_if_needed()
        box = what.bounding_box()
        assert box is not None
        self.page.mouse.move(box["x"] + min(box["width"] / 2, 120), box["y"] + box["height"] / 2, steps=3)
        self.show(450)
        what.click(position={"x": min(box["width"] / 2, 120), "y": box["height"] / 2})

    def save(self, file: Path) -> None:
        """Writes the animation, as good as the size allows."""
        first, *rest = self.pictures
        quality = QUALITIES[0]
        for quality in QUALITIES:
            first.save(
                file, "WEBP", save_all=True, append_images=rest, duration=self.milliseconds, loop=0, quality=quality,
                method=4, minimize_size=True,
            )  # fmt: skip
            if file.stat().st_size <= MOST_BYTES:
                break
        seconds, megabytes = sum(self.milliseconds) / 1000, file.stat().st_size / 1e6
        print(f"{file}: {len(self.pictures)} pictures, {seconds:.0f} s, {megabytes:.1f} MB at quality {quality}")

    def _with_foot(self, window: Image.Image) -> Image.Image:
        picture = Image.new("RGB", (SIZE[0], SIZE[1] + FOOT), "#14181d")
        picture.paste(window.resize(SIZE, Image.Resampling.LANCZOS), (0, 0))
        font = ImageFont.load_default(17)
        ImageDraw.Draw(picture).text((16, SIZE[1] + FOOT / 2), self.caption, "#e8eaed", font, anchor="lm")
        return picture


def record(page: Page, recorder: Recorder, num_steps: int, project: Path | None) -> None:
    """What a visitor does, room by room; without a project, with the demo."""

    def at(selector: str) -> Locator:
        return page.locator(selector).first

    recorder.begin("1  Check: every clip with its verdict, and a mend for what is wrong")
    recorder.play(0.8)
    recorder.click(at("#use-broken"))
    at(".summary").wait_for()
    recorder.play(1.6)
    recorder.click(at("#mend"))
    at("#mend-preview .planned").wait_for()
    at("#mend-panel").scroll_into_view_if_needed()
    recorder.play(2.4)
    to_top(page)
    if project is None:
        recorder.click(at("#use-demo"))
    else:
        page.fill("#dataset-path input, #dataset-path textarea", project.name)
        recorder.click(page.get_by_role("button", name="Open", exact=True))
    at(".summary .path:has-text('shapes')").wait_for()
    page.wait_for_function("!document.querySelector('.summary .path').innerText.includes('broken')")
    recorder.play(1.2)
    recorder.click(page.locator(".clip").nth(1))
    page.wait_for_function("document.querySelector('#clip-player video')?.duration > 0")
    recorder.play(2.2)

    to_top(page)
    recorder.click(at("#to-train"))
    at("#plan .facts").wait_for()
    recorder.begin("2  Train: what it takes is said beforehand")
    page.fill("#steps input", str(num_steps))
    page.press("#steps input", "Enter")
    recorder.play(2.0)
    recorder.click(at("#train"))
    recorder.begin(f"2  Train: {num_steps} steps on a laptop's processor, shown in a few seconds")
    page.wait_for_selector("[data-points]", timeout=1000 * PATIENCE)
    at("#loss").scroll_into_view_if_needed()
    recorder.lapse(lambda: page.locator("[data-state='finished']").count() > 0, every=num_steps / 45, shown=0.22)
    recorder.play(1.5)

    recorder.begin("3  Sample: a start frame, a sentence, the new LoRA; without and with it, of one seed")
    recorder.click(at("#to-sample"))
    page.wait_for_function("/^\\d{8}-/.test(document.querySelector('#lora-choice input').value)")
    recorder.play(0.6)
    choose(recorder, at("#sample-pair"), 0)
    page.wait_for_function("document.querySelector('#prompt textarea').value.length > 0")
    choose(recorder, at("#sample-compare"), 1)
    recorder.play(1.0)
    recorder.click(at("#render"))
    at("#stage").scroll_into_view_if_needed()
    recorder.begin("3  Sample: the frames as they emerge")
    done = page.locator(".entry.is-done")
    recorder.lapse(lambda: done.count() >= 2 and at("#judge video").is_visible(), every=0.5, shown=0.3)

    recorder.begin("4  Judge: both videos under one clock")
    to_top(page, "#judge")
    page.wait_for_function("document.querySelector('#judge video')?.readyState >= 2")
    recorder.play(0.5)
    recorder.click(at("#judge [data-do='play']"))
    recorder.play(3.6, every=0.2)
    recorder.begin("4  Judge: where they differ")
    recorder.click(at("#judge [data-mode-of='heat']"))
    to_top(page, "#judge")
    recorder.play(2.6, every=0.2)


def choose(recorder: Recorder, field: Locator, number: int) -> None:
    """Takes the `number`-th of a list."""
    recorder.click(field.locator("input"))
    option = field.page.locator("[role=option]").nth(number)
    option.wait_for()
    recorder.show(400)
    option.click()


def to_top(page: Page, selector: str = "body") -> None:
    """Scrolls until this is at the top of the window."""
    page.evaluate("selector => document.querySelector(selector).scrollIntoView()", selector)


def few_clips(folder: Path, count: int) -> Path:
    """A copy of the demo for a slow machine: `count` clips to train on, one by one, half as large and half as long."""
    project = Path(shutil.copytree(asset_path("shapes"), folder / "shapes"))
    for part, most in (("train", count), ("val", 2)):
        for clip in sorted((project / part / "clips").glob("*.mp4"))[most:]:
            for file in project.glob(f"{part}/*/{clip.stem}.*"):
                file.unlink()
    config, datasets = project / "config.json", project / "multidatabackend.json"
    config.write_text(
        json.dumps(json.loads(config.read_text()) | {"train_batch_size": 1, "validation_resolution": "64x64"})
    )
    small = (
        datasets.read_text()
        .replace('"resolution": 128', '"resolution": 64')
        .replace('"num_frames": 17', '"num_frames": 9')
    )
    datasets.write_text(small)
    return project


@contextmanager
def running_app(folder: Path) -> Iterator[str]:
    """The address of an app that works in `folder`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "app.log"
    with log.open("w") as out:
        app = subprocess.Popen(
            [sys.executable, "-m", "studio", "ui", "--no-browser", "--port", str(port)],
            cwd=folder,
            stdout=out,
            stderr=out,
        )
    try:
        deadline = time.monotonic() + PATIENCE
        while "The app is at" not in log.read_text():
            if app.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The app did not start: {log.read_text()}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/"
    finally:
        app.terminate()
        app.wait(30)


def main() -> None:
    """Reads the command line and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("recording.webp"))
    parser.add_argument("--steps", type=int, default=400, help="of the training; the demo has 400")
    parser.add_argument("--clips", type=int, help="so many of the demo's clips alone: quicker")
    parser.add_argument("--frames", type=Path, help="a folder for the pictures")
    options = parser.parse_args()
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with (
        tempfile.TemporaryDirectory() as folder,
        running_app(Path(folder)) as address,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-background-networking"]
        )
        page = browser.new_context(viewport=WINDOW, color_scheme="light").new_page()  # pyright: ignore[reportArgumentType]
        page.set_default_timeout(120_000)
        page.add_init_script(POINTER_WITHOUT_PATHS)
        page.goto(address)
        page.wait_for_selector("#use-demo")
        recorder = Recorder(page)
        try:
            record(page, recorder, options.steps, options.clips and few_clips(Path(folder), options.clips))
        finally:
            if options.frames:
                options.frames.mkdir(parents=True, exist_ok=True)
                for number, picture in enumerate(recorder.pictures):
                    picture.save(options.frames / f"{number:04d}.png")
        browser.close()
    recorder.save(options.out)


if __name__ == "__main__":
    main()
