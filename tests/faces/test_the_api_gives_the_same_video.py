"""The documented API, by its own clients: through gradio_client and as MCP tools."""

import asyncio
import base64
import re
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from studio.core.data.decode import read_image
from studio.core.sample.request import SampleRequest
from studio.core.sample.sampler import sample
from studio.core.sample.video import read_video
from studio.ui.api import read_picture

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).parents[2]
PROMPT, SEED = "a red square moves <b>right</b>", 11
SIZE = {"frames": 5, "height": 64, "width": 64, "steps": 2, "guidance": 2.0, "seed": SEED}


@pytest.fixture(scope="module")
def client(app_address, tmp_path_factory):
    """What a program uses."""
    gradio_client = pytest.importorskip("gradio_client")
    client = gradio_client.Client(app_address, verbose=False, download_files=tmp_path_factory.mktemp("downloads"))
    yield client
    client.close()


@pytest.fixture(scope="module")
def picture(project):
    return project / "start_frames/shape_0.png"


@pytest.fixture(scope="module")
def frames(picture, tiny_bundle, tmp_path_factory):
    """uint8 [T, H, W, 3] of the same request through the core, as a player shows them."""
    out = tmp_path_factory.mktemp("core") / "video.mp4"
    request = SampleRequest(
        prompt=PROMPT, start_frame=read_image(picture), num_frames=5, height=64, width=64, num_inference_steps=2,
        guidance_scale=2.0, seed=SEED,
    )  # fmt: skip
    for _ in sample(request, tiny_bundle, out):
        pass
    return read_video(out)[0]


@pytest.fixture(scope="module")
def rendered(client, picture):
    """(video, settings) that a program got."""
    text = base64.b64encode(picture.read_bytes()).decode()
    return client.predict(prompt=PROMPT, start_frame=text, **SIZE, api_name="/render")


def test_the_same_seed_gives_the_same_video_bit_for_bit(rendered, frames):
    assert np.array_equal(read_video(Path(rendered[0]))[0], frames)


def test_the_video_is_in_the_gallery_with_its_settings(client, rendered, frames):
    video, settings = rendered
    name = settings["name"]
    assert re.fullmatch(r"sample-\d{4}", name)
    assert (settings["seed"], settings["num_frames"], settings["prompt"]) == (SEED, 5, PROMPT)
    assert settings["figures"]["motion"] is not None
    assert name in {listed["name"] for listed in client.predict(api_name="/videos")}
    assert client.predict(name, api_name="/settings_of") == {k: v for k, v in settings.items() if k != "name"}
    assert Path(client.predict(name, api_name="/video")).read_bytes() == Path(video).read_bytes()
    assert isinstance(client.predict(api_name="/loras"), list)
    assert isinstance(client.predict(api_name="/runs"), list)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": " "}, "no prompt"),
        ({"prompt": ["x"]}, "prompt is no text"),
        ({"start_frame": "/etc/passwd"}, "no base64 text"),
        ({"start_frame": "file:///etc/passwd"}, "no base64 text"),
        ({"start_frame": "http://127.0.0.1:1/x.png"}, "no base64 text"),
        ({"start_frame": "data:image/svg+xml;base64,PHN2Zy8+"}, "no base64 text"),
        ({"start_frame": base64.b64encode(b"<svg/>").decode()}, "not a PNG, JPEG or WebP"),
        ({"start_frame": {"path": "/etc/passwd"}}, "403 Forbidden"),
        ({"start_frame": ["/etc/passwd"]}, "start_frame is no text"),
        ({"lora": "../../etc/passwd"}, "There is no LoRA"),
        ({"lora": "/etc/passwd"}, "There is no LoRA"),
        ({"frames": 6}, "6 frames do not fit"),
        ({"frames": 1e6 + 0.5}, "no whole number"),
        ({"height": 10**9}, "beyond what the model can do"),
        ({"seed": -1}, "seed"),
        ({"seed": 10**400}, "seed is no number"),
        ({"guidance": "4"}, "guidance is no number"),
        ({"attention": "__import__"}, "Send one of auto, dense, sparse"),
        ({"schedule": "refinement"}, "Send one of auto"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_rendered_is_answered_in_a_sentence(client, asked, said):
    with pytest.raises(Exception, match=re.escape(said)) as caught:
        client.predict(**({"prompt": PROMPT} | SIZE | asked), api_name="/render")
    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "sample-9999", "", "sample-0001/../../x"])
def test_a_video_and_a_run_have_names_and_no_paths(client, name):
    for event in ("video", "settings_of", "run"):
        with pytest.raises(Exception, match=r"no video|is no run"):
            client.predict(name, api_name=f"/{event}")


def test_a_start_frame_comes_as_text(picture):
    text, pixels = base64.b64encode(picture.read_bytes()).decode(), read_image(picture)
    assert np.array_equal(read_picture(text), pixels)
    assert np.array_equal(read_picture(f"data:image/png;base64,{text}"), pixels)


def test_every_event_is_documented(client):
    page = (ROOT / "studio/ui/README.md").read_text(encoding="utf-8")
    events = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    for name, event in events.items():
        assert f"`{name.removeprefix('/')}`" in page
        for parameter in event["parameters"]:
            assert f"`{parameter['parameter_name']}`" in page, (name, parameter["parameter_name"])
            assert parameter["type"].get("type") in ("string", "integer", "number", None), parameter


def test_a_model_renders_by_tools_that_know_no_path(app_address, picture, frames, tmp_path):
    """The real client of the protocol; the video is fetched where the answer says."""
    mcp, transport = pytest.importorskip("mcp"), pytest.importorskip("mcp.client.streamable_http")
    text = f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"

    async def talk():
        async with (
            transport.streamablehttp_client(f"{app_address}/gradio_api/mcp/") as (read, write, _),
            mcp.ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = {tool.name: tool for tool in (await session.list_tools()).tools}
            done = await session.call_tool("render", {"prompt": PROMPT, "start_frame": text, **SIZE})
            wrong = [
                await session.call_tool("render", {"prompt": PROMPT, "start_frame": start, **SIZE})
                for start in ("/etc/passwd", f"{app_address}/config")
            ]
            file = {"path": "https://example.org/x", "meta": {"_type": "gradio.FileData"}}
            wrong.append(await session.call_tool("render", {"prompt": file}))
            wrong.append(await session.call_tool("reload", {}))
            return tools, done, wrong

    tools, done, wrong = asyncio.run(asyncio.wait_for(talk(), 120))
    assert tools.keys() == {"render", "loras", "videos", "video", "settings_of", "runs", "run"}
    for tool in tools.values():
        assert "file" not in str(tool.inputSchema).lower()
        assert "path" not in tool.inputSchema["properties"]
        assert tool.description
    assert all(answer.isError for answer in wrong)
    assert "no base64 text" in wrong[0].content[0].text
    assert not done.isError
    with urllib.request.urlopen(done.content[0].text, timeout=20) as answer:
        (tmp_path / "video.mp4").write_bytes(answer.read())
    assert np.array_equal(read_video(tmp_path / "video.mp4")[0], frames)
