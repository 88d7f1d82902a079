"""A decoder of which one layer at a time has weights: the model's own code, run layer by layer on captured inputs.

The modules come from transformers with empty weights. A first pass in which every layer only notes its arguments and
hands its input on gives the input of the first layer and the arguments (positions, masks, rotary tables) of all of
them; after that, layers are called one by one, and hooks on their linear modules see what goes in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from impart.checkpoint import Checkpoint
from impart.errors import InputError, reason_of
from impart.pretrained import load_pretrained, trusted

Call = tuple[tuple, dict]  # the arguments of one layer besides its input


class _Reached(Exception):
    """Ends a forward pass at the module that was waited for."""


class StreamedDecoder:
    """The decoder of a checkpoint, whose layers' weights have names like `layers_prefix`.0.mlp.up_proj.weight."""

    def __init__(self, checkpoint: Checkpoint, layers_prefix: str, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype, self.prefix = device, dtype, layers_prefix
        config = load_pretrained(AutoConfig, checkpoint.path, what="config", source=checkpoint.source)
        try:
            with init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted())
        except (ValueError, OSError) as error:
            raise InputError(
                f"transformers cannot build {checkpoint.source!r} ({reason_of(error)}); calibration "
                "runs the model's own code and needs an architecture that this transformers has"
            ) from error
        trunk, _, attribute = layers_prefix.rpartition(".")
        try:
            self._trunk = model.get_submodule(trunk).eval()
            self.layers: Sequence[nn.Module] = getattr(self._trunk, attribute)
        except AttributeError as error:
            raise InputError(
                f"transformers' {type(model).__name__} has no {layers_prefix!r}, where the weights of "
                f"{checkpoint.source!r} lie; calibration does not know this architecture"
            ) from error
        missing = [
            name for layer in range(len(self.layers)) for name in self.parameter_names(layer) if name not in checkpoint
        ]
        if missing:
            raise InputError(
                f"transformers' {type(model).__name__} has a parameter {missing[0]!r}, which "
                f"{checkpoint.source!r} lacks; calibration needs an architecture that transformers stores as "
                "it runs it (mixtures of experts are not)"
            )
        outside = [name for name, _ in self._trunk.named_parameters() if not name.startswith(f"{attribute}.")]
        self._fill(self._trunk, {name: checkpoint.tensor(f"{trunk}.{name}" if trunk else name) for name in outside})
        for module in self._trunk.children():
            if module is not self.layers:
                module.to(device)

    def parameter_names(self, layer: int) -> list[str]:
        """Checkpoint names of all parameters of one layer."""
        return [f"{self.prefix}.{layer}.{name}" for name, _ in self.layers[layer].named_parameters()]

    def module(self, layer: int, name: str) -> nn.Module:
        """The linear module of a layer whose weight has the checkpoint name `name`."""
        return self.layers[layer].get_submodule(name.removeprefix(f"{self.prefix}.{layer}.").removesuffix(".weight"))

    def load(self, layer: int, weights: Mapping[str, Tensor]) -> None:
        """Gives one layer its weights, checkpoint name -> tensor, on the device."""
        prefix = f"{self.prefix}.{layer}."
        self._fill(self.layers[layer], {name.removeprefix(prefix): value for name, value in weights.items()})
        for buffer in self.layers[layer].buffers():
            buffer.data = buffer.data.to(self.device)

    def unload(self, layer: int) -> None:
        """Takes the weights of one layer away again."""
        self.layers[layer].to("meta")

    @torch.no_grad()
    def record(self, ids: Tensor) -> tuple[Tensor, list[Call]]:
        """Token ids (b, length) -> input of the first layer (b, length, d) and the arguments of every layer."""
        calls: list[Call] = [((), {})] * len(self.layers)
        first: list[Tensor] = []

        def note(index: int) -> Callable:
            def forward(hidden: Tensor, *args, **keywords) -> Tensor:
                if index == 0:
                    first.append(hidden)
                calls[index] = (args, keywords)
                return hidden

            return forward

        for index, layer in enumerate(self.layers):
            layer.forward = note(index)
        try:
            self._trunk(input_ids=ids.to(self.device), use_cache=False)
        finally:
            for layer in self.layers:
                del layer.forward
        return first[0], calls

    @torch.no_grad()
    def run(self, layer: int, hidden: Tensor, call: Call) -> Tensor:
        """The layer's output for the input hidden (b, length, d)."""
        args, keywords = call
        output = self.layers[layer](hidden, *args, **keywords)
        return output if isinstance(output, Tensor) else output[0]

    def stages(self, layer: int, names: Sequence[str], hidden: Tensor, call: Call) -> list[list[str]]:
        """The linear weights of a layer in the order in which the layer uses them; those fed by one tensor together."""
        used: list[tuple[str, Tensor]] = []
        hooks = [
            self.module(layer, name).register_forward_pre_hook(
                lambda _, inputs, name=name: used.append((name, inputs[0]))
            )
            for name in names
        ]
        try:
            self.run(layer, hidden, call)
        finally:
            for hook in hooks:
                hook.remove()
        idle = sorted(set(names) - {name for name, _ in used})
        if idle:
            raise InputError(
                f"{idle[0]} takes no part in the layer's forward pass on the calibration text, so it cannot "
                "be calibrated; leave it out by weight_types"
            )
        stages: list[tuple[list[str], Tensor]] = []
        for name, value in used:
            if stages and stages[-1][1] is value:
                stages[-1][0].append(name)
            else:
                stages.append(([name], value))
        return [stage for stage, _ in stages]

    def inputs(self, layer: int, names: Sequence[str], hidden: Tensor, call: Call) -> Iterator[tuple[str, Tensor]]:
        """The input (tokens, n) of each of these modules; the pass ends where the last of them is reached."""
        seen: dict[str, Tensor] = {}

        def see(name: str) -> Callable:
            def hook(_, inputs: tuple) -> None:
                seen[name] = inputs[0].detach()
                if len(seen) == len(names):
                    raise _Reached

            return hook

        hooks = [self.module(layer, name).register_forward_pre_hook(see(name)) for name in names]
        try:
            self.run(layer, hidden, call)
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        for name in names:
            yield name, seen.pop(name).flatten(0, -2)

    def _fill(self, module: nn.Module, weights: Mapping[str, Tensor]) -> None:
        state = {
            name: nn.Parameter(value.to(self.device, self.dtype), requires_grad=False)
            for name, value in weights.items()
        }
        module.load_state_dict(state, strict=False, assign=True)
