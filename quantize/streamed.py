"""A decoder of which one layer at a time has weights: the model's own code, run layer by layer on captured inputs.

The modules come from transformers with empty weights. A first pass in which every layer only notes its arguments and
hands its input on gives the input of the first layer and the arguments (positions, masks, rotary tables) of all of
them; after that, layers are called one by one, and hooks on their linear modules see what goes in.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from impart import architecture
from impart.architecture import layer_of
from impart.checkpoint import Checkpoint
from impart.errors import InputError, reason_of
from impart.matrices import by_tensor
from impart.pretrained import load_pretrained, trusted
from quantize.experts import expert_inputs, is_expert_module, order_of_use
from quantize.layout import Layout

Call = tuple[tuple, dict]  # the arguments of one layer besides its input
Stage = list[list[str]]  # groups of matrices, each with one input
HESSIAN_BYTES = 8 << 30  # of the Hessians of experts that are gathered in one pass


class _Reached(Exception):
    """Ends a forward pass at the module that was waited for."""


@dataclass(frozen=True)
class Port:
    """Where a matrix is used: a module, its parameter and, where that holds one for every expert, the expert."""

    module: nn.Module
    parameter: str
    expert: int | None


class StreamedDecoder:
    """The decoder of a checkpoint, whose layers' weights have names like `layers_prefix`.0.mlp.up_proj.weight."""

    def __init__(self, checkpoint: Checkpoint, layers_prefix: str, device: torch.device, dtype: torch.dtype):
        self.device, self.dtype, self._checkpoint = device, dtype, checkpoint
        config = load_pretrained(AutoConfig, checkpoint.path, what="config", source=checkpoint.source)
        try:
            with init_empty_weights(include_buffers=False):
                self._model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trusted())
        except (ValueError, OSError) as error:
            raise InputError(
                f"transformers cannot build {checkpoint.source!r} ({reason_of(error)}); calibration "
                "runs the model's own code and needs an architecture that this transformers has"
            ) from error
        self._layout = Layout(self._model, checkpoint)
        below = [name for name in checkpoint.names() if name.startswith(f"{layers_prefix}.")]
        found = next((parameter for name in below if (parameter := self._layout.parameter(name))), None)
        if found is None or layer_of(found) is None:
            raise InputError(
                f"transformers' {type(self._model).__name__} has no {layers_prefix!r}, where the weights of "
                f"{checkpoint.source!r} lie; calibration does not know this architecture"
            )
        self.prefix = architecture.layers_prefix(found)
        self.layers: nn.ModuleList = self._model.get_submodule(self.prefix)
        self._trunk = self._outer().eval()
        self._held: dict[str, Tensor] = {}  # the tensors of the layers that have weights, as the checkpoint has them
        self._names = [self._layout.stored_below(f"{self.prefix}.{layer}.") for layer in range(len(self.layers))]
        self._refuse_missing()
        self._load_outside()

    def _outer(self) -> nn.Module:
        """The smallest model that runs the layers, and so takes token ids; else the module that they lie in."""
        models = [module for module in self._model.modules() if isinstance(module, PreTrainedModel)]
        holding = [model for model in models if any(module is self.layers for module in model.modules())]
        return holding[-1] if len(holding) > 1 else self._model.get_submodule(self.prefix.rpartition(".")[0])

    def _refuse_missing(self) -> None:
        """InputError unless the checkpoint has what makes every parameter of the layers."""
        made = {parameter for names in self._names for name in names for parameter in self._layout.made(name)}
        for layer, module in enumerate(self.layers):
            for name, _ in module.named_parameters():
                if f"{self.prefix}.{layer}.{name}" not in made:
                    raise InputError(
                        f"transformers' {type(self._model).__name__} has a parameter {self.prefix}.{layer}.{name}, "
                        f"which nothing in {self._checkpoint.source!r} gives; calibration needs a checkpoint that "
                        "this transformers can load"
                    )

    def _load_outside(self) -> None:
        """Gives embeddings, norms and whatever else stands beside the layers their weights."""
        outside = next(name for name, module in self._model.named_modules() if module is self._trunk)
        within = set().union(*self._names)
        names = [name for name in self._layout.stored_below(f"{outside}." if outside else "") if name not in within]
        self._fill(names, {name: self._checkpoint.tensor(name).to(self.device) for name in names})
        for module in _beside(self._trunk, self.layers):
            module.to(self.device)

    def parameter_names(self, layer: int) -> list[str]:
        """Checkpoint names of all that makes the parameters of one layer."""
        return self._names[layer]

    def port(self, layer: int, name: str) -> Port | None:
        """Where a matrix of a layer is used; None where no module is given its inputs as they are."""
        parameter = self._layout.parameter(name)
        if parameter is None or not parameter.startswith(f"{self.prefix}.{layer}."):
            return None
        path, _, leaf = parameter.rpartition(".")
        module = self._model.get_submodule(path)
        expert = self._layout.expert(name) if is_expert_module(module) else None
        if isinstance(module, Conv1D) or (expert is None and is_expert_module(module)):
            return None
        return Port(module, leaf, expert)

    def load(self, layer: int, weights: Mapping[str, Tensor]) -> None:
        """Gives one layer its weights: tensors by their checkpoint names, or matrices (m, n) of its 3-D tensors."""
        for name, value in weights.items():
            place = self._checkpoint.place(name)
            if place.index is None:
                self._held[name] = value.to(self.device)
            else:
                place.of(self._held[place.tensor]).copy_(value)
        self._fill(list(by_tensor(weights)), self._held)
        for buffer in self.layers[layer].buffers():
            buffer.data = buffer.data.to(self.device)

    def unload(self, layer: int) -> None:
        """Takes the weights of one layer away again."""
        self.layers[layer].to("meta")
        for name in self._names[layer]:
            self._held.pop(name, None)

    @contextmanager
    def _runnable(self) -> Iterator[None]:
        """InputError for a model whose layers cannot be called one by one, as these are."""
        try:
            yield
        except (_Reached, torch.OutOfMemoryError):
            raise
        except (TypeError, AttributeError, LookupError, ValueError, RuntimeError) as error:
            raise InputError(
                f"the layers of transformers' {type(self._model).__name__} cannot be run one by one "
                f"({reason_of(error)}), so that this architecture cannot be calibrated; take a method without "
                "calibration, as method=bitdelta"
            ) from error

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
            with self._runnable():
                self._trunk(input_ids=ids.to(self.device), use_cache=False)
        finally:
            for layer in self.layers:
                del layer.forward
        return first[0], calls

    @torch.no_grad()
    def run(self, layer: int, hidden: Tensor, call: Call) -> Tensor:
        """The layer's output for the input hidden (b, length, d)."""
        args, keywords = call
        with self._runnable():
            output = self.layers[layer](hidden, *args, **keywords)
        return output if isinstance(output, Tensor) else output[0]

    def stages(self, layer: int, names: Sequence[str], hidden: Tensor, call: Call) -> list[Stage]:
        """The matrices of a layer in the order in which the layer uses them; what one input feeds is one group.

        Modules that are given the same tensor make one stage. The experts of a module make a stage for what reads their
        tokens and one for what reads their activations, each in as many parts as HESSIAN_BYTES asks for.
        """
        used: list[tuple[nn.Module, Tensor]] = []
        ports = {name: port for name in names if (port := self.port(layer, name)) is not None}
        hooks = [
            module.register_forward_pre_hook(lambda module, inputs: used.append((module, inputs[0])))
            for module in dict.fromkeys(port.module for port in ports.values())
        ]
        try:
            self.run(layer, hidden, call)
        finally:
            for hook in hooks:
                hook.remove()
        stages: list[Stage] = []
        last = None
        for module in dict.fromkeys(module for module, _ in used):
            value = next(value for user, value in used if user is module)
            here = [name for name, port in ports.items() if port.module is module]
            if ports[here[0]].expert is not None:
                stages += self._expert_stages(here, ports)
                last = None
            elif value is last:
                stages[-1][0].extend(here)
            else:
                stages.append([here])
                last = value
        return stages

    def _expert_stages(self, names: Sequence[str], ports: Mapping[str, Port]) -> list[Stage]:
        """Of one module's matrices: groups by expert, in parts that have room for their Hessians."""
        groups: dict[tuple[int, int | None], list[str]] = {}
        for name in names:
            groups.setdefault((order_of_use(ports[name].parameter), ports[name].expert), []).append(name)
        stages: list[Stage] = []
        order, room = -1, 0
        for (use, _), group in sorted(groups.items()):
            size = 4 * self._checkpoint.shape(group[0])[1] ** 2
            if use != order or room < size:
                stages.append([])
                order, room = use, HESSIAN_BYTES
            stages[-1].append(group)
            room -= size
        return stages

    def inputs(self, layer: int, names: Sequence[str], hidden: Tensor, call: Call) -> Iterator[tuple[str, Tensor]]:
        """The input (tokens, n) of each of these matrices; the pass ends where the last of them is reached."""
        seen: dict[nn.Module, tuple] = {}
        ports = {name: port for name in names if (port := self.port(layer, name)) is not None}
        modules = dict.fromkeys(port.module for port in ports.values())

        def see(module: nn.Module, inputs: tuple, keywords: dict) -> None:
            seen.setdefault(module, (*inputs, *keywords.values()))
            if len(seen) == len(modules):
                raise _Reached

        hooks = [module.register_forward_pre_hook(see, with_kwargs=True) for module in modules]
        try:
            self.run(layer, hidden, call)
        except _Reached:
            pass
        finally:
            for hook in hooks:
                hook.remove()
        for name, port in ports.items():
            if port.module in seen:
                value = _fed(port, seen[port.module])
                if value is not None:
                    yield name, value.detach()

    def _fill(self, names: Sequence[str], stored: Mapping[str, Tensor]) -> None:
        """Gives the parameters that are made of these tensors their values."""
        done: set[str] = set()
        for name in names:
            if name in done:
                continue
            done.update(self._layout.together(name))
            for target, value in self._layout.values(name, stored).items():
                path, _, leaf = target.rpartition(".")
                module = self._model.get_submodule(path)
                if leaf in module._parameters:
                    value = nn.Parameter(value.to(self.device, self.dtype), requires_grad=False)
                setattr(module, leaf, value)


def _beside(module: nn.Module, layers: nn.Module) -> Iterator[nn.Module]:
    """The largest parts of a module that do not hold the layers."""
    for child in module.children():
        if not any(part is layers for part in child.modules()):
            yield child
        elif child is not layers:
            yield from _beside(child, layers)


def _fed(port: Port, arguments: tuple) -> Tensor | None:
    """The input (tokens, n) of one matrix, of the arguments of its module's call; None where that is foreign."""
    if port.expert is None:
        return arguments[0].flatten(0, -2)
    found = expert_inputs(port.module, arguments, port.parameter)
    return None if found is None else found(port.expert)
