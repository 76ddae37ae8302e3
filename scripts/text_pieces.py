"""What the data scripts share: pieces of words, files that appear whole or not at all, errors in one sentence."""

import argparse
import hashlib
import io
import json
import logging
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

SENTENCEPIECE, ENCODER_JSON, VOCAB_BPE, DICTIONARY = "sentencepiece.model", "encoder.json", "vocab.bpe", "dict.txt"
# fairseq's Dictionary begins with these itself and refuses to read them from a file.
SPECIAL_SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>")
UNKNOWN_WORD = re.compile(r"(?<!\S)<unk>(?!\S)")
MOST_UNKNOWN = 0.1
BYTE_ORDER_MARK = "\ufeff"
SETTINGS, SMOKE = "settings.json", "smoke"

Result = TypeVar("Result")


class PreparationError(Exception):
    """Something that the user can change; the message is one sentence that says what."""


# ----------------------------------------------------------------------------------------------- pieces
class Encoder(Protocol):
    """Text to pieces."""

    def encode(self, lines: Sequence[str]) -> list[str]:
        """The pieces of every line, separated by single spaces; "" for a line that has none."""


class SentencePieceEncoder:
    """The pieces of a SentencePiece model.

    Args:
        model: its file.
    """

    def __init__(self, model: Path) -> None:
        import sentencepiece

        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=str(model))
        except (RuntimeError, OSError) as error:
            raise PreparationError(f"{model} is not a SentencePiece model: {one_line(error)}") from error
        self.pieces: list[str] = [self._model.id_to_piece(number) for number in range(len(self._model))]
        for piece in self.pieces:
            if piece.split() != [piece]:
                raise PreparationError(
                    f"{model} has the piece {piece!r}, and fairseq separates pieces at white space: "
                    "train the model with the nmt_nfkc normalisation"
                )

    def encode(self, lines: Sequence[str]) -> list[str]:
        """The pieces of every line; characters that the model does not know stay as they are.

        A word that is written ``<unk>``, as in WikiText, stays one symbol: fairseq's own.
        """
        if any(UNKNOWN_WORD.search(line) for line in lines):
            parts = [UNKNOWN_WORD.split(line) for line in lines]
            pieces = iter(self._encode([part for line in parts for part in line]))
            return [" ".join(" <unk> ".join(next(pieces) for _ in line).split()) for line in parts]
        return self._encode(lines)

    def _encode(self, lines: Sequence[str]) -> list[str]:
        encoded = self._model.encode(list(lines), out_type=str, num_threads=1)
        # Unknown characters may be white space of another kind, at which fairseq would separate pieces or end a line.
        return [" ".join(" ".join(pieces).split()) for pieces in encoded]


class Gpt2Encoder:
    """The byte pairs of GPT-2 by fairseq's own class; a piece is the number that encoder.json gives it.

    Args:
        encoder_json: byte pairs and their numbers.
        vocab_bpe: the merges.
    """

    def __init__(self, encoder_json: Path, vocab_bpe: Path) -> None:
        with quiet_import():
            from fairseq.data.encoders.gpt2_bpe import GPT2BPE, GPT2BPEConfig
        try:
            self._gpt2 = GPT2BPE(GPT2BPEConfig(gpt2_encoder_json=str(encoder_json), gpt2_vocab_bpe=str(vocab_bpe)))
        except (ValueError, AttributeError, TypeError) as error:
            raise PreparationError(f"{encoder_json} and {vocab_bpe} are not GPT-2's: {one_line(error)}") from error
        self._names = f"{encoder_json} does not belong to {vocab_bpe}"

    def encode(self, lines: Sequence[str]) -> list[str]:
        """The numbers of the byte pairs of every line."""
        if len(self._gpt2.bpe.cache) > 1_000_000:  # it remembers every word, which many gigabytes of text are full of
            self._gpt2.bpe.cache.clear()
        try:
            return [self._gpt2.encode(line) for line in lines]
        except KeyError as error:
            raise PreparationError(f"{self._names}: it has no number for {error}") from error


