# Five tasks together: a linear head each, DINOv2 ViT-B/14, PASCAL-Context in crops of 518x518.
_base_ = [
    '../_base_/models/multi-task_vit-l.py',
    '../_base_/backbones/dinov2_vit-b.py',
    '../_base_/datasets/pascal-context_tasks.py',
    '../_base_/schedules/tasks_40k.py',
    '../_base_/default_runtime.py',
    '../_base_/optim/adamw.py',
]
model = dict(
    task_heads=dict(
        seg=dict(_base_.task_head.classes, num_classes=21),
        parts=dict(_base_.task_head.classes, num_classes=7),
        saliency=dict(_base_.task_head.classes, num_classes=2),
        normals=_base_.task_head.normals,
        edges=_base_.task_head.edges,
    ),
    # Those of the literature (S. Vandenhende et al., https://arxiv.org/abs/2004.13379).
    weighting=dict(weights=dict(parts=2, saliency=5, normals=10, edges=50)),
)
img_size = 518
