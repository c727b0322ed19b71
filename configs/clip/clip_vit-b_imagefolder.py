# CLIP ViT-B/16 and the names of the classes, a folder of images: a recipe for --method coop,
# cocoop, vpt, maple, sep, and for the methods of an image tower (deep, lora, ...).
_base_ = [
    '../_base_/models/clip-text_vit-b_cls.py',
    '../_base_/datasets/imagefolder_clip.py',
    '../_base_/schedules/clip_50e.py',
    '../_base_/default_runtime_cls.py',
    '../_base_/optim/clip.py',
]
batch_size = 32
