"""A split of image files, decoded by PyTorch's worker processes while the network trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.data.image_data import Batch, DataError, MemorySplit, Split
from models.data.transforms import cut, normalise


@contextmanager
def worker_failures() -> Iterator[None]:
    """A worker process that died becomes a DataError with a way out.

    PyTorch reports it from a signal handler, so the error can strike at any line of the program
    while workers are there: programs put this around the whole of their training.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise _dead_worker(error) from error


@dataclass(frozen=True)
class FileSplit(Split):
    """Image files ``paths`` with their labels (n, G); bytes from the workers are normalised on the
    device of the labels."""

    paths: tuple[Path, ...]
    labels: Tensor
    size: int
    workers: int
    random_crop: bool = False
    horizontal_flip: bool = False

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return 3, self.size, self.size

    def to(self, device: torch.device) -> FileSplit:
        return replace(self, labels=self.labels.to(device))

    def subset(self, rows: Tensor) -> FileSplit:
        paths = tuple(self.paths[row] for row in rows.tolist())
        return replace(self, paths=paths, labels=self.labels[rows.to(self.labels.device)])

    def with_labels(self, labels: Tensor) -> FileSplit:
        return replace(self, labels=labels)

    def in_memory(self) -> MemorySplit:
        batches = torch.arange(len(self)).split(64)
        images = torch.empty(len(self), *self.image_shape, dtype=torch.uint8)
        for rows, read in zip(batches, self._bytes(batches, None), strict=True):
            images[rows] = read  # batches that were kept until the last would take as much again
        return MemorySplit(images, self.labels, normalise, self.paths)

    def _read(self, batches: Sequence[Tensor], seed: int | None) -> Iterator[Batch]:
        device = self.labels.device
        for rows, images in zip(batches, self._bytes(batches, seed), strict=True):
            yield normalise(images.to(device, non_blocking=True)), self.labels[rows.to(device)]

    def _bytes(self, batches: Sequence[Tensor], seed: int | None) -> Iterator[Tensor]:
        """Images (b, 3, size, size) uint8 of the given rows, batch by batch."""
        transform = cut(self.size)
        if seed is not None:
            transform = cut(
                self.size, random_crop=self.random_crop, horizontal_flip=self.horizontal_flip
            )
        loader = DataLoader(
            _Files(self.paths, transform),
            batch_sampler=[[(row, seed) for row in rows.tolist()] for rows in batches],
            num_workers=self.workers,
            pin_memory=self.labels.is_cuda,
            generator=torch.Generator(),  # its own, so that nothing is drawn from the default one
        )
        with worker_failures():
            iterator = iter(loader)
        try:
            for _ in batches:
                with worker_failures():
                    images = _next(iterator)
                yield images
        except DataError:
            _shut_down(iterator)
            raise


@dataclass(frozen=True)
class _Files(Dataset[Tensor]):
    paths: tuple[Path, ...]
    transform: Callable[[Image.Image], Tensor]

    def __getitem__(self, item: tuple[int, int | None]) -> Tensor:
        row, seed = item
        try:
            with Image.open(self.paths[row]) as file:
                image = file.convert("RGB")
        except Exception as error:  # see file_check.examine
            raise DataError(
                f"{self.paths[row]} could be read when the data set was opened, and now cannot: "
                f"{error}"
            ) from error
        if seed is None:
            return self.transform(image)
        # A seed for each image: what is drawn depends neither on the number of workers nor on what
        # else the process draws. (torch.manual_seed would seed the GPUs too.)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed((seed + row) % 2**63)
            return self.transform(image)


def _next(iterator: Iterator[Tensor]) -> Tensor:
    try:
        return next(iterator)
    except (EOFError, OSError) as error:  # it died after it had announced a batch
        raise _dead_worker(error) from error
    except DataError as error:
        # From a worker the message comes with the worker's traceback in front.
        raise DataError(str(error).rpartition("DataError: ")[2].strip()) from error


def _shut_down(iterator: Iterator[Tensor]) -> None:
    """Ends the workers now, so that PyTorch's report of a dead one, which may be on its way still,
    does not strike while the error that is known already is dealt with."""
    shut_down = getattr(iterator, "_shutdown_workers", None)  # of a loader that has workers
    if shut_down is not None:
        with suppress(RuntimeError):  # the report
            shut_down()


def _dead_worker(error: Exception) -> DataError:
    return DataError(
        f"A process that reads images died: {str(error) or repr(error)}\n"
        "Too little memory, or shared memory (/dev/shm), is the usual reason; workers=0 "
        "(--workers 0) reads in the program's own process."
    )