@dataclass(frozen=True)
class Pieces:
    """Where the files of an encoder lie.

    Args:
        files: their names in a prepared folder, and where they are now.
    """

    files: dict[str, Path]

    @classmethod
    def of_sentencepiece(cls, model: Path) -> "Pieces":
        """A SentencePiece model."""
        return cls({SENTENCEPIECE: need_file(model)})

    @classmethod
    def of_gpt2(cls, encoder_json: Path, vocab_bpe: Path) -> "Pieces":
        """GPT-2's byte pairs."""
        return cls({ENCODER_JSON: need_file(encoder_json), VOCAB_BPE: need_file(vocab_bpe)})

    @classmethod
    def of_folder(cls, folder: Path) -> "Pieces":
        """What a folder of prepare_corpus.py, or of a published model, holds beside dict.txt."""
        hint = "name a folder of prepare_corpus.py, or one with dict.txt and the files of the pieces"
        if not folder.is_dir():
            raise PreparationError(f"the folder {folder} does not exist: {hint}")
        if not (folder / DICTIONARY).is_file():
            raise PreparationError(f"{folder} has no {DICTIONARY}: {hint}")
        gpt2 = [name for name in (ENCODER_JSON, VOCAB_BPE) if (folder / name).is_file()]
        if (folder / SENTENCEPIECE).is_file():
            if gpt2:
                raise PreparationError(f"{folder} has both {SENTENCEPIECE} and {gpt2[0]}: leave one of them there")
            return cls.of_sentencepiece(folder / SENTENCEPIECE)
        if not gpt2:
            raise PreparationError(f"{folder} has neither {SENTENCEPIECE} nor {ENCODER_JSON} and {VOCAB_BPE}: {hint}")
        return cls.of_gpt2(folder / ENCODER_JSON, folder / VOCAB_BPE)

    def load(self) -> Encoder:
        """Read the files."""
        if SENTENCEPIECE in self.files:
            return SentencePieceEncoder(self.files[SENTENCEPIECE])
        return Gpt2Encoder(self.files[ENCODER_JSON], self.files[VOCAB_BPE])


@contextmanager
def quiet_import() -> Iterator[None]:
    """Import fairseq without the line in which it asks for an optional package."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def read_dictionary(path: Path) -> set[str]:
    """The symbols of a fairseq dictionary, without those that fairseq adds."""
    symbols: set[str] = set()
    try:
        with open(need_file(path), encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                symbol, _, count = line.rstrip().removesuffix(" #fairseq:overwrite").rpartition(" ")
                if not symbol or not count.isdigit():
                    raise PreparationError(
                        f"{path}, line {number}: {line.rstrip()[:40]!r} is not a symbol and its count: "
                        "name a dict.txt of fairseq"
                    )
                if symbol in SPECIAL_SYMBOLS or symbol in symbols:
                    raise PreparationError(f"{path}, line {number}: fairseq has {symbol!r} already: remove the line")
                symbols.add(symbol)
    except UnicodeDecodeError as error:
        raise PreparationError(f"{path} is not UTF-8: name a dict.txt of fairseq") from error
    return symbols


def wrong_dictionary(path: Path) -> str:
    """The reason for which ``check_known`` refuses a dictionary."""
    return f"the dictionary {path} does not belong to these pieces, name the one that was made with them"


def check_known(unknown: int, total: int, split: str, reason: str) -> None:
    """Refuse pieces most of which mean nothing to the model."""
    if unknown > MOST_UNKNOWN * total:
        raise PreparationError(f"{unknown / total:.0%} of the pieces of {split} are <unk>: {reason}")


class Sample:
    """At most ``size`` lines, each line of the text with the same chance."""

    def __init__(self, size: int, seed: int) -> None:
        self.lines: list[str] = []
        self._size, self._random, self._seen = size, random.Random(seed), 0

    def add(self, line: str) -> None:
        """Offer a line."""
        self._seen += 1
        if len(self.lines) < self._size:
            self.lines.append(line)
        elif (place := int(self._random.random() * self._seen)) < self._size:
            self.lines[place] = line


def learn_sentencepiece(lines: Sequence[str], size: int, exact: bool, **options: Any) -> bytes:
    """Train SentencePiece by byte pairs.

    Args:
        lines: the text.
        size: ``--vocab-size``, how many pieces to learn.
        exact: fewer pieces are an error.
        options: of SentencePiece's trainer.

    Returns:
        the model.
    """
    import sentencepiece

    print(f"learning {size:,} pieces from {len(lines):,} lines")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(UNKNOWN_WORD.sub(" ", line) for line in lines),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=exact,
            max_sentence_length=1 << 30,  # longer lines would be left out
            num_threads=1,  # the number is part of the model
            minloglevel=2,
            **options,
        )
    except RuntimeError as error:
        message = one_line(error)
        if most := re.search(r"value <= (\d+)", message):
            message = f"this text has only {most[1]} pieces, give at most that"
        elif least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
            message = f"the characters of this text alone take {least[1]}, give more than that"
        raise PreparationError(f"--vocab-size {size} does not work: {message}") from error
    return model.getvalue()


# ------------------------------------------------------------------------------------------------ files
def need_file(path: Path) -> Path:
    """The path, if a file is there."""
    if not path.is_file():
        raise PreparationError(f"the file {path} does not exist: name one that does")
    return path


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of text, each with the number of its bytes in the file."""
    with open(path, "rb") as source:
        for number, line in enumerate(source):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise PreparationError(f"{path}, line {number + 1} is not UTF-8: convert the file") from error
            yield len(line), text if number else text.removeprefix(BYTE_ORDER_MARK)


