"""A tiny translation model on made-up sentences: it trains, goes on where it stopped, and translates."""

import contextlib
import logging
import math
import re
import sys
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

from luna_fairseq.cli import user_dir
from luna_fairseq.doctor.verdicts import Finding, NotTried, Wrong

SIZES = {"train": 64, "valid": 4, "test": 12}  # sentences
MODEL = (
    "--arch luna --encoder-embed-dim 32 --decoder-embed-dim 32 --encoder-ffn-embed-dim 64 --decoder-ffn-embed-dim 64 "
    "--encoder-layers 2 --decoder-layers 2 --encoder-attention-heads 4 --decoder-attention-heads 4 "
    "--share-all-embeddings --projection-length 8"
).split()
# No threads that load: a run ends in the middle of an epoch.
USUAL = "--seed 3 --num-workers 0 --data-buffer-size 0 --distributed-world-size 1 --no-progress-bar".split()
# Some true gradients are 0, and Adam would divide their rounding errors by hardly more than themselves.
TRAIN = (
    "--optimizer adam --adam-eps 1e-4 --lr 0.005 --criterion label_smoothed_cross_entropy --label-smoothing 0.1 "
    "--max-tokens 150 --disable-validation --log-format simple --log-interval 1"
).split()
# Between a number of a GPU and the same one again: sums there have no fixed order.
GPU_TOLERANCE = 1e-4
BEAM = 3
SCORE_TOLERANCE = 2e-3  # fairseq-generate prints four decimals


@contextlib.contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Let everything that fairseq prints and logs go to a file."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    with open(log, "a", encoding="utf-8") as output:
        root.handlers[:] = [logging.StreamHandler(output)]
        root.setLevel(logging.INFO)
        try:
            with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
                yield
        finally:
            root.setLevel(level)
            root.handlers[:] = handlers


def make_data(folder: Path) -> Path:
    """A data folder of the demo's sentences, word by word, with one dictionary; returns it."""
    from fairseq.data import Dictionary, indexed_dataset

    from luna_fairseq.data.demo.corpus import generate

    pairs = generate(sum(SIZES.values()), seed=1)
    dictionary = Dictionary()
    for pair in pairs:
        for text in (pair.en, pair.de):
            dictionary.encode_line(text)  # adds the words
    data = folder / "data"
    data.mkdir()
    for language in ("en", "de"):
        dictionary.save(str(data / f"dict.{language}.txt"))
    for split, size in SIZES.items():
        part, pairs = pairs[:size], pairs[size:]
        for language in ("en", "de"):
            path = f"{data}/{split}.en-de.{language}"
            builder = indexed_dataset.make_builder(f"{path}.bin", "mmap", vocab_size=len(dictionary))
            for pair in part:
                builder.add_item(dictionary.encode_line(getattr(pair, language), add_if_not_exist=False))
            builder.finalize(f"{path}.idx")
    return data


def _current(device: str) -> Any:
    """Make a GPU the current one, for what has no option for it."""
    import torch

    return contextlib.nullcontext() if device == "cpu" else torch.cuda.device(device)


def on_device(device: str) -> List[str]:
    """The options that put a command of fairseq on a device."""
    return ["--cpu"] if device == "cpu" else ["--device-id", device.removeprefix("cuda:")]


def train_options(data: Path, save_dir: Path, *more: str) -> List[str]:
    """The command line of a training."""
    where = ["--user-dir", str(user_dir()), "--save-dir", str(save_dir), "--no-epoch-checkpoints"]
    return [str(data), *where, *MODEL, *USUAL, *TRAIN, *more]


def train(data: Path, save_dir: Path, device: str, updates: int, *more: str) -> Dict[str, Any]:
    """Train in this process until a number of updates are done; returns the checkpoint."""
    import torch
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq.distributed.utils import call_main
    from fairseq_cli.train import main

    arguments = train_options(data, save_dir, "--max-update", str(updates), *on_device(device), *more)
    with _current(device):
        args = options.parse_args_and_arch(options.get_training_parser(), input_args=arguments)
        call_main(convert_namespace_to_omegaconf(args), main)
    return dict(torch.load(save_dir / "checkpoint_last.pt", map_location="cpu"))


def _tensors(state: Any, name: str = "") -> Iterator[Any]:
    """All tensors in dictionaries and lists, with their names."""
    import torch

    if torch.is_tensor(state):
        yield name, state
    elif isinstance(state, dict | list | tuple):
        entries = state.items() if isinstance(state, dict) else enumerate(state)
        for key, value in entries:
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def compare(got: Any, want: Any, tolerance: float) -> float:
    """The largest difference between two sets of tensors.

    Raises:
        Wrong: if one is beyond the tolerance (0: bit for bit), or there is none.
    """
    theirs = dict(_tensors(want))
    if not theirs:
        raise Wrong("the checkpoint holds no weights")
    worst = 0.0
    for name, tensor in _tensors(got):
        error = (tensor.double() - theirs[name].double()).abs().max().item() if tensor.numel() else 0.0
        if not error <= tolerance:
            raise Wrong(f"{name} differs by {error:.2g}, where {tolerance:g} is allowed")
        worst = max(worst, error)
    return worst


