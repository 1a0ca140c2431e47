"""Seeds of random numbers, and the generators that start from them.

There are two kinds, told apart by their size:

- A plain seed, below 2^64, is a number that a user chooses. It goes to PyTorch as it is, which uses 32 bits of it on a
  CPU.
- The seed of a sample of a run is 2^128 plus 128 bits, which are derived from the seed of the run, the case, the
  number of the copy and so on with NumPy's ``SeedSequence``. Two of them never meet in practice, while among 100,000
  seeds of 31 bits a few are equal.

``SeedSequence`` gives the same numbers in every version of NumPy.
"""

from __future__ import annotations

import enum
import hashlib

import numpy as np
import torch

from ..levels import STRENGTHS, Level

# Names of the schemes in reports and records. Records of older versions have none: their samples have plain seeds.
PLAIN, SAMPLES = "plain", "seedsequence-128"
_SAMPLE = 2**128
# What stands for the first strength that is a word, beyond all levels.
_FIRST_WORD = 2**16
# Number of 32-bit words of the Mersenne Twister, and of bytes before them in the state of PyTorch's generator.
_WORDS, _HEAD = 624, 24


class Purpose(enum.IntEnum):
    """Purposes of the random numbers of one sample; each has numbers of its own."""

    SAMPLE = 0
    SECOND = 1
    REGION = 2
    POSE = 3
    TOWARD = 4
    GRAY = 5
    MIRROR = 6
    TURN = 7


# What is added to a plain seed for each purpose.
_ADDED = {
    Purpose.SECOND: 2**31,
    Purpose.REGION: 2**32,
    Purpose.POSE: 2**40,
    Purpose.TOWARD: 2**41,
    Purpose.GRAY: 2**42,
    Purpose.MIRROR: 2**43,
    Purpose.TURN: 2**44,
}


def sample_seed(run_seed: int, case: str, levels: tuple[Level, ...], copy: int, attempt: int) -> int:
    """Return the seed of one attempt at a sample of a run, 2^128 to 2^129 - 1.

    Args:
        run_seed: seed of the run.
        case: name of the case.
        levels: strengths of its deformations.
        copy: number of the sample among those of the same case and levels.
        attempt: number of the attempt.
    """
    name = np.frombuffer(hashlib.sha256(case.encode(errors="surrogatepass")).digest(), "<u4").tolist()
    strengths = [level if isinstance(level, int) else _FIRST_WORD + STRENGTHS.index(level) for level in levels]
    key = (*name, Purpose.SAMPLE, copy, attempt, *strengths)
    return _number(np.random.SeedSequence(run_seed % _SAMPLE, spawn_key=key))


def derived_seed(seed: int, purpose: Purpose, number: int = 1) -> int:
    """Return the seed for another purpose than the first random field of a sample.

    Args:
        seed: of either kind; the result is of the same kind.
        number: of several of the same purpose; 0 is ``seed`` itself.
    """
    if number == 0:
        return seed
    if seed < _SAMPLE:
        return seed + number * _ADDED[purpose]
    return _number(np.random.SeedSequence(seed, spawn_key=(purpose, number)))


def random_generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on a device that starts from a seed.

    The seed of a sample sets all of the state on a CPU, 124 of its bits on a CUDA device, and 64 of them on others.
    """
    generator = torch.Generator(device)
    if seed < _SAMPLE:
        return generator.manual_seed(seed)
    sequence = np.random.SeedSequence(seed)
    if generator.device.type == "cpu":
        state = generator.manual_seed(0).get_state().numpy().copy()
        state[_HEAD : _HEAD + 8 * _WORDS].view(np.uint64)[:] = sequence.generate_state(_WORDS)
        generator.set_state(torch.from_numpy(state))
        return generator
    first, second = (int(word) for word in sequence.generate_state(2, np.uint64))
    generator.manual_seed(first)
    if generator.device.type == "cuda":
        # The state of Philox: its key, and its position, a multiple of 4. It must not run over within a sample.
        state = np.array([first, second >> 2 << 2 & (2**62 - 1)], np.uint64)
        generator.set_state(torch.from_numpy(state.view(np.uint8)))
    return generator


def _number(sequence: np.random.SeedSequence) -> int:
    return _SAMPLE + sum(int(word) << 32 * k for k, word in enumerate(sequence.generate_state(4)))
