"""The LongCat-Video model: transformer, VAE, text encoder, flow matching, loading."""
