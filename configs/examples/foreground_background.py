# One object against everything else: a single channel, whose sigmoid is the probability of the
# object. Masks hold 0 (background) and 1 (object); for 0 and 255 add label_map={255: 1}.
_base_ = '../vpt/setr_vit-l_deep_segfolder.py'
dataset = dict(data_root='data/cracks', classes=['background', 'crack'])
_binary = dict(
    num_classes=2,
    out_channels=1,
    threshold=0.5,  # of the probability; the object is predicted above it
)
model = dict(
    decode_head=dict(**_binary, loss_decode=dict(use_sigmoid=True)),
    auxiliary_head=[
        {**head, **_binary, 'loss_decode': {**head['loss_decode'], 'use_sigmoid': True}}
        for head in _base_.model.auxiliary_head
    ],
)
