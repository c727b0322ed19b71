# What the leaves of this folder share. The background covers four fifths of the pixels: it weighs
# less, or a short training stays there.
_base_ = [
    '../_base_/models/setr_vit-demo.py',
    '../_base_/datasets/digits_96.py',
    '../_base_/schedules/demo.py',
    '../_base_/default_runtime.py',
]
model = dict(
    decode_head=dict(loss_decode=dict(class_weight=[0.3] + [1.0] * 10)),
)
