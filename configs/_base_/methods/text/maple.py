# MaPLe (https://arxiv.org/abs/2210.03117): learnt words in the first nine blocks of the text tower,
# and prompts of the image tower that linear layers make of them. Rate, 5 epochs and 4 images a step
# are the authors' (epochs=5, batch_size=4).
# Task: classification by text
# Trainable: depth * (num_tokens * text width + text width * image width + image width)
method = dict(
    prompt=dict(type='vpt_dense.CoupledPrompt'), trainable=[r'^prompt\.'], norm_prompts=True
)
method_head = dict(
    text=dict(
        prompt=dict(
            type='vpt_dense.ContextPrompt', num_tokens=2, words='a photo of a', depth=9
        ),
        trainable=[r'^prompt\.'],
    )
)
method_optim = dict(optimizer=dict(lr=0.0035))
optim_group = 'prompts'
