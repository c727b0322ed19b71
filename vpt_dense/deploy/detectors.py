"""Graphs of detectors: one image in, boxes out; non-maximum suppression is inside.

Two-stage detectors suppress proposals before their second stage, so that there is no graph of them
without it; with it inside, a file gives boxes, whatever runs it. mmdet's own code asks for numbers
that a graph does not know before it runs (how many are above a threshold, how large maps are), so
what follows the heads is written here, by the same formulas; whether it gives mmdet's boxes is
checked at each export. Candidates keep a fixed number of rows until the last step.
"""

import contextlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models import dense_heads, detectors, roi_heads
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from vpt_dense import safe_files
from vpt_dense.deploy import boxes as after
from vpt_dense.deploy import exporting, graphs
from vpt_dense.detection import query_detector as queries
from vpt_dense.errors import UserError
from vpt_dense.overrides import are_of
from vpt_dense.predicting.model import ModelPredictor
from vpt_dense.predicting.results import Detection, Panoptic

#: Largest share of what is found that may have no counterpart: of two boxes that overlap, and are
#: as good, another one may stay.
OTHER_BOXES = 0.1
#: A row of candidates that is none.
_NONE = -1.0
Shape = Sequence[int]
#: Detectors and their heads that give a class and a mask of each query.
_QUERY_MASKS = {
    (detectors.Mask2Former, dense_heads.Mask2FormerHead),
    *((queries.QueryDetector, head) for head in (
        queries.EoMTInstanceHead, queries.EoMTPanopticHead, queries.PlainMaskInstanceHead,
        queries.PlainMaskPanopticHead))}


class DeformableAttention(MultiScaleDeformableAttention):
    """mmcv's, with the sizes of maps as numbers in place of a tensor that is read.

    Deformable DETR (Zhu et al., ICLR 2021, https://arxiv.org/abs/2010.04159), eq. 3.
    """

    def forward(
        self, query: Tensor, key: Any = None, value: Tensor | None = None,
        identity: Tensor | None = None, query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None, reference_points: Tensor | None = None,
        spatial_shapes: Sequence[Shape] = (), level_start_index: Any = None, **kwargs: Any,
    ) -> Tensor:
        """See mmcv's; (B, N, C) with ``batch_first``."""
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        number, queries, heads = len(query), query.shape[1], self.num_heads
        value = self.value_proj(value)
        if key_padding_mask is not None:
            value = value.masked_fill(key_padding_mask[..., None], 0.0)
        value = value.unflatten(-1, (heads, -1))  # (B, keys, heads, C / heads)
        places = (number, queries, heads, self.num_levels, self.num_points)
        offsets = self.sampling_offsets(query).view(*places, 2)
        weights = self.attention_weights(query).view(*places[:3], -1).softmax(-1)
        centres = reference_points[:, :, None, :, None]  # (B, queries, 1, levels, 1, 2 or 4)
        if reference_points.shape[-1] == 2:
            sides = torch.stack([_pair(query, width, height) for height, width in spatial_shapes])
            at = centres + offsets / sides[:, None]
        else:
            at = centres[..., :2] + offsets / self.num_points * centres[..., 2:] * 0.5
        parts = value.split([height * width for height, width in spatial_shapes], dim=1)
        read = []
        for level, ((height, width), part) in enumerate(zip(spatial_shapes, parts, strict=True)):
            plane = part.permute(0, 2, 3, 1).flatten(0, 1).unflatten(-1, (height, width))
            grid = (2 * at[:, :, :, level] - 1).transpose(1, 2).flatten(0, 1)
            read.append(nn.functional.grid_sample(plane, grid, align_corners=False))
        # (B * heads, C / heads, queries, levels * points)
        read, weights = torch.cat(read, -1), weights.transpose(1, 2).flatten(0, 1)[:, None]
        found = (read * weights).sum(-1).unflatten(0, (number, heads)).flatten(1, 2)
        found = self.output_proj(found.transpose(1, 2))
        return (found if self.batch_first else found.transpose(0, 1)) + identity


