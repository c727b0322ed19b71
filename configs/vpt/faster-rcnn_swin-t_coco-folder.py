# Faster R-CNN, FPN, Swin-T, a COCO folder.
_base_ = [
    '../_base_/models/faster-rcnn_swin-t.py',
    '../_base_/datasets/coco-folder.py',
    '../_base_/schedules/det_10k.py',
    '../_base_/default_runtime_det.py',
    '../_base_/optim/detection.py',
]
# Of the four norms of outputs three are new.
also_trainable = [r'^norm[0123]\.']
