"""The notebook face: ipywidgets."""
