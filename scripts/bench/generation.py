"""Speed and memory of beam search by whole models, and the size of what decoding keeps."""

import argparse
from collections.abc import Callable
from typing import Any, Dict, List

import torch
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator

from luna_fairseq.measuring import interleaved
from scripts.bench.checks import Mismatch, checked
from scripts.bench.decoding import stored_bytes
from scripts.bench.rows import finished
from scripts.bench.sizes import DTYPES, TRANSLATION
from scripts.bench.whole_models import build_model, dictionary, random_tokens


def sentences(length: int, args: argparse.Namespace) -> int:
    """How many sentences are translated at once."""
    return max(1, args.generation_words // length)


def generation_step(arch: str, length: int, beam: int, args: argparse.Namespace) -> Callable[[], object]:
    """Fairseq's beam search to exactly ``length`` symbols a sentence, from as many."""
    model = build_model(arch, length + 4, args).eval()
    target = dictionary(args.vocabulary)
    # Every hypothesis is as long: the sentence ends when it must.
    generator = SequenceGenerator(
        [model], target, beam_size=beam, min_len=length, max_len_b=length, max_len=length + 1
    )
    tokens = random_tokens(sentences(length, args), length, args=args)
    sample = {"net_input": {"src_tokens": tokens, "src_lengths": torch.full(tokens.shape[:1], length)}}

    def generate() -> Any:
        with torch.no_grad(), torch.autocast(args.device.type, DTYPES[args.dtype], enabled=args.dtype != "float32"):
            return generator.generate([model], sample)

    model.make_generation_fast_(need_attn=False)
    if "luna" in arch and not args.memory_of:
        check_generation(model, target, args)
    return generate


def check_generation(model: Any, target: Dictionary, args: argparse.Namespace) -> None:
    """Scores of decoding step by step against those of the whole sentence at once, whose layers are checked.

    Raises:
        Mismatch: if they differ.
    """
    tokens = random_tokens(2, 12, args=args)
    generator = SequenceGenerator([model], target, beam_size=2, min_len=20, max_len_b=20, max_len=21)
    lengths = torch.full((2,), 12)
    with torch.no_grad():
        found = generator.generate([model], {"net_input": {"src_tokens": tokens, "src_lengths": lengths}})
        for source, hypotheses in zip(tokens, found, strict=True):
            for hypothesis in hypotheses:
                out = hypothesis["tokens"][None]
                with checked(model):
                    logits = model(source[None], lengths[:1], out.roll(1, dims=1))[0]
                scores = torch.log_softmax(logits.float(), dim=-1).gather(-1, out[..., None])[0, :, 0]
                # The symbol that ends a sentence when it must has no score of its own.
                error = float((scores - hypothesis["positional_scores"])[:-1].abs().max())
                if not error <= 1e-3:
                    raise Mismatch(f"decoding step by step is off by {error:.1e} in log-probability: no speed for it")


def state_bytes(arch: str, length: int, args: argparse.Namespace) -> Dict[str, int]:
    """What decoding one sentence keeps beside the encoder's output, after a few steps and after ``length``."""
    model = build_model(arch, length + 4, args).eval()
    tokens = random_tokens(1, length, args=args)
    state: Dict[str, Any] = {}
    found = {}
    with torch.no_grad():
        encoder_out = model.encoder(tokens, src_lengths=torch.tensor([length]))
        for step in range(1, length + 1):
            model.decoder(tokens[:, :step], encoder_out=encoder_out, incremental_state=state)
            if step in (8, length):
                found[f"after {'8' if step == 8 else 'all'}"] = stored_bytes(state)
    return found


def measure_generation(args: argparse.Namespace) -> List[Dict[str, Any]]:
    """Words per second, peak memory, and the size of the decoder's state."""
    rows = []
    for length in args.output_lengths:
        state = {arch: state_bytes(arch, length, args) for arch in TRANSLATION}
        for beam in (1, 5):
            steps = {arch: generation_step(arch, length, beam, args) for arch in TRANSLATION}
            seconds = interleaved(steps, args.rounds, args.device)
            del steps
            for arch, found in seconds.items():
                words = sentences(length, args) * length
                row = {"arch": arch, "length": length, "beam": beam, "words": words}
                rows.append({**finished(row, found, "generation"), "state": state[arch]})
    return rows
