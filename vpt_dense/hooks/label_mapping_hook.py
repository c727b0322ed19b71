"""Finds which classes of a pretrained classifier stand for those of the data."""

import torch
from mmengine.dist import all_reduce, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from vpt_dense import live, params
from vpt_dense.errors import UserError
from vpt_dense.registry import HOOKS
from vpt_dense.seeding import Position, seeded


@HOOKS.register_module()
class LabelMappingHook(Hook):
    """Sets the mapping of a :class:`vpt_dense.LabelMappingHead` from the training images.

    Each goes through the network once, with the augmentation of training and the prompt as it is;
    the source classes that are predicted are counted for each target class. This is done before
    training, or before every epoch if the head's ``mode`` is 'iterative'; a run that is resumed
    goes on with the mapping of its checkpoint until the next epoch begins.

    Raises:
        UserError: When training begins, if there is no such head, or none of the epochs that
            'iterative' needs.
    """

    priority = 'VERY_HIGH'  # before the first iteration of anything else

    def before_train(self, runner: Runner) -> None:
        """Find the mapping that the whole training keeps."""
        mode = self.check_model(params.unwrap(runner.model)).mode
        if mode == 'iterative' and not isinstance(runner.train_loop, EpochBasedTrainLoop):
            raise UserError(
                "model.head.mode='iterative' finds the mapping before every epoch, but train_cfg "
                "counts iterations; set train_cfg.type='EpochBasedTrainLoop', or "
                "model.head.mode='frequency'"
            )
        if mode == 'frequency' and runner.iter == 0:
            self.find(runner)

    def before_train_epoch(self, runner: Runner) -> None:
        """Find the mapping of an epoch; not in the middle of one, where a run was resumed."""
        length = len(runner.train_dataloader)
        # The loop's rule: other numbers are those of a run that had another number of processes.
        in_the_middle = 0 < runner.iter - runner.epoch * length < length
        if self.check_model(params.unwrap(runner.model)).mode == 'iterative' and not in_the_middle:
            self.find(runner)

    @torch.no_grad()
    def find(self, runner: Runner) -> None:
        """Count predictions over the training set and set the mapping.

        Args:
            runner: With a classifier whose head is a ``LabelMappingHead``.
        """
        model = params.unwrap(runner.model)
        head = self.check_model(model)
        loader = runner.train_dataloader
        indices = range(get_rank(), len(loader.dataset), get_world_size())
        key = 'label mapping', runner.seed, runner.epoch
        own = DataLoader(
            loader.dataset, loader.batch_size, num_workers=loader.num_workers,
            sampler=[Position(i, (*key, i)) for i in indices], collate_fn=loader.collate_fn,
        )  # fmt: skip
        weight = head.fc.weight
        counts = torch.zeros(
            head.num_classes, len(weight), dtype=torch.int64, device=weight.device)
        was_training = model.training
        model.eval()
        with seeded(*key):  # what the loader draws is not missing in training
            for batch in live.track(own, len(own), 'label mapping: batches', runner.logger.info):
                batch = model.data_preprocessor(batch)
                predicted = head.source_scores(model.extract_feat(batch['inputs'])).argmax(1)
                labels = torch.cat([sample.gt_label for sample in batch['data_samples']])
                pairs = (labels.to(predicted), predicted)
                counts.index_put_(pairs, torch.ones_like(predicted), accumulate=True)
        model.train(was_training)
        all_reduce(counts)
        head.set_mapping(counts)
        hits = counts[torch.arange(head.num_classes), head.mapping.to(counts.device)].sum()
        runner.logger.info(
            'label mapping: %d of %d training images are predicted as the source class of their '
            'own class', hits, counts.sum(),
        )  # fmt: skip

    @staticmethod
    def check_model(model: torch.nn.Module) -> torch.nn.Module:
        """Return the head.

        Args:
            model: Not wrapped.

        Raises:
            UserError: If its head is no ``LabelMappingHead``.
        """
        from vpt_dense.classifiers import LabelMappingHead

        head = getattr(model, 'head', None)
        if not isinstance(head, LabelMappingHead):
            raise UserError(
                'custom_hooks: LabelMappingHook needs a vpt_dense.LabelMappingHead as model.head, '
                f'found {type(head).__name__}; leave the hook out, or set model.head.type'
            )
        return head
