"""How the pages look: system fonts, one accent, nothing from another host."""

from __future__ import annotations

from pathlib import Path

from gradio import themes

from studio.view.players import JUDGE_CSS

CSS = [*(Path(__file__).with_name(name) for name in ("style.css", "runs.css", "sample.css", "gallery.css")), JUDGE_CSS]

HEAD = """
<meta name="color-scheme" content="light dark">
<script>
document.addEventListener('click', (event) => {
  if (!event.target.closest('.theme-switch')) return;
  const isDark = document.body.classList.toggle('dark');
  localStorage.setItem('studio-theme', isDark ? 'dark' : 'light');
});
document.addEventListener('DOMContentLoaded', () => {
  const chosen = localStorage.getItem('studio-theme');
  if (!chosen) return;
  const apply = () => document.body.classList.toggle('dark', chosen === 'dark');
  apply();
  setTimeout(apply, 300);
  setTimeout(apply, 1500);
});
</script>
"""
"""The switch between light and dark, kept in the browser."""

_SANS = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def studio_theme() -> themes.Base:
    """The theme; colours of our own parts are in style.css."""
    cobalt = themes.Color(
        name="cobalt",
        c50="#eef4ff", c100="#dce8ff", c200="#bcd2ff", c300="#9bbcff", c400="#7fb0ff", c500="#3f7ce8",
        c600="#1f5fd0", c700="#184caa", c800="#153e88", c900="#12326b", c950="#0c214a",
    )  # fmt: skip
    slate = themes.Color(
        name="slate",
        c50="#f7f8f9", c100="#eff1f3", c200="#e1e4e8", c300="#c9ced5", c400="#9aa3ad", c500="#6b7480",
        c600="#5b6470", c700="#3c444d", c800="#2c333b", c900="#1b2127", c950="#14181d",
    )  # fmt: skip
    theme = themes.Base(
        primary_hue=cobalt, secondary_hue=cobalt, neutral_hue=slate, font=_SANS, font_mono=_MONO,
        spacing_size=themes.sizes.spacing_md, radius_size=themes.sizes.radius_md,
        text_size=themes.sizes.text_md,
    )  # fmt: skip
    return theme.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="#1b1f24",
        body_text_color_dark="#e8eaed",
        body_text_color_subdued="#5b6470",
        body_text_color_subdued_dark="#9aa3ad",
        block_background_fill="#ffffff",
        block_background_fill_dark="*neutral_900",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_400",
        block_title_text_weight="600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_400",
        button_primary_background_fill_hover_dark="*primary_300",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#0c1522",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="*neutral_700",
        button_border_width="1px",
        button_cancel_background_fill="transparent",
        button_cancel_background_fill_hover="#fdecea",
        button_cancel_background_fill_dark="transparent",
        button_cancel_background_fill_hover_dark="#40201d",
        button_cancel_text_color="#b3261e",
        button_cancel_text_color_dark="#ff9a90",
        button_cancel_text_color_hover="#b3261e",
        button_cancel_text_color_hover_dark="#ff9a90",
        button_cancel_border_color="#b3261e",
        button_cancel_border_color_dark="#ff9a90",
        button_large_radius="8px",
        button_small_radius="8px",
    )
