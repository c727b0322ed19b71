# LoR-VP (https://arxiv.org/abs/2502.00896): an image of rank 4 is added to every image. SGD at
# 0.02, the authors' (256 images a step, 20 epochs).
# Trainable: 3 * rank * (H + W)
method = dict(
    image_prompt=dict(type='vpt_dense.LoRVP', rank=4, mean=None, std=None),
    trainable=[r'^image_prompt\.'],
)
method_optim = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=0.0001),
)
optim_group = 'prompts'
