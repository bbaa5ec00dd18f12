"""An endless stream of samples from tar shards, split over ranks and workers, that can start at any batch."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import count, islice
from typing import TypeVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from llava.data.mixture import Mixture
from llava.data.packing import pack
from llava.data.record import BadRecord
from llava.data.sample import EncodedRecord, SampleBuilder
from llava.data.shards import ShardSample, expand_all, read_shard
from llava.errors import UserError

logger = logging.getLogger(__name__)

SHUFFLE_BUFFER = 1000  # samples that a worker holds, as undecoded bytes

T = TypeVar("T")


class ShardDataset(IterableDataset):
    """Samples (with `packing`, packs of them) of WebDataset shards, epoch after epoch.

    Each epoch shuffles the shards and deals them out to the readers. Worker w of W on rank r of R reads every
    R·W-th shard from r + R·w on, shuffles the samples in a buffer, and continues with its share of the next
    epoch. The order depends only on the seed, the epoch and the reader, so a run that consumed k batches can
    be resumed: each worker skips the samples of its batches before the k-th without loading them. A bad
    sample counts as a sample, and the next good one replaces it.

    Args:
        data_paths: shards, with braces not yet expanded.
        builder: makes the samples.
        seed: decides every random order.
        batch_size: the loader's; with num_workers it shows which samples the earlier batches took.
        num_workers: the loader's number of workers.
        rank, world_size: this process's rank, and the number of processes.
        weights: passes over each of data_paths in an epoch.
        packing: fill rows of model_max_length.
        shuffle_buffer: the number of samples from which the next is drawn.
        on_bad_record: "fail", or "skip" to leave out bad samples and shards, counting and logging them.
    Raises:
        UserError: if shards are missing, or an epoch has fewer shards than there are readers.
    """

    def __init__(
        self,
        data_paths: Sequence[str],
        builder: SampleBuilder,
        seed: int = 0,
        batch_size: int = 1,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        weights: Sequence[float] | None = None,
        packing: bool = False,
        shuffle_buffer: int = SHUFFLE_BUFFER,
        on_bad_record: str = "fail",
    ):
        shards = expand_all(data_paths)
        self.shards = [shard for of_path in shards for shard in of_path]
        self.mixture = Mixture([len(of_path) for of_path in shards], weights, seed)
        self.builder = builder
        self.batch_size = batch_size
        self.num_readers = max(num_workers, 1)
        self.rank, self.world_size = rank, world_size
        self.packing = packing
        self.shuffle_buffer = shuffle_buffer
        self.on_bad_record = on_bad_record
        self.start_batch = 0  # batches of this rank that were consumed before a run was resumed
        self._num_bad = torch.zeros(self.num_readers, dtype=torch.long).share_memory_()
        if len(self.mixture) < world_size * self.num_readers:
            raise UserError(
                f"{len(self.mixture)} shard(s) per epoch cannot be divided among {world_size} process(es) "
                f"with {self.num_readers} reader(s) each; write more and smaller shards, or lower "
                "--dataloader_num_workers."
            )

    @property
    def bad_records(self) -> list[str]:
        """One line with the count, or none; the log named each bad sample or shard when it was found."""
        num_bad = int(self._num_bad.sum())
        return [f"{num_bad} bad sample(s) or shard(s), each named above"] if num_bad else []

    def __iter__(self) -> Iterator[dict | list[dict]]:
        """Yield samples in the format of `SampleBuilder.load`, or packs (lists) of them, without end."""
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        assert num_workers == self.num_readers
        # A new loader takes its first batch from worker 0; after k batches the next reader is k % W.
        reader = (worker + self.start_batch) % num_workers
        num_batches = -((reader - self.start_batch) // num_workers)  # ceil((k - reader) / W)
        self._slot = worker
        candidates = islice(self._candidates(reader), num_batches * self.batch_size, None)
        return self._good(candidates)

    def _good(self, candidates: Iterator[tuple[int, list]]) -> Iterator[dict | list[dict]]:
        """Load candidates. A good one is yielded again for each bad one before it, so that positions stay."""
        num_waiting, last_good_epoch = 1, None
        for epoch, members in candidates:
            loaded = [sample for sample in map(self._load, members) if sample is not None]
            if loaded:
                for _ in range(num_waiting):
                    yield loaded if self.packing else loaded[0]
                num_waiting, last_good_epoch = 1, epoch
            else:
                num_waiting += 1
                last_good_epoch = epoch if last_good_epoch is None else last_good_epoch
                self._check_progress(epoch - last_good_epoch)

    def _check_progress(self, num_bad_epochs: int) -> None:
        """Raise BadRecord for more bad epochs than readers: a reader has then read about every shard."""
        if num_bad_epochs > self.world_size * self.num_readers:
            raise BadRecord(f"{num_bad_epochs} epochs had no good record; the bad ones are named above.")

    def _candidates(
        self, reader: int
    ) -> Iterator[tuple[int, list[tuple[ShardSample, EncodedRecord | None]]]]:
        """Yield (epoch, members), where the members make up one sample or pack. No image is decoded yet."""
        from webdataset.filters import shuffle

        num_empty = 0
        for epoch in count():
            rng = random.Random(f"{self.mixture.seed} {epoch} {self.rank} {reader}")
            samples = self._samples(epoch, reader)
            samples = shuffle(self.shuffle_buffer, initial=self.shuffle_buffer, rng=rng)(samples)
            if self.packing:
                rows = pack(self._measured(samples), self.builder.model_max_length)
            else:
                rows = ([(sample, None)] for sample in samples)
            num_empty += 1
            for row in rows:
                num_empty = 0
                yield epoch, row  # type: ignore[misc]
            self._check_progress(num_empty)

    def shards_of(self, epoch: int, reader: int) -> list[str]:
        """The shards that a reader of this rank reads in an epoch, in order."""
        order = self.mixture.indices(epoch).tolist()
        random.Random(f"{self.mixture.seed} {epoch}").shuffle(order)
        first = self.rank + self.world_size * reader
        return [self.shards[index] for index in order[first :: self.world_size * self.num_readers]]

    def _samples(self, epoch: int, reader: int) -> Iterator[ShardSample]:
        for shard in self.shards_of(epoch, reader):
            samples = read_shard(shard)
            while (sample := self._unless_bad(partial(next, samples, None))) is not None:
                yield sample

    def _measured(self, samples: Iterator[ShardSample]) -> Iterator[tuple[tuple, int]]:
        for sample in samples:
            encoded = self._unless_bad(partial(self._encode, sample))
            if encoded is not None:
                yield (sample, encoded), encoded.length

    def _encode(self, sample: ShardSample) -> EncodedRecord:
        record = sample.record()
        self.builder.check(record, sample.name)
        return self.builder.encode(record, sample.name, sample.open)

    def _load(self, member: tuple[ShardSample, EncodedRecord | None]) -> dict | None:
        sample, encoded = member
        return self._unless_bad(lambda: self.builder.load(encoded or self._encode(sample), sample.open))

    def _unless_bad(self, make: Callable[[], T]) -> T | None:
        try:
            return make()
        except BadRecord as error:
            if self.on_bad_record == "fail":
                raise
            logger.warning("Skipped: %s", error)
            self._num_bad[self._slot] += 1
            return None
