"""Graphs on disk: ``torch.export`` and ONNX."""

import importlib.util
import warnings
from pathlib import Path
from typing import Any, Dict

import torch
from torch import nn
from torch.export import Dim

from luna_fairseq.errors import PreparationError
from luna_fairseq.export.graphs import BATCH, Graph, graphs_of


def export_graph(graph: Graph) -> torch.export.ExportedProgram:
    """The graph for any batch and length."""
    dims: Dict[str, Any] = {}
    shapes = []
    for name in graph.inputs:
        own = {}
        for dim, what in graph.dynamic[name].items():
            dims.setdefault(what, Dim(what) if what == BATCH else Dim(what, min=1, max=graph.most))
            own[dim] = dims[what]
        shapes.append(own)
    # _Step takes its state as *tensors, which counts as one argument.
    dynamic = (shapes[0], tuple(shapes[1:])) if len(shapes) > 1 else tuple(shapes)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what torch.export will do in later versions
        return torch.export.export(graph.module, tuple(graph.inputs.values()), dynamic_shapes=dynamic, strict=False)


def _write_onnx(program: torch.export.ExportedProgram, graph: Graph, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx = torch.onnx.export(
            program, dynamo=True, input_names=list(graph.inputs), output_names=graph.outputs, verbose=False
        )
        assert onnx is not None
        onnx.save(str(path))


def need_onnx() -> None:
    """Look for what ONNX takes.

    Raises:
        PreparationError: if a package is missing.
    """
    for name in ("onnx", "onnxscript"):
        if importlib.util.find_spec(name) is None:
            raise PreparationError(
                f"{name} is not installed: pip install {name}, or luna-fairseq with its extra export"
            )


def write_graphs(folder: Path, model: nn.Module, kind: str, config: Dict[str, Any]) -> None:
    """Write every graph of a model, and into ``config`` what each takes and gives.

    Args:
        folder: to write to.
        model: see :func:`luna_fairseq.export.graphs.graphs_of`.
        kind: ``onnx`` or ``torch-export``.
        config: for ``config.json``.
    """
    suffix = {"onnx": "onnx", "torch-export": "pt2"}[kind]
    described = config["luna_fairseq"]["graphs"] = {}
    for name, graph in graphs_of(model).items():
        program = export_graph(graph)
        path = folder / f"{name}.{suffix}"
        if kind == "onnx":
            _write_onnx(program, graph, path)
        else:
            with open(path, "wb") as file:  # torch aborts at a name that is in no encoding
                torch.export.save(program, file)
        described[name] = {"inputs": list(graph.inputs), "outputs": graph.outputs, "longest": graph.most}
