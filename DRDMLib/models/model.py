"""Models: a recovery network with its metadata, saved as safetensors."""

from __future__ import annotations

import copy
import json
import os
import pickle
from dataclasses import asdict
from functools import cached_property
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..io.files import write_bytes
from ..networks import RecResACNet, build_network, shapes_of_network
from ..runtime.device import choose_device, full_precision
from ..runtime.graphs import Graphs
from .metadata import METADATA_KEY, ModelMetadata, read_tensor_header
from .weights_file import read_weights


class Model:
    """A recovery network on a device, ready to predict.

    Attributes:
        network: maps (image, level) to a field, see :mod:`DRDMLib.networks`.
        metadata: how to use it.
        device: where it computes.
        graphs: CUDA graphs of its predictions, see :func:`DRDMLib.diffusion.recovery.recover`.
    """

    def __init__(self, network: nn.Module, metadata: ModelMetadata, device: torch.device) -> None:
        self.network = network.to(device).eval()
        self.metadata = metadata
        self.device = device
        self.graphs = Graphs()

    @cached_property
    def inference_network(self) -> nn.Module:
        """The network for inference: on the CPU its channels are stored last, which makes full use of vector units.

        Numbers are then added in another order, so the last bits differ. Large 3D networks with odd numbers of channels
        would not be faster and stay as they are.
        """
        if self.device.type != "cpu" or (self.ndim == 3 and self.metadata.architecture != "compact"):
            return self.network
        layout = torch.channels_last if self.ndim == 2 else torch.channels_last_3d
        result: nn.Module = copy.deepcopy(self.network).to(memory_format=layout)  # type: ignore[call-overload]
        return result

    @property
    def ndim(self) -> int:
        """Dimension of its images, 2 or 3."""
        return self.metadata.ndim

    @property
    def size(self) -> int:
        """Voxels along each side of its grid."""
        return self.metadata.size

    @property
    def timesteps(self) -> int:
        """Number of levels T."""
        return self.metadata.timesteps

    def on(self, device: str | torch.device) -> Model:
        """Make a copy on another device, without using memory on the present one."""
        m = self.metadata
        network = build_network(m.architecture, m.ndim, m.timesteps, m.options)
        network.load_state_dict({name: tensor.cpu() for name, tensor in self.network.state_dict().items()})
        return Model(network, m, torch.device(device))

    @property
    def default_steps(self) -> int:
        """Number of recovery steps that have nearly the same effect as one step for each level."""
        return int(getattr(self.network, "default_steps", self.timesteps))

    @torch.inference_mode()
    def predict(self, image: Tensor, t: int | Tensor, *, quick: bool = False, once: bool = False) -> Tensor:
        """Predict the step that undoes the last small deformation of an image of level ``t``.

        Args:
            image: (N, 1, *S), intensities 0..1: the deformed image.
            t: level, 0..T-1; one for all images, or (N,).
            quick: use :attr:`inference_network`.
            once: let a network with two passes over the image make only the first.

        Returns:
            (N, d, *S), fraction of the side.
        """
        levels = torch.as_tensor(t, device=self.device).expand(image.shape[0])
        network = self.inference_network if quick else self.network
        passes = {"passes": 1} if once and isinstance(network, RecResACNet) else {}
        with full_precision(self.device):
            result: Tensor = network(image.to(self.device), levels, **passes)
            return result

    @property
    def supports_target_level(self) -> bool:
        """Whether the model predicts fields from one level to any lower one, see :meth:`predict_to`."""
        return bool(self.metadata.options.get("whole"))

    @torch.inference_mode()
    def predict_to(self, image: Tensor, t: int | Tensor, to: int | Tensor) -> Tensor:
        """Predict the field that takes an image from level ``t`` directly to level ``to``.

        Only for models with :attr:`supports_target_level`.

        Args:
            image: (N, 1, *S), intensities 0..1: the deformed image.
            t: level of the images, 0..T-1; one for all, or (N,).
            to: a lower level; -1 stands for no deformation at all.

        Returns:
            (N, d, *S), fraction of the side.
        """
        count = image.shape[0]
        levels = [torch.as_tensor(level, device=self.device).expand(count) for level in (t, to)]
        with full_precision(self.device):
            result: Tensor = self.inference_network(image.to(self.device), *levels)
            return result


