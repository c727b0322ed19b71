"""Features of the frozen part of a backbone are computed once for each image, and kept on disk."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vpt_dense import safe_files
from vpt_dense.backbones.token_tuning import TokenTuning
from vpt_dense.backbones.tuned import TunedBackbone
from vpt_dense.errors import UserError
from vpt_dense.tuning import ADDED

#: Part of every key: another layout of the files is another number.
_VERSION = 1


class FeatureCache:
    """What the frozen part of a backbone makes of each image, in a folder.

    If nothing of the backbone trains, its outputs are kept. Else the tokens are that enter the
    first block that something acts on which trains, and those of earlier blocks that are put out.
    A file is one image as the backbone gets it, after all transforms. Its name is a hash of these
    pixels; its folder's, of the frozen weights and of all that the features depend on. So what is
    found is right: another crop, another weight, another precision are other files.

    Files come into place whole, by renaming, and hold a checksum; one that is damaged is computed
    again. If a file cannot be written (a full disk), it is told once and the training goes on.

    Args:
        backbone: The backbone, in training mode, on its device, with its weights.
        folder: Gets a folder for the frozen part.
        say: Prints a warning.

    Attributes:
        found: Images whose features were found.
        computed: Images whose features were computed.

    Raises:
        UserError: If features would not be the same twice, or nothing could be kept.
    """

    def __init__(
        self, backbone: TunedBackbone, folder: str | Path, say: Callable[[str], object]
    ) -> None:
        self.backbone, self.folder, self._say = backbone, Path(folder), say
        self.found = self.computed = 0
        # The queries of a guest train, in its last blocks.
        trains = any(p.requires_grad for p in backbone.parameters())
        self.whole = not trains and not backbone.guest
        if not self.whole and not isinstance(backbone, TokenTuning):
            raise UserError(
                f'feature_cache: {type(backbone).__name__} trains in part, and only backbones of '
                'transformer blocks can keep what is in front of that')
        #: Index of the first block that does something which trains; None: not seen yet.
        self.depth: int | None = None
        self._writes = True
        self._weights = self._hash()
        self._refuse_dropout()

    @contextmanager
    def attached(self) -> Iterator['FeatureCache']:
        """The backbone looks here for features, inside."""
        place = 'forward' if self.whole else 'feature_cache'
        self.backbone.__dict__[place] = self._outputs if self.whole else self
        try:
            yield self
        finally:
            del self.backbone.__dict__[place]

    # --- keys

    def _hash(self) -> str:
        """Of the frozen tensors, with their names, and of the backbone's settings."""
        backbone = self.backbone
        digest = hashlib.blake2b(repr(backbone).encode(), digest_size=16)
        tensors = [*backbone.named_parameters(), *backbone.named_buffers()]
        for name, tensor in tensors:
            if not tensor.requires_grad:
                digest.update(f'{name} {tuple(tensor.shape)} {tensor.dtype}'.encode())
                digest.update(_bytes(tensor))
        settings = sorted(
            (name, value) for name, value in vars(backbone).items()
            if isinstance(value, (int, float, str, bool, tuple, list, torch.dtype)))
        digest.update(repr([item for item in settings if item[0] != 'training']).encode())
        return digest.hexdigest()

    def _room(self, images: Tensor) -> Path:
        """The folder for the precision, kind of device and shape of these images."""
        kind = images.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        state = (_VERSION, self.depth, kind, half, images.dtype, tuple(images.shape[1:]),
                 torch.__version__)
        digest = hashlib.blake2b(repr(state).encode(), digest_size=8).hexdigest()
        return self.folder / f'{self._weights}_{digest}'

    def files(self, images: Tensor) -> list[Path]:
        """Where the features of images are, or will be."""
        room = self._room(images)
        names = [hashlib.blake2b(_bytes(image), digest_size=16).hexdigest() for image in images]
        return [room / name[:2] / f'{name[2:]}.safetensors' for name in names]

    def _refuse_dropout(self) -> None:
        """Refuse prompts and adapters that do not train and are different each time all the same.

        What surrounds them is in eval mode while it is frozen, see :meth:`.TunedBackbone.train`.
        """
        for name in ADDED:
            part = getattr(self.backbone, name)
            if part is None or any(p.requires_grad for p in part.parameters()):
                continue
            for module in part.modules():
                rates = [getattr(module, key, 0) for key in ('dropout', 'p')]
                if any(isinstance(rate, float) and rate > 0 for rate in rates):
                    raise UserError(
                        f'feature_cache: {name} has dropout and does not train, so that features '
                        'differ each time; set its dropout to 0, or leave feature_cache out')

    # --- a pass

    def _outputs(self, images: Tensor) -> tuple[Tensor, ...]:
        """The backbone's forward, where nothing of it trains."""
        files = self.files(images)
        kept = self.read(files, images.device)
        if kept is None:
            with torch.no_grad():
                outputs = type(self.backbone).forward(self.backbone, images)
            self.write(files, {str(i): output for i, output in enumerate(outputs)})
            return outputs
        return tuple(kept[str(i)] for i in range(len(kept)))

    def open(self, images: Tensor) -> 'Pass':
        """Begin a pass of the blocks over images (B, C, H, W)."""
        return Pass(self, images)

    def see_depth(self, depth: int) -> None:
        """Learn which block is the first one that something acts on which trains.

        Raises:
            UserError: If it is the first one of all.
        """
        if depth == 0:
            raise UserError(
                'feature_cache: something that trains acts on the first block already, so nothing '
                'is frozen in front of it; take a method for the last blocks alone (head, '
                'partial-1, layers of prompts or adapters), or leave feature_cache out')
        self.depth = depth

    # --- files

    def read(self, files: list[Path], device: torch.device) -> dict[str, Tensor] | None:
        """The features of a batch, each (B, ...); None if those of one image are missing."""
        if not all(file.is_file() for file in files):
            return None
        try:
            parts = [safe_files.read(file)['state_dict'] for file in files]
        except UserError:  # damaged, or taken away meanwhile: it is computed again
            return None
        self.found += len(files)
        return {name: torch.stack([part[name] for part in parts]).to(device) for name in parts[0]}

    def write(self, files: list[Path], features: Mapping[str, Tensor]) -> None:
        """Keep the features of a batch, each (B, ...)."""
        self.computed += len(files)
        for i, file in enumerate(files):
            if not self._writes:
                return
            own = {name: each[i] for name, each in features.items()}
            try:
                safe_files.write_tensors(own, file, {})
            except UserError as error:
                self._writes = False
                self._say(f'feature_cache keeps no more features: {error}')


