"""What is frozen is the same to the last bit after training, whatever is around it."""


import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from processes import run_two
from tool_helpers import forget_runs, tiny_folder, write_leaf
from utils import CONFIGS, randomise

METHODS = ('deep', 'bias', 'head', 'shallow', 'deep-bias', 'lora', 'ssf', 'vapt')
#: Name -> what is added to the config. Weight decay is on in all of them.
AROUND = {
    'AdamW': '',
    'SGD': """
optim_wrapper['optimizer'] = dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.1)
""",
    'AMP': "optim_wrapper['type'] = 'AmpOptimWrapper'",
    'EMA': "custom_hooks = [dict(type='EMAHook', momentum=0.3)]",
    'lean': "model['backbone']['memory'] = 'lean'",
    'accumulating': """
optim_wrapper['accumulative_counts'] = 2
optim_wrapper['clip_grad'] = dict(_delete_=True, max_norm=1.0)
""",
}
#: The rest is for the slow suite; two processes do EMA with three methods.
QUICK = [('deep', around) for around in ('AdamW', 'AMP', 'lean')] + [
    ('bias', 'AdamW'), ('bias', 'EMA'), ('head', 'AMP'), ('lora', 'AdamW')]
#: The optimizer and what wraps it know names of weights and not the method: prompts, weights of the
#: backbone and adapters meet each. What changes the forward meets every method.
WITH_ALL, WITH_EVERY = ('deep', 'bias', 'head', 'lora'), ('AdamW', 'lean')
#: The rest of a leaf: a method, and four iterations with dropout everywhere.
LEAF = """
_tuned = dict({tuning!r})
model['backbone'].pop('prompt', None)
model['backbone'].update(_tuned, drop_rate=0.2, drop_path_rate=0.2)
optim_wrapper = dict(
    type='OptimWrapper', clip_grad=None,
    optimizer=dict(_delete_=True, type='AdamW', lr=0.01, weight_decay=0.5))
train_cfg = dict(max_iters=4, val_interval=4)
{around}
"""


class Watch(Hook):
    """Keeps the parameters and buffers of a run's start, none of them zero, and of its end."""

    priority = 'VERY_LOW'

    def before_train(self, runner):
        """Give everything a value, then keep it."""
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        randomise(self.model.backbone, seed=1)
        self.start = self._copy(self.model)

    @staticmethod
    def _copy(model):
        return {name: value.detach().clone() for name, value in model.state_dict().items()}

    def result(self, runner):
        """Frozen that changed, trained that did not (names); how many frozen, and models."""
        models = [self.model]
        models += [hook.ema_model.module for hook in runner.hooks if hasattr(hook, 'ema_model')]
        trained = {name for name, value in self.model.named_parameters() if value.requires_grad}
        # Batch statistics of heads move as well.
        frozen = {name for name in self.start if name.startswith('backbone.')} - trained
        changed, unchanged = set(), set()
        for model in models:
            end = self._copy(model)
            same = {name for name in self.start if _bits(self.start[name]) == _bits(end[name])}
            changed |= frozen - same
            unchanged |= trained & same
        return sorted(changed), sorted(unchanged), len(frozen), len(models)


def _bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def write(folder, data, method, around):
    """A leaf of one method; returns its path."""
    from mmengine import Config

    tuning = Config.fromfile(CONFIGS / f'_base_/methods/{method}.py').method.to_dict()
    if 'prompt' in tuning:
        tuning['prompt'].update(num_tokens=2, _delete_=True)  # the leaf has another
    return write_leaf(folder, data, LEAF.format(tuning=tuning, around=AROUND[around]))


def train(leaf, launcher='none'):
    from vpt_dense import config
    from vpt_dense.engine.runner import Runner

    forget_runs()
    cfg = config.load(str(leaf))
    cfg.launcher = launcher
    runner = Runner.from_cfg(cfg)
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    return watch.result(runner)


def check(result, models=1):
    changed, unchanged, frozen, seen = result
    assert changed == []
    assert unchanged == []  # weight decay moves even what has no gradient
    assert frozen > 10 and seen == models


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp('data'))


@pytest.mark.parametrize(
    ('method', 'around'),
    [pytest.param(method, around, marks=() if (method, around) in QUICK else pytest.mark.slow)
     for method in METHODS for around in AROUND if method in WITH_ALL or around in WITH_EVERY],
)  # fmt: skip
def test_one_process(tmp_path, data, method, around):
    result = train(write(tmp_path, data, method, around))
    check(result, models=2 if around == 'EMA' else 1)


def test_what_is_not_frozen_changes(tmp_path, data):
    """The test can fail: without freezing every tensor of the backbone changes."""
    leaf = write(tmp_path, data, 'full', 'AdamW')
    changed, unchanged, frozen, _ = train(leaf)
    assert (changed, unchanged, frozen) == ([], [], 0)


def work(rank, leaves, found):
    for name, leaf in leaves.items():
        found.append(((name, rank), train(leaf, 'pytorch')))


@pytest.fixture(scope='module')
def of_two_processes(tmp_path_factory, data):
    """(method, rank) -> result; one pair of processes for all, their imports take seconds."""
    leaves = {}
    for method in ('deep', 'bias', 'head'):
        leaves[method] = write(tmp_path_factory.mktemp(method), data, method, 'EMA')
    return dict(run_two(work, leaves))


@pytest.mark.parametrize('rank', [0, 1])
@pytest.mark.parametrize('method', ['deep', 'bias', 'head'])
def test_two_processes_with_ema(of_two_processes, method, rank):
    check(of_two_processes[method, rank], models=2)
