"""What only the demos need: weights, generated images, what pretrains a small ViT on them.

Nothing is imported here; the registry knows the modules that hold registered classes.
"""