class Pass:
    """One pass of a batch through the blocks.

    Args:
        cache: The cache.
        images: (B, C, H, W).
    """

    def __init__(self, cache: FeatureCache, images: Tensor) -> None:
        self.cache = cache
        self.files = cache.files(images) if cache.depth is not None else []
        self.kept = cache.read(self.files, images.device) if self.files else None
        self._made: dict[str, Tensor] = {}
        # Where nothing gets a gradient it cannot be seen what acts.
        self._looks = cache.depth is None and torch.is_grad_enabled()

    def through(self, i: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """Let tokens pass a block, or take what it made of them before.

        Args:
            i: Index of the block.
            x: The tokens in front of it, (B, F + N, C).
            run: The block, and what follows it.

        Returns:
            (B, F + N, C).
        """
        cache, blocks = self.cache, len(self.cache.backbone.named_blocks())
        if self._looks:
            out = run()
            if out.requires_grad or i == blocks - 1:
                self._looks = False
                cache.see_depth(i if out.requires_grad else blocks)
            return out
        if cache.depth is None or i >= cache.depth:
            return run()
        if self.kept is not None:
            return self.kept.get(str(i), x)
        out = run()
        wanted = {*cache.backbone.output_blocks(), cache.depth - 1}
        if i in wanted.union(*(adapter.reads for adapter in cache.backbone.adapters)):
            self._made[str(i)] = out
        if i == cache.depth - 1:
            cache.write(self.files, self._made)
        return out


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
