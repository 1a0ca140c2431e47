"""Train many small networks quickly: on a GPU, a whole training step is captured once and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.networks.nets import DynUNet

from benchmarks.example_sets import Examples
from benchmarks.overlap import dice, dice_cross_entropy

BATCH = {2: 8, 3: 2}
WIDTHS = {2: (16, 32, 64), 3: (8, 16, 32)}
LEARNING_RATE = 2e-3
# Largest shift of an image that is not augmented otherwise, pixels; spread of its gain and offset.
SHIFT, SPREAD = {2: 6, 3: 3}, 0.1
# Share of the originals in the batches of a set with copies.
ORIGINALS = 0.25
_WARM_UP = 3


class NetworkTrainer:
    """Trains MONAI's ``DynUNet``, the architecture of nnU-Net, again and again from other weights.

    Args:
        window: shape of the examples.
        classes: with the background.
        widths: channels of the scales, finest first; by default :data:`WIDTHS`.
    """

    def __init__(
        self, window: tuple[int, ...], classes: int, device: torch.device, widths: Sequence[int] | None = None
    ) -> None:
        self.window, self.classes, self.device = window, classes, device
        self.ndim, self.batch = len(window), BATCH[len(window)]
        self.widths = tuple(widths or WIDTHS[self.ndim])
        self.network = self._new_network(0).to(device)
        self.rate = torch.tensor(LEARNING_RATE, device=device)
        on_gpu = device.type == "cuda"
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.rate, capturable=on_gpu)
        self.image = torch.zeros(self.batch, 1, *window, device=device)
        self.label = torch.zeros(self.batch, *window, dtype=torch.long, device=device)
        self.weight = torch.ones(classes, device=device)
        torch.backends.cudnn.benchmark = on_gpu
        self.graph = self._capture() if on_gpu else None

    def _new_network(self, seed: int) -> DynUNet:
        torch.manual_seed(seed)
        scales = len(self.widths)
        strides: list[Any] = [1] + [2] * (scales - 1)
        kernels: list[Any] = [3] * scales
        return DynUNet(self.ndim, 1, self.classes, kernels, strides, strides[1:], list(self.widths))

    def _step(self) -> None:
        self.optimizer.zero_grad(set_to_none=False)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False):
            scores = self.network(self.image)
        dice_cross_entropy(scores.float(), self.label, self.weight).backward()
        self.optimizer.step()

    def _capture(self) -> torch.cuda.CUDAGraph | None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:
            print(f"Steps are not captured ({error}).", flush=True)
            return None
        return graph

    def _start(self, seed: int) -> None:
        """Return to initial weights, in place, since a graph remembers where they are."""
        self.network.load_state_dict(self._new_network(seed).state_dict())
        for state in self.optimizer.state.values():
            for value in state.values():
                value.zero_()

    def train(self, examples: Examples, seed: int, iterations: int, *, augment: bool, weighted: bool = False) -> None:
        """Train from the initial weights of a seed.

        Args:
            augment: shift the images and change their gray values a little.
            weighted: give rare structures more weight in the cross-entropy.
        """
        self._start(seed)
        self.network.train()
        images, labels = (torch.from_numpy(x).to(self.device) for x in examples[:2])
        self.weight.fill_(1.0)
        if weighted:
            counts = torch.bincount(labels.flatten().int(), minlength=self.classes).clamp(min=1).float()
            self.weight.copy_(counts**-0.75 / (counts**-0.75).mean())
        rng = np.random.default_rng(seed)
        chosen = torch.from_numpy(_order(rng, examples, iterations * self.batch)).to(self.device)
        shifts = rng.integers(-SHIFT[self.ndim], SHIFT[self.ndim] + 1, (iterations, self.ndim)).tolist()
        changes = torch.from_numpy(rng.normal(0, SPREAD, (2, iterations, self.batch)).astype(np.float32))
        gain, offset = changes.to(self.device).view(2, iterations, self.batch, *[1] * (self.ndim + 1))
        axes = list(range(1, self.ndim + 1))
        for step, batch in enumerate(chosen.split(self.batch)):
            self.rate.fill_(LEARNING_RATE * (1 - step / iterations) ** 0.9)
            image, label = images[batch].float()[:, None], labels[batch].long()
            if augment:
                image = torch.roll(image, shifts[step], [k + 1 for k in axes]) * (1 + gain[step]) + offset[step]
                label = torch.roll(label, shifts[step], axes)
            self.image.copy_(image)
            self.label.copy_(label)
            if self.graph is None:
                self._step()
            else:
                self.graph.replay()

    @torch.no_grad()
    def test(self, people: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[float]:
        """Return the mean Dice over the structures of each person, whose examples are one volume or its slices."""
        self.network.eval()
        found = []
        for images, labels in people:
            whole = torch.from_numpy(images).to(self.device).float()[:, None]
            with torch.autocast(self.device.type, dtype=torch.bfloat16):
                parts = [self.network(part).argmax(1) for part in whole.split(16)]
            overlaps = dice(torch.cat(parts), torch.from_numpy(labels).to(self.device), self.classes)
            found.append(float(np.nanmean(overlaps)))
        return found


def _order(rng: np.random.Generator, examples: Examples, count: int) -> np.ndarray:
    """Draw the examples to train on, a quarter of them originals where there are copies."""
    whole, originals = len(examples.images), examples.originals
    first = rng.integers(0, originals, count)
    if whole == originals:
        return first
    return np.where(rng.random(count) < ORIGINALS, first, rng.integers(originals, whole, count))
