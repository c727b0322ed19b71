"""Label Studio's ML backend: a server's predictions, and a new delta from what was labelled.

``python -m vpt_dense.labelling URL TASK``; docs/labelling.md has the loop from end to end.
"""
