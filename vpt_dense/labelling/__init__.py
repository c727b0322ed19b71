"""Label Studio's ML backend: pre-labels of a running server, and a new delta from what was labelled.

``python -m vpt_dense.labelling URL TASK``; docs/labelling.md has the loop from one end to the other.
"""
