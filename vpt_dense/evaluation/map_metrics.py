"""Metrics of maps of numbers: depth, normals of surfaces. Of every image its own, then the mean."""

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log
from mmseg.evaluation import DepthMetric as _DepthMetric
from torch import Tensor

from vpt_dense.argument_checks import check_choice, check_number
from vpt_dense.errors import UserError
from vpt_dense.registry import METRICS

#: Parts of an image that are compared: the share of height and width where rows and columns begin
#: and end, of 'nyu' in pixels of 640 x 480 (D. Eigen et al., NeurIPS 2014,
#: https://arxiv.org/abs/1406.2283; R. Garg et al., ECCV 2016, https://arxiv.org/abs/1603.04992; the
#: figures are those that all evaluations of depth share).
CROPS = {
    'nyu_crop': (45 / 480, 471 / 480, 41 / 640, 601 / 640),
    'garg_crop': (0.40810811, 0.99189189, 0.03594771, 0.96405229),
    'eigen_crop': (0.3324324, 0.91351351, 0.0359477, 0.96405229),
}


class _MeanOfImages(BaseMetric):
    """Keeps the scores of every image, and says their means; images without truth are left out."""

    results: list[dict[str, float] | None]

    def score(self, sample: dict) -> dict[str, float] | None:
        """The scores of an image; None: nothing of it is known."""
        raise NotImplementedError

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Score the images of a batch."""
        self.results += [self.score(sample) for sample in data_samples]

    def compute_metrics(self, results: list[dict[str, float] | None]) -> dict[str, float]:
        """The means over images.

        Raises:
            UserError: If no image has any truth.
        """
        scored = [each for each in results if each is not None]
        if not scored:
            raise UserError(f'{type(self).__name__}: none of {len(results)} images has a pixel '
                            'that could be compared; see the range and the crop of the evaluator')
        if len(scored) < len(results):
            print_log(f'{len(results) - len(scored)} of {len(results)} images have nothing to '
                      'compare and are left out of the means', 'current', logging.WARNING)
        return {key: sum(each[key] for each in scored) / len(scored) for key in scored[0]}


@METRICS.register_module()
class DepthMetric(_MeanOfImages, _DepthMetric):
    """Errors of depth: mmseg's, with what is amiss there mended.

    ``d1``, ``d2``, ``d3``: the share, 0 to 1, of pixels where the larger of found / true and
    true / found is below 1.25, 1.25^2, 1.25^3; ``abs_rel``, ``sq_rel`` (metres), ``rmse`` (metres),
    ``rmse_log``, ``log10``; and ``silog``, the root of mean(e^2) - 0.5 mean(e)^2 of e, the
    differences of logarithms (KITTI's own subtracts all of mean(e)^2, and multiplies by 100). The
    mean over images of each, in float64 (mmseg: float32).

    Here found depths are limited to the range first, as in AdaBins' and DINOv2's evaluation: one of
    0 has no logarithm. An image without a pixel to compare is left out: in mmseg it makes all means
    NaN. No image's pixels are kept. ``depth_metrics`` works, where mmseg's raises. A crop of NYU is
    refused on images of another shape.

    Args:
        min_depth_eval: Pixels of true depths above this are compared, in metres.
        max_depth_eval: And below this.
        crop_type: 'nyu_crop', 'garg_crop' or 'eigen_crop' (the last two of KITTI); None: all.
        depth_metrics: Names of those above; None: all.
        collect_device: As in :class:`mmengine.evaluator.BaseMetric`.
        prefix: As there.

    Raises:
        UserError: If a value is none of these.
    """

    def __init__(
        self, min_depth_eval: float = 1e-3, max_depth_eval: float = 10.0,
        crop_type: str | None = None, depth_metrics: Sequence[str] | None = None,
        collect_device: str = 'cpu', prefix: str | None = None,
    ) -> None:
        for key in ('min_depth_eval', 'max_depth_eval'):
            check_number(locals()[key], f'DepthMetric.{key}', positive=True)
        if not min_depth_eval < max_depth_eval:
            raise UserError(f'DepthMetric: min_depth_eval {min_depth_eval} must be below '
                            f'max_depth_eval {max_depth_eval}, in metres')
        check_choice(crop_type, 'DepthMetric.crop_type', (*CROPS, None))
        for name in depth_metrics or ():
            check_choice(name, 'DepthMetric.depth_metrics', self.METRICS)
        super().__init__(
            min_depth_eval=min_depth_eval, max_depth_eval=max_depth_eval,
            collect_device=collect_device, prefix=prefix)
        self.metrics = list(depth_metrics or self.METRICS)
        self.crop_type = crop_type

    def _get_eval_mask(self, gt_depth: Tensor) -> Tensor:
        """Where a true depth map (H, W) is compared, bool."""
        mask = (gt_depth > self.min_depth_eval) & (gt_depth < self.max_depth_eval)
        if self.crop_type is None:
            return mask
        height, width = gt_depth.shape
        if self.crop_type == 'nyu_crop' and (height, width) != (480, 640):
            raise UserError(
                f'DepthMetric.crop_type nyu_crop is for 640x480 pixels, a map has {width}x{height}')
        top, bottom, left, right = (
            round(share * side) if self.crop_type == 'nyu_crop' else int(share * side)
            for share, side in zip(CROPS[self.crop_type], (height, height, width, width),
                                   strict=True))
        inside = torch.zeros_like(mask)
        inside[top:bottom, left:right] = True
        return mask & inside

    def score(self, sample: dict) -> dict[str, float] | None:
        """See :meth:`_MeanOfImages.score`."""
        truth, found = (sample[key]['data'].double().reshape(sample[key]['data'].shape[-2:])
                        for key in ('gt_depth_map', 'pred_depth_map'))
        truth = truth.to(found)
        mask = self._get_eval_mask(truth)
        if not mask.any():
            return None
        found = found[mask]
        if not found.isfinite().all():
            raise UserError(f'{sample.get("img_path")}: a predicted depth is not finite')
        found = found.clamp(self.min_depth_eval, self.max_depth_eval)
        scores = self._calc_all_metrics(truth[mask], found)
        return {key: scores[key] for key in self.metrics}


@METRICS.register_module()
class NormalMetric(_MeanOfImages):
    """Angles between true and found normals: ``mean_angle``, ``median_angle``, degrees; shares.

    ``a11.25``, ``a22.5`` and ``a30`` are the shares, 0 to 1, of pixels whose angle is below so many
    degrees (D. F. Fouhey et al., ICCV 2013). Of every image, then the mean over images; other
    evaluations take all pixels together. Computed in float64.

    Args:
        collect_device: As in :class:`mmengine.evaluator.BaseMetric`.
        prefix: As there.
    """

    metrics = ('mean_angle', 'median_angle', 'a11.25', 'a22.5', 'a30')

    def score(self, sample: dict) -> dict[str, float] | None:
        """See :meth:`_MeanOfImages.score`."""
        truth, found = (sample[key]['data'].double()
                        for key in ('gt_normal_map', 'pred_normal_map'))
        truth = truth.to(found)
        mask = (truth != 0).any(0)
        if not mask.any():
            return None
        truth, found = truth[:, mask], found[:, mask]
        # Of a small angle the cosine says little: atan2 is exact everywhere.
        sine = torch.linalg.vector_norm(torch.linalg.cross(truth, found, dim=0), dim=0)
        angles = torch.rad2deg(torch.atan2(sine, (truth * found).sum(0)))
        if not angles.isfinite().all():
            raise UserError(f'{sample.get("img_path")}: a predicted normal is not finite')
        return {
            'mean_angle': angles.mean().item(),
            'median_angle': float(np.median(angles.cpu().numpy())),
            **{f'a{limit:g}': (angles < limit).double().mean().item()
               for limit in (11.25, 22.5, 30)}}