class PixelDecoder(MSDeformAttnPixelDecoder):
    """mmdet's, with the sizes of maps as numbers."""

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See mmdet's: maps to the map of masks, and those of the decoder."""
        tokens, positions, points, shapes = [], [], [], []
        for i in range(self.num_encoder_levels):  # from the smallest
            level = self.num_input_levels - 1 - i
            x = feats[level]
            height, width = x.shape[2:]
            place = self.postional_encoding(x.new_zeros((len(x), height, width)).bool())
            place = place + self.level_encoding.weight[i][:, None, None]
            point = self.point_generator.single_level_grid_priors(
                (height, width), level, device=x.device)
            points.append(point / _pair(x, width, height) / self.strides[level])
            tokens.append(self.input_convs[i](x).flatten(2).transpose(1, 2))
            positions.append(place.flatten(2).transpose(1, 2))
            shapes.append((height, width))
        queries = torch.cat(tokens, 1)
        memory = self.encoder(
            query=queries, query_pos=torch.cat(positions, 1),
            key_padding_mask=queries.new_zeros(queries.shape[:2]).bool(), spatial_shapes=shapes,
            reference_points=torch.cat(points)[None, :, None].repeat(
                len(queries), 1, self.num_encoder_levels, 1),
            level_start_index=None,
            valid_ratios=queries.new_ones(len(queries), self.num_encoder_levels, 2))
        parts = memory.transpose(1, 2).split([height * width for height, width in shapes], -1)
        outs = [part.unflatten(-1, shape) for part, shape in zip(parts, shapes, strict=True)]
        for i in reversed(range(self.num_input_levels - self.num_encoder_levels)):
            lateral = self.lateral_convs[i](feats[i])
            above = nn.functional.interpolate(
                outs[-1], size=lateral.shape[-2:], mode='bilinear', align_corners=False)
            outs.append(self.output_convs[i](lateral + above))
        return self.mask_feature(outs[-1]), outs[: self.num_outs]


def _pair(like: Tensor, first: int, second: int) -> Tensor:
    """Two numbers that may be open, (2,)."""
    return torch.stack([like.new_full((), first), like.new_full((), second)])


# --- what can be exported --------------------------------------------------------------------


def check(model: nn.Module) -> str:
    """The kind of a detector, of those that can be exported.

    Returns:
        'one stage', 'two stages', 'query boxes' or 'query masks'.

    Raises:
        UserError: If it is of none; the message names the key.
    """
    if type(model) is detectors.DINO and type(model.bbox_head) is dense_heads.DINOHead:
        if not model.bbox_head.loss_cls.use_sigmoid:
            raise UserError('model.bbox_head.loss_cls: only a sigmoid of DINO can be exported')
        return 'query boxes'
    if (type(model), type(getattr(model, 'panoptic_head', None))) in _QUERY_MASKS and (
            type(model.panoptic_fusion_head) is MaskFormerFusionHead):
        return 'query masks'
    if isinstance(model, detectors.SingleStageDetector) and are_of(
            detectors.SingleStageDetector, model, 'predict', 'extract_feat'):
        _check_head(model.bbox_head, 'bbox_head')
        _check_nms(model.test_cfg, 'model.test_cfg')
        if model.test_cfg.get('min_bbox_size', -1) > 0:
            raise UserError(
                f'model.test_cfg.min_bbox_size is {model.test_cfg.min_bbox_size}, which is of '
                'pixels of the file; of exported detectors it must be 0')
        return 'one stage'
    if isinstance(model, detectors.TwoStageDetector) and are_of(
            detectors.TwoStageDetector, model, 'predict', 'extract_feat'):
        _check_two_stages(model)
        return 'two stages'
    head = next(getattr(model, key) for key in (
        'bbox_head', 'roi_head', 'panoptic_head', 'mask_head') if hasattr(model, key))
    raise _unknown('model', f'{type(model).__name__} with {type(head).__name__}')


