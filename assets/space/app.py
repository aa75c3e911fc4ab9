"""The Space: sample from the demo's start frames, and look at the demo datasets."""

from studio.ui.app import launch
from studio.ui.settings import AppSettings

launch(AppSettings(is_space=True), host="0.0.0.0")
