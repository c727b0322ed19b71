"""The classifier of two towers."""

import copy
from typing import Any

import torch
from mmpretrain.models import ImageClassifier
from torch import Tensor

from vpt_dense.errors import UserError
from vpt_dense.parts import find
from vpt_dense.prompts import ContextPrompt, CoupledPrompt
from vpt_dense.registry import MODELS
from vpt_dense.tuning import is_added
from vpt_dense.vision_language.class_texts import fill_in, share_weights, without_prompt
from vpt_dense.vision_language.text_head import TextHead


@MODELS.register_module()
class CLIPClassifier(ImageClassifier):
    """mmpretrain's classifier with an image tower and a head that has a text tower.

    Both towers come from one file: ``head.text`` takes the ``init_cfg`` of ``backbone`` if it has
    none. Prompts of the image tower that are made of those of the text tower
    (:class:`vpt_dense.prompts.CoupledPrompt`) find them here.

    Args:
        backbone: Config of a :class:`.CLIPVisionTransformer` with ``out_type='embedding'``.
        head: Config of a :class:`.TextHead`.
        **kwargs: As in :class:`mmpretrain.ImageClassifier`, without ``neck`` and ``pretrained``.

    Raises:
        ValueError: If the towers' embeddings are not of one width, or a part does not fit.
    """

    def __init__(self, backbone: dict, head: dict, **kwargs: Any) -> None:
        backbone, head = copy.deepcopy(dict(backbone)), copy.deepcopy(dict(head))
        head = share_weights(backbone, head)
        built = MODELS.build(head)
        if not isinstance(built, TextHead):
            raise ValueError(
                f'model.head: CLIPClassifier needs a TextHead, found a {type(built).__name__}')
        prompt = backbone.get('prompt')
        coupled = _is_coupled(prompt)
        if coupled:
            source = None if built.text is None else built.text.prompt
            fits = isinstance(source, ContextPrompt) and not source.reads_image
            if not fits or source.per_class:
                raise ValueError(
                    'model.backbone.prompt: CoupledPrompt is made of the prompts of the text '
                    'tower; set model.head.text.prompt to a ContextPrompt, one for all classes')
            served = dict(
                num_tokens=source.num_tokens, text_dims=built.text.embed_dims,
                depth=source.stop if source.deep else 1)
            backbone['prompt'] = fill_in(prompt, served, 'model.backbone.prompt')
        super().__init__(backbone=backbone, head=built, **kwargs)
        if coupled:
            self.backbone.prompt.couple(built.text.prompt)
        if self.backbone.out_type != 'embedding':
            raise ValueError(
                "model.backbone.out_type must be 'embedding' for a CLIPClassifier, found "
                f'{self.backbone.out_type!r}')
        widths = self.backbone.out_dims()[-1], head['text'].get('project_dims', 512)
        if widths[0] != widths[1]:
            raise ValueError(
                f'model.backbone.project_dims is {widths[0]}, model.head.text.project_dims is '
                f'{widths[1]}: images and texts are compared in one space')
        for where, tower in (('backbone', self.backbone), ('head.text', built.text)):
            if built.reads_frozen and (
                    len(tower.adapters) or tower.image_prompt is not None
                    or any(p.requires_grad and not is_added(n)
                           for n, p in tower.named_parameters())):
                raise ValueError(
                    f'model.{where}: {type(built).__name__} compares with the tower without its '
                    'prompt, which adapters, an image_prompt and trainable weights of its own '
                    'would change too; leave them out')

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """As upstream.

        Raises:
            UserError: If nothing trains.
        """
        losses = super().loss(inputs, data_samples)
        if torch.is_grad_enabled() and not any(loss.requires_grad for loss in losses.values()):
            raise UserError(
                'nothing of the model trains: neither model.backbone nor model.head.text has '
                'something to learn; take a method, or test CLIP as it is (vpt-dense base-to-new '
                '--methods zero-shot)')
        return losses

    def extract_feat(self, inputs: Tensor, stage: str = 'neck') -> Any:
        """As upstream; in front of the embedding that without prompts, for heads that read it."""
        feats = super().extract_feat(inputs, stage)
        if not self.head.reads_frozen or stage == 'pre_logits':
            return feats
        with torch.no_grad(), without_prompt(self.backbone) as backbone:
            return (*backbone(inputs), *feats)


def _is_coupled(prompt: Any) -> bool:
    part = find(prompt['type']) if isinstance(prompt, dict) and 'type' in prompt else None
    return isinstance(part, type) and issubclass(part, CoupledPrompt)