def check_training(data: Path, folder: Path, device: str) -> Finding:
    """Two updates and one more after a restart, next to three in one go.

    Args:
        data: of :func:`make_data`.
        folder: gets the checkpoints and the log.
        device: where to train.

    Raises:
        Wrong: if weights, or the state of the optimizer, are not the same.
    """
    tolerance = 0.0 if device == "cpu" else GPU_TOLERANCE
    with quiet(folder / "train.log"):
        train(data, folder / "resumed", device, 2, "--dropout", "0.1")
        resumed = train(data, folder / "resumed", device, 3, "--dropout", "0.1")
        whole = train(data, folder / "whole", device, 3, "--dropout", "0.1")
    updates = [state["optimizer_history"][-1]["num_updates"] for state in (resumed, whole)]
    if updates != [3, 3]:
        raise Wrong(f"the trainings made {updates[0]} and {updates[1]} updates, and not 3")
    worst = max(compare(resumed[part], whole[part], tolerance) for part in ("model", "last_optimizer_state"))
    how = "bit for bit" if worst == 0 else f"to {worst:.1g} ({tolerance:g} is allowed)"
    return Finding(f"two updates and a resumed one are three in one go, {how}", {"difference": worst})


def _lines(output: str, prefix: str) -> List[Tuple[int, str]]:
    """The lines of fairseq-generate that begin with a letter: the number of the sentence, and the rest."""
    return [(int(number), text) for number, text in re.findall(rf"^{prefix}-(\d+)\t(.*)$", output, re.M)]


def check_generation(data: Path, folder: Path, device: str) -> Finding:
    """Translate by beam search; each score must be what the model gives the whole translation in one pass.

    Args:
        data, folder, device: as for :func:`check_training`, whose checkpoint is taken.

    Raises:
        NotTried: if there is none.
        Wrong: if a translation is missing, or the scores differ.
    """
    import torch
    from fairseq import checkpoint_utils, options
    from fairseq_cli import generate

    checkpoint = folder / "whole" / "checkpoint_last.pt"
    if not checkpoint.is_file():
        raise NotTried("the training before it has left no checkpoint")
    arguments = [str(data), "--user-dir", str(user_dir()), "--path", str(checkpoint), *USUAL, *on_device(device)]
    arguments += f"--gen-subset test --beam {BEAM} --nbest {BEAM} --min-len 6 --max-len-b 12 --batch-size 5".split()
    arguments += ["--results-path", str(folder)]
    with quiet(folder / "generate.log"), _current(device):
        args = options.parse_args_and_arch(options.get_generation_parser(), input_args=arguments)
        generate.main(args)
        (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)])
    output = (folder / "generate-test.txt").read_text(encoding="utf-8")
    sources, found, scores = dict(_lines(output, "S")), _lines(output, "H"), _lines(output, "P")
    numbers = [number for number, _ in found]
    if sorted(numbers) != [number for number in range(SIZES["test"]) for _ in range(BEAM)]:
        raise Wrong(f"there are {len(found)} translations, and not {BEAM} of each of {SIZES['test']} sentences")
    model = model.to(device).eval()
    worst, tokens = 0.0, 0
    for (number, line), (_, said) in zip(found, scores, strict=True):
        source = task.source_dictionary.encode_line(sources[number], add_if_not_exist=False)[None].long()
        target = task.target_dictionary.encode_line(line.split("\t")[1], add_if_not_exist=False)[None].long()
        before = torch.cat([target[:, -1:], target[:, :-1]], dim=1)
        with torch.no_grad():
            lengths = torch.tensor([source.size(1)])
            answer = model(source.to(device), lengths.to(device), before.to(device))
            chances = model.get_normalized_probs(answer, log_probs=True).cpu()
        want = chances.gather(2, target[:, :, None])[0, :, 0].double()
        bits = torch.tensor([float(score) for score in said.split()], dtype=torch.float64)
        got = bits * math.log(2)
        if got.shape != want.shape:
            raise Wrong(f"translation {number} has {len(want)} words and {len(got)} scores")
        worst, tokens = max(worst, (got - want).abs().max().item()), tokens + len(got)
    if not worst <= SCORE_TOLERANCE:
        raise Wrong(
            f"beam search gives a word another score than one pass does, by {worst:.2g}, where {SCORE_TOLERANCE:g} "
            "is allowed"
        )
    text = f"{len(found)} translations of {len(sources)} sentences, whose words have the scores of one pass"
    return Finding(f"{text}, to {worst:.1g}", {"difference": worst, "translations": len(found), "words": tokens})


def two_processes_command(data: Path, save_dir: Path, device: str) -> List[str]:
    """Train two updates in two processes."""
    options = train_options(data, save_dir, "--max-update", "2", "--dropout", "0")
    options[options.index("--distributed-world-size") + 1] = "2"
    options += ["--cpu", "--distributed-backend", "gloo"] if device == "cpu" else []
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "luna_fairseq"]
    return [sys.executable, "-m", *launcher, "run", "fairseq-train", *options]
