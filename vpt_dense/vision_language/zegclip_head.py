"""ZegCLIP's head: masks of classes that are known by texts, of classes never seen too."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from mmseg.models.utils import resize
from torch import Tensor, nn

from vpt_dense.argument_checks import check_count, check_number, is_list
from vpt_dense.registry import MODELS
from vpt_dense.vision_language.class_texts import ClassTexts, as_text, refuse_others, whole


class MaskAttention(nn.Module):
    """Classes attend to patches; the scores before the softmax are the masks.

    Args:
        dims: Width C.
        num_heads: Attention heads.
        hidden_dims: Of the MLP.
        is_last: Whether nothing reads the classes behind it: there is the mask alone, and no
            weights that nothing would train.
    """

    def __init__(self, dims: int, num_heads: int, hidden_dims: int, is_last: bool) -> None:
        super().__init__()
        self.num_heads, self.is_last = num_heads, is_last
        self.queries, self.keys = (nn.Linear(dims, dims) for _ in range(2))
        if is_last:
            return
        self.values, self.proj = (nn.Linear(dims, dims) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.fc1, self.fc2 = nn.Linear(dims, hidden_dims), nn.Linear(hidden_dims, dims)

    def forward(self, classes: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Compute a layer.

        Args:
            classes: (B, K, C).
            patches: (B, N, C).

        Returns:
            The classes, (B, K, C), of the last layer as they came; and their masks, (B, K, N):
            means over the heads of the scores q k / sqrt(C / heads).
        """
        q, k = self._heads(self.queries(classes)), self._heads(self.keys(patches))
        scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5  # (B, heads, K, N)
        if self.is_last:
            return classes, scores.mean(1)
        out = scores.softmax(-1) @ self._heads(self.values(patches))
        out = self.proj(out.transpose(1, 2).flatten(2))
        classes = self.norm1(classes + out)
        classes = self.norm2(classes + self.fc2(F.relu(self.fc1(classes))))
        return classes, scores.mean(1)

    def _heads(self, x: Tensor) -> Tensor:
        """(B, L, C) -> (B, heads, L, C / heads)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


@MODELS.register_module()
class ZegCLIPHead(ClassTexts, BaseDecodeHead):
    """Segments by the texts of classes (Z. Zhou et al., CVPR 2023, arXiv 2212.03588, section 3).

    For each class the relation descriptor q_c = Linear([g * t_c ; t_c]), g being the embedding of
    the image and t_c that of the text, attends to the embeddings of the patches in ``num_layers``
    layers (:class:`MaskAttention`; attention among the classes is left out, so that a class does
    not depend on which others there are). The mask of a class is that of the last layer; all layers
    have the loss

        ``focal_weight`` focal(alpha 0.25, gamma 2) + ``dice_weight`` dice,

    each pixel and class a binary decision, the mean over them; dice is the mean over images and
    classes, with 1 added above and below. A score is a sigmoid; what is handed on is its logarithm,
    whose softmax is the share of a class in the sum of the scores.

    Classes that are ``unseen`` do not train: their pixels count as ignored, and their texts take no
    part in training. In a test they get ``unseen_bonus`` on their scores, which says the same as
    the authors' subtracting it from all others. Windows average logarithms, where the authors
    average scores.

    It reads ``out_type='embeddings'`` of a :class:`.CLIPVisionTransformer`.

    Args:
        in_channels: Width D of the embeddings.
        num_classes: Classes of the data, seen or not.
        text: Config of the text tower, see :class:`.TextHead`.
        classes: Names, see there.
        templates: See there.
        unseen: Names of the classes that are not seen in training.
        unseen_bonus: See above.
        num_layers: Layers of attention.
        num_heads: Their heads.
        focal_weight: See above.
        dice_weight: See above.
        ignore_index: As in mmseg.
        **kwargs: As in :class:`mmseg.models.decode_heads.decode_head.BaseDecodeHead`, without
            ``channels``, ``in_index`` and losses.

    Raises:
        ValueError: If an argument is out of its range; the message names it.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        text: dict,
        classes: Sequence[str] | None = None,
        templates: str | Sequence[str] | None = None,
        unseen: Sequence[str] = (),
        unseen_bonus: float = 0.1,
        num_layers: int = 3,
        num_heads: int = 8,
        focal_weight: float = 100.0,
        dice_weight: float = 1.0,
        **kwargs,
    ) -> None:
        refuse_others(self, kwargs)
        super().__init__(
            in_channels=in_channels, channels=in_channels, num_classes=num_classes, in_index=-2,
            dropout_ratio=0, **{'align_corners': False, 'init_cfg': None, **kwargs})
        del self.conv_seg
        check_count(num_layers, 'decode_head.num_layers')
        check_count(num_heads, 'decode_head.num_heads')
        if in_channels % num_heads:
            raise ValueError(
                f'decode_head.num_heads is {num_heads}, which does not divide in_channels '
                f'{in_channels}')
        for key in ('unseen_bonus', 'focal_weight', 'dice_weight'):
            setattr(self, key, check_number(locals()[key], f'decode_head.{key}'))
        if unseen_bonus < 0:
            raise ValueError(
                f'decode_head.unseen_bonus must not be negative, found {unseen_bonus!r}')
        self.describe = nn.Linear(2 * in_channels, in_channels)
        self.project = nn.Linear(in_channels, in_channels)
        self.norm = nn.LayerNorm(in_channels)
        self.layers = nn.ModuleList(
            MaskAttention(in_channels, num_heads, 4 * in_channels, i == num_layers - 1)
            for i in range(num_layers))
        self.hold_texts(text, classes, num_classes, templates, 'decode_head')
        width = text.get('project_dims', 512)
        if width != in_channels:
            raise ValueError(
                f'decode_head.text.project_dims is {width}, decode_head.in_channels is '
                f'{in_channels}: patches and texts are compared in one space')
        known = self.classes or ()
        if unseen and self.classes is None:
            raise ValueError(
                'decode_head.unseen: the names of the classes are not known; say them in '
                'dataset.classes, or put the data where the config says')
        if not is_list(unseen) or any(name not in known for name in unseen):
            raise ValueError(
                f'decode_head.unseen must be names among the classes, found {unseen!r}')
        if len(set(unseen)) == num_classes:
            raise ValueError('decode_head.unseen: some classes must be seen, none is')
        self.unseen = frozenset(unseen)
        self._trained = None if self.classes is None else frozenset(
            as_text(name) for name in self.classes if name not in self.unseen)

    def set_classes(self, classes: Sequence[str], checkpoint: str | None = None) -> None:
        """See :meth:`.ClassTexts.set_classes`: what was not seen in training is unseen."""
        super().set_classes(classes, checkpoint)
        self.out_channels = len(classes)
        self.unseen = frozenset(
            name for name in classes
            if self._trained is not None and as_text(name) not in self._trained)

    def seen(self) -> list[int]:
        """Labels of the classes that train."""
        return [i for i, name in enumerate(self.classes) if name not in self.unseen]

    def masks(
        self, inputs: tuple[Tensor, ...], labels: Sequence[int] | None = None
    ) -> list[Tensor]:
        """The masks of all layers, as logits.

        Args:
            inputs: The last two are the embeddings of the patches, (B, D, h, w), and of the image,
                (B, D).
            labels: Of the classes; None: all.

        Returns:
            Each (B, classes, h, w).
        """
        maps, image = inputs[-2:]
        grid = maps.shape[2:]
        patches = F.normalize(maps.flatten(2).transpose(1, 2), dim=-1)  # (B, N, D)
        patches = self.norm(self.project(patches))
        texts = self.embeddings(labels).to(image.dtype)
        texts = texts.expand(image.shape[0], -1, -1)  # (B, K, D)
        classes = self.describe(torch.cat((image[:, None] * texts, texts), dim=-1))
        found = []
        for layer in self.layers:
            classes, mask = layer(classes, patches)
            found.append(mask.unflatten(-1, grid))
        return found

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """Turn embeddings into the masks of all classes, (B, num_classes, h, w), logits."""
        return self.masks(inputs)[-1]

    def predict_by_feat(self, seg_logits: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Masks at the size of the input become logarithms of scores, (B, num_classes, H, W)."""
        masks = whole(super().predict_by_feat(seg_logits, batch_img_metas))
        unseen = torch.tensor([name in self.unseen for name in self.classes], device=masks.device)
        scores = F.logsigmoid(masks)
        if not self.unseen or not self.unseen_bonus:
            return scores
        raised = (masks.sigmoid() + self.unseen_bonus).log()
        return torch.where(unseen[:, None, None], raised, scores)

    def loss(self, inputs: tuple[Tensor, ...], batch_data_samples: list, train_cfg: dict) -> dict:
        """The losses of all layers, see the class."""
        seen = self.seen()
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)  # (B, H, W)
        places = torch.full((self.num_classes,), -1, device=labels.device)
        places[seen] = torch.arange(len(seen), device=labels.device)
        ignored = labels == self.ignore_index
        # A label that is no class is an error here, as in any cross-entropy.
        target = places.index_select(0, labels.masked_fill(ignored, 0).flatten())
        target = target.view_as(labels).masked_fill(ignored, -1)  # unseen: -1 too
        losses = {}
        masks = self.masks(inputs, seen)
        for i, mask in enumerate(masks):
            mask = resize(
                whole(mask), labels.shape[1:], mode='bilinear', align_corners=self.align_corners)
            focal, dice = mask_losses(mask, target)
            losses[f'loss_focal_{i}'] = self.focal_weight * focal
            losses[f'loss_dice_{i}'] = self.dice_weight * dice
        losses['acc_seg'] = accuracy(mask, target, ignore_index=-1)
        return losses


def mask_losses(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Focal loss of every pixel and class, and dice loss of every image and class.

    T.-Y. Lin et al., ICCV 2017, https://arxiv.org/abs/1708.02002, equation 5, with alpha 0.25 and
    gamma 2; 1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1).

    Args:
        logits: (B, K, H, W).
        target: Labels (B, H, W), int64; -1: the pixel does not count.

    Returns:
        Both (), means; the focal one over pixels that count and classes, 0 if none do.
    """
    valid = (target >= 0)[:, None]
    truth = F.one_hot(target.clamp(min=0), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    truth = truth * valid
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction='none')
    p = logits.sigmoid()
    right = p * truth + (1 - p) * (1 - truth)
    alpha = 0.25 * truth + 0.75 * (1 - truth)
    focal = alpha * (1 - right).square() * entropy * valid
    number = valid.sum().clamp(min=1) * logits.shape[1]
    p = p * valid
    both = 2 * (p * truth).sum((2, 3)) + 1
    dice = 1 - both / (p.sum((2, 3)) + truth.sum((2, 3)) + 1)
    return focal.sum() / number, dice.mean()
