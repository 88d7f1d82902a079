"""The load format `impart` of vLLM: base + delta is decoded into the engine's weights, and no checkpoint is written.

    vllm serve DELTA/model --load-format impart                                               (the base that it names)
    vllm serve DELTA/model --load-format impart --model-loader-extra-config '{"base": "B"}'

pyproject.toml names `register` as a plugin of vLLM, which then calls it in each of its processes. An engine that was
started with `--worker-extension-cls serve.vllm_plugin.DeltaWorker` needs no installation, and swaps deltas: the method
`swap_delta` of its workers puts another delta over the same base in the place of the one that is served.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from vllm.config import ModelConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
from vllm.model_executor.models.utils import is_pp_missing_parameter
from vllm.platforms import current_platform
from vllm.utils.torch_utils import set_default_torch_dtype

from impart.errors import InputError
from impart.overlay import Overlay, difference, open_overlay

LOAD_FORMAT = "impart"

Weights = Iterator[tuple[str, torch.Tensor]]


@register_model_loader(LOAD_FORMAT)
class DeltaLoader(BaseModelLoader):
    """Loads base + delta, where vLLM's own loaders read a checkpoint's files.

    Each worker decodes the layers that it has; of a matrix that is split over several, vLLM takes each worker's part.
    """

    def download_model(self, model_config: ModelConfig) -> None:
        """Nothing: a delta lies in a folder, and its base is fetched when it is opened."""

    def load_weights(self, model: Any, model_config: ModelConfig) -> None:
        """The first delta of an engine."""
        overlay = open_overlay(model_config.model, self.load_config.model_loader_extra_config.get("base"))
        model.load_weights(decoded(overlay, wanted_by(model)))
        model.overlay = overlay

    def get_all_weights(self, model_config: ModelConfig, model: Any) -> Weights:
        """Those of another delta, for vLLM's `reload_weights`. InputError, before anything changes, where it may not
        follow the one that is served."""
        served: Overlay = model.overlay
        try:
            overlay = open_overlay(model_config.model, served.base)
            reason = difference(served, overlay)
            if reason:
                raise InputError(
                    f"{str(overlay.delta.path)!r} cannot follow {str(served.delta.path)!r} in one engine: {reason}; "
                    "start another engine for it"
                )
        except InputError:
            model_config.model = str(served.folder)
            raise
        model.overlay = overlay
        if current_platform.is_cpu():
            forget_expert_kernels(model)
        return decoded(overlay, wanted_by(model))


class DeltaWorker:
    """What vLLM's worker gets in addition by --worker-extension-cls."""

    model_runner: Any  # the worker's, as what follows
    model_config: ModelConfig
    reload_weights: Callable[..., None]

    def swap_delta(self, path: str) -> str | None:
        """Serves another delta over the same base from now on. Returns why not where that is refused."""
        model = self.model_runner.get_model()
        served: Overlay = model.overlay
        try:
            self.reload_weights(weights_path=path)
        except InputError as error:
            if model.overlay is not served:  # a value that cannot be decoded stopped it halfway
                finalize_layerwise_reload(model, self.model_config)  # else the next reload meets half-built layers
                self.reload_weights(weights_path=str(served.folder))
            return str(error)
        return None


def register() -> None:
    """Called by vLLM. Importing this module has registered the load format."""


def forget_expert_kernels(model: torch.nn.Module) -> None:
    """Has vLLM make its kernels of experts again when weights are reloaded.

    On a CPU it brings the weights into the kernel's layout only then (UnquantizedFusedMoEMethod._setup_kernel of vLLM
    0.32), and a reload by itself would leave experts that answer at random.
    """
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def wanted_by(model: Any) -> Callable[[str], bool]:
    """Whether a worker has the layer of a parameter: with pipeline parallelism each has some."""
    return lambda name: not is_pp_missing_parameter(name, model)


def decoded(overlay: Overlay, wanted: Callable[[str], bool]) -> Weights:
    """The overlay's tensors, decoded on the engine's device.

    vLLM loads under its own default dtype and device, which the arithmetic of a delta must not see.
    """
    tensors = overlay.tensors(current_platform.device_type, wanted)
    while True:
        with torch.device("cpu"), set_default_torch_dtype(torch.float32):
            tensor = next(tensors, None)
        if tensor is None:
            return
        yield tensor
