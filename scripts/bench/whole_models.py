"""Whole models of fairseq and of Luna on random symbols, without data."""

import argparse
from types import SimpleNamespace
from typing import Any

import torch
from fairseq import models, options
from fairseq.data import Dictionary
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch import Tensor

from luna_fairseq import plugin
from scripts.bench.sizes import MASKED_LM, SMOKE_SIZES


def dictionary(symbols: int) -> Dictionary:
    """A dictionary of so many symbols."""
    found = Dictionary()
    for number in range(symbols - len(found)):
        found.add_symbol(f"w{number}")
    return found


def build_model(arch: str, positions: int, args: argparse.Namespace) -> Any:
    """The model that ``fairseq-train --arch`` makes, without its data."""
    plugin.load()
    torch.manual_seed(1)
    masked_lm = arch in MASKED_LM
    symbols = dictionary(args.vocabulary)
    words = ["unused", "--arch", arch, *(SMOKE_SIZES[masked_lm] if args.smoke else [])]
    if masked_lm:
        symbols.add_symbol("<mask>")
        words += ["--task", "masked_lm", "--max-positions", str(positions), "--tokens-per-sample", str(positions)]
    else:
        words += ["--task", "translation", "--share-all-embeddings"]
        words += ["--max-source-positions", str(positions), "--max-target-positions", str(positions)]
    task = SimpleNamespace(source_dictionary=symbols, target_dictionary=symbols, dictionary=symbols)
    config = convert_namespace_to_omegaconf(options.parse_args_and_arch(options.get_training_parser(), words))
    return models.build_model(config.model, task).to(args.device)


def random_tokens(*shape: int, args: argparse.Namespace) -> Tensor:
    """Symbols of the dictionary; every row ends."""
    tokens = torch.randint(4, args.vocabulary, shape, generator=torch.Generator().manual_seed(2))
    tokens[:, -1] = Dictionary().eos()
    return tokens.to(args.device)