def _unknown(where: str, what: str) -> UserError:
    return UserError(
        f'{where}: {what} cannot be exported; those that can are dense heads that predict as '
        "mmdet's BaseDenseHead, Faster, Mask and Cascade R-CNN, DINO, Mask2Former, EoMT and PMT's "
        'decoder')


def _check_head(head: nn.Module, key: str) -> None:
    methods = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
    if not isinstance(head, BaseDenseHead) or not are_of(BaseDenseHead, head, *methods) or getattr(
            getattr(head, 'loss_cls', None), 'custom_cls_channels', False):
        raise _unknown(f'model.{key}', type(head).__name__)


def _check_nms(test_cfg: dict, where: str) -> None:
    nms = dict(test_cfg['nms'])
    known = {'type', 'iou_threshold', 'class_agnostic'}
    strange = sorted(set(nms) - known)
    if strange or nms.get('type', 'nms') != 'nms' or 'iou_threshold' not in nms:
        key = strange[0] if strange else 'type'
        raise UserError(
            f'{where}.nms.{key} is {nms.get(key)!r}; of exported detectors nms has '
            "type='nms', iou_threshold, and class_agnostic")


def _check_two_stages(model: nn.Module) -> None:
    rpn, roi = model.rpn_head, model.roi_head
    if type(rpn) is not dense_heads.RPNHead:
        raise _unknown('model.rpn_head', type(rpn).__name__)
    if type(roi) not in (roi_heads.StandardRoIHead, roi_heads.CascadeRoIHead):
        raise _unknown('model.roi_head', type(roi).__name__)
    for head in _stages(roi.bbox_head):
        if not are_of(BBoxHead, head, 'predict_by_feat', '_predict_by_feat_single') or (
                head.custom_cls_channels or head.custom_activation or not head.with_reg):
            raise _unknown('model.roi_head.bbox_head', type(head).__name__)
    extractors = [*_stages(roi.bbox_roi_extractor)]
    if roi.with_mask:
        extractors += _stages(roi.mask_roi_extractor)
        for head in _stages(roi.mask_head):
            if not are_of(FCNMaskHead, head, 'forward', 'predict_by_feat'):
                raise _unknown('model.roi_head.mask_head', type(head).__name__)
        if model.test_cfg.rcnn.mask_thr_binary < 0:
            raise UserError(
                f'model.test_cfg.rcnn.mask_thr_binary is {model.test_cfg.rcnn.mask_thr_binary}; of '
                'exported detectors it is 0 to 1')
    if roi.with_shared_head:
        raise _unknown('model.roi_head.shared_head', type(roi.shared_head).__name__)
    for extractor in extractors:
        layers = {type(layer).__name__ for layer in extractor.roi_layers}
        if type(extractor) is not SingleRoIExtractor or layers != {'RoIAlign'} or any(
                layer.pool_mode != 'avg' for layer in extractor.roi_layers):
            raise _unknown('model.roi_head', f'{type(extractor).__name__} of {sorted(layers)}')
    _check_nms(model.test_cfg.rpn, 'model.test_cfg.rpn')
    _check_nms(model.test_cfg.rcnn, 'model.test_cfg.rcnn')


def _stages(part: Any) -> list[nn.Module]:
    return list(part) if isinstance(part, nn.ModuleList) else [part]


def open_up(model: nn.Module) -> None:
    """Exchange, in place, the parts of a model that read the sizes of maps from tensors."""
    for module in model.modules():
        if type(module) is MultiScaleDeformableAttention:
            module.__class__ = DeformableAttention
        elif type(module) is MSDeformAttnPixelDecoder:
            module.__class__ = PixelDecoder


# --- candidates ------------------------------------------------------------------------------


