"""From files to training pairs: scan, probe, decode, pair, bucket, check, cache."""
