# Visual adaptive prompt tuning (https://arxiv.org/abs/2501.18936): prompts made of the patch tokens
# of every block. Maps of other sizes are pooled to that of 14 x 14 patches.
method = dict(
    prompt=dict(
        type='vpt_dense.VAPTPrompt', num_tokens=10, kernel_size=2, hidden_dims=8, grid=(14, 14),
        dropout=0.1,
    ),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompt_layers'
