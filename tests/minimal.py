"""The functions for plain PyTorch where nothing of OpenMMLab is: a program, without pytest.

``make test-minimal`` runs it in an environment that holds requirements/minimal.txt alone,
tests/test_minimal.py where these packages are hidden.
"""

import copy
import pickle
import sys
import tempfile
import threading
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import vpt_dense
from vpt_dense.errors import UserError

#: What the package needs beside these is for configs.
ABSENT = ('mmengine', 'mmcv', 'mmseg', 'mmpretrain', 'cv2', 'rich', 'matplotlib', 'sklearn',
          'transformers', 'rasterio', 'argcomplete')  # fmt: skip
NAME = 'vit_small_patch16_dinov3'
SMALL = dict(
    pretrained=False, img_size=64, model_options=dict(embed_dim=32, depth=4, num_heads=2))


def check_absent() -> None:
    for name in ABSENT:
        try:
            __import__(name)
        except ModuleNotFoundError:
            continue
        raise SystemExit(f'{name} can be imported: this is no minimal environment')


def check_methods() -> None:
    """All methods: a forward and backward pass, and back to the plain model."""
    images = torch.randn(2, 3, 64, 48)
    names = vpt_dense.list_methods()
    assert len(names) > 30, names
    for name in names:
        if name == 'peft':  # which is not there
            try:
                vpt_dense.create_backbone(NAME, name, **SMALL)
            except UserError as error:
                assert 'needs peft: pip install vpt_dense[peft]' in str(error), error
                continue
            raise SystemExit('peft is not refused')
        model = vpt_dense.create_backbone(NAME, name, **SMALL)
        assert name in vpt_dense.list_methods(model)
        out = model.train()(images)
        assert out.shape == (2, 32)
        if out.requires_grad:
            out.square().sum().backward()
        assert type(vpt_dense.untune(model)).__module__.startswith('timm.')


def check_training(folder: Path) -> None:
    """A segmentor and a classifier learn, and come back from a file with the same outputs."""
    images = torch.randn(4, 3, 64, 64)
    for build, target in (
        (vpt_dense.create_segmentor, (images[:, 0] > 0).long()),
        (vpt_dense.create_classifier, torch.tensor([0, 1, 2, 0])),
    ):
        torch.manual_seed(0)
        model = build(NAME, 3, 'deep', num_tokens=4, **SMALL)
        frozen = model.backbone.blocks[0].attn.qkv.weight.detach().clone()
        optimizer = torch.optim.AdamW(vpt_dense.parameter_groups(model, lr=1e-2, head_lr=1e-2))
        losses = []
        for _ in range(20):
            loss = F.cross_entropy(model.train()(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0], losses
        assert torch.equal(frozen, model.backbone.blocks[0].attn.qkv.weight)

        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(other.eval()(images), model.eval()(images))
        vpt_dense.save_delta(model, folder / 'tuned.safetensors')
        torch.save(vpt_dense.untune(copy.deepcopy(model.backbone)).state_dict(),
                   folder / 'base.pth')  # fmt: skip
        again = vpt_dense.load(folder / 'tuned.safetensors', base=str(folder / 'base.pth'))
        assert torch.equal(again(images), model(images))
        photo = np.random.default_rng(0).integers(0, 255, (50, 70, 3)).astype(np.uint8)
        assert torch.equal(again.predict(photo), model.predict(photo))
        again.save_pretrained(folder / 'hub')
        found = type(model).from_pretrained(str(folder / 'hub'), base=str(folder / 'base.pth'))
        assert torch.equal(found(images), model(images))


def check_peft(folder: Path) -> None:
    """A LoRA goes into PEFT's format and comes back."""
    torch.manual_seed(0)
    model = vpt_dense.create_backbone(NAME, 'lora', **SMALL)
    plain = vpt_dense.untune(copy.deepcopy(model))
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.normal_()
    vpt_dense.save_peft(model, folder / 'peft')
    images = torch.randn(2, 3, 64, 64)
    again = vpt_dense.load_peft(plain, folder / 'peft').eval()
    torch.testing.assert_close(again(images), model(images))


def check_weights(folder: Path) -> None:
    """Weights from a file of ``torch.save`` and from an address of the web."""
    model = vpt_dense.create_backbone(NAME, 'deep', **SMALL)
    plain = vpt_dense.untune(model).state_dict()
    torch.save(dict(state_dict=plain, epoch=3), folder / 'w.pth')
    torch.hub.set_dir(folder / 'hub')
    handler = partial(type('Quiet', (SimpleHTTPRequestHandler,), dict(log_message=print_nothing)),
                      directory=str(folder))  # fmt: skip
    with HTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for place in (str(folder / 'w.pth'), f'http://127.0.0.1:{server.server_port}/w.pth'):
            found = vpt_dense.create_backbone(NAME, 'deep', **{**SMALL, 'checkpoint': place})
            for name, tensor in plain.items():
                assert torch.equal(found.state_dict()[name], tensor), name
        server.shutdown()
    try:
        vpt_dense.create_backbone(NAME, 'deep', checkpoint='open-mmlab://x', **SMALL)
    except UserError as error:
        assert 'mmengine, whose addresses these are, is not installed' in str(error), error
    else:
        raise AssertionError('weights from nowhere')


def print_nothing(*_: object) -> None:
    """No line a request."""


if __name__ == '__main__':
    check_absent()
    assert any(NAME in name for name in vpt_dense.list_backbones('dinov3'))
    check_methods()
    with tempfile.TemporaryDirectory() as place:
        check_training(Path(place))
        check_weights(Path(place))
        check_peft(Path(place))
    loaded = [name for name in ABSENT if sys.modules.get(name) is not None]
    assert not loaded, loaded
    print('Plain PyTorch is enough:', ', '.join(
        f'{name} {sys.modules[name].__version__}' for name in ('torch', 'timm', 'numpy')))
