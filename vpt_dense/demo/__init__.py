"""The demo's laboratory: generated images, and what pretrains a small ViT on them from scratch.

Nothing is imported here; the registry knows the modules that hold registered classes.
"""
