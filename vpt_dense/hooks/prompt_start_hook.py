"""Prompts that start from the training images instead of at random."""

import copy
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from mmengine import dist
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from vpt_dense import live, seeding
from vpt_dense.argument_checks import check_choice, check_count, check_number
from vpt_dense.errors import UserError
from vpt_dense.params import unwrap
from vpt_dense.prompts import TokenPrompt
from vpt_dense.registry import HOOKS
from vpt_dense.tree import leaf_datasets

if TYPE_CHECKING:
    from vpt_dense.adapters import Block

#: Patches that a k-means looks at, about.
_PATCHES = 20_000


@HOOKS.register_module()
class PromptStartHook(Hook):
    """Starts the tokens of a ``TokenPrompt`` from training images, before the first iteration.

    - 'prototypes': the mean of the cls tokens of each class, one prompt a class (VPT,
      https://arxiv.org/abs/2203.12119, section 4.3, "prompt initialization"). For classification.
    - 'samples': the centres of a k-means of patches, as many as there are prompts. The idea is that
      of X. Wang et al., "Revisiting the Power of Prompt for Visual Tuning", ICML 2024,
      https://arxiv.org/abs/2402.02382. It asks for no labels.
    - 'vipamin': VIPAMIN (NeurIPS 2025; by what https://github.com/iamjaekyun/vipamin computes).
      With X (N, C) the tokens that enter the block, K (N, C / heads) the keys of its patches,
      averaged over heads, and O what attention puts out before its projection, all means over the
      images, place by place: a prompt starts at (1 - share) M + share R. M is the mean of X over
      the ``neighbours`` patches whose K is nearest, by cosine, to that of the prompt's random
      start. R comes from further random prompts r: their values W_v r + b_v, of which the span of
      O is taken out, go back through the pseudo-inverse of W_v (theirs uses its transpose). It
      asks for no labels, and for images of one size.
    - 'frequencies': the start of PAE (Wang et al., ICLR 2026, https://arxiv.org/abs/2601.20232,
      section 3.2; by what https://github.com/reeive/PAE computes). A window of ``window`` x
      ``window`` frequencies slides by ``stride`` over the images' spectra, with the mean in the
      middle. The windows with the least loss are chosen, as many as there are prompts: the
      images, nothing left of them but these frequencies, pass the model with the head as it is
      now. The first block's prompt is, for each, the mean of the tokens of all patches of these
      images, weighted with their squared norms. A later block's is what the block before it makes
      of its prompts, alone, without any patches. With N windows the images pass N times: of 224
      pixels, 729; a larger ``stride`` has fewer.

    The tokens come from the backbone without its prompt and side network, in eval mode. The images
    are those of ``train_dataloader``, loaded as ``val_dataloader`` says (its transforms, batch size
    and workers): without augmentation. Every process looks at its share of the images, and all
    start from the same prompts. Nothing is done when a run is resumed or begins with
    ``load_from``, and the generators of random numbers are left as they were.

    Args:
        source: 'prototypes', 'samples', 'vipamin' or 'frequencies'.
        layers: 'one': the same start for the prompts of all blocks. Prototypes are then the cls
            tokens that the last block and the final norm put out, samples come from the patch
            embeddings without positions (behind ``pre_norm``, if there is one). 'each': a start for
            each block's prompts: the cls tokens that the block puts out (at its input, the first
            block's would be the same for all classes), and the patches that enter the block, with
            their positions. 'vipamin' and 'frequencies' are always 'each'.
        max_images: Images that are looked at, spread evenly over the data set; None: all.
        seed: Of the patches that are chosen and of the k-means, or of the further random prompts.
        neighbours: See 'vipamin', and for it alone; 8 by default. The authors search 2 to 128.
        share: Likewise, 0 to 1; 0.5 by default.
        window: See 'frequencies', and for it alone; in frequencies (cycles in an image), 16 by
            default.
        stride: Likewise, 8 by default.

    Raises:
        ValueError: If an argument is out of its range.
        UserError: Before training, if the prompt, the backbone or the model does not fit.
    """

    needs = frozenset({'tokens', 'one width'})  # of a backbone, as prompts say it
    priority = 'HIGH'  # behind what starts the backbone and what checks the data

    def __init__(
        self, source: str, layers: str | None = None, max_images: int | None = None, seed: int = 0,
        neighbours: int | None = None, share: float | None = None, window: int | None = None,
        stride: int | None = None,
    ) -> None:  # fmt: skip
        for key, value, own in (
                ('neighbours', neighbours, 'vipamin'), ('share', share, 'vipamin'),
                ('window', window, 'frequencies'), ('stride', stride, 'frequencies')):
            if value is not None and source != own:
                raise ValueError(
                    f'PromptStartHook.{key} is of source={own!r} alone, found {source!r}')
        own = source in ('vipamin', 'frequencies')
        if own and layers not in (None, 'each'):
            raise ValueError(
                f"PromptStartHook.layers: source={source!r} is of 'each' block, found {layers!r}")
        layers = layers or ('each' if own else 'one')
        self.window = check_count(16 if window is None else window, 'PromptStartHook.window')
        self.stride = check_count(8 if stride is None else stride, 'PromptStartHook.stride')
        self.neighbours = check_count(
            8 if neighbours is None else neighbours, 'PromptStartHook.neighbours')
        self.share = check_number(0.5 if share is None else share, 'PromptStartHook.share')
        if not 0 <= self.share <= 1:
            raise ValueError(f'PromptStartHook.share must be from 0 to 1, found {share!r}')
        if max_images is not None:
            check_count(max_images, 'PromptStartHook.max_images')
        self.source = check_choice(
            source, 'PromptStartHook.source',
            ('prototypes', 'samples', 'vipamin', 'frequencies'))
        self.layers = check_choice(layers, 'PromptStartHook.layers', ('one', 'each'))
        self.max_images = max_images
        self.seed = check_count(seed, 'PromptStartHook.seed', 0)

    def before_train(self, runner: Runner) -> None:
        """Overwrite the start of ``model.backbone.prompt.tokens``."""
        if runner.iter > 0 or runner._has_loaded:
            return
        from vpt_dense.adapters import SideNetwork  # takes mmpretrain, and every run imports hooks

        model = unwrap(runner.model)
        prompt = self.check_model(model)
        plain = copy.deepcopy(model.backbone).eval().requires_grad_(False)
        plain.prompt, plain.keys_values_layers = None, []
        # It mixes into the outputs that the task asks for, and these are others.
        plain.adapters = nn.ModuleList(a for a in plain.adapters if not isinstance(a, SideNetwork))
        plain.out_type, plain.pool = 'cls_token' if plain.with_cls_token else 'raw', None
        sets = range(prompt.start, prompt.start + len(prompt.tokens))
        with seeding.seeded('prompt start', self.seed), torch.no_grad():
            batches = _Batches(runner, model, self.max_images)
            make = dict(prototypes=self._prototypes, samples=self._samples,
                        vipamin=self._vipamin, frequencies=self._frequencies)[self.source]
            start = make(plain, batches, model, prompt, list(sets)).to(prompt.tokens)
            dist.broadcast(start)
            prompt.tokens.copy_(start)
        runner.logger.info(
            f'prompts start from {len(batches.indices):,} training images ({self.source}, '
            f"layers='{self.layers}')"
        )

    def check_model(self, model: nn.Module) -> TokenPrompt:
        """Return the prompt, or say why it cannot start from images.

        Args:
            model: Not wrapped.

        Raises:
            UserError: If the prompt, the backbone or the model does not fit.
        """
        backbone = model.backbone
        prompt = getattr(backbone, 'prompt', None)
        where = f'PromptStartHook(source={self.source!r})'
        if not isinstance(prompt, TokenPrompt) or not self.needs <= backbone.offers:
            found = 'None' if prompt is None else type(prompt).__name__
            raise UserError(
                f'{where} starts a TokenPrompt of a vision transformer; model.backbone is '
                f'{type(backbone).__name__}, its prompt {found}'
            )
        if not isinstance(prompt.project, nn.Identity) or prompt.tokens.ndim < 3:
            raise UserError(
                f'{where} gives tokens as they enter the blocks, and this '
                f'{type(prompt).__name__} transforms what it learns; leave '
                'model.backbone.prompt.project_dims out, or take another prompt'
            )
        if self.layers == 'each' and prompt.shared:
            raise UserError(
                f"{where}: layers='each' needs prompts for each block, but "
                "model.backbone.prompt.shared is True; use layers='one'"
            )
        if self.source == 'prototypes':
            if not hasattr(model, 'head') or not hasattr(model.head, 'num_classes'):
                raise UserError(
                    f'{where} needs images with class labels, {type(model).__name__} has none; '
                    "use source='samples'"
                )
            if backbone.cls_token is None:
                raise UserError(
                    f'{where} needs a cls token, but model.backbone.with_cls_token is False')
            if prompt.num_tokens != model.head.num_classes:
                raise UserError(
                    f'model.backbone.prompt.num_tokens is {prompt.num_tokens}, but {where} gives '
                    f'one for each of the {model.head.num_classes} classes; set num_tokens to that '
                    "(in a config 'classes' means it)"
                )
        return prompt

    def _prototypes(
        self, plain: nn.Module, batches: '_Batches', model: nn.Module, prompt: TokenPrompt,
        sets: list[int],
    ) -> Tensor:
        """Mean cls tokens of the classes, (sets, classes, C)."""
        plain.out_indices = sets if self.layers == 'each' else [plain.num_layers - 1]
        classes = model.head.num_classes
        sums = torch.zeros(classes, len(plain.out_indices), plain.embed_dims, dtype=torch.float64)
        counts = torch.zeros(classes, dtype=torch.float64)
        for images, samples in batches:
            features = torch.stack(plain(images), dim=1).double().cpu()  # (B, layers, C)
            for feature, sample in zip(features, samples, strict=True):
                for label in sample.gt_label.flatten().tolist():
                    sums[label] += feature
                    counts[label] += 1
        dist.all_reduce(sums)
        dist.all_reduce(counts)
        if not counts.all():
            index = int(counts.argmin())
            raise UserError(
                f"PromptStartHook(source='prototypes'): class {index} has no image among the "
                f'{batches.number:,} that were looked at; set max_images=None to look at all'
            )
        means = sums / counts[:, None, None]
        return means.transpose(0, 1).expand(len(sets), -1, -1).contiguous()

    def _samples(
        self, plain: nn.Module, batches: '_Batches', model: nn.Module, prompt: TokenPrompt,
        sets: list[int],
    ) -> Tensor:
        """Centres of patches, (sets, P, C); of use on process 0 alone."""
        found: dict[int, list[Tensor]] = {i: [] for i in (sets if self.layers == 'each' else [0])}
        if self.layers == 'each':
            plain.out_indices = [plain.num_layers - 1]
            for i in sets:
                plain.block_list()[i].module.register_forward_pre_hook(
                    lambda _, inputs, i=i: found[i].append(inputs[0][:, plain.num_first :]))
        each = max(_PATCHES // batches.number, 1)
        chosen: dict[int, list[Tensor]] = {i: [] for i in found}
        indices = iter(batches.indices)
        for images, _ in batches:
            if self.layers == 'each':
                plain(images)
            else:
                found[0].append(_embed(plain, images))
            for rows in zip(*(parts.pop() for parts in found.values()), strict=True):
                generator = torch.Generator()
                generator.manual_seed(seeding.mix('patches', self.seed, next(indices))[2])
                picks = torch.randperm(len(rows[0]), generator=generator)[:each]
                for i, tokens in zip(found, rows, strict=True):
                    chosen[i].append(tokens.float().cpu()[picks])
        shares = dist.all_gather_object(chosen)
        points = {
            # In the order of the images, whatever the number of processes.
            i: torch.cat([
                part for turn in itertools.zip_longest(*(share[i] for share in shares))
                for part in turn if part is not None
            ])
            for i in found
        }
        start = torch.empty(len(sets), prompt.num_tokens, plain.embed_dims)
        number = len(next(iter(points.values())))
        if number < prompt.num_tokens:
            raise UserError(
                f"PromptStartHook(source='samples'): {prompt.num_tokens} prompts cannot start from "
                f'{number} patches; raise max_images or lower model.backbone.prompt.num_tokens'
            )
        if dist.get_rank() == 0:
            centres = {i: _centres(p, prompt.num_tokens, self.seed) for i, p in points.items()}
            for place, i in zip(start, sets, strict=True):
                place.copy_(centres[i if self.layers == 'each' else 0])
        return start

    def _vipamin(
        self, plain: nn.Module, batches: '_Batches', model: nn.Module, prompt: TokenPrompt,
        sets: list[int],
    ) -> Tensor:
        """Means of near patches, and what attention does not put out, (sets, P, C)."""
        if not {'parts'} <= plain.offers:
            raise UserError(
                f"PromptStartHook(source='vipamin') needs blocks with attention and an MLP one "
                f'after the other, {type(plain).__name__} has others')
        if batches.number < dist.get_world_size():
            raise UserError(
                f"PromptStartHook(source='vipamin'): {batches.number} images are too few for "
                f'{dist.get_world_size()} processes; raise max_images')
        blocks = plain.block_list()
        plain.out_indices = [plain.num_layers - 1]
        sums: dict[int, list[Tensor]] = {i: [] for i in sets}
        seen: dict[int, list[Tensor]] = {i: [] for i in sets}
        for i in sets:
            blocks[i].module.register_forward_pre_hook(
                lambda _, inputs, i=i: seen[i].append(inputs[0]))
            blocks[i].proj.register_forward_pre_hook(
                lambda _, inputs, i=i: seen[i].append(inputs[0]))
        size, number = None, 0
        for images, _ in batches:
            size = size or tuple(images.shape[-2:])
            if tuple(images.shape[-2:]) != size:
                raise UserError(
                    f"PromptStartHook(source='vipamin') takes means over images, place by place, "
                    f'and they are of {size[0]}x{size[1]} and of '
                    f'{images.shape[-2]}x{images.shape[-1]} pixels; let the transforms of '
                    'val_dataloader make them all one size')
            plain(images)
            number += len(images)
            for i, parts in seen.items():
                tokens, out = (part.double() for part in parts)
                keys = _keys(blocks[i], parts[0][:, plain.num_first :]).double()
                found = [part.sum(0) for part in (tokens, keys, out)]
                parts.clear()
                sums[i] = [a + b for a, b in zip(sums[i], found, strict=True)] if sums[i] else found
        counts = torch.tensor(float(number), dtype=torch.float64, device=prompt.tokens.device)
        dist.all_reduce(counts)
        shape = (len(sets), prompt.num_tokens, plain.embed_dims)
        start = torch.empty(shape, dtype=torch.float64)
        generator = torch.Generator().manual_seed(self.seed)
        bound = math.sqrt(6 / (3 * math.prod(plain.patch_size_pixels()) + plain.embed_dims))
        for place, i, random in zip(start, sets, prompt.tokens, strict=True):
            for part in sums[i]:
                dist.all_reduce(part)
            tokens, keys, out = (part / counts for part in sums[i])
            block = blocks[i]
            own = F.normalize(_keys(block, random[None])[0].double(), dim=-1)
            near = own @ F.normalize(keys, dim=-1).T  # (P, N)
            chosen = near.topk(min(self.neighbours, near.shape[1]), dim=1).indices
            match = tokens[plain.num_first :][chosen].mean(1)
            further = torch.rand(shape[1:], generator=generator, dtype=torch.float64)
            novel = _outside(block, (bound * (2 * further - 1)).to(out.device), out)
            if self.share and novel is None:
                raise UserError(
                    f"PromptStartHook(source='vipamin'): what attention puts out at "
                    f'{len(out)} places leaves none of {plain.embed_dims} directions; take '
                    'smaller images, or share=0')
            place.copy_(match if novel is None else (1 - self.share) * match + self.share * novel)
        return start

    def _frequencies(
        self, plain: nn.Module, batches: '_Batches', model: nn.Module, prompt: TokenPrompt,
        sets: list[int],
    ) -> Tensor:
        """Tokens of the frequencies that the model knows best, through the blocks, (sets, P, C)."""
        plain.out_type, plain.pool = model.backbone.out_type, model.backbone.pool
        windows = _Windows(self.window, self.stride)
        training, own = model.training, model.backbone
        model.eval().backbone = plain
        try:
            sums = sum(
                torch.stack([
                    model.parse_losses(model.loss(images, samples))[0].double() * len(samples)
                    for images in windows.of(images)])
                for images, samples in batches)
        finally:
            model.train(training).backbone = own
        dist.all_reduce(sums)
        if len(sums) < prompt.num_tokens:
            raise UserError(
                f"PromptStartHook(source='frequencies'): {prompt.num_tokens} prompts cannot start "
                f'from {len(sums)} windows of images of {windows.size[0]}x{windows.size[1]} '
                'pixels; take a smaller window or stride, or fewer prompts')
        chosen = sums.topk(prompt.num_tokens, largest=False).indices.tolist()
        return _through_blocks(plain, windows.tokens(plain, batches, chosen), sets)


class _Windows:
    """Parts of the spectra of images.

    Attributes:
        size: Height and width of the images, in pixels; None: none has come yet.
    """

    def __init__(self, window: int, stride: int) -> None:
        self.window, self.stride = window, stride
        self.size: tuple[int, int] | None = None

    def of(self, images: Tensor, chosen: Iterable[int] | None = None) -> Iterator[Tensor]:
        """Images (B, 3, H, W) with the frequencies of one window each."""
        size = tuple(images.shape[-2:])
        self.size = self.size or size
        if size != self.size or min(size) < self.window:
            found = f'{size[0]}x{size[1]}'
            found = found if size == self.size else f'{self.size[0]}x{self.size[1]} and {found}'
            raise UserError(
                f"PromptStartHook(source='frequencies') needs images of one size, at least of "
                f'window={self.window}, found {found} pixels; see the transforms of val_dataloader')
        spectrum = torch.fft.fftshift(torch.fft.fft2(images.float()), dim=(-2, -1))
        down, right = (range(0, n - self.window + 1, self.stride) for n in size)
        for index in range(len(down) * len(right)) if chosen is None else chosen:
            y, x = down[index // len(right)], right[index % len(right)]
            part = torch.zeros_like(spectrum)
            place = (..., slice(y, y + self.window), slice(x, x + self.window))
            part[place] = spectrum[place]
            back = torch.fft.ifft2(torch.fft.ifftshift(part, dim=(-2, -1)))
            yield back.real.to(images.dtype)

    def tokens(self, plain: nn.Module, batches: '_Batches', chosen: list[int]) -> Tensor:
        """The patches' tokens as they enter the first block, their weighted mean, (P, C)."""
        entered: list[Tensor] = []
        handle = plain.block_list()[0].module.register_forward_pre_hook(
            lambda _, inputs: entered.append(inputs[0][:, plain.num_first :]))
        sums = torch.zeros(len(chosen), plain.embed_dims + 1, dtype=torch.float64)
        for images, _ in batches:
            for row, part in zip(sums, self.of(images, chosen), strict=True):
                plain(part)
                patches = entered.pop().flatten(0, 1).double().cpu()
                energy = patches.square().sum(1, keepdim=True)
                row += torch.cat((energy * patches, energy), dim=1).sum(0)
        handle.remove()
        dist.all_reduce(sums)
        return sums[:, :-1] / sums[:, -1:]


def _through_blocks(plain: nn.Module, tokens: Tensor, sets: list[int]) -> Tensor:
    """Tokens (P, C) of the first block, and those that it and later ones make of them."""
    from vpt_dense.backbones.token_backbone import TokenBackbone  # as SideNetwork above

    weight, half = next(plain.parameters()), plain.frozen_dtype
    start, tokens = [tokens], tokens.to(weight.device, torch.float32)[None]
    if len(sets) > 1 and not isinstance(plain, TokenBackbone):
        raise UserError(
            f"PromptStartHook(source='frequencies') lets prompts pass blocks alone, and those of "
            f'{type(plain).__name__} are of another library; set model.backbone.prompt.deep=False')
    for i in sets[:-1]:
        _, block = plain.named_blocks()[i]
        with torch.autocast(weight.device.type, half, enabled=half is not None):
            tokens = block(tokens, *plain.block_arguments((0, 0)))
        start.append(tokens[0].double().cpu())
    return torch.stack(start)


def _keys(block: 'Block', tokens: Tensor) -> Tensor:
    """Keys of tokens (b, n, C) by a block, the mean over its heads, (b, n, C / heads)."""
    tokens = block.norm1(tokens) if block.prenorm else tokens
    return block.keys_values(tokens)[0].mean(1)


def _outside(block: 'Block', tokens: Tensor, out: Tensor) -> Tensor | None:
    """Prompts whose values have no part in the span of vectors (n, C); None: that is all."""
    if len(out) >= out.shape[1]:
        return None
    weight, bias = block.weights('kv')
    weight = weight.chunk(2)[1].double()
    bias = 0.0 if bias is None else bias.chunk(2)[1].double()
    basis = torch.linalg.qr(out.T).Q  # (C, n)
    values = tokens @ weight.T + bias
    values = values - values @ basis @ basis.T
    return (values - bias) @ torch.linalg.pinv(weight).T


class _Spread(Sampler):
    """Indices spread evenly over a data set; those of this process."""

    def __init__(self, dataset: object, number: int | None, seed: int | None = None) -> None:
        size = len(dataset)
        self.number = min(number or size, size)
        spread = torch.linspace(0, size - 1, self.number, dtype=torch.float64).round().long()
        self.indices = spread.tolist()[dist.get_rank() :: dist.get_world_size()]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


class _Batches:
    """This process's share of the training images, as the model sees them when it is tested.

    Yields (images, data samples).

    Attributes:
        number: Images of all processes.
        indices: Those of this process.
    """

    def __init__(self, runner: Runner, model: nn.Module, number: int | None) -> None:
        train = runner.cfg.train_dataloader
        loader = copy.deepcopy(runner.cfg.get('val_dataloader') or train)
        transforms = [leaf.get('pipeline') for leaf in leaf_datasets(loader)]
        leaves = copy.deepcopy(leaf_datasets(train))
        for leaf in leaves:
            if transforms[0] is not None:
                leaf['pipeline'] = transforms[0]
        concat = dict(type='mmengine.ConcatDataset', datasets=leaves)
        loader['dataset'] = leaves[0] if len(leaves) == 1 else concat
        loader['sampler'] = dict(type=_Spread, number=number)
        loader['drop_last'] = False
        loader.pop('batch_sampler', None)
        self.loader: DataLoader = runner.build_dataloader(loader)
        self.number = self.loader.sampler.number
        self.indices = self.loader.sampler.indices
        self.preprocess = model.data_preprocessor
        self.say = runner.logger.info

    def __iter__(self) -> Iterator[tuple[Tensor, list]]:
        batches = live.track(
            self.loader, len(self.loader), 'prompts start from training images: batches', self.say
        )
        for batch in batches:
            data = self.preprocess(batch, False)
            yield data['inputs'], data['data_samples']


def _embed(backbone: nn.Module, images: Tensor) -> Tensor:
    """Patch embeddings without positions, (B, N, C)."""
    half = backbone.frozen_dtype
    if backbone.image_prompt is not None:
        images = backbone.image_prompt(images)
    with torch.autocast(images.device.type, half, enabled=half is not None):
        return backbone.pre_norm(backbone.embed_patches(images))


def _centres(points: Tensor, number: int, seed: int) -> Tensor:
    """Centres of a k-means of points (n, C), (number, C)."""
    from sklearn.cluster import KMeans  # takes a second, and every run imports this module

    means = KMeans(number, n_init=1, random_state=seed).fit(points.numpy())
    return torch.from_numpy(means.cluster_centers_)
