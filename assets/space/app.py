"""The Space: a start frame, a sentence, a video."""

from studio.ui.space_app import launch

launch()
