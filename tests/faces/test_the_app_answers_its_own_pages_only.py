import urllib.error
import urllib.parse
import urllib.request

import pytest

from studio.core.errors import ConfigError
from studio.ui.app import launch

pytestmark = [
    # starlette's test client is not used here; gradio imports it all the same
    pytest.mark.filterwarnings("ignore::DeprecationWarning:starlette.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:gradio.*"),
]


def status(address, **request):
    try:
        with urllib.request.urlopen(urllib.request.Request(address, **request), timeout=20) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def test_pages_are_served_in_both_languages(app_address):
    assert status(f"{app_address}/") == 200
    assert status(f"{app_address}/es/") == 200


def test_a_foreign_host_name_is_refused(app_address):
    assert status(f"{app_address}/", headers={"Host": "evil.example"}) == 403


def test_a_request_from_the_page_of_another_site_is_refused(app_address):
    join = f"{app_address}/gradio_api/queue/join"
    assert status(join, data=b"{}", headers={"Origin": "https://evil.example"}) == 403
    assert status(join, data=b"{}", headers={"Origin": "http://127.0.0.1:1"}) == 403


def test_the_users_own_files_are_not_served(app_address, project):
    for path in ("/etc/passwd", str(project / "clips/shape_0.mp4"), "../app.log", "app.log"):
        asked = urllib.parse.quote(path)
        assert status(f"{app_address}/gradio_api/file={asked}") in (403, 404)


def test_an_open_host_needs_a_password():
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0"):
        launch(host="0.0.0.0", port=1)
