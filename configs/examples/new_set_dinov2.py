_base_ = '../vpt/linear_vit-s_dinov2_head_segfolder.py'
dataset = dict(data_root='data/streets', classes=['road', 'car', 'person'], ignore_index=11)
img_size = (252, 336)  # height, width
batch_size = 4
epochs = 20
