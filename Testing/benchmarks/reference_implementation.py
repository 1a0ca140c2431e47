"""The authors' programs, run from a checkout of their repository (github.com/jianqingzheng/def_diff_rec) as they are.

Only their classes are used, ``Diffusion.diffuser.DeformDDPM`` and ``Diffusion.networks``, as their scripts
``DRDM_augment.py`` and ``DRDM_train.py`` use them; nothing of theirs is copied.
"""

from __future__ import annotations

import importlib
import sys
import time
from pathlib import Path
from typing import Any

import torch
from contenders import SEED, Contender, Task, phantom, voxel_field

TIMESTEPS = 80
# A 3D step takes ten seconds: so many are timed, and the rest reckoned.
_TIMED_STEPS_3D = 2
_WEIGHTS = {
    2: "models/cmr_recresacnet/000000_cmr_recresacnet.pth",
    3: "models/lct_recresacnet/000000_lct_recresacnet.pth",
}


def model(source: str, ndim: int, side: int, batch: int = 1, *, training: bool = False) -> Any:
    """Their model with its published settings; with its weights where the checkout has them."""
    sys.path.insert(0, source)
    diffuser = importlib.import_module("Diffusion.diffuser")
    networks = importlib.import_module("Diffusion.networks")
    torch.manual_seed(SEED)
    planar = ndim == 2
    network = networks.get_net("recresacnet")(n_steps=TIMESTEPS, ndims=ndim, num_input_chn=1, res=side)
    made = diffuser.DeformDDPM(
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
        made.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return made.train() if training else made.eval()


def _image(who: Contender) -> torch.Tensor:
    image = torch.from_numpy(phantom(who.ndim, who.side))
    return ((image - image.min()) / (image.max() - image.min()))[None, None]


def deformation(who: Contender) -> Task:
    """One deformation as ``DRDM_augment.py`` makes it: all 80 steps, whatever the level.

    Their script moves a mask along in every step; it is given a mask too.
    """
    made, image = model(who.source, who.ndim, who.side), _image(who)
    mask = (image > 0.5).float()
    steps = TIMESTEPS if who.ndim == 2 else _TIMED_STEPS_3D

    def call() -> tuple[torch.Tensor, float]:
        torch.manual_seed(SEED)
        with torch.no_grad():
            begin = time.perf_counter()
            made._get_random_ddf(img=image, t=torch.tensor([who.level]))
            drawn = time.perf_counter()
            (ddf, _), *_ = made.diff_recover(img_org=image, msk_org=mask, T=[who.level, steps])
            whole = time.perf_counter() - drawn
        # A whole run is one random field and all the steps.
        each = (whole - (drawn - begin)) / steps
        return ddf, (drawn - begin) + TIMESTEPS * each

    return Task(call, lambda output: voxel_field(output[0][0] * who.side), lambda output: output[1])


def random_field(who: Contender) -> Task:
    """Their random field alone."""
    made, image = model(who.source, who.ndim, who.side), _image(who)

    def call() -> torch.Tensor:
        torch.manual_seed(SEED)
        with torch.no_grad():
            return made._get_random_ddf(img=image, t=torch.tensor([who.level]))[2]

    return Task(call, lambda ddf: voxel_field(ddf[0] * who.side))
