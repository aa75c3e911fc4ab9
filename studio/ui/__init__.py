"""The Gradio face."""
