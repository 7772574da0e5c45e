"""Collectives, cards and checkpoints at work: what `--deep` has measured, against what to expect."""