def _suppressed(
    boxes: Tensor, scores: Tensor, groups: Tensor, valid: Tensor, nms: dict, number: int,
    shape: Shape,
) -> tuple[Tensor, Tensor]:
    """The best boxes that no better one of their group overlaps.

    Args:
        boxes: (N, 4), x1, y1, x2, y2, within the image.
        scores: (N,).
        groups: (N,) int64.
        valid: (N,) bool.
        nms: ``iou_threshold``; ``class_agnostic``: groups do not count.
        number: Rows to return.
        shape: Height and width of the image.

    Returns:
        (number,) int64 positions, the best first, and their scores; :data:`_NONE` behind the last.
    """
    moved = boxes
    if not nms.get('class_agnostic'):
        # Each group lies somewhere else, as in mmcv.
        side = _pair(boxes, *shape).max() + 1
        moved = boxes + (groups.to(boxes) * side)[:, None]
    # torchvision says of its operator that two boxes stay at least: two beside the image do always.
    outside = boxes.new_tensor([[-2.0] * 2 + [-1.0] * 2, [-4.0] * 2 + [-3.0] * 2])
    moved, among = torch.cat([moved, outside]), torch.cat([scores, scores.new_full((2,), _NONE)])
    rows = torch.cat([valid, valid.new_ones(2)]).nonzero()[:, 0]
    kept = rows[torch.ops.torchvision.nms(moved[rows], among[rows], nms['iou_threshold'])]
    # All rows, with those that stay marked: their number is not settled.
    stays = torch.zeros_like(among).scatter(0, kept, 1.0)[: len(scores)]
    scores, rows = _best(torch.where(stays > 0, scores, _NONE), number)
    return rows, scores


def _rows(maps: Tensor, channels: int) -> Tensor:
    """(1, A * channels, h, w) as (h * w * A, channels)."""
    return maps[0].permute(1, 2, 0).reshape(-1, channels)


