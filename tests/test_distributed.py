"""Two processes on a CPU: the same step as one process on the joined batch."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS
from mmengine.structures import PixelData
from processes import run_two
from torch import nn
from utils import CONFIGS, in_scope, randomise

from vpt_dense.hooks import PromptLossHook

ARCH = dict(embed_dims=16, num_layers=3, num_heads=2, feedforward_channels=32)
#: Name -> (fragment, backbone's options in two processes, and in the one that it must equal).
SEGMENTATION = {name: (name, {}, {}) for name in (
    'full', 'head', 'bias', 'shallow', 'deep', 'deep-bias', 'mona', 'convpass')} | {
    'deep-not-tokens': ('deep', {}, dict(prompts_as='tokens')),
    'deep-lean': ('deep', dict(memory='lean'), {}),
    'deep-bias-lean': ('deep-bias', dict(memory='lean'), {}),
    'full-lean': ('full', dict(memory='lean'), {}),
    'deep-with-cp': ('deep', dict(with_cp=True), {}),
}
CLASSIFICATION = {name: (name, {}, {}) for name in (
    'linear', 'deep', 'partial-1', 'bias', 'mona', 'convpass', 'vfpt', 'tcpa')} | {
    'deep-not-tokens': ('deep', {}, dict(prompts_as='tokens')),
    'deep-lean': ('deep', dict(memory='lean'), {}),
}

def tuning(method: str) -> dict:
    """What trains, from the file that the configs use; few tokens and no random dropout."""
    from mmengine import Config

    found = Config.fromfile(CONFIGS / f'_base_/methods/{method}.py').method.to_dict()
    for part in (found.get('prompt', {}), *found.get('adapters', ())):
        usual = dict(num_tokens=3, dropout=0.0)
        part.update({key: value for key, value in usual.items() if key in part})
    return found


def backbone(out_type: str, tuned: dict) -> dict:
    return dict(
        type='vpt_dense.VisionTransformer', arch=ARCH, img_size=16, patch_size=4,
        out_type=out_type, **tuned,
    )  # fmt: skip


def segmentation(method: str, options: dict) -> nn.Module:
    """SETR-PUP with an auxiliary head, SyncBN as it is on CPU."""
    in_scope('mmseg')
    head = dict(
        type='SETRUPHead', in_channels=16, channels=8, num_classes=5, dropout_ratio=0,
        num_convs=1, up_scale=2, norm_cfg=dict(type='vpt_dense.CPUSyncBN'),
    )  # fmt: skip
    return MODELS.build(dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(16, 16), seg_pad_val=255),
        backbone=dict(**backbone('featmap', tuning(method)), out_indices=[1, 2],
                      **options),
        decode_head=dict(**head, in_index=1),
        auxiliary_head=[dict(**head, in_index=0)],
    ))  # fmt: skip


def classification(method: str, options: dict) -> nn.Module:
    in_scope('mmpretrain')
    model = MODELS.build(dict(
        type='ImageClassifier',
        data_preprocessor=dict(type='ClsDataPreprocessor'),
        backbone=dict(**backbone('cls_token', tuning(method)), **options),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=16,
                  loss=dict(type='CrossEntropyLoss')),
    ))  # fmt: skip
    if getattr(model.backbone.prompt, 'adds_loss', False):
        PromptLossHook().before_train(SimpleNamespace(model=model, iter=0, _has_loaded=False))
    return model


def batch(task: str) -> dict:
    """Four images with labels, float64; the ignored pixels are as many in either half."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(4, 3, 16, 16, generator=generator, dtype=torch.float64)
    # The halves differ in mean and spread: batch statistics of one alone would be wrong.
    inputs[2:] = inputs[2:] * 2 + 1
    samples = []
    for i in range(4):
        if task == 'segmentation':
            from mmseg.structures import SegDataSample

            sample = SegDataSample(metainfo=dict(img_shape=(16, 16)))
            labels = torch.randint(0, 5, (1, 16, 16), generator=generator)
            labels[:, :2] = 255
            sample.gt_sem_seg = PixelData(data=labels)
        else:
            from mmpretrain.structures import DataSample

            sample = DataSample().set_gt_label(i % 3)
        samples.append(sample)
    return dict(inputs=inputs, data_samples=samples)


