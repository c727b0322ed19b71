# What every run has in common (segmentation; default_runtime_cls.py is classification's).
default_scope = 'mmseg'
# Reading this config makes mmengine's loaders safe, before an inferencer opens a file of weights.
custom_imports = dict(imports=['vpt_dense.weights.guard'], allow_failed_imports=False)
custom_hooks = [
    dict(type='vpt_dense.ReportHook'),
    dict(type='vpt_dense.DataCheckHook'),
    dict(type='vpt_dense.InvalidLossHook', interval=50),
    dict(type='vpt_dense.PreemptionHook'),
]
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
# For TensorBoard or Weights & Biases add dict(type='TensorboardVisBackend') or
# dict(type='WandbVisBackend').
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends)
randomness = dict(seed=0)
log_level = 'INFO'
load_from = None
resume = False
