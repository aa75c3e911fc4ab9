"""LongCat Studio: teach LongCat-Video new motion with a LoRA, and animate your own start frames."""
