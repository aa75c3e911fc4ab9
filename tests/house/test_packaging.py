"""What an install brings: two import names, the sample assets, and pins that fit what is declared."""

from __future__ import annotations

import importlib.util
import re
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WHEEL = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]


def pins() -> dict[str, str]:
    lines = (ROOT / "tests/constraints.txt").read_text(encoding="utf-8").splitlines()
    return {
        canonicalize_name(name): version
        for name, version in (line.split("==") for line in lines if line and not line.startswith("#"))
    }


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("name", ["kernels/__init__.py", "kernels.py", "studio.py", "video_bsa.py"])
def test_no_file_shadows_a_package(name):
    # with kernels/__init__.py, transformers and diffusers would take our folder for Hugging Face's `kernels`
    assert not (ROOT / name).exists()


def test_the_name_kernels_is_left_to_hugging_face():
    spec = importlib.util.find_spec("kernels")
    assert spec is None or spec.origin is None or not Path(spec.origin).is_relative_to(ROOT)


def test_names_are_the_ones_decided():
    kernel = tomllib.loads((ROOT / "kernels/pyproject.toml").read_text(encoding="utf-8"))
    build = tomllib.loads((ROOT / "kernels/build.toml").read_text(encoding="utf-8"))
    assert PYPROJECT["project"]["name"] == "longcat-studio"
    assert WHEEL["packages"] == ["studio", "kernels/torch-ext/video_bsa"]
    assert kernel["project"]["name"] == build["general"]["name"] == "video-bsa"
    assert kernel["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["torch-ext/video_bsa"]
    licences = {PYPROJECT["project"]["license"], kernel["project"]["license"], build["general"]["license"]}
    assert licences == {"Apache-2.0"}


def test_every_pin_is_exact_and_public():
    wrong = {name: pin for name, pin in pins().items() if not re.fullmatch(r"[0-9][0-9a-z.]*", pin)}
    assert not wrong, f"neither local builds nor ranges: {wrong}"


def test_every_declared_package_is_pinned_to_a_version_it_allows():
    missing = sorted({r.name for r in declared() if canonicalize_name(r.name) not in pins()})
    assert not missing, f"tests/constraints.txt has no pin for {missing}"
    refused = [str(r) for r in declared() if not r.specifier.contains(pins()[canonicalize_name(r.name)])]
    assert not refused, f"tests/constraints.txt pins a version outside {refused}"


def test_torchvision_is_done_without():
    # it has no CPU build for the torch that is pinned
    assert "torchvision" not in pins()
    assert "torchvision" not in {r.name for r in declared()}


def test_the_wheel_holds_the_two_packages_and_the_sample_assets(tmp_path):
    wheel = pytest.importorskip("hatchling.builders.wheel")
    built = next(wheel.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(built) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"studio", "video_bsa"}
    assert {"studio/__init__.py", "video_bsa/reference.py"} <= set(names)
    for target in WHEEL["force-include"].values():
        assert any(name.startswith(target + "/") for name in names), f"{target} is empty"
    assert Path(built).stat().st_size < 32 * 2**20, "a wheel should stay a quick download"
