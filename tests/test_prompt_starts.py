"""Prompts that start from the training images, and prompts that stay at their start."""


import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import DATASETS, MODELS
from processes import run_two
from sklearn.cluster import KMeans
from test_classification import VPT, make_image_folder, tiny_folder
from tool_helpers import forget_runs, write_leaf
from tool_helpers import tiny_folder as tiny_seg_folder
from torch import distributed
from utils import CONFIGS, in_scope, randomise

from vpt_dense import config, run_setup, safe_files
from vpt_dense.engine.runner import Runner
from vpt_dense.errors import UserError
from vpt_dense.hooks import PromptStartHook
from vpt_dense.weights.base import KEY

HOOK = 'vpt_dense.PromptStartHook'
DEEP = 'vit-b_deep_imagefolder.py'


@pytest.fixture(scope='module')
def flowers(tmp_path_factory):
    """An image folder of three classes with 4, 4 and 6 images; do not write into it."""
    root = make_image_folder(tmp_path_factory.mktemp('flowers'))
    return make_image_folder(root, ('train',), ('tulip',), number=6)


def prepare(work_dir, data, hook, leaf=DEEP, **options):
    """A config of the demo's size with a hook that starts its prompts."""
    path = work_dir / 'leaf.py'
    path.write_text(
        f"_base_ = '{VPT / leaf}'\n"
        f'custom_hooks = [*_base_.custom_hooks, {dict(type=HOOK, **hook)!r}]\n')
    prompt = {'model.backbone.prompt.num_tokens': 3, 'model.backbone.prompt.dropout': 0.0}
    return config.load(str(path), tiny_folder(work_dir, data, **prompt, **options))


def start(cfg, seed=0):
    """A runner, and the prompts that the hook makes; the backbone has numbers of its own."""
    forget_runs()
    runner = run_setup.start(cfg, 'train', None)
    runner.call_hook('before_run')
    runner._train_loop = runner.build_train_loop(runner._train_loop)
    randomise(runner.model.backbone, seed)
    (hook,) = [h for h in runner.hooks if isinstance(h, PromptStartHook)]
    states = torch.get_rng_state()
    hook.before_train(runner)
    assert torch.equal(torch.get_rng_state(), states)
    return runner, runner.model.backbone.prompt.tokens.detach()


def training_images(cfg, model):
    """Inputs and labels of the training images, transformed as for testing."""
    in_scope('mmpretrain')
    leaf = {**cfg.train_dataloader.dataset, 'pipeline': cfg.val_dataloader.dataset.pipeline}
    samples = [s for s in DATASETS.build(leaf)]
    batch = dict(inputs=[s['inputs'] for s in samples],
                 data_samples=[s['data_samples'] for s in samples])
    batch = model.data_preprocessor(batch, False)
    return batch['inputs'], torch.cat([s.gt_label for s in batch['data_samples']])


def cls_tokens(model, images):
    """By hand: the cls token behind every block and the last one's norm, without prompts."""
    b = model.backbone
    x = b.patch_embed(images)[0]
    x = torch.cat((b.cls_token.expand(len(x), -1, -1), x), 1) + b.pos_embed
    outs = []
    for i, layer in enumerate(b.layers):
        x = layer(x)
        outs.append((b.ln1(x) if i == 3 else x)[:, 0])
    return torch.stack(outs)  # (L, images, C)


