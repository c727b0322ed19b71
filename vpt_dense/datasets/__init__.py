"""Data: folders as data sets, loaders and checks.

Nothing is imported here, so that a check of a folder needs no training stack; the registry knows
the modules that hold registered classes.
"""