def save_model(
    path: str | os.PathLike[str], network: nn.Module, metadata: ModelMetadata, *, half: bool = False
) -> None:
    """Write weights and metadata as safetensors; the file appears under its name only when it is complete.

    Args:
        half: store the weights with 16 bits.

    Raises:
        OutputError: the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    tensors = {}
    for name, tensor in network.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        tensors[name] = tensor.half() if half and tensor.is_floating_point() else tensor
    write_bytes(path, safetensors.torch.save(tensors, metadata={METADATA_KEY: json.dumps(asdict(metadata))}))


def read_metadata(path: str | os.PathLike[str]) -> ModelMetadata:
    """Read the metadata of a model file, without building its network.

    Raises:
        ModelError: as :func:`load_model_file`.
    """
    path = Path(path)
    if path.suffix.lower() == ".pth":
        return _published_metadata(path, _published_state(path))
    return _described(path)[0]


def load_model_file(path: str | os.PathLike[str], device: str | torch.device = "auto") -> Model:
    """Load a model from a ``.safetensors`` file, or from the authors' ``.pth`` weights.

    No code in the file is executed.

    Raises:
        ModelError: the file is missing, damaged or not a DRDM model, or would run code when loaded.
        SettingError: the device is not available.
    """
    path = Path(path)
    target = choose_device(device)
    if not path.is_file():
        raise ModelError(f"There is no model file '{path}'; check the path, or run 'drdm models' to list the names.")
    if path.suffix.lower() == ".pth":
        state = _published_state(path)
        metadata = _published_metadata(path, state)
    else:
        metadata, state = _open_safetensors(path)
    _require_fit(path, metadata, {name: tuple(tensor.shape) for name, tensor in state.items()})
    network = build_network(metadata.architecture, metadata.ndim, metadata.timesteps, metadata.options)
    try:
        network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    except RuntimeError as error:
        raise ModelError(
            f"The weights in '{path}' do not fit their network, so the file is damaged; download or copy it again."
        ) from error
    if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
        raise ModelError(
            f"The weights in '{path}' have NaN or infinite values, so the file is damaged; download or copy it again."
        )
    return Model(network, metadata, target)


def _require_fit(path: Path, metadata: ModelMetadata, found: dict[str, tuple[int, ...]]) -> None:
    """Check the shapes of all tensors against those of the network, before any of them uses memory."""
    m = metadata
    if found != shapes_of_network(m.architecture, m.ndim, m.size, m.timesteps, m.options):
        raise ModelError(
            f"The weights in '{path}' do not fit their network, so the file is damaged; download or copy it again."
        )


def _described(path: Path) -> tuple[ModelMetadata, dict[str, tuple[int, ...]]]:
    """Read the metadata of a ``.safetensors`` file and the shapes of its tensors."""
    try:
        header, _ = read_tensor_header(path)
        tensors = {key: value for key, value in header.items() if key != "__metadata__"}
        shapes = {key: tuple(map(int, value["shape"])) for key, value in tensors.items()}
        text = header.get("__metadata__", {}).get(METADATA_KEY)
        values = json.loads(text) if text else {}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ModelError(f"'{path}' is not a readable model file (safetensors); download or copy it again.") from error
    if not isinstance(values, dict):
        raise ModelError(
            f"'{path}' is not a DRDM model, because its metadata does not describe one; choose another file."
        )
    return ModelMetadata.from_dict({"name": path.stem, **values}), shapes


def _open_safetensors(path: Path) -> tuple[ModelMetadata, dict[str, Tensor]]:
    metadata, shapes = _described(path)
    _require_fit(path, metadata, shapes)
    try:
        with safetensors.safe_open(path, framework="pt") as handle:
            state = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"'{path}' is not a readable model file (safetensors); download or copy it again.") from error
    return metadata, state


def _published_state(path: Path) -> dict[str, Tensor]:
    try:
        state = read_weights(path)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"'{path}' was refused, because it is damaged or would run code when loaded; choose another file."
        ) from error
    except (OSError, ValueError) as error:
        raise ModelError(f"'{path}' is not a readable weights file; download or copy it again.") from error
    if any(name not in state or state[name].ndim < 2 for name in ("conv_out.weight", "time_embed.weight")):
        raise ModelError(
            f"'{path}' does not contain weights of the published network (recresacnet), so it is not a DRDM model; "
            "choose another file."
        )
    return state


def _published_metadata(path: Path, state: dict[str, Tensor]) -> ModelMetadata:
    """Return the authors' settings: arrays in NIfTI order, stretched to a cube, minimum and maximum scaled to 0..1."""
    ndim = state["conv_out.weight"].ndim - 2
    if ndim not in (2, 3):
        raise ModelError(f"The weights in '{path}' are not those of a 2D or 3D network; choose another file.")
    planar = ndim == 2
    return ModelMetadata(
        name=path.stem,
        architecture="recresacnet",
        ndim=ndim,
        size=256 if planar else 128,
        timesteps=state["time_embed.weight"].shape[0],
        intensity="minmax",
        geometry="stretch",
        orientation="native",
        axes="ijk",
        composition_padding="zeros" if planar else "border",
        image_interpolation="cubic" if planar else "linear",
        licence="Apache-2.0",
        citation="Zheng et al., Deformation-Recovery Diffusion Model, Medical Image Analysis 110, 103987 (2026)",
    )
