# Visual adaptive prompt tuning (https://arxiv.org/abs/2501.18936): prompts made of the patch tokens
# of every block. Maps of other sizes are pooled to that of 14 x 14 patches.
# Trainable: num_tokens * d[0] + (n[0] - 1) * (2 * d[0] + kernel_size**2 + num_tokens * ((grid[0] -
#   kernel_size + 1) * (grid[1] - kernel_size + 1) + 1)) + 2 * d[0] * hidden_dims
method = dict(
    prompt=dict(
        type='vpt_dense.VAPTPrompt', num_tokens=10, kernel_size=2, hidden_dims=8, grid=(14, 14),
        dropout=0.1,
    ),
    trainable=[r'^prompt\.'],
)
optim_group = 'prompt_layers'
