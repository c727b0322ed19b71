# Prompts and linear head: SGD with momentum. The paper searches the base learning rate (for 256
# images a step, see schedules/cls_100e.py) in {50, 25, 10, 5, 2.5, 1, 0.5, 0.25, 0.1, 0.05} and the
# weight decay in {0.01, 0.001, 0.0001, 0} for each data set; this is a middle of the grid.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='SGD', lr=1.0, momentum=0.9, weight_decay=0.0001),
)
