"""Every method of the table on every kind of vision transformer that mmpretrain's class covers.

What trains of them, and how much, is in tests/test_methods.py.
"""

import pytest
import torch
from methods import BACKBONES, KIN, OF_VARIANTS, ROWS, VARIANTS, build, later
from test_methods import batch, parameters, total

from vpt_dense.tuning import is_added

#: The diagonals: every row meets a third of the variants, every variant a third of the rows.
LATER = {case: later(list(ROWS).index(case[0]), list(VARIANTS).index(case[1]))
         for case in OF_VARIANTS}
UNFIT = [(name, variant) for variant, kind in VARIANTS.items() for name in kind.unfit]


@pytest.mark.parametrize(('name', 'variant', 'task'), [
    pytest.param(*c, marks=pytest.mark.long if c[0] in KIN else LATER[c])
    for c in OF_VARIANTS])
def test_a_batch_of_three_is_three_batches_of_one(name, variant, task):
    model = build(name, variant, task).double().eval()
    x = batch(variant, 3, dtype=torch.float64)
    single = [model(image[None]) for image in x]
    for i, whole in enumerate(model(x)):
        torch.testing.assert_close(whole, torch.cat([outs[i] for outs in single]))


@pytest.mark.parametrize(
    ('name', 'variant', 'task'), [
        pytest.param(*c, marks=pytest.mark.long if c[0] in KIN else
                     () if c[2] == ROWS[c[0]].tasks[-1] else LATER[c])
        for c in OF_VARIANTS
        if 'prompt' in ROWS[c[0]].tuning and c[0] != 'tcpa'])  # which refuses tokens
def test_prompts_as_tokens_are_prompts_as_keys_and_values(name, variant, task):
    """Features and gradients."""
    results = []
    for prompts_as in ('tokens', 'keys_values'):
        model = build(name, variant, task, prompts_as=prompts_as).double().eval()
        outs = model(batch(variant, dtype=torch.float64))
        if parameters(model):
            total(outs).backward()
        results.append((outs, {name: p.grad for name, p in parameters(model).items()}))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize(
    ('name', 'variant', 'task'), [
        pytest.param(*c, marks=pytest.mark.long if c[0] in KIN else ())
        for c in OF_VARIANTS if ROWS[c[0]].merges])
def test_merged_it_is_equal(name, variant, task):
    """In the same backbone, and in one of the same kind without adapters."""
    model = build(name, variant, task).double().eval()
    if name in VARIANTS[variant].unmergeable:
        with pytest.raises(ValueError, match=VARIANTS[variant].unmergeable[name]):
            model.adapters[0].merge(model)
        return
    x = batch(variant, dtype=torch.float64)
    with torch.no_grad():
        before = model(x)
        for adapter in model.adapters:
            adapter.merge(model)
        merged = {name: t for name, t in model.state_dict().items() if not is_added(name)}
        plain = build('linear', variant, task).double().eval()
        plain.load_state_dict(merged)
        torch.testing.assert_close(model(x), before, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(plain(x), before, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(('name', 'variant'), UNFIT)
def test_what_does_not_fit_says_so(name, variant):
    (task,) = VARIANTS[variant].tasks
    with pytest.raises(ValueError, match=VARIANTS[variant].unfit[name]):
        build(name, variant, task)


def test_registers_are_what_their_name_says():
    """Four tokens beside cls: the features depend on them, and they are no patches."""
    model = build('deep', 'registers', 'seg').double().eval()
    x = batch('registers', 1, dtype=torch.float64)
    width = int(BACKBONES['registers'].tasks['seg'][1].d[0])
    with torch.no_grad():
        before = model(x)
        assert [out.shape for out in before] == [(1, width, 4, 4)] * 2
        model.register_tokens *= -1
        assert all(not torch.allclose(a, b) for a, b in zip(model(x), before, strict=True))
