"""The segmentor of two towers."""

import copy
from typing import Any

from vpt_dense.registry import MODELS
from vpt_dense.segmentors import EncoderDecoder
from vpt_dense.vision_language.class_texts import ClassTexts, share_weights


@MODELS.register_module()
class CLIPSegmentor(EncoderDecoder):
    """An ``EncoderDecoder`` whose head has a text tower, from the file of the backbone.

    Args:
        backbone: Config of a :class:`.CLIPVisionTransformer` with ``out_type='embeddings'``.
        decode_head: Config of a :class:`.ZegCLIPHead`, or another with ``text``; its text tower
            takes the ``init_cfg`` of the backbone if it has none.
        **kwargs: As there.

    Raises:
        ValueError: If the backbone puts out something else.
    """

    def __init__(self, *, backbone: dict, decode_head: dict, **kwargs: Any) -> None:
        backbone, decode_head = copy.deepcopy(backbone), copy.deepcopy(decode_head)
        super().__init__(
            backbone=backbone, decode_head=share_weights(backbone, decode_head), **kwargs)
        if not isinstance(self.decode_head, ClassTexts):
            raise ValueError(
                'model.decode_head: a CLIPSegmentor needs a head that knows classes by texts, '
                f'found a {type(self.decode_head).__name__}')
        if getattr(self.backbone, 'out_type', None) != 'embeddings':
            raise ValueError(
                "model.backbone: a CLIPSegmentor needs a CLIPVisionTransformer with out_type="
                f"'embeddings', found a {type(self.backbone).__name__}")
        *maps, width, _ = self.backbone.out_dims()
        self.decode_head.check_widths(maps, width)
