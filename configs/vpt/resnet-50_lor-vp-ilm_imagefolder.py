# ResNet-50, a folder of images: LoR-VP with iterative label mapping. The classifier is the
# pretrained one, 1,000 classes of ImageNet, and only the prompt trains.
_base_ = ['./resnet-50_imagefolder.py', '../_base_/methods/lor-vp.py']
model = dict(
    backbone=_base_.method,
    head=dict(
        _delete_=True,
        type='vpt_dense.LabelMappingHead',
        num_classes=1000,  # set from the classes of the data
        in_channels=2048,
        num_source_classes=1000,
        mode='iterative',
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        init_cfg=dict(type='Pretrained', checkpoint='pretrain/resnet50-0676ba61.pth'),
    ),
)
custom_hooks = [dict(type='vpt_dense.LabelMappingHook'), *_base_.custom_hooks]
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001),
)
