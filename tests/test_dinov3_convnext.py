"""DINOv3's ConvNeXt in ours: from the authors' file, transformers and timm."""

import pytest
import timm
import torch
import transformers as t
from mmengine.registry import MODELS
from safetensors.torch import load_file
from utils import images, randomise

from vpt_dense.errors import UserError

SIZES = dict(depths=[1, 2, 1, 1], hidden_sizes=[8, 16, 24, 32])
ARCH = dict(depths=SIZES['depths'], channels=SIZES['hidden_sizes'])


def ours(**kwargs):
    cfg = dict(type='vpt_dense.ConvNeXt', arch=ARCH, img_size=64)
    return MODELS.build({**cfg, **kwargs}).eval()


def hugging_face(folder):
    """transformers' model with values, and the file that it saves."""
    model = randomise(t.DINOv3ConvNextModel(t.DINOv3ConvNextConfig(**SIZES))).eval()
    model.save_pretrained(folder)
    return model, folder / 'model.safetensors'


def original(path) -> dict[str, torch.Tensor]:
    """The authors' file from transformers'."""
    out = {}
    for name, tensor in load_file(path).items():
        parts = name.split('.')
        if 'downsample_layers' in name:
            name = f'downsample_layers.{parts[1]}.{".".join(parts[3:])}'
        elif name.startswith('stages'):
            rest = '.'.join(parts[4:])
            for theirs, authors in (('depthwise_conv', 'dwconv'), ('layer_norm', 'norm'),
                                    ('pointwise_conv', 'pwconv')):  # fmt: skip
                rest = rest.replace(theirs, authors)
            name = f'stages.{parts[1]}.{parts[3]}.{rest}'
        else:
            out[f'norms.3.{parts[1]}'] = tensor.clone()
            name = f'norm.{parts[1]}'
        out[name] = tensor
    return out


@pytest.mark.parametrize('dtype, within', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('form', ['transformers', 'below model.', 'original', 'timm'])
def test_features(tmp_path, form, dtype, within):
    theirs, path = hugging_face(tmp_path)
    state, words = load_file(path), 'Hugging Face DINOv3 ConvNeXt layout'
    if form == 'below model.':
        state = {f'model.{name}': tensor for name, tensor in state.items()}
    elif form == 'original':
        state, words = original(path), '(DINOv3 ConvNeXt layout'
    elif form == 'timm':
        model = timm.models.ConvNeXt(
            depths=SIZES['depths'], dims=SIZES['hidden_sizes'], num_classes=0)
        state = timm.models.convnext.checkpoint_filter_fn(original(path), model)
        state = {n: x for n, x in state.items() if not n.startswith('norms')}
        model.load_state_dict(state)
        state, words = model.state_dict(), '(timm ConvNeXt layout'
    torch.save(state, tmp_path / 'w.pth')
    pooled, maps = ours(), ours(gap_before_final_norm=False)
    x = images(2, 3, 64, 96, dtype=dtype)
    for model in (pooled, maps):
        report = model.load_base(str(tmp_path / 'w.pth'))
        assert words in report
        assert ('left out: norms.3' in report) is (form == 'original')
        model.to(dtype)
    with torch.no_grad():
        expected = theirs.to(dtype)(x).last_hidden_state  # (B, 1 + h w, C)
        torch.testing.assert_close(pooled(x)[0], expected[:, 0], rtol=within, atol=within)
        found = maps(x)[0].flatten(2).transpose(1, 2)
        torch.testing.assert_close(found, expected[:, 1:], rtol=within, atol=within)


def test_it_is_strict(tmp_path):
    _, path = hugging_face(tmp_path)
    state = original(path)
    torch.save({**state, 'norms.2.weight': torch.ones(24)}, tmp_path / 'more.pth')
    with pytest.raises(UserError, match=r'1 unexpected: norms\.2\.weight'):
        ours().load_base(str(tmp_path / 'more.pth'))
    del state['stages.3.0.gamma']
    torch.save(state, tmp_path / 'less.pth')
    with pytest.raises(UserError, match=r'1 missing: stages\.3\.0\.gamma'):
        ours().load_base(str(tmp_path / 'less.pth'))