def step(model: nn.Module, data: dict) -> None:
    """One forward and backward pass of the training loss."""
    losses = model(**data, mode='loss')
    total = sum(
        value if torch.is_tensor(value) else sum(value)
        for name, value in losses.items()
        if 'loss' in name
    )
    total.backward()


def state(model: nn.Module) -> dict:
    """Gradients, and running statistics, by name."""
    found = {f'grad {n}': p.grad for n, p in model.named_parameters() if p.requires_grad}
    found.update({n: b.clone() for n, b in model.named_buffers() if 'running' in n})
    return found


def compare(rank: int, failures: list) -> None:
    """In each of two processes: one process's step first, then the step of both."""
    cases = [('segmentation', v) for v in SEGMENTATION]
    cases += [('classification', v) for v in CLASSIFICATION]
    models, expected = {}, {}
    for task, variant in cases:
        build, table = ((segmentation, SEGMENTATION) if task == 'segmentation'
                        else (classification, CLASSIFICATION))
        fragment, options, options_of_one = table[variant]
        models[task, variant] = randomise(build(fragment, options)).double().train()
        model = randomise(build(fragment, options_of_one)).double().train()
        step(model, batch(task))
        expected[task, variant] = state(model)

    from vpt_dense.engine.distributed import set_up_cpu

    set_up_cpu('pytorch')
    for task, variant in cases:
        wrapped = MMDistributedDataParallel(
            models[task, variant], device_ids=None, broadcast_buffers=False
        )
        whole = batch(task)
        half = slice(2 * rank, 2 * rank + 2)
        # Twice: a frozen or unused parameter would make DDP fail at the second step.
        for _ in range(2):
            wrapped.zero_grad()
            for module in wrapped.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.reset_running_stats()
            step(wrapped, {name: value[half] for name, value in whole.items()})
        found, wanted = state(wrapped.module), expected[task, variant]
        for name, value in wanted.items():
            error = (found[name] - value).abs().max() / value.abs().max().clamp(min=1e-6)
            if found.keys() != wanted.keys() or not error < 1e-6:
                failures.append(f'{task} {variant} rank {rank}: {name} differs by {error:.1e}')
        if not any(name.startswith('grad') and value.abs().max() > 0
                   for name, value in wanted.items()):  # fmt: skip
            failures.append(f'{task} {variant}: nothing has a gradient')
    dist.barrier()


@pytest.fixture(scope='module')
def differences():
    """Lines about what differs; one pair of processes for all cases, their imports take seconds."""
    return run_two(compare)


@pytest.mark.parametrize('variant', SEGMENTATION)
def test_segmentation_step_of_two_is_that_of_one(differences, variant):
    assert not [line for line in differences if line.startswith(f'segmentation {variant} ')]


@pytest.mark.parametrize('variant', CLASSIFICATION)
def test_classification_step_of_two_is_that_of_one(differences, variant):
    assert not [line for line in differences if line.startswith(f'classification {variant} ')]


# --- one process -----------------------------------------------------------------------------


def test_sync_bn_of_one_process_is_batch_norm():
    from vpt_dense.engine import CPUSyncBN

    ours, theirs = CPUSyncBN(4).train(), nn.BatchNorm2d(4).train()
    x = torch.randn(2, 4, 3, 3)
    assert torch.equal(ours(x), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert torch.equal(ours.running_var, theirs.running_var)


def test_amp_on_a_cpu_is_bfloat16(monkeypatch):
    from mmengine.registry import OPTIM_WRAPPERS

    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)  # as on a machine without CUDA
    layer = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(dict(type='vpt_dense.AmpOptimWrapper', optimizer=optimizer))
    before = layer.weight.clone()
    with wrapper.optim_context(layer):
        out = layer(torch.ones(3, 4))
    wrapper.update_params(out.float().sum())
    assert out.dtype == torch.bfloat16
    assert layer.weight.dtype == torch.float32
    torch.testing.assert_close(layer.weight, before - 0.1 * 3)
    wrapper.load_state_dict(wrapper.state_dict())
