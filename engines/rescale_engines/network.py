"""From the bytes of an ONNX graph to the bytes of an engine: the part that talks to TensorRT.

One path for TensorRT 10, 11 and RTX: the network is strongly typed, no precision flag is ever set. What TensorRT accepts and
should not (garbage that parses to nothing, other names and dtypes, profiles it answers with -1) is refused here.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rescale.bundle import Graph
from rescale.errors import ConfigError, EngineError
from rescale.flavour import Flavour, Message, clean_text, collected, errors, logger
from rescale_engines.census import Layer, layers

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Progress = Callable[[str, int, int], None]
"""Called with a phase's name, steps done, steps in all; from a thread of the builder."""

_CAPABILITY = re.compile(r"(\d{1,2})\.?(\d)")

_DTYPES = {"UINT8": "uint8", "FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "BOOL": "bool"}


@dataclass
class Network:
    """A parsed network and what must live as long as it."""

    flavour: Flavour
    builder: Any
    network: Any
    parser: Any
    layers: list[Layer] = field(default_factory=list)


def parse(flavour: Flavour, data: bytes, what: str) -> Network:
    """Parse an ONNX graph into a strongly typed network.

    Args:
        flavour: a loaded library.
        data: the graph.
        what: names it in errors.

    Raises:
        EngineError: not parsed, or nothing in it, naming the ONNX node.
    """
    trt = flavour.module
    with collected(flavour) as messages:
        builder = trt.Builder(logger(flavour))
        # The flag's value is 1 in TensorRT 10 and 0 in 11 and RTX, which ignore it: never a literal.
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, logger(flavour))
        if not parser.parse(data):
            raise EngineError(f"{what}: {flavour.title} cannot parse it: {_parser_errors(parser) or _said(messages)}")
    # Some text that is no ONNX at all parses: protobuf skips what it does not know.
    if not network.num_layers or not network.num_outputs:
        raise EngineError(f"{what}: not an ONNX graph: {network.num_layers} layers, {network.num_outputs} outputs in it")
    return Network(flavour, builder, network, parser, layers(network))


def _parser_errors(parser: Any) -> str:
    found = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        name, kind = error.node_name(), error.node_operator()
        where = f"node {name or 'without a name'} ({kind}): " if kind else ""
        found.append(where + " ".join(clean_text(str(error.desc())).split()))
    return "; ".join(found)


def _said(messages: Sequence[Message]) -> str:
    return errors(messages) or "no reason given"


def check_interface(parsed: Network, graph: Graph, what: str) -> None:
    """Raises EngineError if names, order, dtypes or shapes of inputs and outputs are not the manifest's."""
    network = parsed.network
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for side, found, wanted in (("inputs", inputs, graph.inputs), ("outputs", outputs, graph.outputs)):
        have = [f"{t.name} {_DTYPES.get(t.dtype.name, t.dtype.name)} {_axes(t.shape)}" for t in found]
        want = [f"{t.name} {t.dtype} {_axes(t.axes)}" for t in wanted]
        if have != want:
            raise EngineError(f"{what}: {side} are {', '.join(have)}; the manifest says {', '.join(want)}")


def _axes(axes: Sequence[int | str]) -> str:
    # Dynamic axes are -1 in TensorRT and names in the manifest.
    return "(" + ", ".join(str(a) if isinstance(a, int) and a >= 0 else "?" for a in axes) + ")"


def capability_name(text: str) -> str:
    """``8.9`` of ``8.9`` or ``89``; what is neither is returned as it is."""
    return ".".join(found.groups()) if (found := _CAPABILITY.fullmatch(text)) else text


def capability_enum(flavour: Flavour, text: str) -> Any:
    """``8.9`` or ``89`` as the library's enumeration.

    Raises:
        ConfigError: the library cannot target it.
    """
    known = getattr(flavour.module, "ComputeCapability", None)
    if known is None or flavour.name != "tensorrt-rtx":
        raise ConfigError(f"compute capability {text!r}: {flavour.name} builds for the GPU it runs on; leave it out")
    found = _CAPABILITY.fullmatch(text)
    member = known.__members__.get(f"SM{''.join(found.groups())}") if found else None
    if member is None:
        names = [m.removeprefix("SM") for m in known.__members__ if m.startswith("SM")]
        choices = ", ".join(f"{n[:-1]}.{n[-1]}" for n in names)
        raise ConfigError(f"compute capability {text!r}: {flavour.title} can target {choices}")
    return member


def serialize(
    parsed: Network,
    shapes: Mapping[str, Shapes],
    what: str,
    *,
    capabilities: Sequence[str] = (),
    workspace: int | None = None,
    progress: Progress | None = None,
    cancel: threading.Event | None = None,
) -> tuple[bytes, list[Message]]:
    """Build an engine.

    Args:
        parsed: the network.
        shapes: smallest, best and largest shape of each input.
        what: names the graph in errors.
        capabilities: compute capabilities to build for; empty for the library's choice.
        workspace: bytes of scratch memory that a layer may use; None for the library's choice.
        progress: called after each step.
        cancel: once set, the build ends at its next step.

    Returns:
        The engine and the library's warnings.

    Raises:
        EngineError: the build failed or was cancelled.
        ConfigError: a compute capability that cannot be targeted.
    """
    flavour, trt = parsed.flavour, parsed.flavour.module
    with collected(flavour) as messages:
        config = parsed.builder.create_builder_config()
        # On by default, and float32 convolutions would round their inputs to 10 bits: no better than float16.
        config.clear_flag(trt.BuilderFlag.TF32)
        if workspace is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
        targets = [capability_enum(flavour, c) for c in capabilities]
        if targets:
            config.num_compute_capabilities = len(targets)
        for i, target in enumerate(targets):
            if not config.set_compute_capability(target, i):
                raise EngineError(f"{what}: compute capability {capabilities[i]} refused: {_said(messages)}")
        profile = parsed.builder.create_optimization_profile()
        for name, (smallest, best, largest) in shapes.items():
            profile.set_shape(name, smallest, best, largest)
        if shapes and config.add_optimization_profile(profile) < 0:
            raise EngineError(f"{what}: profile refused: {_said(messages)}")
        monitor = _monitor(flavour, progress, cancel)
        config.progress_monitor = monitor
        engine = parsed.builder.build_serialized_network(parsed.network, config)
    if monitor.failure is not None:
        raise monitor.failure
    if cancel is not None and cancel.is_set():
        raise EngineError(f"{what}: build cancelled; nothing was written")
    if engine is None:
        raise EngineError(f"{what}: {flavour.title} cannot build it: {_said(messages)}")
    return bytes(engine), [m for m in messages if m.severity == "warning"]


def _monitor(flavour: Flavour, progress: Progress | None, cancel: threading.Event | None) -> Any:
    base = flavour.module.IProgressMonitor

    class Monitor(base):  # type: ignore[misc, valid-type]  # the base is found at run time
        """Hands steps on. No exception may cross the library: it is kept and ends the build."""

        def __init__(self) -> None:
            base.__init__(self)
            self.failure: BaseException | None = None
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            self._tell(phase_name, 0)

        def phase_finish(self, phase_name: str) -> None:
            self._tell(phase_name, self._steps.get(phase_name, 0))

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1)
            return self.failure is None and not (cancel is not None and cancel.is_set())

        def _tell(self, phase: str, done: int) -> None:
            if progress is None or self.failure is not None:
                return
            try:
                progress(phase, done, self._steps.get(phase, 0))
            except BaseException as e:
                self.failure = e

    return Monitor()
