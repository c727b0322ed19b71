"""Blocks in front of all that a task changes: computed once for all tasks that get the image."""

import hashlib
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from vpt_dense.adapters import Adapter
from vpt_dense.backbones.token_tuning import TokenTuning
from vpt_dense.multitask import lockstep
from vpt_dense.overrides import are_of
from vpt_dense.prompts import Prompt
from vpt_dense.tuning import is_added

#: Settings that change nothing in front of what reads the blocks, or (adapters) that first_block
#: looks at.
_BEHIND = frozenset({
    'training', 'base_is_frozen', 'out_indices', 'out_type', 'pool', 'final_norm', 'frozen_names',
    'trainable', 'keys_values_layers', 'settings', 'origin', 'recompute', 'global_pool',
    'num_classes', 'head_hidden_size', 'adapters', 'grad_checkpointing', 'out_after_downsample',
    'frozen_dtype',
})  # fmt: skip


def first_block(backbone: TokenTuning, own: Collection[str]) -> int:
    """Index of the first block that a task may change; the number of blocks if it changes none.

    Args:
        backbone: Tuned.
        own: Names of its tensors that are not those of the frozen backbone.
    """
    blocks = [f'{name}.' for name, _ in backbone.named_blocks()]
    norms = {id(module) for module in backbone.output_norms()}
    behind = tuple(f'{name}.' for name, m in backbone.named_modules() if id(m) in norms)

    def place(name: str) -> int:
        found = [i for i, block in enumerate(blocks) if name.startswith(block)]
        return found[0] if found else len(blocks) if name.startswith(behind) else 0

    places = [len(blocks), *(place(name) for name in own if not is_added(name))]
    places += [
        place(f'{name}.') for name, module in backbone.named_modules()
        if not is_added(name) and (module._forward_hooks or module._forward_pre_hooks)]
    if backbone.image_prompt is not None:
        return 0
    inside = ('before_block', 'after_attention', 'after_mlp', 'after_block')
    places += [0 for adapter in backbone.adapters if not are_of(Adapter, adapter, *inside)]
    prompt = backbone.prompt
    if prompt is not None:
        plain = are_of(Prompt, prompt, 'before_block', 'after_block')
        places.append(prompt.first_layer if plain else 0)
    return min(places)


class Prefix:
    """Takes the place of a backbone's ``feature_cache``: shares first blocks within a meeting.

    Args:
        backbone: Of a task, with its weights.
        depth: How many blocks the task does not change.
    """

    def __init__(self, backbone: TokenTuning, depth: int) -> None:
        self.depth = depth
        # What models of other libraries put out is read by heads that change nothing.
        own = 'outputs' in backbone.offers
        self.outputs = frozenset(backbone.output_blocks() if own else ())
        self.alike = _structures(backbone, depth)

    def open(self, images: Tensor) -> '_Pass | None':
        """Begin a pass of images (B, C, H, W); None: nobody shares it."""
        meeting = lockstep.current()
        return _Pass(self, meeting.which(images)) if meeting and self.depth else None


class _Pass:
    """One pass of a task."""

    def __init__(self, prefix: Prefix, images: int) -> None:
        self.prefix, self.images = prefix, images

    def through(self, i: int, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        """Let tokens pass block i, or take what it made of them for another task."""
        prefix = self.prefix
        if i >= prefix.depth:
            return run()
        kind = x.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        out = lockstep.once((self.images, i, prefix.alike[i], half), run)
        # What follows may change it in place.
        return out.clone() if i == prefix.depth - 1 or i in prefix.outputs else out


def _structures(backbone: TokenTuning, depth: int) -> list[str]:
    """What says, beside weights, what each of the first blocks and those before it compute."""
    blocks = [f'{name}.' for name, _ in backbone.named_blocks()]
    told: list[list[str]] = [[] for _ in range(len(blocks) + 1)]
    for name, module in backbone.named_modules():
        if is_added(name):
            continue
        kind = type(module)
        settings = sorted(
            (key, value) for key, value in vars(module).items()
            if key[0] != '_' and key not in _BEHIND and all(
                isinstance(each, (int, float, str))
                for each in (value if isinstance(value, tuple) else [value])))
        # What is in no block is taken to act in front of all.
        at = next((i for i, block in enumerate(blocks, 1) if f'{name}.'.startswith(block)), 0)
        told[at].append(f'{name} {kind.__module__}.{kind.__qualname__} {settings}\n')
    digest, found = hashlib.sha256(''.join(told[0]).encode()), []
    for lines in told[1:depth + 1]:
        digest.update(''.join(lines).encode())
        found.append(digest.hexdigest())
    return found