@pytest.mark.parametrize('leaf', [DEEP, 'vit-b_shallow_imagefolder.py'])
@pytest.mark.parametrize('layers', ['one', 'each'])
def test_prototypes_are_class_means(layers, leaf, flowers, tmp_path):
    cfg = prepare(tmp_path, flowers, dict(source='prototypes', layers=layers), leaf)
    runner, tokens = start(cfg)
    images, labels = training_images(cfg, runner.model)
    assert labels.bincount().tolist() == [4, 4, 6]
    with torch.no_grad():
        cls = cls_tokens(runner.model, images)
    means = torch.stack([cls[:, labels == k].mean(1) for k in range(3)], dim=1)  # (L, 3, C)
    wanted = means if layers == 'each' else means[-1:].expand(4, -1, -1)
    wanted = wanted[: len(tokens)]
    assert len(tokens) == (4 if leaf == DEEP else 1)
    torch.testing.assert_close(tokens, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize('source', ['prototypes', 'samples'])
@pytest.mark.parametrize('layers', ['one', 'each'])
def test_prompts_of_a_model_of_timm(layers, source, flowers, tmp_path):
    """DINOv3's: a class token, registers and then patches."""
    cfg = prepare(tmp_path, flowers, dict(source=source, layers=layers))
    before = cfg.model.backbone
    cfg.model.backbone = dict(
        type='vpt_dense.TimmVisionTransformer', model='vit_small_patch16_dinov3', embed_dim=64,
        depth=4, num_heads=4, patch_size=8, out_type='cls_token', prompt=before.prompt)
    runner, tokens = start(cfg)
    images, labels = training_images(cfg, runner.model)
    backbone, entered = runner.model.backbone.eval(), []
    backbone.prompt, backbone.keys_values_layers = None, []
    backbone.out_type, backbone.out_indices = 'raw', [0, 1, 2, 3]
    for block in backbone.blocks:
        block.register_forward_pre_hook(lambda _, args: entered.append(args[0][:, 5:]))
    with torch.no_grad():
        behind = torch.stack(backbone(images))[:, :, 0]  # (L, images, C)
    if source == 'prototypes':
        wanted = torch.stack([behind[:, labels == k].mean(1) for k in range(3)], dim=1)
        wanted = wanted if layers == 'each' else wanted[-1:].expand(4, -1, -1)
        torch.testing.assert_close(tokens, wanted, rtol=0, atol=1e-5)
        return
    for i, centres in enumerate(tokens):
        # Without a position embedding they enter the first block as they were embedded.
        patches = entered[i if layers == 'each' else 0].flatten(0, 1)
        nearest = torch.cdist(patches, centres).argmin(1)
        means = torch.stack([patches[nearest == k].mean(0) for k in range(3)])
        torch.testing.assert_close(centres, means, rtol=0, atol=1e-2)


def test_a_side_network_has_no_part_in_the_start(flowers, tmp_path):
    cfg = prepare(tmp_path, flowers, dict(source='prototypes', layers='each'))
    cfg.model.backbone.adapters = [dict(type='vpt_dense.SideNetwork')]
    runner, tokens = start(cfg)
    images, labels = training_images(cfg, runner.model)
    with torch.no_grad():
        wanted = cls_tokens(runner.model, images)[:, labels == 1].mean(1)
    torch.testing.assert_close(tokens[:, 1], wanted, rtol=0, atol=1e-5)


def test_samples_are_centres_of_patch_embeddings(flowers, tmp_path):
    cfg = prepare(tmp_path, flowers, dict(source='samples', seed=3))
    runner, tokens = start(cfg)
    images, _ = training_images(cfg, runner.model)
    with torch.no_grad():
        patches = runner.model.backbone.patch_embed(images)[0].flatten(0, 1)
    assert all(torch.equal(tokens[0], other) for other in tokens)
    # A fixed point of k-means: each centre is the mean of the patches that are nearest to it.
    nearest = torch.cdist(patches, tokens[0]).argmin(1)
    means = torch.stack([patches[nearest == k].mean(0) for k in range(3)])
    torch.testing.assert_close(tokens[0], means, rtol=0, atol=1e-3)
    spread = (patches - tokens[0][nearest]).square().sum()
    assert spread < 0.9 * (patches - patches.mean(0)).square().sum()
    assert torch.equal(start(cfg)[1], tokens)


def test_samples_of_each_block_come_from_what_enters_it(flowers, tmp_path):
    cfg = prepare(tmp_path, flowers, dict(source='samples', layers='each'))
    runner, tokens = start(cfg)
    images, _ = training_images(cfg, runner.model)
    entered = {}
    backbone = runner.model.backbone
    backbone.prompt, backbone.keys_values_layers = None, []
    for i, layer in enumerate(backbone.layers):
        layer.register_forward_pre_hook(lambda _, args, i=i: entered.setdefault(i, args[0]))
    with torch.no_grad():
        backbone.eval()(images)
    for i, centres in enumerate(tokens):
        patches = entered[i][:, 1:].flatten(0, 1)
        nearest = torch.cdist(patches, centres).argmin(1)
        means = torch.stack([patches[nearest == k].mean(0) for k in range(3)])
        torch.testing.assert_close(centres, means, rtol=0, atol=1e-2)
        best = KMeans(3, n_init=5, random_state=0).fit(patches.numpy()).inertia_
        assert (patches - centres[nearest]).square().sum() < 1.2 * best


@pytest.mark.parametrize('leaf', [DEEP, 'vit-b_shallow_imagefolder.py'])
def test_vipamin_is_near_patches_and_what_attention_leaves_out(leaf, flowers, tmp_path):
    """By hand, with three patches each, and half of what is outside."""
    cfg = prepare(tmp_path, flowers, dict(source='vipamin', neighbours=3, share=0.5), leaf)
    runner, tokens = start(cfg)
    images, _ = training_images(cfg, runner.model)
    b, tokens = runner.model.backbone, tokens.clone()
    randomise(b, 0)  # prompts and all as they were when the hook began
    assert len(tokens) == (4 if leaf == DEEP else 1)
    with torch.no_grad():
        x = b.patch_embed(images)[0]
        x = torch.cat((b.cls_token.expand(len(x), -1, -1), x), 1) + b.pos_embed
        for i in range(len(tokens)):
            layer, heads = b.layers[i], b.layers[i].attn.num_heads

            def qkv(t, layer=layer, heads=heads):
                parts = layer.attn.qkv(layer.ln1(t)).unflatten(-1, (3, heads, -1))
                return parts.permute(2, 0, 3, 1, 4)  # (3, b, heads, n, d)

            q, k, v = qkv(x)
            out = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
            out = out.transpose(1, 2).flatten(2).mean(0).double()  # (17, C)
            mine = torch.nn.functional.normalize(qkv(b.prompt.tokens[i : i + 1])[1][0].mean(0))
            theirs = torch.nn.functional.normalize(k.mean(1)[:, 1:].mean(0))
            chosen = (mine @ theirs.T).topk(3).indices
            match = x.mean(0)[1:][chosen].mean(1)
            novel = 2 * tokens[i] - match
            # Their values are orthogonal to what attention puts out.
            dims = x.shape[-1]
            weight = layer.attn.qkv.weight[2 * dims :].double()
            values = novel.double() @ weight.T + layer.attn.qkv.bias[2 * dims :].double()
            cosine = torch.nn.functional.cosine_similarity(values[:, None], out[None], dim=-1)
            assert cosine.abs().max() < 1e-3 and values.norm(dim=-1).min() > 0.1
            x = layer(x)


def test_vipamin_without_anything_new_is_a_mean_of_patches(flowers, tmp_path):
    cfg = prepare(tmp_path, flowers, dict(source='vipamin', neighbours=16, share=0.0))
    runner, tokens = start(cfg)
    images, _ = training_images(cfg, runner.model)
    b = runner.model.backbone
    with torch.no_grad():
        x = b.patch_embed(images)[0]
        x = (torch.cat((b.cls_token.expand(len(x), -1, -1), x), 1) + b.pos_embed)[:, 1:]
    torch.testing.assert_close(
        tokens[0], x.mean((0, 1)).expand(3, -1), rtol=0, atol=1e-5)  # all 16 are near


def filtered(images, window, stride):
    """By sums of waves: images of the frequencies of each window, (N, B, 3, H, W)."""
    n = images.shape[-1]
    cycles = torch.arange(n) - n // 2
    waves = torch.exp(-2j * torch.pi * cycles[:, None] * torch.arange(n) / n).to(torch.complex64)
    spectrum = waves @ images.to(torch.complex64) @ waves.T  # the mean in the middle
    starts = range(0, n - window + 1, stride)
    found = []
    for down in starts:
        for right in starts:
            a, b = slice(down, down + window), slice(right, right + window)
            found.append((waves[a].mH @ spectrum[..., a, b] @ waves[b].conj()).real / n**2)
    return torch.stack(found)


@pytest.mark.parametrize('leaf', [DEEP, 'vit-b_shallow_imagefolder.py'])
def test_frequencies_that_the_model_knows_best(leaf, flowers, tmp_path):
    hook = dict(source='frequencies', window=16, stride=8)
    cfg = prepare(tmp_path, flowers, hook, leaf)
    runner, tokens = start(cfg)
    images, labels = training_images(cfg, runner.model)
    model, tokens = runner.model, tokens.clone()
    b = model.backbone
    assert model.training and b.prompt is not None and len(tokens) == (4 if leaf == DEEP else 1)
    with torch.no_grad():
        parts = filtered(images, 16, 8)
        assert len(parts) == 9
        head = model.head.fc if hasattr(model.head, 'fc') else model.head.layers[-1]
        losses = torch.stack([
            torch.nn.functional.cross_entropy(head(cls_tokens(model, part)[-1]), labels)
            for part in parts])
        wanted = []
        for part in parts[losses.topk(3, largest=False).indices]:
            x = (b.patch_embed(part)[0] + b.pos_embed[:, 1:]).flatten(0, 1)
            energy = x.square().sum(1, keepdim=True)
            wanted.append((energy * x).sum(0) / energy.sum())
        x = torch.stack(wanted)[None]
        for own, layer in zip(tokens, b.layers, strict=False):
            torch.testing.assert_close(own, x[0], rtol=1e-4, atol=1e-4)
            x = layer(x)


def test_frequencies_of_segmentation(tmp_path):
    data = tiny_seg_folder(tmp_path / 'ade')
    hook = dict(type=HOOK, source='frequencies', window=8, stride=4, max_images=1)
    leaf = write_leaf(tmp_path, data, f'custom_hooks = [*_base_.custom_hooks, {hook}]\n')
    runner, tokens = start(config.load(str(leaf)))
    assert tokens.shape == (2, 2, 32) and tokens.isfinite().all()
    assert not torch.allclose(tokens[0], tokens[1]) and not torch.allclose(*tokens[0])


def test_max_images_are_spread_over_the_data(flowers, tmp_path):
    cfg = prepare(tmp_path, flowers, dict(source='prototypes', max_images=3))
    runner, tokens = start(cfg)
    images, labels = training_images(cfg, runner.model)
    chosen = torch.tensor([0, 6, 13])
    assert labels[chosen].tolist() == [0, 1, 2]
    with torch.no_grad():
        wanted = cls_tokens(runner.model, images[chosen])[-1]
    torch.testing.assert_close(tokens[2], wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize('layers', ['one', 'each'])
def test_segmentation_starts_from_samples(layers, tmp_path):
    data = tiny_seg_folder(tmp_path / 'ade')
    hook = dict(type=HOOK, source='samples', layers=layers)
    leaf = write_leaf(tmp_path, data, f'custom_hooks = [*_base_.custom_hooks, {hook}]\n')
    cfg = config.load(str(leaf))
    runner, tokens = start(cfg)
    assert tokens.shape == (2, 2, 32)
    patches = []
    for i in range(2):
        sample = runner.train_dataloader.dataset.dataset.get_data_info(i)
        image = runner.val_dataloader.dataset.pipeline.transforms[0](sample)['img']
        inputs = torch.from_numpy(image.copy()).permute(2, 0, 1)
        inputs = runner.model.data_preprocessor(
            dict(inputs=[inputs], data_samples=None), False)['inputs']
        patches.append(runner.model.backbone.patch_embed(inputs)[0][0])
    patches = torch.cat(patches).detach()
    if layers == 'one':
        nearest = torch.cdist(patches, tokens[0]).argmin(1)
        means = torch.stack([patches[nearest == k].mean(0) for k in range(2)])
        torch.testing.assert_close(tokens[0], means, rtol=0, atol=1e-3)
        assert torch.equal(tokens[0], tokens[1])
    else:
        assert not torch.allclose(tokens[0], tokens[1])


# --- errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('hook', 'options', 'message'),
    [
        (dict(source='prototypes'), {'model.backbone.prompt.num_tokens': 5},
         r'prompt\.num_tokens is 5, but .* one for each of the 3 classes; set num_tokens'),
        (dict(source='samples'), {'model.backbone.prompt.project_dims': 8},
         r"source='samples'\) gives tokens as they enter .*TokenPrompt trans.*project_dims out"),
        (dict(source='samples', layers='each'), {'model.backbone.prompt.shared': True},
         r"layers='each' needs prompts for each block, but .*prompt\.shared is True"),
        (dict(source='samples'), {'model.backbone.prompt': None, 'model.backbone.trainable': []},
         r'starts a TokenPrompt of a vision transformer; .* its prompt None'),
        (dict(source='prototypes', max_images=2), {},
         r'class 1 has no image among the 2 that were looked at; set max_images=None'),
        (dict(source='samples', max_images=1), {'model.backbone.prompt.num_tokens': 17},
         r'17 prompts cannot start from 16 patches; raise max_images'),
        (dict(source='prototypes'),
         {'model.backbone.with_cls_token': False, 'model.backbone.out_type': 'avg_tokens'},
         r'needs a cls token, but model\.backbone\.with_cls_token is False'),
        pytest.param(
            dict(source='vipamin'), {'val_dataloader.dataset.pipeline.1.scale': 512,
                                     'val_dataloader.dataset.pipeline.2.crop_size': 512},
            r'at 4097 places leaves none of 64 directions; take smaller images, or share=0',
            marks=pytest.mark.slow),
        (dict(source='frequencies', window=33), {},
         r'images of one size, at least of window=33, found 32x32 pixels'),
        (dict(source='frequencies', window=32), {},
         r'3 prompts cannot start from 1 windows of images of 32x32 pixels; take a smaller window'),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_line(hook, options, message, flowers, tmp_path):
    cfg = prepare(tmp_path, flowers, hook)
    cfg.merge_from_dict(options)
    with pytest.raises(UserError, match=message) as error:
        start(cfg)
    assert '\n' not in str(error.value)


def test_an_unfit_backbone_is_told_before_data_are_read(flowers, tmp_path):
    cfg = prepare(tmp_path, flowers, dict(source='samples'))
    cfg.model.backbone = dict(
        type='vpt_dense.SwinTransformer', img_size=32, window_size=2, pad_small_map=True,
        arch=dict(embed_dims=32, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]),
        prompt=dict(type='vpt_dense.TokenPrompt', num_tokens=2, deep=True))
    cfg.model.head.in_channels = 256
    cfg.train_dataloader.dataset.data_root = 'absent'
    forget_runs()
    runner = Runner.from_cfg(cfg)
    with pytest.raises(UserError, match=r'model\.backbone is SwinTransformer, its prompt Stage'):
        runner.train()


def test_segmentation_has_no_prototypes(tmp_path):
    data = tiny_seg_folder(tmp_path / 'ade')
    hook = dict(type=HOOK, source='prototypes')
    leaf = write_leaf(tmp_path, data, f'custom_hooks = [*_base_.custom_hooks, {hook}]\n')
    with pytest.raises(UserError, match="needs images with class labels.*use source='samples'"):
        start(config.load(str(leaf)))


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(source='classes'), r"PromptStartHook\.source must be 'prototypes', 'samples', 'vi"),
        (dict(source='samples', layers=3), r"PromptStartHook\.layers must be 'one' or 'each'"),
        (dict(source='samples', max_images=0), r'max_images must be an integer of at least 1'),
        (dict(source='samples', share=0.5), r"share is of source='vipamin' alone, found 'samples'"),
        (dict(source='vipamin', layers='one'), r"source='vipamin' is of 'each' block, found 'one'"),
        (dict(source='vipamin', share=2), r'PromptStartHook\.share must be from 0 to 1, found 2'),
        (dict(source='vipamin', neighbours=0), r'neighbours must be an integer of at least 1'),
        (dict(source='samples', window=4), r"window is of source='frequencies' alone, found"),
        (dict(source='frequencies', layers='one'), r"source='frequencies' is of 'each' block"),
        (dict(source='frequencies', stride=0), r'stride must be an integer of at least 1'),
        (dict(source='samples', seed=-1), r'PromptStartHook\.seed must be an .* found -1'),
    ],
)
def test_bad_options_fail_when_it_is_built(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PromptStartHook(**kwargs)


# --- runs ------------------------------------------------------------------------------------


class Starts(Hook):
    """Keeps what the prompts were when training began."""

    priority = 'LOW'

    def __init__(self):
        self.tokens = None

    def before_train(self, runner):
        self.tokens = runner.model.backbone.prompt.tokens.detach().clone()


def run(cfg):
    forget_runs()
    runner = run_setup.start(cfg, 'train', None)
    starts = Starts()
    runner.register_hook(starts)
    runner.train()
    return runner, starts.tokens


@pytest.mark.parametrize(
    'source', ['prototypes', *(
        pytest.param(source, marks=pytest.mark.slow) for source in ('samples', 'vipamin'))]
)
def test_fragment_trains_and_resumes_exactly(source, flowers, tmp_path):
    path = tmp_path / 'leaf.py'
    bases = [str(CONFIGS / '_base_' / name) for name in (
        'models/vit-b_cls.py', 'datasets/imagefolder.py', 'schedules/cls_100e.py',
        'default_runtime_cls.py', 'optim/classification.py', f'methods/{source}.py')]  # fmt: skip
    path.write_text(
        f'_base_ = {bases}\nmodel = dict(backbone=_base_.method)\n'
        'optim_wrapper = _base_.optim[_base_.optim_group]\n')

    def load(folder, **options):
        options = {'train_cfg.max_epochs': 2, **options}
        cfg = config.load(str(path), tiny_folder(tmp_path / folder, flowers, **options))
        assert cfg.custom_hooks[-1].type == HOOK and 'method_hooks' not in cfg
        assert cfg.model.backbone.prompt.num_tokens == (
            dict(prototypes=3, samples=10, vipamin=20)[source])
        return cfg

    whole, begun = run(load('whole'))
    # The same start without any training, again.
    assert torch.equal(run(load('again', **{'train_cfg.max_epochs': 1}))[1], begun)
    cfg = load('again')
    cfg.resume = True
    resumed, taken_up = run(cfg)
    assert not torch.equal(taken_up, begun)  # those of the checkpoint, not the start again
    for (name, one), other in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    cfg = load('loaded', **{'load_from': str(tmp_path / 'whole' / 'epoch_2.pth')})
    assert torch.equal(run(cfg)[1], whole.model.backbone.prompt.tokens)


def test_number_of_prompts_may_be_the_number_of_classes(flowers, tmp_path):
    options = {'model.backbone.prompt.num_tokens': 'classes'}
    cfg = config.load(str(VPT / DEEP), tiny_folder(tmp_path, flowers, **options))
    assert cfg.model.backbone.prompt.num_tokens == 3


def test_fixed_prompts_are_kept_in_checkpoints(flowers, tmp_path):
    """A control: nothing of the backbone trains, the prompts of the start act and are saved."""
    cfg = config.load(str(VPT / DEEP), tiny_folder(tmp_path, flowers))
    torch.manual_seed(1)
    weights = tmp_path / 'weights.pth'
    in_scope('mmpretrain')
    plain = randomise(MODELS.build({
        **{k: v for k, v in cfg.model.backbone.items() if k not in ('prompt', 'trainable')}}))
    torch.save(dict(state_dict=plain.state_dict(), meta={}), weights)
    cfg.model.backbone.trainable = []
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(weights))
    runner, begun = run(cfg)
    assert torch.equal(runner.model.backbone.prompt.tokens, begun)
    assert [n for n, p in runner.model.named_parameters() if p.requires_grad] == [
        'head.fc.weight', 'head.fc.bias']  # fmt: skip
    state = safe_files.read(str(tmp_path / 'epoch_1.pth'))['state_dict']
    assert set(state) == {
        'backbone.prompt.tokens', f'backbone.{KEY}', 'head.fc.weight', 'head.fc.bias'}
    assert torch.equal(state['backbone.prompt.tokens'], begun)


# --- two processes ---------------------------------------------------------------------------


HOOKS = [dict(source=source, layers='each') for source in ('prototypes', 'samples')]


def start_in(rank, folder, data, found):
    """The starts that one of several processes makes."""
    distributed.init_process_group('gloo')
    folder = folder / str(rank)
    folder.mkdir()
    found.append([start(prepare(folder, data, hook))[1].numpy() for hook in HOOKS])
    distributed.barrier()


@pytest.mark.slow
def test_all_processes_start_from_the_same(flowers, tmp_path):
    both = run_two(start_in, tmp_path, flowers)
    for hook, first, second in zip(HOOKS, *both, strict=True):
        assert (first == second).all()
        alone = start(prepare(tmp_path, flowers, hook))[1]
        torch.testing.assert_close(torch.from_numpy(first), alone, rtol=0, atol=1e-5)
