"""LoRA training: adapter, step, loop, checkpoint, background job."""
