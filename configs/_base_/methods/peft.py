# A tuner of Hugging Face's PEFT (https://github.com/huggingface/peft) on queries, keys and values
# of every block; pip install vpt_dense[peft]. Here IA3 (https://arxiv.org/abs/2205.05638).
# Trainable: sum(3 * n * d)
method = dict(
    adapters=[dict(type='vpt_dense.PEFT', config=dict(peft_type='IA3'), targets=[r'\.qkv$'])],
    trainable=[r'^adapters\.'],
)
optim_group = 'adapters'
