"""Datasets, mistakes and a phone, in a real browser."""

import pytest

pytestmark = pytest.mark.browser

PATIENCE = 90_000
"""Milliseconds for what trains or renders on a busy CPU."""


def room(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def test_a_faulty_dataset_says_what_to_mend_and_runs_nothing_of_it(visit):
    page = visit("es/")
    page.click("#use-broken")
    page.wait_for_selector(".summary .kind-unreadable")
    summary = page.inner_text(".summary")
    assert "1 listo" in summary
    assert "2 por corregir" in summary
    assert "1 ilegible" in summary
    assert "onerror=document.title" in page.inner_text(".clip >> nth=0")
    assert page.title() == "LongCat Studio"
    assert page.is_disabled("#to-train")


def open_folder(page, folder):
    page.fill("#dataset-path input, #dataset-path textarea", str(folder))
    page.get_by_role("button", name="Open", exact=True).click()


def test_a_clip_is_shown_as_it_is_trained_with_its_figures_by_keys_alone(visit, project):
    page = visit()
    page.click("#use-demo")
    # The page shows what was opened last until then.
    page.wait_for_selector(f".summary .path:text-is('{project}')")
    page.focus(".clip >> nth=0")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_selector("#detail .facts")
    assert page.get_attribute(".clip >> nth=1", "aria-pressed") == "true"
    assert "shape_1" in page.inner_text("#detail-head")
    assert "3 x 4 x 4 = 48" in page.inner_text("#detail .facts")
    assert page.get_attribute("#start-frame-shown img", "src").startswith("data:image/jpeg")
    page.wait_for_function("document.querySelector('#clip-player video')?.duration > 0")
    assert page.evaluate("document.querySelector('#clip-player video').videoWidth") == 64


def test_an_empty_folder_is_said_to_be_empty(visit, tmp_path):
    page = visit()
    open_folder(page, tmp_path)
    page.wait_for_selector("#clips .issues:has-text('holds no clips')")
    assert page.locator(".clip").count() == 0
    assert page.is_disabled("#to-train")


def test_a_thousand_clips_are_paged_and_filtered(visit, project, tmp_path):
    names = ("shape_0.mp4", "shape_0.txt")
    for number in range(1000):
        for name in names[: 1 if number % 100 == 0 else 2]:
            copy = tmp_path / name.replace("shape_0", f"clip_{number:04d}")
            copy.hardlink_to(project / "clips" / name)
    page = visit()
    open_folder(page, tmp_path)
    page.wait_for_selector("#where:has-text('1-20 of 1000')", timeout=PATIENCE)
    assert page.locator(".clip").count() == 20
    page.click("#later")
    page.wait_for_selector("#where:has-text('21-40 of 1000')")
    page.click("#filters .filter:has-text('No caption')")
    page.wait_for_selector(".clip:has-text('clip_0900')")
    assert page.locator(".clip").count() == 10
    assert page.is_hidden("#later")


def test_a_dataset_is_mended_from_the_preview_to_a_new_folder(visit, faulty_project):
    page = visit()
    page.click("#use-broken")
    page.click("#mend")
    page.wait_for_selector("#mend-preview .planned tbody tr >> nth=1")
    assert page.locator("#mend-preview .planned tbody tr").count() == 2
    assert "none → frame 1 of the clip" in page.inner_text("#mend-preview")
    assert "shape_3" in page.inner_text("#mend-preview .left-out")
    page.fill("#mend-template input, #mend-template textarea", "a shape, {name}")
    page.wait_for_function("document.querySelector('#mend-preview').innerText.includes('a shape, shape 2')")
    page.fill("#mend-template input, #mend-template textarea", "{nme}")
    page.wait_for_selector("#mend-preview .failure")
    assert page.is_disabled("#mend-write")
    page.fill("#mend-template input, #mend-template textarea", "a shape, {name}")
    page.wait_for_selector("#mend-preview .planned")
    new = page.input_value("#mend-into input, #mend-into textarea")
    page.click("#mend-write")
    page.wait_for_selector(f".summary:has-text('{new}')")
    assert "3 ready" in page.inner_text(".summary")
    assert "to mend" not in page.inner_text(".summary")
    assert page.is_hidden("#mend-panel")
    assert page.is_enabled("#to-train")
    assert not (faulty_project / "clips/shape_2.txt").exists()


def test_files_are_dropped_and_their_report_is_offered(visit, project):
    page = visit()
    page.click("#drop button")
    files = [project / "clips/shape_0.mp4", project / "clips/shape_0.txt", project / "start_frames/shape_0.png"]
    page.set_input_files("#dropped input[type=file]", files)
    page.wait_for_function("document.querySelectorAll('.clip').length === 1")
    page.click("#make-report")
    with page.expect_download() as download:
        page.click("#report-html")
    assert "shape_0" in download.value.path().read_text(encoding="utf-8")


def test_mistakes_are_answered_in_one_line(visit):
    page = visit()
    page.fill("#dataset-path input, #dataset-path textarea", "/no/such/folder")
    page.get_by_role("button", name="Open", exact=True).click()
    page.wait_for_selector("#dataset-message .failure")
    assert "Traceback" not in page.inner_text("body")
    room(page, "Sample")
    page.click("#render")
    page.wait_for_selector("#sample-status .failure")
    assert "There is no start frame." in page.inner_text("#sample-status")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_in_one_direction_and_has_room_for_thumbs(visit, scheme):
    page = visit("es/", viewport={"width": 390, "height": 844}, color_scheme=scheme)
    page.click("#use-demo")
    page.wait_for_selector(".clip")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    for button in ("#use-demo", "#to-train"):
        assert page.locator(button).bounding_box()["height"] >= 44
