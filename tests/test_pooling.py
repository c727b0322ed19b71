"""What a classifier reads: the mean of patches, of prompts, or of both."""

import pytest
import torch
from test_reference import TOLERANCE, ours, prompt_tensors, read, under
from utils import images, randomise, tiny_vit

from vpt_dense.checkpoints import deltas
from vpt_dense.errors import UserError

DEEP = dict(type='vpt_dense.TokenPrompt', num_tokens=5, deep=True)
SHALLOW = dict(type='vpt_dense.TokenPrompt', num_tokens=5)
PREFIXES = {'abl_pool_img_pool': 'transformer.', 'mae_deep_img_pool': ''}


def mae_weights(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the original's MAE encoder."""
    renames = (
        ('blocks.', 'layers.'), ('norm1', 'ln1'), ('norm2', 'ln2'), ('mlp.fc1', 'ffn.layers.0.0'),
        ('mlp.fc2', 'ffn.layers.1'), ('patch_embed.proj.', 'patch_embed.projection.'),
        ('fc_norm', 'ln2'),
    )  # fmt: skip
    new = {}
    for name, tensor in weights.items():
        if 'prompt' not in name:
            for old, ours_ in renames:
                name = name.replace(old, ours_)
            new[name] = tensor
    return new


@pytest.mark.parametrize('prompts_as', ['tokens', 'keys_values'])
@pytest.mark.parametrize('recompute', [{}, dict(with_cp=True), dict(memory='lean')], ids=str)
@pytest.mark.parametrize('case', PREFIXES)
def test_agrees_with_the_original(case, recompute, prompts_as):
    tensors, metadata = read(case)
    weights, grads = under(tensors, 'weight/'), under(tensors, 'grad/')
    prefix, mae = PREFIXES[case], case.startswith('mae')
    kwargs = dict(out_type='avg_featmap', final_norm=False) if mae else dict(out_type='avg_tokens')
    model = tiny_vit(prompt=DEEP, prompts_as=prompts_as, **kwargs, **recompute).double().eval()
    base = mae_weights(weights) if mae else ours(weights, prefix)
    model.load_state_dict(base | prompt_tensors(weights, prefix, False), strict=True)
    image = tensors['input'].requires_grad_()
    (output,) = model(image)
    torch.testing.assert_close(output, tensors['output'], **TOLERANCE)
    loss = (output * tensors['probe']).sum()
    torch.testing.assert_close(loss.item(), float(metadata['loss']), **TOLERANCE)
    loss.backward()
    torch.testing.assert_close(image.grad, grads['input'], **TOLERANCE)
    expected = prompt_tensors(grads, prefix, False)['prompt.tokens']
    torch.testing.assert_close(model.prompt.tokens.grad, expected, **TOLERANCE)


@pytest.mark.parametrize('out_indices', [-1, [1, 3]], ids=str)
@pytest.mark.parametrize('prompts_as', ['tokens', 'keys_values'])
@pytest.mark.parametrize('registers', [0, 2])
@pytest.mark.parametrize('out_type', ['avg_tokens', 'avg_featmap'])
@pytest.mark.parametrize('prompt', [DEEP, SHALLOW], ids=['deep', 'shallow'])
@pytest.mark.parametrize('pool', ['patches', 'prompts', 'both'])
def test_mean_is_that_of_the_tokens(pool, prompt, out_type, registers, prompts_as, out_indices):
    kwargs = dict(prompt=prompt, num_registers=registers, out_indices=out_indices)
    model = tiny_vit(out_type=out_type, pool=pool, prompts_as=prompts_as, **kwargs)
    model = randomise(model).double().eval()
    x = images(2, 3, 32, 48, dtype=torch.float64)
    # By hand: all tokens through every block of a backbone that drops nothing.
    plain = randomise(tiny_vit(out_type=out_type, prompts_as='tokens', **kwargs)).double().eval()
    tokens, wanted = {}, []
    for i, layer in enumerate(plain.layers):
        layer.register_forward_hook(lambda _, __, out, i=i: tokens.setdefault(i, out))
    plain(x)
    first = 1 + registers
    rows = dict(patches=slice(first + 5, None), prompts=slice(first, first + 5),
                both=slice(first, None))[pool]  # fmt: skip
    for i in [3] if out_indices == -1 else out_indices:
        out = plain.ln1(tokens[i]) if i == 3 else tokens[i]
        assert out.shape[1] == first + 5 + 24
        mean = out[:, rows].mean(1)
        wanted.append(plain.ln2(mean) if out_type == 'avg_featmap' else mean)
    outs = model(x)
    for one, other in zip(outs, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    with torch.no_grad():  # keys and values from the cache
        for one, other in zip(model(x), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_pooled_prompts_are_not_discarded():
    kept = [tiny_vit(prompt=DEEP, out_type='avg_tokens', pool=pool).keys_values_layers
            for pool in ('patches', 'prompts', 'both')]  # fmt: skip
    assert kept == [[0, 1, 2, 3], [0, 1, 2], [0, 1, 2]]


def test_pooled_prompts_train_in_every_layer():
    model = randomise(tiny_vit(prompt=DEEP, out_type='avg_tokens', pool='prompts')).train()
    model(images(2, 3, 32, 32))[0].square().sum().backward()
    assert (model.prompt.tokens.grad.abs().amax(-1) > 0).all()


def test_without_a_prompt_it_is_the_mean_of_patches():
    model = randomise(tiny_vit(out_type='avg_tokens')).eval()
    maps = randomise(tiny_vit(out_type='featmap')).eval()
    x = images(2, 3, 32, 32)
    torch.testing.assert_close(model(x)[0], maps(x)[0].mean((2, 3)))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(out_type='avg_tokens', pool='cls'), r"pool must be 'patches', .* found 'cls'"),
        (dict(out_type='cls_token', pool='prompts', prompt=DEEP),
         r"pool='prompts' is for out_type='avg_tokens' or 'avg_featmap', out_type is 'cls_token'"),
        (dict(out_type='avg_tokens', pool='prompts'), r"pool='prompts' needs prompts, but there"),
        (dict(out_type='avg_featmap', pool='both'), r"pool='both' needs prompts, but there"),
        (dict(out_type='avg_tokens', pool='prompts', prompt=dict(
            **DEEP, layer_range=(0, 2), keep_outputs=False)),
         r"pool='prompts' needs .* those of TokenPrompt are not .* behind block 3 of out_indices="),
        (dict(out_type='avg_tokens', pool='both', prompt=dict(
            **SHALLOW, layer_range=(0, 2), keep_outputs=False), out_indices=[1, 2]),
         r"pool='both' needs .* behind block 2 of out_indices=\[1, 2\]"),
        (dict(out_type='avg_tokens', pool='both', prompt=dict(**DEEP, layer_range=(2, None)),
              out_indices=[1, 3]), r"pool='both' needs .* behind block 1 of out_indices=\[1, 3\]"),
        (dict(out_type='avg_tokens', pool='both', prompt=dict(
            type='vpt_dense.PrefixPrompt', num_tokens=5)),
         r"pool='both' needs .* those of PrefixPrompt are not"),
        (dict(out_type='avg_tokens', pool='both', trainable=[], prompt=dict(
            type='vpt_dense.FoldedPrompt', layers=[3], num_tokens=5)),
         r"pool='both' needs .* those of FoldedPrompt are not"),
        (dict(out_type='avg_tokens', pool='both', prompt=dict(
            type='vpt_dense.PromptEnsemble', seeds=[0, 1], prompt=dict(
                type='vpt_dense.PrefixPrompt', num_tokens=5))),
         r"pool='both' needs .* those of PromptEnsemble are not"),
    ],
)  # fmt: skip
def test_a_pool_that_cannot_be_fails_when_it_is_built(kwargs, message):
    with pytest.raises(ValueError, match=message):
        tiny_vit(**kwargs)


def test_pooled_prompts_are_not_folded():
    model = tiny_vit(prompt=DEEP, out_type='avg_tokens', pool='prompts')
    with pytest.raises(UserError, match=r'run\.pth: prompts that enter block 3 flow on'):
        deltas.fold_prompt(model, 'run.pth')


@pytest.mark.parametrize(('prompt', 'out_indices'), [
    (dict(**DEEP, layer_range=(0, 2), keep_outputs=False), [1]),
    (dict(**DEEP, layer_range=(1, 2)), [1, 3]),
    (dict(**SHALLOW, layer_range=(1, 2), keep_outputs=False), [1]),
    (dict(**SHALLOW, layer_range=(3, None)), [3]),
])  # fmt: skip
def test_prompts_that_reach_the_pool_are_pooled(prompt, out_indices):
    """Those that the check at the building lets pass are there."""
    model = tiny_vit(
        prompt=prompt, out_type='avg_tokens', pool='prompts', out_indices=out_indices)
    assert all(out.isfinite().all() for out in randomise(model)(images(1, 3, 32, 32)))
