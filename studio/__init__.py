"""LongCat Studio: teach LongCat-Video new motion with a LoRA, and animate your own start frames."""

import os
import sys

# PyTorch reads it when it first allocates on a GPU: what is freed can then be put together again, so that a step needs
# hardly more than its tensors take, as predicted. Elsewhere than on Linux PyTorch has no such segments.
if sys.platform == "linux":
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
