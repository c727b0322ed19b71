"""Checkpoints of what was tuned: deltas, ensembles made of them, the hub to share them on."""
