"""Many tasks on one frozen backbone: mixed batches in one pass over its weights."""