def _temporary(path: Path) -> Path:
    """A name beside ``path``; what an interrupted run left under such a name goes away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    start = f".{path.name}.tmp-"
    for stale in path.parent.iterdir():
        if stale.name.startswith(start):
            if stale.is_dir():
                shutil.rmtree(stale)
            else:
                stale.unlink()
    return path.with_name(f"{start}{os.getpid()}")


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which becomes ``path`` at the end, or is removed after an error."""
    temporary = _temporary(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder to fill, which becomes ``path`` at the end, or is removed after an error."""
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        yield temporary
        os.rename(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    with whole_file(target) as temporary:
        shutil.copyfile(source, temporary)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PreparationError(f"{path} is damaged: remove the folder {path.parent} and prepare it again") from error


def digest(path: Path) -> str:
    """What tells one small file from another."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on in a folder that was begun with other settings or other input."""
    before = read_json(path)
    for key in {**before, **settings}:
        if before.get(key) != settings.get(key):
            raise PreparationError(
                f"{path.parent} was begun with {key} {json.dumps(before.get(key))}, "
                f"not {json.dumps(settings.get(key))}: repeat it, or name another --out"
            )


def listing(files: Iterable[Path], folder: Path) -> str:
    """A digest of the names and sizes of the data, to notice other data: there may be many thousands of files."""
    lines = (f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n" for path in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fill_folder(out: Path, smoke: bool, settings: dict[str, Any], fill: Callable[[Path], str]) -> None:
    """Make OUT, or see that it is there.

    Args:
        out: the folder.
        smoke: write to a folder inside it.
        settings: all that decides the result; OUT keeps them.
        fill: writes everything to the folder that it gets; returns options of fairseq-train.
    """
    out = (out / SMOKE if smoke else out).resolve()
    # A smoke run is inside OUT, and may be there before it.
    there = [path for path in (out.iterdir() if out.is_dir() else ()) if not _is_smoke(path)]
    if out / SETTINGS in there:
        check_settings(out / SETTINGS, settings)
        print(f"already prepared: {out}")
        return
    if there:
        raise PreparationError(f"{out} has a {there[0].name} that is not of this script: name another --out")
    with whole_folder(out) as temporary:
        options = fill(temporary)
        write_json(temporary / SETTINGS, settings)
        for path in out.iterdir() if out.is_dir() else ():
            os.rename(path, temporary / path.name)
    print(f"prepared: {out}")
    print(f"data for {options}: {out}")


def _is_smoke(path: Path) -> bool:
    return path.name == SMOKE or path.name.startswith(f".{SMOKE}.tmp-")


def split_builder(stack: ExitStack, path: Path, dictionary: Any) -> Any:
    """A builder of ``path``.bin and .idx, as fairseq-preprocess writes them; both are finished with the stack."""
    with quiet_import():
        from fairseq.data import indexed_dataset

    builder = indexed_dataset.make_builder(f"{path}.bin", "mmap", vocab_size=len(dictionary))
    stack.callback(builder.finalize, f"{path}.idx")
    return builder


def binarise(options: Sequence[str], folder: Path, lines: dict[str, int], log: Path) -> None:
    """Run fairseq-preprocess, see that it took every line, and print what it counted.

    Args:
        options: ``--destdir`` and the others; the text by names relative to ``folder``, since a comma in a name
            begins another one.
        folder: where the text is.
        lines: how many each of its files has.
        log: gets all that fairseq-preprocess prints, if something is wrong.
    """
    command = [sys.executable, "-P", "-m", "fairseq_cli.preprocess", *options]
    done = subprocess.run(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    counts = re.findall(r"\] (\S+): (\d+) sents, (\d+) tokens", done.stdout)
    if done.returncode or {name: int(sentences) for name, sentences, _ in counts} != lines:
        log.write_text(done.stdout, encoding="utf-8")
        raise PreparationError(f"fairseq-preprocess failed or lost lines: all that it printed is in {log}")
    (Path(options[options.index("--destdir") + 1]) / "preprocess.log").unlink()
    for name, sentences, tokens in counts:
        print(f"  {name}: {int(sentences):,} lines, {int(tokens):,} tokens")


# --------------------------------------------------------------------------------------------- commands
def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split())


def run(script: str, prepare: Callable[[], None]) -> int:
    """Call ``prepare``; errors of the user or of the system are one line on stderr. Returns the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a file shows what is done, too
    try:
        prepare()
    except PreparationError as error:
        print(f"{script}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        place = f": {error.filename}" if error.filename else ""
        print(f"{script}: {error.strerror or error}{place}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{script}: interrupted: run the same command again", file=sys.stderr)
        return 130
    return 0


def progress(total: int, name: str, unit: str) -> Any:
    """A progress display on stderr; rare lines if that is a file."""
    from tqdm import tqdm

    interval = 0.5 if sys.stderr.isatty() else 30
    tqdm.monitor_interval = 0  # its thread would be forked with the workers
    return tqdm(total=total, desc=name, unit=unit, unit_scale=True, mininterval=interval, maxinterval=interval)


_STOP = {signal.SIGINT, signal.SIGTERM}


@contextmanager
def _held_signals() -> Iterator[None]:
    """Signals that come meanwhile are raised afterwards.

    Around a fork: Python runs callbacks then and ignores their errors, an interrupt raised in one of them too.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int) -> None:
    def end_with_parent() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP)
    # A parent that is killed tells nobody.
    threading.Thread(target=end_with_parent, daemon=True).start()


def in_order(
    function: Callable[..., Result], tasks: Iterable[tuple[Any, ...]], workers: int, ahead: int = 2
) -> Generator[Result, None, None]:
    """What a function returns for every task, in the order of the tasks, which may be endless.

    Args:
        function: runs in the workers.
        tasks: its arguments.
        workers: how many processes; with one there is none beside this one.
        ahead: so many tasks for each worker are begun before their results are asked for.
    """
    if workers == 1:
        for task in tasks:
            yield function(*task)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _start_worker, (os.getpid(),))
    waiting: deque[Future[Result]] = deque()
    try:
        for task in tasks:
            with _held_signals():  # the first one forks the workers
                waiting.append(pool.submit(function, *task))
            if len(waiting) >= ahead * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise PreparationError(
            "a worker was killed, perhaps for want of memory: run the same command again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def positive(text: str) -> int:
    """An option that is a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
