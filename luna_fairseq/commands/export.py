"""``luna-fairseq export``: a model for programs that have no fairseq, or no torch."""

import argparse
from pathlib import Path
from typing import Any, Dict, List

from luna_fairseq.console import help_parser, run

FORMATS = ("safetensors", "onnx", "torch-export")
DESCRIPTION = """Write a model to a folder that other programs read, with its dictionaries and its pieces.

    luna-fairseq export checkpoints/average.pt --format safetensors --out exported
    luna-fairseq export checkpoints/average.pt --format onnx --out exported-onnx

safetensors: weights, options and a model card; "luna-fairseq import" makes a checkpoint of them again, bit for bit.
onnx, torch-export: the encoder and one decoding step of a translation model, or the masked-LM model, as graphs for
any batch and length. docs/export.md says what each holds.
"""


def _export(args: argparse.Namespace) -> None:
    path, out = Path(args.checkpoint), Path(args.out)
    out = out if out.name not in ("", "..") else out.resolve()
    from luna_fairseq.export.folder import PIECES, check_out, exported_folder, find_belongings, given_pieces

    if not path.is_file():
        raise ValueError(f"there is no checkpoint {path}: name the file")
    check_out(out)
    pieces = given_pieces(args.sentencepiece_model) if args.sentencepiece_model is not None else None
    from luna_fairseq import plugin  # here, because it takes seconds

    plugin.load()
    from fairseq import checkpoint_utils

    from luna_fairseq.export.weights import description, need_safetensors, write_weights
    from luna_fairseq.model_card import write_card

    if args.format == "safetensors":
        need_safetensors()
    if args.format == "onnx":
        from luna_fairseq.export.formats import need_onnx

        need_onnx()
    checkpoint = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    config = description(checkpoint, args.format)
    cfg = config["luna_fairseq"]["cfg"]
    belongings = find_belongings(path, cfg.get("task") or {}, args.data, pieces)
    # What cannot be loaded with these dictionaries is not exported.
    changes: Dict[str, Any] = {} if belongings.data is None else {"data": str(belongings.data)}
    if "load_checkpoint_heads" in cfg.get("model", {}):
        changes["load_checkpoint_heads"] = True
    models, _ = checkpoint_utils.load_model_ensemble([str(path)], arg_overrides=changes)
    with exported_folder(out, config, belongings) as folder:
        if args.format == "safetensors":
            write_weights(folder, checkpoint, config)
        else:
            from luna_fairseq.export.formats import write_graphs

            write_graphs(folder, models[0], args.format, config)
        write_card(folder / "README.md", path.name, checkpoint, [])
    print(f"wrote {out}: {', '.join(config['luna_fairseq']['files'])}")
    if not {PIECES, "encoder.json"} & set(belongings.files):
        print("no pieces were found: give --sentencepiece-model if the text was cut by one")


def main(prog: str, arguments: List[str]) -> int:
    """Run the command; returns the exit code."""
    parser = help_parser(prog, DESCRIPTION)
    parser.add_argument("checkpoint", help="a file that fairseq-train or luna-fairseq average has written")
    parser.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write; an earlier export is replaced")
    parser.add_argument(
        "--data", metavar="DIR", help="folder of the dictionaries, if it is not the one of the training"
    )
    parser.add_argument(
        "--sentencepiece-model",
        metavar="FILE",
        help="to copy, if it lies neither by the dictionaries nor one or two folders higher",
    )
    args = parser.parse_args(arguments)
    return run(prog, lambda: _export(args), RuntimeError, ValueError)
