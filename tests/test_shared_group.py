"""Shared and group prompts: what enters which block, groups by keys, stages of a round."""

import federated_data
import numpy as np
import pytest
import torch
from federated_data import CLASSES, RECIPE
from utils import CONFIGS, images

from vpt_dense.errors import UserError
from vpt_dense.federated import local, moved
from vpt_dense.federated.shared_group_prompt import SharedGroupPrompt
from vpt_dense.prompts.base import Site, TokenLayout

METHOD = str(CONFIGS / 'federated/methods/sgpt_like.py')
SITE = Site(dims=8, layers=range(6), num_layers=6, heads=2, patch_size=(4, 4), first_dims=8)


def make(**kwargs):
    torch.manual_seed(0)
    return SharedGroupPrompt(SITE, **dict(
        groups=3, shared_layers=(0, 2), group_layers=(3, 5), num_tokens=2) | kwargs)


def test_prompts_pile_up_and_those_of_the_group_come_last():
    prompt = make().eval()
    with torch.no_grad():
        prompt.shared.copy_(images(2, 2, 8))
        prompt.keys.copy_(torch.eye(3, 8) * 5)
    x, layout = images(4, 5, 8, seed=1), TokenLayout(1, 0, (2, 2))
    x[:, 0] = torch.eye(8)[[2, 0, 1, 2]] - 0.3  # the class tokens: groups 2, 0, 1, 2
    prepared, entered = prompt.prepare(), []
    for layer in range(6):
        tokens = prompt(x, layer, prepared, layout)
        if tokens is not None:
            x, layout = layout.replace(x, tokens)
        entered.append(layout.num_prompts)
    assert entered == [2, 4, 4, 6, 8, 8]
    found = layout.prompts(x)
    assert torch.equal(found[1, :4], prompt.shared.flatten(0, 1))
    for image, group in enumerate([2, 0, 1, 2]):
        assert torch.equal(found[image, 4:6], prompt.group[0, group])
        assert torch.equal(found[image, 6:], prompt.group[1, group])
    prompt.selects = False
    assert prompt(x, 3, {}, layout) is None


def test_it_starts_as_prompts_of_vpt():
    """Within sqrt(6 / (3 * 4 * 4 + 8)); never at zero, which a norm magnifies."""
    shared = make(num_tokens=50).shared.detach()
    bound = (6 / 56) ** 0.5
    assert shared.abs().max() <= bound and shared.std() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_the_group_is_that_of_the_nearest_key():
    prompt = make()
    query = images(50, 8, seed=3)
    clipped = query.clamp(min=0).numpy()
    near = (clipped @ prompt.keys.detach().numpy().T) / (
        np.linalg.norm(clipped, axis=1)[:, None]
        * np.linalg.norm(prompt.keys.detach().numpy(), axis=1))
    assert prompt.eval().choose(query).tolist() == (1 - near).argmin(1).tolist()
    share = np.array([0.9, 0.1, 0.0])
    prompt.share.copy_(torch.tensor(share))
    chosen = prompt.train().choose(query)
    assert chosen.tolist() == ((1 - near) * (share + 5e-4)).argmin(1).tolist()
    assert prompt.counts.tolist() == np.bincount(chosen.numpy(), minlength=3).tolist()
    torch.testing.assert_close(prompt.similarity.item(), float(
        near[np.arange(50), chosen.numpy()].mean()), rtol=1e-5, atol=1e-6)
    (gradient,) = torch.autograd.grad(prompt.similarity, [prompt.keys])
    assert gradient.abs().sum() > 0
    gram = make().keys @ make().keys.T
    torch.testing.assert_close(gram, torch.eye(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(('given', 'message'), [
    (dict(groups=1), 'prompt.groups'), (dict(shared_layers=(2, 9)), 'prompt.shared_layers'),
    (dict(group_layers=(1, 3)), 'before prompt.shared_layers'), (dict(num_tokens=0), 'num_tok'),
    (dict(group_layers=4), 'prompt.group_layers'),
])
def test_arguments_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        make(**given)


@pytest.fixture(scope='module')
def job(tmp_path_factory):
    options = federated_data.options(
        federated_data.make(tmp_path_factory.mktemp('federated')))
    place = 'model.backbone.prompt'
    more = (f'{place}.shared_layers=(0, 1)', f'{place}.group_layers=(1, 2)')
    return local.Job(RECIPE, METHOD, (*options, *more), rounds=2)


def test_a_round_has_two_stages(job, tmp_path, monkeypatch):
    seen = []
    after = local.Round.after_train_iter

    def note(self, runner, *args, **kwargs):
        prompt = runner.model.backbone.prompt
        seen.append({name: p.detach().clone() for name, p in prompt.named_parameters()})
        after(self, runner, *args, **kwargs)

    monkeypatch.setattr(local.Round, 'after_train_iter', note)
    whole = local.Global(job, CLASSES)
    start = moved.take(whole.model)
    found = local.train(job, 1, start, 'one', tmp_path, share=[0.25] * 4)
    assert len(seen) == 12  # two epochs of six
    places = {name: f'backbone.prompt.{name}' for name in ('shared', 'group', 'keys')}
    assert not torch.equal(seen[5]['shared'], start[places['shared']])
    assert torch.equal(seen[11]['shared'], seen[5]['shared'])
    for name in ('group', 'keys'):
        assert torch.equal(seen[5][name], start[places[name]])
    assert not torch.equal(seen[11]['group'], seen[5]['group'])
    assert not torch.equal(seen[11]['keys'], seen[5]['keys'])
    assert sum(found.counts) == 24 and set(found.tensors) == set(start)
    with pytest.raises(UserError, match='the server knows 3 groups'):
        local.train(job, 1, start, 'one', tmp_path, share=[1 / 3] * 3)


def test_another_prompt_is_refused(job):
    other = local.Global(local.Job(RECIPE, 'deep', job.options[:-2]), CLASSES)
    with pytest.raises(UserError, match='SGPTLike trains a SharedGroupPrompt'):
        local.shared_group_prompt(other.model)