def _best(scores: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The ``number`` best of (N,), or all; a number below one is all."""
    if number < 1:
        return scores.sort(descending=True)
    # Rows that are none let the number be settled where N is open.
    filled = torch.cat([scores, scores.new_full((number,), _NONE)])
    found, places = filled.topk(number)
    return found, torch.where(found > _NONE, places, 0)


def _dense(
    head: nn.Module, maps: Sequence[Tensor], shape: Shape, test_cfg: dict, proposals: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (K, 4), scores (K,) and labels (K,) of a dense head; of proposals labels are 0."""
    outs = head(maps)
    factors = outs[2] if len(outs) > 2 else [None] * len(maps)
    priors = head.prior_generator.grid_priors(
        [each.shape[-2:] for each in outs[0]], dtype=maps[0].dtype, device=maps[0].device)
    found: list[tuple[Tensor, ...]] = []
    threshold = -math.inf if proposals else test_cfg.get('score_thr', 0)
    for level, (logits, deltas, factor, prior) in enumerate(
            zip(outs[0], outs[1], factors, priors, strict=True)):
        logits = _rows(logits, head.cls_out_channels)
        scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[:, :-1]
        classes = scores.shape[1]
        scores = torch.where(scores > threshold, scores, _NONE).reshape(-1)
        scores, places = _best(scores, test_cfg.get('nms_pre', -1))
        rows = places // classes
        valid = scores > _NONE
        if factor is not None:
            scores = scores * _rows(factor, 1)[rows, 0].sigmoid()
        groups = torch.full_like(places, level) if proposals else places % classes
        found.append((
            prior[rows], _rows(deltas, head.bbox_coder.encode_size)[rows], scores, groups, valid))
    prior, deltas, scores, groups, valid = (torch.cat(each) for each in zip(*found, strict=True))
    boxes = _decoded(head, prior, deltas, shape)
    smallest = test_cfg.get('min_bbox_size', -1)
    if smallest >= 0:
        valid = valid & (boxes[:, 2:] - boxes[:, :2] > smallest).all(1)
    rows, scores = _suppressed(
        boxes, scores, groups, valid, test_cfg['nms'], test_cfg['max_per_img'], shape)
    return boxes[rows], scores, groups[rows]


def _decoded(head: nn.Module, priors: Tensor, deltas: Tensor, shape: Shape) -> Tensor:
    """Boxes within the image."""
    boxes = head.bbox_coder.decode(priors, deltas)
    return torch.minimum(boxes.clamp(min=0), _pair(boxes, shape[1], shape[0]).repeat(2))


def _regions(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """RoIAlign of boxes (K, 4), each on the level of its size, (K, C, size, size)."""
    levels = len(extractor.roi_layers)
    regions = torch.cat([boxes.new_zeros(len(boxes), 1), boxes], 1)
    level = extractor.map_roi_levels(regions, levels)
    total = None
    for i, layer in enumerate(extractor.roi_layers):
        own = (level == i)[:, None]
        # Elsewhere an empty box, of which nothing is read.
        found = torch.ops.torchvision.roi_align(
            maps[i], regions * own, layer.spatial_scale, *layer.output_size,
            layer.sampling_ratio, layer.aligned)
        found = found * own[..., None, None]
        total = found if total is None else total + found
    return total


# --- kinds -----------------------------------------------------------------------------------


def one_stage(
    model: nn.Module, maps: Sequence[Tensor], shape: Shape, padded: Shape
) -> tuple[Tensor, ...]:
    """Boxes, scores, labels of a detector of one stage."""
    return _found(*_dense(model.bbox_head, maps, shape, model.bbox_head.test_cfg, False))


def two_stages(
    model: nn.Module, maps: Sequence[Tensor], shape: Shape, padded: Shape
) -> tuple[Tensor, ...]:
    """Boxes, scores, labels, and masks (N, h, w) of 0 to 1 within their boxes."""
    roi, test_cfg = model.roi_head, model.roi_head.test_cfg
    boxes, proposed, _ = _dense(model.rpn_head, maps, shape, model.rpn_head.test_cfg, True)
    heads, extractors = _stages(roi.bbox_head), _stages(roi.bbox_roi_extractor)
    shares = []
    for stage, (head, extractor) in enumerate(zip(heads, extractors, strict=True)):
        logits, deltas = head(_regions(extractor, maps[: extractor.num_inputs], boxes))
        shares.append(logits)
        if stage < len(heads) - 1:  # of Cascade R-CNN
            deltas = deltas.unflatten(1, (-1, 4))
            classes = deltas.shape[1]
            label = logits[:, :-1].argmax(1) % classes  # of all classes alike: 0
            own = nn.functional.one_hot(label, classes).to(deltas)[..., None]
            boxes = _decoded(head, boxes, (deltas * own).sum(1), shape)
    shares = (sum(shares) / len(shares)).softmax(-1)[:, :-1]
    number = shares.shape[1]
    each = deltas.shape[1] // 4
    wide = _decoded(
        head, boxes.repeat_interleave(each, 0), deltas.reshape(-1, 4), shape)
    wide = wide.unflatten(0, (-1, each)).expand(-1, number, 4).reshape(-1, 4)
    shares = torch.where(proposed[:, None] > _NONE, shares, _NONE).reshape(-1)
    labels = torch.arange(number).repeat(len(boxes))
    rows, scores = _suppressed(
        wide, shares, labels, shares > max(test_cfg.score_thr, _NONE), test_cfg.nms,
        test_cfg.max_per_img, shape)
    boxes, labels = wide[rows], labels[rows]
    if not roi.with_mask:
        return _found(boxes, scores, labels)
    masks = []
    for head, extractor in zip(_stages(roi.mask_head), _stages(roi.mask_roi_extractor),
                               strict=True):
        logits = head(_regions(extractor, maps[: extractor.num_inputs], boxes))
        own = torch.zeros_like(labels) if head.class_agnostic else labels
        masks.append(logits[torch.arange(len(own)), own].sigmoid())
    return _found(boxes, scores, labels, sum(masks) / len(masks))


def _found(boxes: Tensor, scores: Tensor, labels: Tensor, *masks: Tensor) -> tuple[Tensor, ...]:
    """The rows that are none left out."""
    rows = (scores > _NONE).nonzero()[:, 0]
    return tuple(each[rows] for each in (boxes, scores, labels, *masks))


def query_boxes(
    model: nn.Module, maps: Sequence[Tensor], shape: Shape, padded: Shape
) -> tuple[Tensor, ...]:
    """Boxes, scores, labels of DINO; padding is masked, as mmdet does it."""
    x = maps[0]
    outside = nn.functional.pad(
        x.new_zeros(1, 1, *shape), (0, padded[1] - shape[1], 0, padded[0] - shape[0]), value=1.0)
    tokens, positions, masks, shapes, ratios = [], [], [], [], []
    for level, x in enumerate(maps):
        mask = nn.functional.interpolate(outside, size=x.shape[2:])[0].bool()
        place = model.positional_encoding(mask).flatten(2).transpose(1, 2)
        positions.append(place + model.level_embed[level])
        tokens.append(x.flatten(2).transpose(1, 2))
        masks.append(mask.flatten(1))
        ratios.append(model.get_valid_ratio(mask))
        shapes.append(tuple(x.shape[2:]))
    mask, ratios = torch.cat(masks, 1), torch.stack(ratios, 1)
    shared = dict(spatial_shapes=shapes, level_start_index=None, valid_ratios=ratios)
    encoded = model.forward_encoder(
        feat=torch.cat(tokens, 1), feat_mask=mask, feat_pos=torch.cat(positions, 1), **shared)
    inputs, _ = model.pre_decoder(**encoded)
    decoded = model.forward_decoder(**inputs, memory_mask=mask, **shared)
    logits, boxes = (each[-1][0] for each in model.bbox_head(**decoded))
    scores, places = logits.sigmoid().flatten().topk(
        model.bbox_head.test_cfg.get('max_per_img', len(logits)))
    centre, side = boxes[places // logits.shape[1]].split(2, 1)
    limit = _pair(boxes, shape[1], shape[0]).repeat(2)
    boxes = torch.cat([centre - side / 2, centre + side / 2], 1) * limit
    return torch.minimum(boxes.clamp(min=0), limit), scores, places % logits.shape[1]


def query_masks(
    model: nn.Module, maps: Sequence[Tensor], shape: Shape, padded: Shape
) -> tuple[Tensor, ...]:
    """Logits of classes (Q, classes + 1) and of masks (Q, h, w) of Mask2Former and its like."""
    logits, masks = model.panoptic_head(maps, [])
    return logits[-1][0], masks[-1][0]


#: Kind -> (what turns maps into outputs, their names).
_BOXES = ('boxes', 'scores', 'labels')
KINDS = {
    'one stage': (one_stage, _BOXES), 'two stages': (two_stages, _BOXES),
    'query boxes': (query_boxes, _BOXES), 'query masks': (query_masks, ('logits', 'masks'))}


class ExportableDetector(nn.Module):
    """One image to what is found in it: what is in an exported graph.

    Args:
        model: The detector.
        prepare: Images (1, C, H, W) as files have them -> normalised.

    Attributes:
        kind: See :func:`check`.
        outputs: The names of what it gives.
    """

    def __init__(self, model: nn.Module, prepare: nn.Module) -> None:
        super().__init__()
        self.model, self.prepare, self.kind = model, prepare, check(model)
        self.outputs = KINDS[self.kind][1]
        if self.kind == 'two stages' and model.roi_head.with_mask:
            self.outputs = (*self.outputs, 'masks')
        preprocessor = model.data_preprocessor
        self.divisor, self.value = preprocessor.pad_size_divisor, float(preprocessor.pad_value)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Find.

        Args:
            images: (1, C, H, W), float32, R first, in the range that the card names, not padded.

        Returns:
            ``boxes`` (N, 4), x1, y1, x2, y2 in pixels of the input, the best first, ``scores``
            (N,), ``labels`` (N,) int64, and of Mask R-CNN ``masks`` (N, h, w), 0 to 1 within the
            box. Of Mask2Former, EoMT and PMT's decoder, panoptic ones too, ``logits`` (Q,
            classes + 1), the last one's of no class, and ``masks`` (Q, h, w), logits on the padded
            image.
        """
        height, width = images.shape[2:]
        x = self.prepare(images)
        x = nn.functional.pad(
            x, (0, -width % self.divisor, 0, -height % self.divisor), value=self.value)
        maps = self.model.extract_feat(x)
        return KINDS[self.kind][0](self.model, maps, (height, width), tuple(x.shape[2:]))


# --- files -----------------------------------------------------------------------------------


def export(
    predictor: ModelPredictor, out: str | Path, kind: str, size: Shape, dynamic: bool
) -> dict[str, Any]:
    """Export a detector to a file, which is there only if it finds what the model finds.

    See :func:`vpt_dense.deploy.exporting.export`. Where nothing is found in noise, the comparison
    is made with a threshold of 0, with a file that does not stay; a panoptic model has no threshold
    in its graph.
    """
    model = predictor.model.requires_grad_(False).eval()
    channels = exporting.channels_of(model)
    module = ExportableDetector(model, exporting.Prepared(predictor)).eval()
    noise = exporting._noise
    samples = [noise(1, channels, size, seed) for seed in range(2)]
    if dynamic:
        samples.append(noise(1, channels, (size[0] // 2 + 5, size[1] + 3), 2))
    try:
        wanted = [predicted(predictor, sample) for sample in samples]
        lowered = not any(len(each.labels) for each in wanted)
        if lowered:
            with _everything(model):
                wanted = [predicted(predictor, sample) for sample in samples]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UserError(
            f'the model does not take images of {size[0]}x{size[1]} pixels: '
            f'{graphs.first_line(error)}') from error
    for line in exporting.fold(model):
        print(line)
    open_up(model)
    if dynamic:
        exporting._open_sizes(model)
    card = describe(predictor, module, None if dynamic else size, channels)
    panoptic = predictor.task == 'panoptic'
    if panoptic:  # by the numbers too: in noise there may be no segment at all
        with torch.no_grad():
            numbers = [[each.numpy() for each in module(torch.from_numpy(sample))]
                       for sample in samples]
    write = graphs.write_onnx if kind == 'onnx' else graphs.write_pt2

    def made(path: Path) -> Any:
        program = exporting.graph(module, channels, size, dynamic, batches=False)
        return write(program, path, card)

    def check_file(run: Any) -> None:
        outputs = [run(sample) for sample in samples]
        if panoptic:
            _check_numbers(numbers, outputs, out)
        used = after.without_thresholds(card) if lowered and panoptic else card
        found = [after.found(each, used, sample.shape[2:], sample.shape[2:])
                 for each, sample in zip(outputs, samples, strict=True)]
        share = others(wanted, found)
        shapes = ', '.join('x'.join(map(str, sample.shape)) for sample in samples)
        what = 'segments' if panoptic else 'boxes'
        said = (
            f'{share:.2g} of the {what} are others than those of the model (at most {OTHER_BOXES}) '
            f'on images of {shapes}' + ', with a threshold of 0' * lowered)
        if not share <= OTHER_BOXES:
            raise UserError(f'{out} is not written: {said}')
        print(said)

    if lowered and not panoptic:
        folder = Path(out).parent
        with safe_files.told(out):
            folder.mkdir(parents=True, exist_ok=True)
            place = tempfile.TemporaryDirectory(dir=folder, prefix='.exporting-')
        with place, _everything(model):
            check_file(made(Path(place.name, f'all.{kind}')))
    with safe_files.atomic(out) as unfinished:
        run = made(unfinished)
        if not lowered or panoptic:
            check_file(run)
    return card


def _check_numbers(
    wanted: Sequence[Sequence[np.ndarray]], found: Sequence[Sequence[np.ndarray]],
    out: str | Path,
) -> None:  # fmt: skip
    """Refuse a file whose logits are not the model's."""
    for name, one, other in zip(
            ('logits', 'masks'), zip(*wanted, strict=True), zip(*found, strict=True), strict=True):
        worst = exporting.compare(list(one), list(other), False)
        limit = graphs.TOLERANCE * max(abs(each).max() for each in one)
        if not worst <= limit:
            raise UserError(
                f'{out} is not written: largest difference of {name} from the model {worst:.2g} '
                f'(at most {limit:.2g})')


@contextlib.contextmanager
def _everything(model: nn.Module) -> Iterator[None]:
    """With a threshold of 0 for scores, and for what queries keep of their masks."""
    parts = ('roi_head', 'bbox_head', 'panoptic_fusion_head')
    test_cfg = next(getattr(model, part).test_cfg for part in parts if hasattr(model, part))
    keys = ('object_mask_thr', 'iou_thr') if hasattr(model, parts[-1]) else ('score_thr',)
    before = {key: test_cfg[key] for key in keys if key in test_cfg}
    test_cfg.update(dict.fromkeys(keys, 0.0))
    try:
        yield
    finally:
        for key in keys:
            del test_cfg[key]
        test_cfg.update(before)


def predicted(predictor: ModelPredictor, images: np.ndarray) -> Detection | Panoptic:
    """What mmdet's own code finds in an image (1, C, H, W), R first."""
    (pixels,), size = images, images.shape[2:]
    if exporting.from_files(predictor) and len(pixels) == 3:
        pixels = pixels[::-1]
    sample = DetDataSample(metainfo=dict(
        img_id=0, img_path='noise', ori_shape=size, img_shape=size, scale_factor=(1.0, 1.0)))
    with predictor._at_work():
        (found,) = predictor._predict(
            predictor, [dict(inputs=torch.from_numpy(pixels.copy()), data_samples=sample)], False)
    return found


def others(
    wanted: Sequence[Detection | Panoptic], found: Sequence[Detection | Panoptic]
) -> float:
    """The share of what is found that has no counterpart: same class, score, box and mask.

    Scores may differ by :data:`vpt_dense.deploy.graphs.TOLERANCE`, sides of boxes by that share
    of the image, and a twentieth of the pixels of masks. Segments have a class and a mask alone.
    """
    alone = total = 0
    for one, other in zip(map(_alike, wanted), map(_alike, found), strict=True):
        near = graphs.TOLERANCE * max(one.boxes.max(initial=1), other.boxes.max(initial=1))
        like = one.labels[:, None] == other.labels
        like &= abs(one.scores[:, None] - other.scores) <= graphs.TOLERANCE
        like &= abs(one.boxes[:, None] - other.boxes).max(-1, initial=0) <= near
        if one.masks is not None:
            for i, k in np.argwhere(like):
                both = (one.masks[i] | other.masks[k]).sum()
                like[i, k] = (one.masks[i] ^ other.masks[k]).sum() <= 0.05 * both
        alone += (~like.any(0)).sum() + (~like.any(1)).sum()
        total += len(one.scores) + len(other.scores)
    return float(alone / total) if total else 0.0


def _alike(found: Detection | Panoptic) -> Detection:
    """Segments as instances that differ in class and mask alone."""
    if isinstance(found, Detection):
        return found
    number = len(found.labels)
    masks = found.ids == np.arange(1, number + 1)[:, None, None]
    return Detection(np.zeros((number, 4), np.float32), found.labels,
                     np.ones(number, np.float32), found.classes, masks)


def describe(
    predictor: ModelPredictor, module: ExportableDetector, size: Shape | None, channels: int
) -> dict[str, Any]:
    """The card of a file."""
    model = predictor.model
    card = exporting.describe(predictor, module, size, channels)
    card['output'] = dict(name=module.outputs[0], names=list(module.outputs), resized=False)
    card['detector'] = dict(kind=module.kind, divisor=module.divisor)
    if predictor.task == 'panoptic':
        test_cfg = model.panoptic_fusion_head.test_cfg
        card['detector'] |= dict(
            things=predictor.things, object_mask_thr=test_cfg.get('object_mask_thr', 0.8),
            iou_thr=test_cfg.get('iou_thr', 0.8),
            filter_low_score=bool(test_cfg.get('filter_low_score', False)))
    elif module.kind == 'query masks':
        card['detector']['max_per_image'] = model.test_cfg.get('max_per_image', 100)
    if 'masks' in module.outputs and module.kind == 'two stages':
        card['detector']['mask_threshold'] = model.test_cfg.rcnn.mask_thr_binary
    return card
