"""The authors' programs, run as they are from a checkout of their repository (github.com/jianqingzheng/def_diff_rec).

Only their classes ``Diffusion.diffuser.DeformDDPM`` and ``Diffusion.networks`` are used, as their scripts
``DRDM_augment.py`` and ``DRDM_train.py`` use them; nothing of theirs is copied.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.displacement import voxel_field
from benchmarks.interleaved_timing import Method, Task
from benchmarks.phantom import SEED, phantom

TIMESTEPS = 80
# A 3D step takes ten seconds, so only a few are timed, and the rest is extrapolated.
_TIMED_STEPS_3D = 2
_WEIGHTS = {
    2: "models/cmr_recresacnet/000000_cmr_recresacnet.pth",
    3: "models/lct_recresacnet/000000_lct_recresacnet.pth",
}


def load_module(source: str, name: str) -> Any:
    """Import a module from a checkout, which is no package that could be installed."""
    if source not in sys.path:
        sys.path.append(source)
    return importlib.import_module(name)


def load_model(source: str, ndim: int, side: int, batch: int = 1, *, training: bool = False) -> Any:
    """Make their model with its published settings, and its weights if the checkout has them."""
    diffuser = load_module(source, "Diffusion.diffuser")
    networks = load_module(source, "Diffusion.networks")
    torch.manual_seed(SEED)
    planar = ndim == 2
    network = networks.get_net("recresacnet")(n_steps=TIMESTEPS, ndims=ndim, num_input_chn=1, res=side)
    model = diffuser.DeformDDPM(
        network=network,
        n_steps=TIMESTEPS,
        image_chw=[1, *[side] * ndim],
        device="cpu",
        batch_size=batch,
        img_pad_mode="zeros",
        ddf_pad_mode="border",
        padding_mode="zeros" if planar else "border",
        v_scale=4e-5,
        resample_mode="bicubic" if planar and not training else None,
    )
    weights = Path(source) / _WEIGHTS[ndim]
    if weights.is_file() and not training:
        model.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.train() if training else model.eval()


def normalized_phantom(ndim: int, side: int) -> torch.Tensor:
    """Return the phantom between 0 and 1: (1, 1, *S)."""
    image = torch.from_numpy(phantom(ndim, side))
    return ((image - image.min()) / (image.max() - image.min()))[None, None]


def deformation(method: Method) -> Task:
    """Deform as ``DRDM_augment.py``: all 80 steps, whatever the level.

    Their script moves a mask along in every step, so it is given one.
    """
    model, image = load_model(method.source, method.ndim, method.side), normalized_phantom(method.ndim, method.side)
    mask = (image > 0.5).float()
    steps = TIMESTEPS if method.ndim == 2 else _TIMED_STEPS_3D

    def call() -> tuple[torch.Tensor, float]:
        torch.manual_seed(SEED)
        with torch.no_grad():
            begin = time.perf_counter()
            model._get_random_ddf(img=image, t=torch.tensor([method.level]))
            drawn = time.perf_counter()
            (ddf, _), *_ = model.diff_recover(img_org=image, msk_org=mask, T=[method.level, steps])
            whole = time.perf_counter() - drawn
        # A whole run is one random field and all the steps.
        each = (whole - (drawn - begin)) / steps
        return ddf, (drawn - begin) + TIMESTEPS * each

    def field(output: tuple[torch.Tensor, float]) -> Any:
        return voxel_field(output[0][0].numpy() * method.side)

    return Task(call, field, lambda output: output[1])


def random_field(method: Method) -> Task:
    """Compute their random field alone."""
    model, image = load_model(method.source, method.ndim, method.side), normalized_phantom(method.ndim, method.side)

    def call() -> torch.Tensor:
        torch.manual_seed(SEED)
        with torch.no_grad():
            return model._get_random_ddf(img=image, t=torch.tensor([method.level]))[2]

    return Task(call, lambda ddf: voxel_field(ddf[0].numpy() * method.side))
