"""Makes the data set and its order from the data flags, and restores a resumed run's position in them."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import TrainerCallback
from transformers.trainer_utils import seed_worker

from llava.data.dataset import SupervisedDataset
from llava.data.mixture import Mixture
from llava.data.packing import PackedDataset
from llava.data.sample import SampleBuilder
from llava.data.sampler import MixtureSampler, ModalityLengthGroupedSampler
from llava.data.shards import expand_all, is_shards
from llava.data.stream import ShardDataset
from llava.errors import UserError
from llava.model.multimodal_merge import OnHost
from llava.train.arguments import DataArguments, TrainingArguments
from llava.train.loader import worker_options
from llava.train.run_record import earlier_workers
from llava.train.validation import set_names

logger = logging.getLogger(__name__)


def load_data(data_args: DataArguments, training_args: TrainingArguments, builder: SampleBuilder) -> Dataset:
    """Return the training data: records of files, packed or not, or a stream of shards.

    Raises:
        UserError: if a file is unusable, if a record is bad under --on_bad_record fail, or if an epoch has no
            batch or none of a file's records.
    """
    if any(map(is_shards, data_args.data_path)):
        if training_args.workers_are_auto:
            training_args.dataloader_num_workers = stream_workers(data_args, training_args)
        stream = ShardDataset(
            data_args.data_path,
            builder,
            seed=training_args.seed,
            batch_size=training_args.train_batch_size,
            num_workers=training_args.dataloader_num_workers,
            rank=training_args.process_index,
            world_size=training_args.world_size,
            weights=data_args.data_weights,
            packing=data_args.packing,
            on_bad_record=data_args.on_bad_record,
        )
        logger.info("%s: %d shards", ", ".join(data_args.data_path), len(stream.shards))
        return stream
    dataset = open_records(
        data_args.data_path,
        data_args,
        training_args,
        builder,
        weights=data_args.data_weights,
        seed=training_args.seed,
    )
    for path, size, count in zip(
        data_args.data_path, dataset.mixture.sizes, dataset.mixture.counts, strict=True
    ):
        logger.info("%s: %d records", path, size)
        if size and not count:
            raise UserError(
                f"--data_weights is so low that an epoch has none of the {size} records of {path}; raise the "
                "weight, or leave the file out."
            )
    if data_args.packing:
        packed = PackedDataset(dataset, training_args.dataloader_num_workers, data_args.share_images)
        check_batches(len(packed), "rows of packed records", training_args)
        return packed
    check_batches(len(dataset.mixture), "records", training_args)
    return dataset


def stream_workers(data_args: DataArguments, training_args: TrainingArguments) -> int:
    """The number of workers that `--dataloader_num_workers auto` means for a stream of shards.

    The order of a stream depends on it, so a resumed run keeps the number that it began with. Each worker
    reads shards of its own, so a rank has at most as many workers as shards.
    """
    earlier = earlier_workers(training_args.output_dir)
    if earlier is not None:
        return earlier
    shards = Mixture([len(each) for each in expand_all(data_args.data_path)], data_args.data_weights)
    return min(training_args.dataloader_num_workers, max(1, len(shards) // training_args.world_size))


def load_eval_data(
    data_args: DataArguments, training_args: TrainingArguments, builder: SampleBuilder
) -> dict[str, SupervisedDataset]:
    """Return the sets of --eval_data_path by name.

    They are not packed, because the metrics are means over tokens, which packing would not change.

    Raises:
        UserError: if a file is unusable, or a record is bad under --on_bad_record fail.
    """
    sets = {}
    for name, path in zip(
        set_names(data_args.eval_data_path or []), data_args.eval_data_path or [], strict=True
    ):
        sets[name] = open_records([path], data_args, training_args, builder)
        logger.info("%s: %d records for evaluation, named %s", path, len(sets[name]), name)
    return sets


def open_records(
    paths: list[str],
    data_args: DataArguments,
    training_args: TrainingArguments,
    builder: SampleBuilder,
    **order,
) -> SupervisedDataset:
    """Records of files, for training or for evaluation."""
    return SupervisedDataset(
        paths,
        builder,
        data_args.image_folder,
        on_bad_record=data_args.on_bad_record,
        index_folder=data_args.index_folder,
        check_images=data_args.check_images,
        num_workers=training_args.dataloader_num_workers,
        **order,
    )


def check_batches(num_samples: int, what: str, args: TrainingArguments) -> None:
    """Check that an epoch fills one batch on every process.

    If it does not, one process has a smaller batch; several processes repeat samples, which is logged.

    Args:
        num_samples: the number of samples in an epoch.
        what: the samples' name, for messages.
    Raises:
        UserError: if it does not, and --dataloader_drop_last leaves out incomplete batches.
    """
    at_once = args.train_batch_size * args.world_size
    if num_samples >= at_once:
        return
    shortage = (
        f"an epoch has {num_samples} {what}, but {args.world_size} process(es) with "
        f"--per_device_train_batch_size {args.per_device_train_batch_size} need {at_once} for one batch"
    )
    if args.dataloader_drop_last:
        raise UserError(
            f"--dataloader_drop_last True leaves no batch to train on: {shortage}. Leave it out, lower the "
            "batch size, or give more records."
        )
    if args.world_size > 1 and args.should_log:
        logger.warning("Every batch repeats samples: %s. Lower the batch size.", shortage)


def train_sampler(dataset: SupervisedDataset | PackedDataset, args: TrainingArguments) -> Sampler[int]:
    """The order of an epoch, the same on every rank."""
    by_modality = args.group_by_modality_length
    if by_modality or args.train_sampling_strategy == "group_by_length":
        return ModalityLengthGroupedSampler(
            dataset.mixture,
            dataset.modality_lengths if by_modality else dataset.lengths,
            batch_size=args.train_batch_size,
            world_size=args.world_size * args.gradient_accumulation_steps,
        )
    return MixtureSampler(dataset.mixture, shuffle=args.train_sampling_strategy != "sequential")


def train_loader(dataset: Dataset, args: TrainingArguments, collator: Callable) -> DataLoader:
    """A process's loader. A stream gives only its own rank's batches, because it splits itself over ranks."""
    if isinstance(dataset, ShardDataset):
        # its own generator, because a resumed run opens the loader once more than an uninterrupted one
        order = {"generator": torch.Generator().manual_seed(args.seed)}
    else:
        order = {
            "sampler": train_sampler(dataset, args),
            "drop_last": args.dataloader_drop_last,
            "in_order": args.dataloader_in_order,
            "worker_init_fn": partial(
                seed_worker, num_workers=args.dataloader_num_workers, rank=args.process_index
            ),
        }
    return DataLoader(
        dataset,
        batch_size=args.train_batch_size,
        persistent_workers=args.dataloader_persistent_workers,
        **worker_options(args, collator),
        **order,
    )


@dataclass(frozen=True)
class WithHostCopy:
    """A collator that also keeps a batch's integer tensors on the CPU, where the model plans its merge."""

    collator: Callable

    def __call__(self, rows: list) -> dict:
        batch = self.collator(rows)
        names = (field.name for field in fields(OnHost))
        return {**batch, "on_host": OnHost(*(batch.get(name) for name in names))}


class DataPosition(TrainerCallback):
    """Restores a resumed run's position in the data in two cases that transformers and accelerate leave out.

    They do not pass the epoch to a sampler inside those that skip batches or split them over processes, and
    they would decode all records of a stream that were already seen.
    """

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if isinstance(train_dataloader.dataset, ShardDataset):
            train_dataloader.dataset.start_batch = state.global_step * args.gradient_accumulation_steps

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        sampler = getattr(train_dataloader, "batch_sampler", None)
        while hasattr(sampler, "batch_sampler"):
            sampler = sampler.batch_sampler  # type: ignore[union-attr]
        sampler = getattr(sampler, "sampler", None)
        if isinstance(sampler, MixtureSampler):
            sampler.set_epoch(int(state.epoch or 0))

    def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
        if isinstance(train_dataloader.dataset, ShardDataset):
            state.epoch = state.global_step / state.max_steps  # Trainer counts it from the resumed step
