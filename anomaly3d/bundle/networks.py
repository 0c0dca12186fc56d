"""The reconstruction x -> x~ as a graph that runs without this program: by torch.export, and as ONNX."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from anomaly3d.data.batch import Batch
from anomaly3d.detectors.base import Detector
from anomaly3d.errors import UserError
from anomaly3d.phases.base import freeze

TORCH, ONNX = "reconstruct.pt2", "reconstruct.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")  # the extra ``export``
TOLERANCE = 1e-4  # that a graph may differ from the detector, in units of [-1, 1]
TOGETHER = 3  # volumes of a batch when graphs are checked: not the two that they are traced with
PLACES = ("stack_trace", "from_node", "nn_module_stack", "source_fn_stack", "torch_fn")  # name files of this machine


class Reconstruction(nn.Module):
    """The reconstruction that a detector's findings have, of volumes and their brain masks alone."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, x: Tensor, brain: Tensor) -> Tensor:
        """``(B, 1, D, H, W)`` in [-1, 1] and the masks, uint8 -> the same shape."""
        batch: Batch = {"image": x, "brain": brain, "scan_id": []}  # as many names would fix the batch
        found = self.detector.examine(batch).reconstruction
        assert found is not None
        return found


@dataclass(frozen=True)
class Graph:
    """A file of the reconstruction: the largest difference to the detector's own on ``volumes`` volumes, or why there
    is no such file."""

    file: str
    difference: float | None = None
    volumes: int = 0
    reason: str = ""


def require_onnx() -> None:
    """Refuse to begin where a package is missing.

    Raises:
        UserError: names it.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise UserError(
            f"{ONNX} takes the package(s) {', '.join(missing)}: run 'pip install anomaly3d[export]', or export without "
            "it by onnx=false"
        )


def why_not(detector: Detector, volumes: Tensor, brains: Tensor) -> str:
    """Why a detector's reconstruction cannot be a plain function of a volume; empty where it can."""
    if detector.needs_gradients:
        return "its reconstruction is a search by gradients"
    if detector.reads:
        return f"it also reads {', '.join(detector.reads)}"
    if detector.person({"image": volumes[:1], "scan_id": [], "age": torch.zeros(1), "sex": [""]}):
        return "it is also told age and sex"
    found = detector.examine({"image": volumes[:1], "brain": brains[:1], "scan_id": []})
    return "" if found.reconstruction is not None else "it has no reconstruction"


def write_graphs(detector: Detector, volumes: Tensor, brains: Tensor, folder: Path, with_onnx: bool) -> list[Graph]:
    """Write the reconstruction with a free batch size, and hold each file against the detector.

    Args:
        volumes, brains: ``(N, 1, D, H, W)`` in [-1, 1] and their masks, uint8, on which they are compared.
    """
    freeze(detector)
    names = [TORCH, *([ONNX] if with_onnx else [])]
    with torch.no_grad():
        if reason := why_not(detector, volumes, brains):
            return [Graph(name, reason=reason) for name in names]
        plain = Reconstruction(detector).eval()
        try:
            examples = torch.zeros_like(volumes[:2]), torch.zeros_like(brains[:2])  # kept in a program: nobody's
            free = {0: Dim.DYNAMIC}
            program = torch.export.export(plain, examples, dynamic_shapes={"x": free, "brain": free})
        except Exception as error:  # whatever a method's operations make of a graph
            return [Graph(name, reason=f"torch.export cannot trace it ({type(error).__name__})") for name in names]
        forget_places(program)
        scans = volumes, brains
        graphs = [checked(folder, TORCH, lambda path: torch.export.save(program, path), run_torch, plain, scans)]
        if with_onnx:
            graphs.append(checked(folder, ONNX, lambda path: save_onnx(program, path), run_onnx, plain, scans))
    return graphs


def checked(
    folder: Path,
    name: str,
    save: Callable[[Path], None],
    run: Callable[[Path], Callable[[Tensor, Tensor], Tensor]],
    plain: nn.Module,
    scans: tuple[Tensor, Tensor],
) -> Graph:
    """Write one file and read it back; one that differs, or cannot be made, is not kept."""
    path = folder / name
    try:
        save(path)
        graph = run(path)
        batches = zip(*(part.split(TOGETHER) for part in scans), strict=True)
        difference = max(float((graph(*batch) - plain(*batch)).abs().max()) for batch in batches)
    except Exception as error:  # whatever an exporter or a runtime lacks for a method's operations
        path.unlink(missing_ok=True)
        return Graph(name, reason=f"it cannot be made for this method ({type(error).__name__})")
    if not difference <= TOLERANCE:
        path.unlink()
        return Graph(name, reason=f"it differs by {difference:.2g}, and up to {TOLERANCE:g} is allowed")
    return Graph(name, difference, len(scans[0]))


def forget_places(program: ExportedProgram) -> None:
    """Take out of a traced program where in which file each operation was written."""
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            module.meta.clear()
            for node in module.graph.nodes:
                for key in PLACES:
                    node.meta.pop(key, None)


def run_torch(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """A saved program as a function."""
    return torch.export.load(path).module()


def save_onnx(program: ExportedProgram, path: Path) -> None:
    """The same program as ONNX; its inputs are called ``x`` and ``brain``, its output ``reconstruction``."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, of which nothing is used
    inputs, outputs = ["x", "brain"], ["reconstruction"]
    made = torch.onnx.export(program, dynamo=True, verbose=False, input_names=inputs, output_names=outputs)
    assert made is not None
    made.save(path)


def run_onnx(path: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """An ONNX file as a function, by ONNX Runtime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda x, brain: torch.from_numpy(session.run(None, {"x": x.numpy(), "brain": brain.numpy()})[0])
