"""Detection and instance segmentation on mmdet: a pyramid for plain ViTs, COCO folders, their AP.

Nothing here is imported before a config asks for it, but for :mod:`.settings`, which needs no
mmdet.
"""
