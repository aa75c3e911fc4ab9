"""One of two processes that find each other on the CPU, and have nothing to do."""

from studio.core.model.processes import joined

with joined("cpu"):
    pass
