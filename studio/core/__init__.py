"""The core: no gradio, no ipywidgets, no matplotlib, no argparse."""
