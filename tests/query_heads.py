"""What heads of queries have in common in tests."""

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from torch import nn


def assert_it_learns(model: nn.Module, share: float) -> None:
    """Twelve steps on two images leave at most this share of the loss; every step's gradients are
    on exactly what trains."""
    labels = torch.zeros(1, 32, 32, dtype=torch.long)
    labels[:, :, 16:] = 7
    images = [torch.zeros(3, 32, 32, dtype=torch.uint8) for _ in range(2)]
    for image in images:
        image[:, :, 16:] = 200
    data = model.data_preprocessor(dict(inputs=images, data_samples=[
        SegDataSample(gt_sem_seg=PixelData(data=labels)) for _ in images]), True)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    values = []
    for _ in range(12):
        torch.manual_seed(1)
        total, logged = model.parse_losses(model.loss(data['inputs'], data['data_samples']))
        optimizer.zero_grad()
        total.backward()
        values.append(float(total))
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name
        optimizer.step()
    assert values[-1] < share * values[0]
    assert {'decode.loss_cls', 'decode.b0.loss_mask', 'decode.b1.loss_dice'} <= set(logged)
    model.eval()
    with torch.no_grad():
        found = model.predict(data['inputs'])[0].pred_sem_seg.data
    assert found.shape[1:] == (32, 32)
