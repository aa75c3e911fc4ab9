"""Image-to-video sampling: start frame and prompt in, mp4 out."""
