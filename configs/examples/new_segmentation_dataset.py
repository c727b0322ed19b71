_base_ = '../vpt/setr_vit-l_deep_segfolder.py'
dataset = dict(
    data_root='data/potholes',
    classes=['road', 'pothole'],
    palette=[[90, 90, 90], [255, 0, 0]])
