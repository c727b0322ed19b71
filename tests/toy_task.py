"""A third task, from outside of the package: how bright an image is, one number for each.

As CONTRIBUTING says: a record, a data check, and a recipe (tests/test_tasks.py writes it). Model,
data set and metric are what any task on MMEngine needs.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from mmpretrain.structures import DataSample
from torch import nn

from vpt_dense import tasks
from vpt_dense.datasets import checks
from vpt_dense.errors import UserError

tasks.add(tasks.Task(
    'regression', 'regression_head', 'regression head', 'mae', 'mean error', less_is_better=True,
    scope='mmpretrain', short='reg', classes=False, tag='image-feature-extraction',
    sample='toy_task:sample_of', check_sample='toy_task:check_number',
    check_data='toy_task:check_numbers', predict='toy_task:measure',
))


@MODELS.register_module()
class Regressor(BaseModel):
    def __init__(self, backbone, regression_head, data_preprocessor=None, init_cfg=None):
        super().__init__(data_preprocessor, init_cfg)
        self.backbone = MODELS.build(backbone)
        self.regression_head = MODELS.build(regression_head)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        numbers = self.regression_head(self.backbone(inputs)[-1])[:, 0]  # (B,)
        if mode == 'loss':
            return dict(loss=(numbers - torch.tensor(
                [sample.number for sample in data_samples], device=numbers.device)).square().mean())
        if mode == 'tensor':
            return numbers
        for sample, number in zip(data_samples, numbers, strict=True):
            sample.set_field(number.item(), 'pred_number')
        return data_samples


@MODELS.register_module()
class BrightnessHead(nn.Linear):
    def __init__(self, in_channels):
        super().__init__(in_channels, 1)


@DATASETS.register_module()
class Brightness(BaseDataset):
    """Images of a split, and numbers.json beside them: name -> number."""

    def load_data_list(self):
        folder = Path(self.data_prefix['img_path'])
        numbers = json.loads((folder / 'numbers.json').read_text())
        return [dict(img_path=str(folder / name), number=number)
                for name, number in numbers.items()]


@METRICS.register_module()
class MeanError(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results += [abs(s['pred_number'] - s['number']) for s in data_samples]

    def compute_metrics(self, results):
        return dict(mae=sum(results) / len(results))


# --- what the record names -------------------------------------------------------------------


@dataclass(frozen=True)
class Number:
    number: float

    def line(self, number):
        return dict(number=self.number)


def measure(predictor, batch, probabilities):
    samples = predictor.model.test_step(pseudo_collate(batch))
    return [Number(sample.pred_number) for sample in samples]


def sample_of(cfg, size):
    return DataSample(metainfo=dict(number=0.5))


def check_number(sample, head, ignore_index):
    if not math.isfinite(sample.number):
        raise UserError(f'{sample.img_path}: its number is {sample.number}')


def check_numbers(dataset, split, how):
    data = dataset.load_data_list()
    found = checks.check_classification(
        [(each['img_path'], None) for each in data], (), name=split, **how)
    wrong = [each['img_path'] for each in data if not math.isfinite(each['number'])]
    found['problems'] += [f'numbers that are none: {", ".join(wrong)}'] if wrong else []
    return found
