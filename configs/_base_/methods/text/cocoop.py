# CoCoOp (https://arxiv.org/abs/2203.05557): learnt words that a small network changes for each
# image. The texts of all classes are computed for every image: the authors train one image a step,
# 10 epochs (batch_size=1, epochs=10).
# Task: classification by text
# Trainable: num_tokens * text width + a linear layer to width / 16 and one back
method = dict(trainable=[])
method_head = dict(
    text=dict(
        prompt=dict(type='vpt_dense.ConditionalContext', num_tokens=4, words='a photo of a'),
        trainable=[r'^prompt\.'],
    )
)
optim_group = 'prompts'
