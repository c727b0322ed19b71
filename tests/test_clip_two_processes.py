"""CLIP in two processes: two steps are those of one process on the joined batches."""

import pytest
import torch
from mmengine.hooks import Hook
from processes import run_two
from test_clip_runs import root as images_root  # noqa: F401
from test_cost_head import write_cat_seg
from test_zegclip import root as masks_root  # noqa: F401
from test_zegclip import write_recipe
from tool_helpers import forget_runs
from utils import in_scope

#: Of each method the rate and options.
METHODS = {
    'coop': (0.1, ['model.head.text.prompt.num_tokens=3']),
    'maple': (0.1, ['model.head.text.prompt.depth=2']),
    'sep': (0.01, ['model.backbone.prompt.hidden_dims=8', 'model.head.text.prompt.hidden_dims=8']),
    'zegclip': (0.001, []),
    'cat-seg': (0.1, []),
}  # fmt: skip


def train(recipe, method, folder, processes):
    """What trains, before and after two steps."""
    from vpt_dense import config
    from vpt_dense.engine.runner import Runner

    forget_runs()
    rate, options = METHODS[method]
    dense = method in ('zegclip', 'cat-seg')
    batch = 2 if dense else 8
    options = [*options, 'randomness.seed=0', *(
        [f'train_dataloader.batch_size={batch // processes}', 'model.backbone.prompt.dropout=0',
         'train_cfg.max_iters=2', 'train_cfg.val_interval=2'] if dense else
        [f'batch_size={batch // processes}', 'epochs=1', 'param_scheduler=[]'])]
    cfg = config.load(str(recipe), options, 'deep' if dense else method)
    # Adam would enlarge what rounding does to small gradients.
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=rate))
    cfg.work_dir, cfg.launcher = str(folder), 'pytorch' if processes > 1 else 'none'
    in_scope(cfg.default_scope)
    runner = Runner.from_cfg(cfg)
    start = Start()
    runner.register_hook(start)
    runner.train()
    assert runner.iter == 2
    return start.found, trained(runner.model)


class Start(Hook):
    """Keeps what trains as it is at the start of a run."""

    def before_train(self, runner):
        self.found = trained(runner.model)


def trained(model):
    model = getattr(model, 'module', model)
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


def work(rank, recipes, folder, found):
    for method, recipe in recipes.items():
        found.append((method, rank, train(recipe, method, folder / method, 2)))


@pytest.fixture(scope='module')
def of_two(images_root, masks_root, tmp_path_factory):  # noqa: F811
    """The recipes, and (method, rank) -> what trained; one pair of processes for all."""
    recipes = {method: images_root / 'recipe.py' for method in ('coop', 'maple', 'sep')}
    recipes['zegclip'], recipes['cat-seg'] = write_recipe(masks_root), write_cat_seg(masks_root)
    found = run_two(work, recipes, tmp_path_factory.mktemp('two'))
    return recipes, {(method, rank): result for method, rank, result in found}


@pytest.mark.slow  # imports of two more processes
@pytest.mark.parametrize('method', METHODS)
def test_two_steps_of_two_are_those_of_one(of_two, tmp_path, method):
    recipes, found = of_two
    start, expected = train(recipes[method], method, tmp_path, 1)
    for rank in (0, 1):
        begun, ended = found[method, rank]
        assert begun.keys() == start.keys() == ended.keys()
        for name, one in expected.items():
            torch.testing.assert_close(begun[name], start[name], rtol=0, atol=0)
            moved = (one - start[name]).abs().max()
            assert (ended[name] - one).abs().max() <= 1e-3 * moved + 1e-7, name
    assert any((one - start[name]).abs().max() > 1e-4 for name, one in expected.items())
