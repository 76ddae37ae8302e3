"""For every repair of ``luna_fairseq.compat`` a function of its name that fails where the repair is switched off.

Each gets an empty folder, and a patch that is taken back when it ends.
"""

import atexit
import copy
import dataclasses
import functools
import importlib.util
import io
import json
import math
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional

import numpy as np
import pytest
import torch
import torch.distributed
from fairseq import checkpoint_utils, hub_utils, models, options, tasks, utils
from fairseq.data import (
    ConcatDataset,
    Dictionary,
    FairseqDataset,
    LanguagePairDataset,
    LMContextWindowDataset,
    LRUCacheDataset,
    MonolingualDataset,
    TokenBlockDataset,
    data_utils,
)
from fairseq.data.encoders.sentencepiece_bpe import SentencepieceBPE, SentencepieceConfig
from fairseq.data.indexed_dataset import IndexedRawTextDataset, MMapIndexedDataset
from fairseq.data.iterators import BufferedIterator, CountingIterator, EpochBatchIterator
from fairseq.dataclass import utils as dataclass_utils
from fairseq.dataclass.configs import FairseqConfig, GenerationConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf, gen_parser_from_dataclass
from fairseq.distributed import utils as distributed_utils
from fairseq.file_chunker_utils import Chunker
from fairseq.file_io import PathManager
from fairseq.models import distributed_fairseq_model, fconv
from fairseq.optim import AMPOptimizer
from fairseq.optim.sgd import SGD
from fairseq.search import DiverseBeamSearch
from fairseq.sequence_generator import EnsembleModel, EnsembleModelWithAlignment
from fairseq.tasks import FairseqTask
from fairseq.tasks.fairseq_task import StatefulContainer
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.masked_lm import MaskedLMConfig
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.semisupervised_translation import SemisupervisedTranslationTask
from fairseq.tasks.sentence_prediction import SentencePredictionConfig
from fairseq.tasks.translation import TranslationConfig
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from fairseq.trainer import Trainer
from hydra._internal import utils as hydra_utils
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch.utils.data import DataLoader
from torch.utils.data._utils import worker

from luna_fairseq.compat import REPAIRS, commands, ending, evaluation, locking, mistakes, signals
from luna_fairseq.errors import CheckpointError, CheckpointMismatch, DataError, FolderInUse
from luna_fairseq.ops import beams
from support.evil import Evil
from support.models import CLS, make_dictionary, make_lra_config, make_model, make_sentences, make_task
from support.running import write_indexed
from support.trainers import make_sample, make_trainer, save, trained

Patch = pytest.MonkeyPatch

# A process of its own, because pytest takes back what others do to warnings and loggers. It tells of each repair
# whether its work can be seen, with all repairs on, and with that one off.
_FRESH = """
import json, logging, warnings
from luna_fairseq import compat

compat.prepare()

def work():
    with warnings.catch_warnings(record=True) as printed:
        warnings.warn("'pin_memory' argument is set as true but no accelerator is found, then")
    lines = {"fairseq.tasks.text_to_speech": logging.INFO, "hydra": logging.DEBUG}
    return {
        "hide_warnings": not printed,
        "hide_log_lines": all(logging.getLogger(name).level > level for name, level in lines.items()),
        "keep_the_root_logger": logging.getLogger().level != logging.DEBUG,
    }

seen = {}
for name, on in work().items():
    with compat.switched_off(name):
        seen[name] = {"on": on, "off": work()[name]}
print(json.dumps(seen))
"""


@functools.cache
def _of_a_fresh_process() -> Dict[str, Dict[str, bool]]:
    done = subprocess.run([sys.executable, "-c", _FRESH], capture_output=True, text=True, timeout=120, check=True)
    result: Dict[str, Dict[str, bool]] = json.loads(done.stdout.splitlines()[-1])
    return result


def _works_in_a_fresh_process(name: str) -> bool:
    on = {repair.name: repair.on for repair in REPAIRS}[name]
    return _of_a_fresh_process()[name]["on" if on else "off"]


# importing


def see_what_is_optional(folder: Path, patch: Patch) -> None:
    """On Python 3.14 Optional[str] is str | None."""
    assert dataclass_utils.interpret_dc_type(str | None) is str
    assert dataclass_utils.interpret_dc_type(Optional[int]) is int
    assert dataclass_utils.interpret_dc_type(int) is int


def give_argparse_text(folder: Path, patch: Patch) -> None:
    """What argparse does with each option, from Python 3.14 on when it is added."""
    parser = hydra_utils.get_args_parser()
    for action in parser._actions:
        parser._get_formatter()._expand_help(action)
    (shell,) = (action for action in parser._actions if "--shell-completion" in action.option_strings)
    assert "Bash - Install:" in f"{shell.help}"


# noise


def hide_warnings(folder: Path, patch: Patch) -> None:
    assert _works_in_a_fresh_process("hide_warnings")


def hide_log_lines(folder: Path, patch: Patch) -> None:
    assert _works_in_a_fresh_process("hide_log_lines")


def keep_the_root_logger(folder: Path, patch: Patch) -> None:
    assert _works_in_a_fresh_process("keep_the_root_logger")


# mistakes


def _score_what_is_not_there(patch: Patch) -> io.StringIO:
    """The arguments of fairseq-score, whose function ``run_job`` ends in an error; what it prints."""
    printed = io.StringIO()
    patch.setattr(sys, "argv", ["fairseq-score", "--sys", "-", "--ref", "nowhere"])
    patch.setattr(sys, "stderr", printed)
    return printed


def run_job() -> None:
    """Under this name Hydra looks for what it has called."""
    from fairseq_cli import score

    score.cli_main()


_SCORE = "fairseq-score: Reference file nowhere does not exist (LUNA_TRACEBACK=1 shows where fairseq says so)\n"


def end_with_a_sentence(folder: Path, patch: Patch) -> None:
    printed = _score_what_is_not_there(patch)
    with pytest.raises(AssertionError) as seen:
        run_job()
    sys.excepthook(seen.type, seen.value, seen.tb)
    assert printed.getvalue() == _SCORE


def end_hydra_with_a_sentence(folder: Path, patch: Patch) -> None:
    printed = _score_what_is_not_there(patch)
    with pytest.raises(SystemExit, match="1"):
        hydra_utils.run_and_report(run_job)
    assert printed.getvalue() == _SCORE


def _fails_as_foreseen(cfg: Any) -> None:
    raise DataError("foreseen")


def bring_the_sentence_back(folder: Path, patch: Patch) -> None:
    """In a process with a parent; what starts it is replaced."""
    spawned: List[Any] = []
    patch.setattr(torch.multiprocessing, "spawn", lambda fn, args, **_: spawned.append(args[0]))
    patch.setattr(torch.cuda, "device_count", lambda: 2)
    options = {"distributed_world_size": 2, "distributed_no_spawn": False, "distributed_rank": 0}
    options["distributed_init_method"] = "tcp://localhost:1"
    cfg = OmegaConf.create({"distributed_training": options, "common": {"tpu": False, "bf16": False}})
    distributed_utils.call_main(cfg, _fails_as_foreseen)
    patch.setattr(multiprocessing, "parent_process", lambda: "somebody")
    with pytest.raises(mistakes.Mistake, match="foreseen"):
        pickle.loads(pickle.dumps(spawned[0]))(cfg)


def say_what_was_meant(folder: Path, patch: Patch) -> None:
    printed = io.StringIO()
    patch.setattr(sys, "stderr", printed)
    patch.setattr(sys, "argv", ["fairseq-train"])
    with pytest.raises(SystemExit, match="2"):
        options.get_training_parser().parse_args(["data", "--arch", "transfomer"])
    said = printed.getvalue()
    assert said.startswith(
        "fairseq-train: error: argument --arch/-a: invalid choice: 'transfomer': did you mean trans"
    )
    assert said.count("\n") == 1 and said.endswith(" (all: fairseq-train --help)\n")


def print_every_character(folder: Path, patch: Patch) -> None:
    written = io.BytesIO()
    patch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    patch.setitem(sys.modules, "fairseq_cli", sys.modules[__name__])
    with pytest.raises(AssertionError):
        tasks.setup_task(None)
    print("\u2581gr\xfcn", flush=True)
    assert written.getvalue() == b"\xe2\x96\x81gr\xc3\xbcn\n"


# loading


def allow_plain_classes(folder: Path, patch: Patch) -> None:
    torch.save({"args": Namespace(arch="luna"), "meters": np.ones(2)}, folder / "x.pt")
    assert torch.load(folder / "x.pt", weights_only=True)["args"].arch == "luna"


def explain_what_was_not_loaded(folder: Path, patch: Patch) -> None:
    torch.save({"model": {}, "args": Evil(folder / "executed")}, folder / "evil.pt")
    torch.save({"weight": torch.ones(3)}, folder / "foreign.pt")
    (folder / "text.pt").write_text("text")
    messages = {"evil": "that could run code", "foreign": "is not a checkpoint of fairseq", "text": "is cut short or"}
    for name, message in messages.items():
        with pytest.raises(CheckpointError, match=message):
            checkpoint_utils.load_checkpoint_to_cpu(str(folder / f"{name}.pt"))


def name_the_cause(folder: Path, patch: Patch) -> None:
    torch.save({"model": {}, "cfg": {"task": None}, "args": None}, folder / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt is not a checkpoint of fairseq .it has no 'best_loss'"):
        checkpoint_utils.load_checkpoint_to_cpu(str(folder / "x.pt"))


class _TellsTheEmbeddings:
    """A task whose models are nothing."""

    def build_model(self, cfg: Any) -> Any:
        self.path = cfg.encoder_embed_path
        return SimpleNamespace(load_state_dict=lambda *_, **__: None, set_num_updates=lambda _: None)

    def load_state_dict(self, state: Any) -> None:
        pass


def build_without_files(folder: Path, patch: Patch) -> None:
    state = torch.load(save(trained(folder), folder / "x.pt"))
    state.update(args=None, cfg={"model": {"encoder_embed_path": "embeddings.txt"}})
    torch.save(state, folder / "x.pt")
    task = _TellsTheEmbeddings()
    checkpoint_utils.load_model_ensemble_and_task([str(folder / "x.pt")], task=task)
    assert task.path is None
    overrides = {"encoder_embed_path": "mine.txt"}
    checkpoint_utils.load_model_ensemble_and_task([str(folder / "x.pt")], overrides, task=task)
    assert task.path == "mine.txt"


def compare_checksums(folder: Path, patch: Patch) -> None:
    state = torch.load(save(trained(folder), folder / "x.pt"))
    weights = state["model"]["linear.weight"].numpy().tobytes()
    content = bytearray((folder / "x.pt").read_bytes())
    content[content.find(weights) + 1] ^= 1
    (folder / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is cut short or damaged"):
        checkpoint_utils.load_checkpoint_to_cpu(str(folder / "x.pt"))


def read_pieces(folder: Path, patch: Patch) -> None:
    (folder / "pieces.model").write_text("no model")
    with pytest.raises(DataError, match=r"pieces\.model is not a SentencePiece model: name the one"):
        SentencepieceBPE(SentencepieceConfig(sentencepiece_model=str(folder / "pieces.model")))


# hub


def load_from_folders(folder: Path, patch: Patch) -> None:
    with tarfile.open(folder / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("x"))
    before = (folder / "x.tar.gz").read_bytes()
    patch.setattr(checkpoint_utils, "load_model_ensemble_and_task", lambda *_, **__: ([], None, None))
    with pytest.raises(ValueError, match=r"x\.tar\.gz is a file: name a folder; an archive is not unpacked here"):
        hub_utils.from_pretrained(str(folder), "x.pt", str(folder / "x.tar.gz"))
    assert (folder / "x.tar.gz").read_bytes() == before


def choose_the_users_pieces(folder: Path, patch: Patch) -> None:
    saved = {"_name": "subword_nmt", "bpe_codes": "http://127.0.0.1/codes", "bpe_separator": "@@"}
    cfg = OmegaConf.create({"bpe": saved, "tokenizer": "space", "generation": {"replace_unk": "words.txt"}})
    patch.setattr(checkpoint_utils, "load_model_ensemble_and_task", lambda *_, **__: ([], copy.deepcopy(cfg), None))
    options = hub_utils.from_pretrained(str(folder), "x.pt", str(folder))["args"]
    assert options.bpe is None and options.tokenizer == "space" and options.generation.replace_unk is None
    options = hub_utils.from_pretrained(str(folder), "x.pt", str(folder), bpe="characters", replace_unk="mine")[
        "args"
    ]
    assert options.bpe == "characters"
    cfg.bpe = None
    options = hub_utils.from_pretrained(str(folder), "x.pt", str(folder), sentencepiece_model="m")["args"]
    assert options.bpe._name == "sentencepiece" and options.bpe.sentencepiece_model == "m", "the file says it"


# checkpoints


class _FailsOnce:
    """A disk that is full for a moment."""

    failed = False

    def __reduce__(self) -> Any:
        if not self.failed:
            self.failed = True
            raise OSError(28, "No space left on device")
        return int, (3,)


def save_whole(folder: Path, patch: Patch) -> None:
    patch.setattr(checkpoint_utils.time, "sleep", lambda seconds: None)
    path = folder / "checkpoint_last.pt"
    torch.save("the old one", path)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoint_utils.torch_persistent_save({"weight": torch.ones(3), "then": _FailsOnce()}, str(path))
    assert torch.load(path) == "the old one"


def copy_whole(folder: Path, patch: Patch) -> None:
    for name in ("old", "new"):
        (folder / name).write_text(name)
    os.link(folder / "old", folder / "checkpoint_last.pt")
    PathManager.copy(str(folder / "new"), str(folder / "checkpoint_last.pt"), overwrite=True)
    assert (folder / "checkpoint_last.pt").read_text() == "new"
    assert (folder / "old").read_text() == "old", "written over in place"


def load_newest(folder: Path, patch: Patch) -> None:
    save(trained(folder), folder / "checkpoint1.pt")
    trainer = make_trainer(folder)
    asked: List[str] = []
    patch.setattr(trainer, "load_checkpoint", lambda path, *args, **kwargs: asked.append(path), raising=False)
    patch.setattr(
        trainer, "get_train_iterator", lambda **kwargs: SimpleNamespace(epoch=1, next_epoch_idx=1), raising=False
    )
    checkpoint_utils.load_checkpoint(trainer.cfg.checkpoint, trainer)
    assert asked == [str(folder / "checkpoint1.pt")]


def refuse_a_missing_file(folder: Path, patch: Patch) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: correct --restore-file"):
        make_trainer(folder).load_checkpoint(str(folder / "nowhere.pt"))


def try_to_write(folder: Path, patch: Patch) -> None:
    (folder / "dummy").write_text("mine")
    checkpoint_utils.verify_checkpoint_directory(str(folder))
    assert (folder / "dummy").read_text() == "mine" and len(list(folder.iterdir())) == 1


# matching


def explain_what_does_not_match(folder: Path, patch: Patch) -> None:
    path = save(trained(folder), folder / "x.pt")
    trainer = make_trainer(folder)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise CheckpointMismatch("--encoder-layers is 6 here")

    patch.setattr(trainer.model, "load_state_dict", refuse)
    with pytest.raises(CheckpointMismatch, match=r"^--encoder-layers is 6 here"):
        trainer.load_checkpoint(path)

    state = torch.load(path)
    state["optimizer_history"][-1]["lr_scheduler_state"] = {}
    torch.save(state, path)
    trainer = make_trainer(folder)
    trainer.cfg.lr_scheduler = {"_name": "reduce_lr_on_plateau", "lr": [0.1], "lr_shrink": 0.1, "lr_threshold": 1e-4}
    trainer.cfg.lr_scheduler.update({"lr_patience": 0, "warmup_updates": 0, "maximize_best_checkpoint_metric": False})
    with pytest.raises(CheckpointMismatch, match="of another --lr-scheduler"):
        trainer.load_checkpoint(path)

    del state["last_optimizer_state"]["param_groups"][0]["params"][0]
    torch.save(state, path)
    with pytest.raises(CheckpointMismatch, match="a model with other parameters"):
        make_trainer(folder).load_checkpoint(path)


def refuse_without_an_optimizer(folder: Path, patch: Patch) -> None:
    trainer = trained(folder)
    trainer.cfg.checkpoint.no_save_optimizer_state = True
    with pytest.raises(CheckpointMismatch, match="holds no state of an optimizer"):
        make_trainer(folder).load_checkpoint(save(trainer, folder / "x.pt"))


def refuse_other_sizes(folder: Path, patch: Patch) -> None:
    path = save(trained(folder), folder / "x.pt")
    state = torch.load(path)
    for values in state["last_optimizer_state"]["state"].values():
        values["exp_avg"] = torch.zeros(7)
    torch.save(state, path)
    with pytest.raises(CheckpointMismatch, match="the optimizer of a model with other sizes"):
        make_trainer(folder).load_checkpoint(path)


def refuse_random_heads(folder: Path, patch: Patch) -> None:
    path = save(trained(folder), folder / "x.pt")
    model = make_trainer(folder).model
    patch.setattr(model, "fresh_heads", {"pairs": "the head pairs is not in it"}, raising=False)
    task = SimpleNamespace(build_model=lambda cfg: model, load_state_dict=lambda state: None)
    with pytest.raises(CheckpointMismatch, match="cannot be evaluated so: the head pairs is not in it"):
        checkpoint_utils.load_model_ensemble_and_task([path], task=task)


class _OtherDictionary(torch.nn.Module):
    """A model of seven symbols, for weights of five."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(7, width)

    def load_state_dict(self, state: Any, *_: Any, **__: Any) -> Any:
        return super().load_state_dict({"embed_tokens.weight": torch.zeros(5, 3)})

    def set_num_updates(self, count: int) -> None:
        pass


def explain_another_dictionary(folder: Path, patch: Patch) -> None:
    path = save(trained(folder), folder / "x.pt")
    task = SimpleNamespace(build_model=lambda cfg: _OtherDictionary(), load_state_dict=lambda state: None)
    said = f"^{path} was trained with a dictionary of 5 symbols and that of the data folder has 7: name"
    with pytest.raises(CheckpointMismatch, match=said):
        checkpoint_utils.load_model_ensemble_and_task([path], task=task)


# data


def name_the_dictionary(folder: Path, patch: Patch) -> None:
    path = folder / "dict.txt"
    for content in ("", "no count\n", "the 3\nthe 3\n"):
        path.write_text(content)
        with pytest.raises(DataError, match=f"^{path} is not a dictionary, or is damaged"):
            Dictionary.load(str(path))


def refuse_half_written_data(folder: Path, patch: Patch) -> None:
    write_indexed(folder / "train", make_sentences([5, 9]), make_dictionary())
    with open(folder / "train.bin", "rb+") as file:
        file.truncate(10)
    with pytest.raises(DataError, match=r"train.bin has 10 bytes and its index asks for"):
        data_utils.load_indexed_dataset(str(folder / "train"))


def refuse_unknown_symbols(folder: Path, patch: Patch) -> None:
    write_indexed(folder / "train", make_sentences([5, 9]), make_dictionary())
    with pytest.raises(DataError, match="and its dictionary ends at 5"):
        data_utils.load_indexed_dataset(str(folder / "train"), make_dictionary(2))


def keep_old_numpy(folder: Path, patch: Patch) -> None:
    lines = make_sentences([5, 9])
    blocks = TokenBlockDataset(lines, [5, 9], block_size=None, pad=1, eos=2, break_mode="eos")
    assert [len(block) for block in blocks] == [5, 9]
    assert data_utils.get_buckets(np.arange(1, 10), 2).tolist() == [5, 9]


def take_train_once(folder: Path, patch: Patch) -> None:
    lines = make_sentences([5, 9])
    assert len(ConcatDataset([lines, lines], [-1, 1])) == 4
    with pytest.raises(DataError, match=r"--upsample-primary is -2: .*, at least 1"):
        ConcatDataset([lines, lines], [-2, 1])


def name_the_unequal_files(folder: Path, patch: Patch) -> None:
    dictionary = make_dictionary()
    for name, count in (("en", 3), ("de", 2)):
        write_indexed(folder / name, make_sentences([5] * count), dictionary)
    source, target = (MMapIndexedDataset(str(folder / name)) for name in ("en", "de"))
    with pytest.raises(DataError, match=f"^{folder}/en has 3 examples and {folder}/de has 2: each line"):
        LanguagePairDataset(source, source.sizes, dictionary, target, target.sizes, dictionary)


def read_whole_lines(folder: Path, patch: Patch) -> None:
    (folder / "text").write_bytes("\ufeffa\rb\r\nc\u2028d\x85e\n".encode())
    with Chunker(str(folder / "text"), 0, 0) as lines:
        assert list(lines) == ["a\rb\n", "c\u2028d\x85e\n"]
    dictionary = make_dictionary()
    assert len(IndexedRawTextDataset(str(folder / "text"), dictionary)) == 2


def note_the_languages(folder: Path, patch: Patch) -> None:
    for lang in ("en", "de"):
        write_indexed(folder / f"train.en-de.{lang}", make_sentences([5]), make_dictionary())
        make_dictionary().save(str(folder / f"dict.{lang}.txt"))
    options = OmegaConf.structured(TranslationConfig(_name="translation", data=str(folder)))
    tasks.setup_task(options)
    assert (options.source_lang, options.target_lang) == ("en", "de")


# epochs


def keep_the_last_batch(folder: Path, patch: Patch) -> None:
    sizes = np.full(20, 10)
    batches = data_utils.batch_by_size(
        np.arange(20), lambda i: 10, num_tokens_vec=sizes, max_sentences=8, required_batch_size_multiple=8
    )
    assert [len(batch) for batch in batches] == [8, 8, 4]


def _batches(epoch: int) -> Any:
    """What a new process makes that begins with an epoch."""
    sizes = [4, 5, 6, 7, 8] * 6
    dictionary = make_dictionary()
    pairs = LanguagePairDataset(make_sentences(sizes), sizes, dictionary, make_sentences(sizes), sizes, dictionary)
    task = FairseqTask(OmegaConf.create({}))
    return task.get_batch_iterator(pairs, max_sentences=4, seed=7, epoch=epoch, num_workers=1)


def end_the_workers(folder: Path, patch: Patch) -> None:
    batches = _batches(epoch=1)
    assert not batches.persistent_workers and not batches.reuse_dataloader


def make_the_same_batches(folder: Path, patch: Patch) -> None:
    first, third = _batches(epoch=1), _batches(epoch=3)
    for one, other in zip(first.frozen_batches, third.frozen_batches, strict=True):
        assert list(one) == list(other)
    assert first.seed == third.seed == 7


class _Counting(FairseqDataset):
    """Other items at every look, like masks."""

    looks = 0

    def __getitem__(self, index: int) -> int:
        self.looks += 1
        return self.looks


def forget_kept_items(folder: Path, patch: Patch) -> None:
    kept = LRUCacheDataset(_Counting())
    assert kept[0] == kept[0] == 1
    kept.set_epoch(2)
    assert kept[0] == 2


def end_the_epoch(folder: Path, patch: Patch) -> None:
    path = save(trained(folder), folder / "x.pt")  # before epoch 2, with a loss of 1.5
    trainer = make_trainer(folder)
    heard: List[Any] = []
    patch.setattr(trainer, "lr_step", lambda *args: heard.append(args), raising=False)
    trainer.load_checkpoint(path)
    assert heard == [(2,), (1, 1.5)]


def know_the_parent(folder: Path, patch: Patch) -> None:
    patch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=os.getppid() + 1))
    assert not worker.ManagerWatchdog().is_alive()


# trainer


def explain_divergence(folder: Path, patch: Patch) -> None:
    with pytest.raises(FloatingPointError, match=r"diverged: the gradient of update 1 is not finite; .*; lower --lr"):
        make_trainer(folder).train_step([make_sample(math.nan)])


def look_at_forward_passes(folder: Path, patch: Patch) -> None:
    with pytest.raises(FloatingPointError):
        make_trainer(folder).train_step([make_sample(math.nan)])


def _amp(weight: Any, scaler: Any) -> AMPOptimizer:
    cfg = OmegaConf.create({"common": {"fp16_init_scale": 128, "min_loss_scale": 1e-4}, "optimizer": {}})
    sgd = SGD(SimpleNamespace(lr=[1.0], momentum=0.0, weight_decay=0.0), [weight])
    optimizer = AMPOptimizer(cfg, [weight], sgd)
    optimizer._grad_scaler = scaler
    return optimizer


def unscale_once(folder: Path, patch: Patch) -> None:
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = _amp(weight, torch.amp.GradScaler("cpu", init_scale=128.0))
    optimizer.backward(3 * weight.sum())
    optimizer.clip_grad_norm(0.0)
    optimizer.step()
    assert weight.item() == -3


def end_without_a_scale(folder: Path, patch: Patch) -> None:
    optimizer = _amp(torch.nn.Parameter(torch.zeros(1)), torch.amp.GradScaler("cpu", enabled=False))
    assert optimizer.next_loss_scale == 0


def train_on_a_cpu(folder: Path, patch: Patch) -> None:
    patch.setattr(sys, "excepthook", sys.excepthook)  # torch puts one of its own around it, and leaves it there
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = distributed_fairseq_model.DistributedDataParallel(
            torch.nn.Linear(2, 1), device_ids=[0], output_device=0
        )
        assert model.device_ids is None
    finally:
        torch.distributed.destroy_process_group()


def let_tasks_gather(folder: Path, patch: Patch) -> None:
    trainer = make_trainer(folder)
    told: List[bool] = []
    trainer.task.gather_state = lambda: told.append(True)
    trainer.consolidate_optimizer()
    assert told


# pruning


def _options(**changes: Any) -> Any:
    return OmegaConf.create({**dataclasses.asdict(make_lra_config(**changes)), "_name": "lra"})


def count_the_layers(folder: Path, patch: Patch) -> None:
    cfg, dictionary = _options(encoder_layers=3, encoder_layers_to_keep="0,2"), make_dictionary()
    dictionary.add_symbol(CLS)
    model = models.build_model(cfg, make_task(dictionary))
    assert len(model.encoder.layers) == cfg.encoder_layers == 2
    for wrong in ("a", "0,0", "-1", "0;2"):
        with pytest.raises(ValueError, match=f"--encoder-layers-to-keep is '{wrong}': give the numbers of layers"):
            models.build_model(_options(encoder_layers_to_keep=wrong), make_task(dictionary))


def prune_once(folder: Path, patch: Patch) -> None:
    whole = {f"{side}.layers.{k}.w": (side, k) for side in ("encoder", "decoder") for k in range(3)}

    def pruned(state: Any, **keep: Any) -> Any:
        cfg = OmegaConf.create({"_name": "luna", **{f"{side}_layers_to_keep": which for side, which in keep.items()}})
        return checkpoint_utils.prune_state_dict(dict(state), cfg)

    first = pruned(whole, encoder="0,2", decoder=None)
    assert first["encoder.layers.1.w"] == ("encoder", 2) and "encoder.layers.2.w" not in first
    assert all(first[f"decoder.layers.{k}.w"] == ("decoder", k) for k in range(3))
    assert pruned(first, encoder="0,2", decoder=None) == first
    with pytest.raises(CheckpointMismatch, match="--decoder-layers-to-keep is 1,3 and the checkpoint has 3 layers"):
        pruned(whole, encoder=None, decoder="1,3")


def forget_the_other_layers(folder: Path, patch: Patch) -> None:
    trainer = make_trainer(folder)
    trainer.cfg.model = {"_name": "lra", "encoder_layers_to_keep": "0,2"}
    trainer.load_checkpoint(str(folder / "checkpoint_last.pt"))
    assert trainer.cfg.model.encoder_layers_to_keep is None


# limits


def _patience(patch: Patch, best: float, num_runs: int) -> Any:
    from fairseq_cli import train

    patch.setattr(train.should_stop_early, "best", best, raising=False)
    patch.setattr(train.should_stop_early, "num_runs", num_runs, raising=False)
    return train.should_stop_early


def save_patience(folder: Path, patch: Patch) -> None:
    _patience(patch, 1.25, 2)
    state = torch.load(save(trained(folder), folder / "x.pt"))
    assert state["extra_state"]["patience"] == {"best": 1.25, "num_runs": 2}


def load_patience(folder: Path, patch: Patch) -> None:
    path = save(trained(folder), folder / "x.pt", patience={"best": 1.25, "num_runs": 3})
    counted = _patience(patch, 0.0, 0)
    trainer = make_trainer(folder)
    trainer.cfg.checkpoint.patience = 4
    trainer.load_checkpoint(path)
    assert (counted.best, counted.num_runs) == (1.25, 3)
    trainer.load_checkpoint(path, reset_meters=True)
    assert not hasattr(counted, "num_runs")
    counted.best, counted.num_runs = 0.0, 0
    trainer.cfg.checkpoint.patience = -1  # nothing of another run's is saved with it
    trainer.load_checkpoint(path)
    assert not hasattr(counted, "best")
    counted.best, counted.num_runs = 0.0, 0  # to be taken back


def count_its_own_hours(folder: Path, patch: Patch) -> None:
    path = save(trained(folder), folder / "x.pt", previous_training_time=7200.0)
    trainer = make_trainer(folder)
    trainer.load_checkpoint(path)
    assert trainer.cumulative_training_time() > 7200
    trainer.load_checkpoint(path, reset_meters=True)
    assert trainer.cumulative_training_time() < 3600


class _Batches:
    """Of an epoch that is over."""

    epoch, next_epoch_idx = 3, 4

    def end_of_epoch(self) -> bool:
        return True

    def state_dict(self) -> Dict[str, int]:
        return {"version": 2, "epoch": 4, "iterations_in_epoch": 0}

    def load_state_dict(self, state: Any) -> None:
        pass


def _without_data(trainer: Any, patch: Patch) -> Any:
    patch.setattr(trainer, "get_train_iterator", lambda **kwargs: _Batches(), raising=False)
    patch.setitem(vars(checkpoint_utils.save_checkpoint), "best", 9.0)  # may be gone when it is taken back
    return trainer


def forget_the_best_of_another(folder: Path, patch: Patch) -> None:
    trainer = _without_data(trained(folder), patch)  # with the best of another run
    trainer.cfg.optimization.max_update = 9
    checkpoint_utils.load_checkpoint(trainer.cfg.checkpoint, trainer)
    checkpoint_utils.save_checkpoint(trainer.cfg.checkpoint, trainer, _Batches(), 9.5)
    assert (folder / "checkpoint_best.pt").exists()


def stay_finished(folder: Path, patch: Patch) -> None:
    save(trained(folder), folder / "checkpoint_last.pt")
    trainer = _without_data(make_trainer(folder), patch)
    trainer.cfg.optimization.max_update = 2
    checkpoint_utils.load_checkpoint(trainer.cfg.checkpoint, trainer)
    assert trainer.cfg.optimization.max_epoch == 0
    trainer.cfg.optimization.max_update = 1
    checkpoint_utils.load_checkpoint(trainer.cfg.checkpoint, trainer)
    assert trainer.cfg.optimization.max_epoch == -1


def refuse_to_save_nothing(folder: Path, patch: Patch) -> None:
    cfg = make_trainer_config(folder, patch)
    assert distributed_utils.is_master(cfg.distributed_training)
    cfg.checkpoint.write_checkpoints_asynchronously = True
    patch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package iopath, without which nothing would be trained"):
        distributed_utils.is_master(cfg.distributed_training)


def remember_the_batches(folder: Path, patch: Patch) -> None:
    trainer = make_trainer(folder)
    task: Any = trainer.task
    batches = SimpleNamespace(first_batch="DUMMY")
    task.load_dataset = lambda *args, **kwargs: None
    task.dataset = task.max_positions = lambda *args: None
    task.get_batch_iterator = lambda **kwargs: batches
    trainer.get_train_iterator(1)
    assert trainer.batches_of_epoch is batches


def save_the_last_epoch(folder: Path, patch: Patch) -> None:
    trainer = _without_data(trained(folder), patch)
    trainer.batches_of_epoch = _Batches()
    trainer.cfg.checkpoint.save_interval = 2
    trainer.lr_step(3, 1.5)
    assert not list(folder.iterdir())
    trainer.cfg.optimization.max_epoch = 3
    trainer.lr_step(3, 1.5)
    assert {path.name for path in folder.iterdir()} == {"checkpoint_best.pt", "checkpoint_last.pt"}


def save_something(folder: Path, patch: Patch) -> None:
    trainer: Any = _without_data(trained(folder), patch)
    options = trainer.cfg.checkpoint
    options.no_last_checkpoints = options.no_epoch_checkpoints = True
    checkpoint_utils.save_checkpoint(options, trainer, _Batches(), None)
    assert not list(folder.iterdir())
    trainer.cfg.optimization.max_update = 1
    checkpoint_utils.save_checkpoint(options, trainer, _Batches(), None)
    assert [path.name for path in folder.iterdir()] == ["checkpoint_last.pt"]


def number_processes_of_a_cpu(folder: Path, patch: Patch) -> None:
    _start_two(patch)
    patch.setenv("RANK", "1")
    patch.setattr(torch.cuda, "device_count", lambda: 0)
    cfg = SimpleNamespace()
    distributed_utils._infer_torch_distributed_launch_init(cfg)
    assert (cfg.distributed_rank, cfg.distributed_world_size, cfg.device_id) == (1, 2, 0)
    assert cfg.distributed_init_method == "env://" and cfg.distributed_no_spawn


# commands


def _start_two(patch: Patch) -> None:
    """As torchrun does."""
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "0"}.items():
        patch.setenv(name, value)


def refuse_processes(folder: Path, patch: Patch) -> None:
    _start_two(patch)
    with pytest.raises(ValueError, match="2 processes were started and --distributed-world-size is 1"):
        distributed_utils.call_main(make_trainer_config(folder, patch), lambda cfg: None)


def make_trainer_config(folder: Path, patch: Patch, **common: Any) -> Any:
    """fairseq's whole config, made where nothing is started."""
    with pytest.MonkeyPatch.context() as alone:
        alone.delenv("WORLD_SIZE", raising=False)
        return make_trainer(folder, **common).cfg


def _program(name: str, **known: Any) -> Any:
    """The main function of one of fairseq's programs, which are not imported here."""
    known["__file__"] = f"/fairseq_cli/{name}.py"
    exec("def main(cfg): return work(cfg)", known)
    return known["main"]


def read_one_shard(folder: Path, patch: Patch) -> None:
    cfg = make_trainer_config(folder, patch)
    cfg.dataset.num_shards, cfg.dataset.shard_id = 2, 1
    seen: List[Any] = []

    def work(cfg: Any) -> None:
        seen.extend(map(list, _batches(epoch=1).frozen_batches))

    distributed_utils.call_main(cfg, _program("validate", work=work))
    assert seen == [list(batch) for batch in _batches(epoch=1).frozen_batches[1::2]]
    with pytest.raises(ValueError, match="--num-shards is 2 and fairseq-train reads everything: leave it out"):
        distributed_utils.call_main(cfg, _program("train", work=work))
    cfg.dataset.shard_id = 2
    with pytest.raises(ValueError, match=r"--shard-id is 2 and --num-shards 2: .* the last one is 1"):
        distributed_utils.call_main(cfg, _program("eval_lm", work=work))


def translate_one_shard(folder: Path, patch: Patch) -> None:
    patch.setattr(commands, "_shard", (0, 1))
    for shards, wanted in ((3, (2, 3)), (1, (0, 1))):
        groups = {"dataset": {"num_shards": shards, "shard_id": shards - 1}, "task": {"_name": "nobody"}}
        with pytest.raises(AssertionError, match="Could not infer task type"):
            tasks.setup_task(OmegaConf.create(groups).task)
        assert commands._shard == wanted


def give_one_shard(folder: Path, patch: Patch) -> None:
    whole = [list(batch) for batch in _batches(epoch=1).frozen_batches]
    patch.setattr(commands, "_shard", (1, 3))
    assert [list(batch) for batch in _batches(epoch=1).frozen_batches] == whole[1::3]
    patch.setattr(commands, "_shard", (0, 99))
    with pytest.raises(ValueError, match=r"--num-shards is 99 and the data makes \d+ batches: take fewer shards"):
        _batches(epoch=1)


def read_whole_lines_of_input(folder: Path, patch: Patch) -> None:
    (folder / "text").write_bytes("\ufeffa\rb\r\n\nc\u2028d\n e".encode())
    seen: List[Any] = []
    main = _program("interactive", buffered_read=lambda name, size: [Path(name).read_text().split()], work=None)
    known = main.__globals__
    known["work"] = lambda cfg: seen.extend(known["buffered_read"](str(folder / "text"), 2))
    distributed_utils.call_main(make_trainer_config(folder, patch), main)
    assert seen == [["a\rb", ""], ["c\u2028d", "e"]]


def want_no_tpu(folder: Path, patch: Patch) -> None:
    cfg = make_trainer_config(folder, patch, bf16=True)
    cfg.common.tpu = True
    seen: List[bool] = []
    distributed_utils.call_main(cfg, lambda cfg: seen.append(cfg.common.tpu))
    assert seen == [False]


def refuse_optimizer_modes(folder: Path, patch: Patch) -> None:
    groups = {"optimizer": {"_name": "apollo"}, "distributed_training": {"ddp_backend": "fully_sharded"}, "task": {}}
    with pytest.raises(ValueError, match="--ddp-backend fully_sharded cuts tensors into pieces"):
        tasks.setup_task(OmegaConf.create(groups).task)


def refuse_unknown_names(folder: Path, patch: Patch) -> None:
    with pytest.raises(ValueError, match=r"optimizer\._name is 'nobody', which nobody registered"):
        tasks.setup_task(OmegaConf.create({"optimizer": {"_name": "nobody"}, "task": {}}).task)


def refuse_float16(folder: Path, patch: Patch) -> None:
    with pytest.raises(ValueError, match="--fp16 needs a GPU"):
        make_trainer(folder, fp16=True)


def refuse_processes_of_hydra(folder: Path, patch: Patch) -> None:
    _start_two(patch)
    with pytest.raises(ValueError, match="2 processes were started and --distributed-world-size is 1"):
        make_trainer(folder)


# decoding


def replace_aligned_words(folder: Path, patch: Patch) -> None:
    assert utils.replace_unk("a <unk>", "x y", [(0, 0), (1, 1)], {"y": "z"}, "<unk>") == "a z"
    with pytest.raises(ValueError, match="add --print-alignment"):
        utils.replace_unk("<unk>", "x y", [], {}, "<unk>")


def replace_without_a_dictionary(folder: Path, patch: Patch) -> None:
    parser = ArgumentParser()
    gen_parser_from_dataclass(parser, GenerationConfig())
    for line, want in (([], None), (["--replace-unk"], {}), (["--replace-unk", ""], {})):
        assert utils.load_align_dict(parser.parse_args(line).replace_unk) == want


def compute_attention_for_its_reader(folder: Path, patch: Patch) -> None:
    model = make_model()
    assert EnsembleModelWithAlignment([model]).models[0].decoder.need_attn
    assert not EnsembleModel([model]).models[0].decoder.need_attn and not model.decoder.need_attn


def _told(patch: Patch, side: str, method: str, *given: Any) -> List[bool]:
    """What the model's part knows of the order while fairseq's ensemble hands it on."""
    ensemble, seen = EnsembleModel([make_model()]), []
    part = getattr(ensemble.models[0], side)
    patch.setattr(part, method, lambda *_: seen.append(beams._within_sentences.get()))
    getattr(ensemble, method.removesuffix("_scripting"))(*given)
    return seen


def say_that_rows_stay(folder: Path, patch: Patch) -> None:
    assert _told(patch, "decoder", "reorder_incremental_state_scripting", [{}], torch.arange(2)) == [True]


def say_that_sentences_stay(folder: Path, patch: Patch) -> None:
    assert _told(patch, "encoder", "reorder_encoder_out", [{}], torch.arange(2)) == [True]


def find_sentences_of_diverse_beams(folder: Path, patch: Patch) -> None:
    """Sentences 40 to 42, of which the second one leaves the batch, as numbers 0 to 2."""
    found = []
    for first in (0, 40):
        diverse = DiverseBeamSearch(make_dictionary(), num_groups=2, diversity_strength=0.5)
        torch.manual_seed(0)
        numbers = torch.arange(first, first + 3)
        for step, batch in enumerate((numbers, numbers, numbers[[0, 2]])):
            scores, lprobs = torch.randn(len(batch), 4, step + 1), torch.randn(len(batch), 4, 50).log_softmax(-1)
            found.append(diverse.step(step, lprobs, scores, None, batch))
    for one, other in zip(found[:3], found[3:], strict=True):
        assert all(map(torch.equal, one, other))


def leave_no_local_function(folder: Path, patch: Patch) -> None:
    model = make_model()
    model.make_generation_fast_()
    assert pickle.loads(pickle.dumps(model.train))(False) is None
    with pytest.raises(RuntimeError, match="cannot be trained"):
        model.train()


def look_up_what_is_there(folder: Path, patch: Patch) -> None:
    state = StatefulContainer()
    state.add_factory("a", int)
    again = copy.copy(state)
    assert again.a == 0 and not hasattr(again, "b")


# evaluation


def refuse_what_is_no_dictionary(folder: Path, patch: Patch) -> None:
    patch.setattr(evaluation, "_asked", {})
    groups = {"common_eval": {"model_overrides": "{'dropout': "}, "task": {}}
    with pytest.raises(ValueError, match=r"^--model-overrides is {'dropout': : write a dictionary of options by"):
        tasks.setup_task(OmegaConf.create(groups).task)
    groups = {"common_eval": {"model_overrides": "{'dropout': 0.5}"}, "task": {"_name": "nobody"}}
    with pytest.raises(AssertionError, match="Could not infer task type"):
        tasks.setup_task(OmegaConf.create(groups).task)
    assert evaluation._asked == {"dropout": 0.5}


def refuse_what_is_no_dictionary_to_validate(folder: Path, patch: Patch) -> None:
    cfg = make_trainer_config(folder, patch)
    cfg.common_eval.model_overrides = "[1]"
    with pytest.raises(ValueError, match=r"^--model-overrides is \[1\]: write a dictionary of options by"):
        distributed_utils.call_main(cfg, lambda cfg: None)


def _load_with_overrides(folder: Path, patch: Patch, overrides: Any, task: Any = None) -> Any:
    path = save(trained(folder), folder / "x.pt")
    patch.setattr(evaluation, "_asked", dict(overrides))
    model = make_trainer(folder).model
    task = task or SimpleNamespace(build_model=lambda cfg: model, load_state_dict=lambda state: None)
    return checkpoint_utils.load_model_ensemble([path], overrides, task)


def note_known_overrides(folder: Path, patch: Patch) -> None:
    cfg = _load_with_overrides(folder, patch, {"no_last_checkpoints": True, "common": {"seed": 3}})[1]
    assert evaluation._asked == {} and cfg.common.seed == 3 and cfg.checkpoint.no_last_checkpoints


def refuse_unknown_overrides(folder: Path, patch: Patch) -> None:
    for overrides, said in (
        ({"no_progres_bar": True}, r"names no_progres_bar, which is no option of .*x\.pt: did you mean no_progress"),
        ({"common": {"sed": 3}}, "names common.sed, which is no option of the group common .*: did you mean seed"),
        ({"common": 3}, "names common, which is no option of .*: give its options, by their names"),
    ):
        with pytest.raises(CheckpointMismatch, match=said):
            _load_with_overrides(folder, patch, overrides)
    task = SimpleNamespace(build_model=lambda cfg: _OtherDictionary(4), load_state_dict=lambda state: None)
    with pytest.raises(CheckpointMismatch, match=r"do not fit the model that --model-overrides {'seed': 3} makes"):
        _load_with_overrides(folder, patch, {"seed": 3}, task)


def explain_a_language_model(folder: Path, patch: Patch) -> None:
    path = save(trained(folder), folder / "x.pt")
    patch.setattr(evaluation, "_asked", {})

    def load(error: Exception) -> None:
        def build(*args: Any, **kwargs: Any) -> None:
            raise error

        patch.setattr(checkpoint_utils, "load_model_ensemble_and_task", build)
        checkpoint_utils.load_model_ensemble([path], {"data": str(folder)})

    with pytest.raises(FileNotFoundError, match=f"^{folder}/dict.txt does not exist, and is where the dict"):
        load(FileNotFoundError("dict.txt"))
    message = (
        "size mismatch for decoder.embed_tokens.weight: copying a param with shape torch.Size([50, 8]) from "
        "checkpoint, the shape in current model is torch.Size([47, 8])"
    )
    said = f"^--lm-path {path} was trained with a dictionary of 50 symbols and {folder}/dict.txt has 47: copy"
    with pytest.raises(CheckpointMismatch, match=said):
        load(RuntimeError(message))
    os.remove(path)
    with pytest.raises(FileNotFoundError, match=f"there is no checkpoint {path}: correct --lm-path"):
        load(OSError(f"Model file not found: {path}"))


def compare_with_the_language_model(folder: Path, patch: Patch) -> None:
    task = make_task(make_dictionary(9))
    task.cfg = SimpleNamespace(data=str(folder), target_lang="de")
    (folder / "dict.de.txt").touch()
    other = make_dictionary(9)
    other.symbols[7:9] = other.symbols[8], other.symbols[7]
    model = make_model()

    def build(lm: Any) -> Any:
        more = None if lm is None else {"lm_model": lm}
        args = Namespace(lm_path="lm.pt")
        return FairseqTask.build_generator(task, [model], args, extra_gen_cls_kwargs=more)

    for dictionary, said in (
        (make_dictionary(8), f"^{folder}/dict.txt has 12 symbols and {folder}/dict.de.txt has 13: --lm-path lm.pt"),
        (other, f"^symbol 7 of {folder}/dict.txt is 'w4' and that of {folder}/dict.de.txt is 'w3': --lm-path lm.pt"),
    ):
        with pytest.raises(CheckpointMismatch, match=said):
            build(_language_model(dictionary))
    with pytest.raises(CheckpointMismatch, match=r"--lm-path lm\.pt holds a LunaModel and no language model"):
        build(model)
    with pytest.raises(ValueError, match=r"^--lm-path is lm\.pt and only fairseq-generate takes"):
        build(None)
    assert build(_language_model(make_dictionary(9))).lm_model is not None
    scored = Namespace(lm_path="lm.pt", score_reference=True)
    with pytest.raises(ValueError, match=r"^--lm-path is lm\.pt and --score-reference scores by the model alone"):
        FairseqTask.build_generator(task, [model], scored)


def _generator_without_a_language_model(task: type, name: str) -> None:
    dictionary = make_dictionary(9)
    own = SimpleNamespace(target_dictionary=dictionary, tgt_dict=dictionary, args=Namespace(target_lang="de"))
    build = functools.partial(task.build_generator, own, [make_model()])  # type: ignore[attr-defined]
    more = {"lm_model": _language_model(dictionary), "lm_weight": 0.5}
    with pytest.raises(ValueError, match=rf"^--lm-path is lm\.pt and --task {name} takes no language model"):
        build(Namespace(lm_path="lm.pt"), extra_gen_cls_kwargs=more)
    assert build(Namespace(lm_path=None), extra_gen_cls_kwargs=None) is not None


def refine_without_a_language_model(folder: Path, patch: Patch) -> None:
    _generator_without_a_language_model(TranslationLevenshteinTask, "translation_lev")


def translate_without_a_language_model(folder: Path, patch: Patch) -> None:
    _generator_without_a_language_model(TranslationFromPretrainedBARTTask, "translation_from_pretrained_bart")


def _language_model(dictionary: Dictionary) -> Any:
    return models.FairseqLanguageModel(models.FairseqDecoder(dictionary))


def refuse_blocks_beyond_the_positions(folder: Path, patch: Patch) -> None:
    make_dictionary(9).save(str(folder / "dict.txt"))
    task = LanguageModelingTask(Namespace(tokens_per_sample=20, carry_state=False), make_dictionary(9))
    patch.setattr(LanguageModelingTask, "get_batch_iterator", lambda *_, **__: SimpleNamespace(next_epoch_itr=dict))

    def load(longest: int, **options: Any) -> Any:
        dataset = SimpleNamespace(sizes=np.array([3, longest]))
        return task.eval_lm_dataloader(dataset, **{"max_positions": 16, **options})

    said = "^--tokens-per-sample is 20 and the model has 16 positions, so that .*: give --tokens-per-sample 16$"
    with pytest.raises(DataError, match=said):
        load(20)
    task.args.carry_state = True
    with pytest.raises(DataError, match="give --tokens-per-sample 16, which loses nothing: with --carry-state each"):
        load(20)
    load(16)  # sentences
    task.args.tokens_per_sample = 16
    load(20)  # a sentence that fairseq leaves out, and says so
    with pytest.raises(DataError, match=r"^--tokens-per-sample is 20 "):
        load(16, context_window=4)


def take_the_text_before(folder: Path, patch: Patch) -> None:
    """Whatever this process has read, or has not: a worker or a shard has every so manieth batch."""
    dictionary = make_dictionary(40)
    text = torch.arange(4, 40)
    blocks = TokenBlockDataset([text], [len(text)], 3, pad=1, eos=2, break_mode="none", include_targets=True)
    lines = MonolingualDataset(blocks, blocks.sizes, dictionary, dictionary, targets=["future"])
    windows = LMContextWindowDataset(lines, 3, 4, pad_idx=1)
    for first in (6, 0, 8, 1, 6):
        batch = windows.collater([windows[first], windows[first + 1]])
        for row, block in enumerate((first, first + 1)):
            begins, ends = max(0, 3 * block - 4), 3 * block + 3
            source = torch.cat([torch.tensor([2]), text])[begins:ends].tolist()
            assert batch["net_input"]["src_tokens"][row].tolist()[: len(source)] == source, f"block {block}"
            assert batch["start_indices"][row] == 3 * block - begins
    assert windows.collater([]) == {}, "a shard that has one batch less"


def refuse_to_score_nothing(folder: Path, patch: Patch) -> None:
    def make(examples: int) -> Any:
        return EpochBatchIterator([0] * examples, collate_fn=list, batch_sampler=[])

    patch.setattr(torch.utils.data, "Dataset", list)
    make(0)  # what trains has its own way
    for examples, said in ((0, "the data has no examples; name"), (3, "all 3 examples of the data are longer than")):
        with pytest.raises(DataError, match=f"^there is nothing to score: {said}"):
            _program_at("generate", functools.partial(make, examples))


def _program_at(name: str, work: Callable[[], Any]) -> Any:
    """Call a function within one of fairseq's programs, which are not imported here."""
    known: Dict[str, Any] = {"work": work}
    exec(compile("def main(): return work()", f"/fairseq_cli/{name}.py", "exec"), known)
    return known["main"]()


def refuse_a_perplexity_of_nothing(folder: Path, patch: Patch) -> None:
    from fairseq_cli import eval_lm

    model = torch.nn.Linear(1, 1)
    with pytest.raises(DataError, match=r"^no token was scored: name a split with text, or take"):
        eval_lm.eval_lm([model], make_dictionary(), [])


# ending


class _Listing:
    """Learns what is to be called at the end of the process: ``atexit.unregister`` compares it with all of that."""

    def __init__(self) -> None:
        self.found: List[Callable[[], None]] = []

    def __eq__(self, other: Any) -> bool:
        self.found.append(other)
        return False

    __hash__ = None  # type: ignore[assignment]


def stop_loader_threads(folder: Path, patch: Patch) -> None:
    buffered = BufferedIterator(2, [torch.ones(1)] * 1000)
    next(buffered)
    thread: threading.Thread = buffered._consumer
    try:
        _end_of_the_process()
        assert not thread.is_alive()
    finally:
        for _ in buffered:
            pass


def _end_of_the_process() -> None:
    listing = _Listing()
    atexit.unregister(listing)  # type: ignore[arg-type]
    for function in listing.found:
        if function.__module__ == "luna_fairseq.compat.ending":
            function()


def _trained_together(folder: Path, patch: Patch) -> None:
    patch.setattr(sys, "excepthook", sys.excepthook)  # torch puts one of its own around it, and leaves it there
    patch.setattr(ending, "_together", False)
    cfg = OmegaConf.structured(FairseqConfig(model={}))
    cfg.distributed_training.distributed_world_size, cfg.distributed_training.distributed_rank = 1, 0
    cfg.distributed_training.distributed_init_method = f"file://{folder}/store"
    cfg.distributed_training.distributed_backend = "gloo"
    distributed_utils.distributed_main(0, lambda cfg: None, cfg, {})


def end_distributed_threads(folder: Path, patch: Patch) -> None:
    try:
        _trained_together(folder, patch)
        _end_of_the_process()
        assert not torch.distributed.is_initialized()
    finally:
        _forget_the_group()


def note_the_end_of_all(folder: Path, patch: Patch) -> None:
    try:
        _trained_together(folder, patch)
        assert ending._together
    finally:
        _forget_the_group()


def _forget_the_group() -> None:
    vars(distributed_utils.get_global_group).pop("_global_group", None)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# locking


def lock_the_save_dir(folder: Path, patch: Patch) -> None:
    cfg = make_trainer(folder).cfg
    (folder / ".checkpoint_last.pt.tmp-elsewhere-1-0123abcd").touch()
    patch.setattr(locking, "_held", {})
    patch.setattr(signals, "_watch", None)
    _start_of_a_training(cfg)
    try:
        assert [path.name for path in folder.iterdir()] == [locking.NAME]
        patch.setattr(locking, "_held", {})
        with pytest.raises(FolderInUse, match=f"process {os.getpid()} on "):
            _start_of_a_training(cfg)
    finally:
        locking._forget()


def _start_of_a_training(cfg: Any) -> None:
    from fairseq_cli import train

    try:
        train.add_defaults(cfg)
    finally:
        if signals._watch is not None:
            signals._watch.end()


# signals


def refuse_an_unknown_config(folder: Path, patch: Patch) -> None:
    (folder / "translation.yaml").write_text("")
    runtime = {"config_sources": [{"path": str(folder), "schema": "file", "provider": "main"}]}
    state = SimpleNamespace(
        cfg=OmegaConf.create({"hydra": {"job": {"config_name": "translation"}, "runtime": runtime}})
    )
    patch.setattr(HydraConfig, "instance", lambda: state)
    cfg = make_trainer(folder).cfg
    cfg.checkpoint.no_save = True
    _start_of_a_training(cfg)
    state.cfg.hydra.job.config_name = "transaltion"
    with pytest.raises(ValueError, match=f"^there is no transaltion.yaml in {folder}: did you mean translation"):
        _start_of_a_training(cfg)


def listen_to_signals(folder: Path, patch: Patch) -> None:
    cfg = make_trainer(folder).cfg
    cfg.checkpoint.no_save = True
    patch.setattr(signals, "_watch", None)
    heard: List[Any] = []
    patch.setattr(signals.Watch, "begin", lambda watch: heard.append(watch))
    _start_of_a_training(cfg)
    assert heard == [signals._watch] != [None]


def _watch(patch: Patch, heard: int) -> signals.Watch:
    watch = signals.Watch()
    watch.heard = heard
    patch.setattr(signals, "_watch", watch)
    return watch


def agree_on_the_end(folder: Path, patch: Patch) -> None:
    watch = _watch(patch, heard=signal.SIGTERM)
    trainer = make_trainer(folder)
    trainer.task = type("Task", (), {"logging_outputs_can_be_summed": lambda criterion: True})()
    patch.setattr(Trainer, "_fast_stat_sync_sum", lambda self, logs, *sums, ignore: (logs, list(sums)))
    assert trainer._aggregate_logging_outputs([], 3) == ([], [3])
    assert watch.votes == [signal.SIGTERM, 1]


def _end_of_an_update(folder: Path, **options: Any) -> Any:
    """What fairseq does after it; before another epoch's."""
    from fairseq_cli import train

    trainer = trained(folder)
    trainer.cfg.checkpoint.update(options)
    trainer.cfg.dataset.disable_validation = True
    place = SimpleNamespace(epoch=1, next_epoch_idx=2, end_of_epoch=lambda: True, state_dict=lambda: {"epoch": 2})
    return lambda end: train.validate_and_save(trainer.cfg, trainer, trainer.task, place, [], end)


def note_the_save(folder: Path, patch: Patch) -> None:
    watch = _watch(patch, heard=0)
    _end_of_an_update(folder)(True)
    assert watch.saved == watch.updates == 1


def end_after_the_update(folder: Path, patch: Patch) -> None:
    _watch(patch, heard=signal.SIGTERM)
    update = _end_of_an_update(folder)
    with pytest.raises(SystemExit) as seen:
        update(False)
    assert seen.value.code == 143 and (folder / "checkpoint_last.pt").exists()


def end_with_the_epoch(folder: Path, patch: Patch) -> None:
    from fairseq_cli import train

    _watch(patch, heard=signal.SIGTERM).stop = signal.SIGTERM
    trainer = make_trainer(folder, no_progress_bar=True)
    batches = CountingIterator([make_sample()])
    place = SimpleNamespace(epoch=1, next_epoch_idx=1, next_epoch_itr=lambda **kwargs: batches)
    patch.setattr(Trainer, "begin_epoch", lambda self, epoch: None)
    patch.setattr(train, "validate_and_save", lambda *args: ([None], False))
    with pytest.raises(SystemExit):
        train.train(trainer.cfg, trainer, trainer.task, place)


def obey_the_training_alone(folder: Path, patch: Patch) -> None:
    _watch(patch, heard=0)
    patch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=12))
    obeyed: List[int] = []
    patch.setattr(signals, "_leave_signals_to", obeyed.append)
    worker.ManagerWatchdog()
    assert obeyed == [12]


def start_undisturbed(folder: Path, patch: Patch) -> None:
    _watch(patch, heard=0)

    # Before the worker listens; one that nohup does not ignore.
    def end(_: int) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    loader = DataLoader(range(4), num_workers=1, worker_init_fn=end, multiprocessing_context="fork")  # type: ignore[arg-type]
    assert len(list(loader)) == 4


def pass_signals_on(folder: Path, patch: Patch) -> None:
    cfg = make_trainer_config(folder, patch)
    cfg.distributed_training.update({"distributed_world_size": 2, "distributed_init_method": "tcp://localhost:1"})
    patch.setattr(torch.cuda, "device_count", lambda: 2)

    def spawn(**kwargs: Any) -> None:
        assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
        signal.raise_signal(signal.SIGUSR1)
        raise RuntimeError("process 0 terminated with exit code 138")

    patch.setattr(torch.multiprocessing, "spawn", spawn)
    with pytest.raises(SystemExit) as seen:
        distributed_utils.call_main(cfg, lambda cfg: None)
    assert seen.value.code == 128 + signal.SIGUSR1


# tasks


def keep_both_names(folder: Path, patch: Patch) -> None:
    dictionaries = [make_dictionary(9) for _ in range(2)]
    options = Namespace(langs="a,b", data=str(folder), left_pad_source=True, left_pad_target=False)
    assert TranslationFromPretrainedBARTTask(options, *dictionaries).args is options


def begin_sums(folder: Path, patch: Patch) -> None:
    task = SemisupervisedTranslationTask.__new__(SemisupervisedTranslationTask)
    patch.setattr(task, "lang_pairs", ["a-b", "b-a"], raising=False)
    for name, weight in (("parallel", 1.0), ("otf_bt", 0.0), ("denoising", 0.0)):
        patch.setattr(task, f"lambda_{name}", weight, raising=False)
    model = SimpleNamespace(train=lambda: None, models={"a-b": None, "b-a": None})
    sample = {"a-b": {"x": 1}, "b-a": {"x": 1}}

    def criterion(*_: Any) -> Any:
        return torch.tensor(2.0), 3, {"loss": 2.0, "ntokens": 3}

    optimizer = SimpleNamespace(backward=lambda loss: None)
    done = task.train_step(sample, model, criterion, optimizer, 0)
    assert done == (4.0, 6, {"loss": 4.0, "ntokens": 6})


def want_an_architecture_for_pairs(folder: Path, patch: Patch) -> None:
    task = MultilingualTranslationTask(Namespace(lang_pairs=["a-b"]), {}, training=True)
    with pytest.raises(ValueError, match=r"--arch is luna and .* take --arch multilingual_luna or"):
        task.build_model(OmegaConf.create({"_name": "luna"}))


# options


def keep_backslashes(folder: Path, patch: Patch) -> None:
    for name in ("/it\\'s", "/\\\\'", "/ends\\", "/it's \\ [b], {c}=ü"):
        given = Namespace(save_dir=name, restore_file="x", data=name, task="translation")
        config = convert_namespace_to_omegaconf(given)
        assert (config.checkpoint.save_dir, config.task.data) == (name, name)


def evaluate_data_only(folder: Path, patch: Patch) -> None:
    assert vars(fconv)["eval"]("[(512, 3)] * 2") == [(512, 3), (512, 3)]
    with pytest.raises(ValueError, match="was not evaluated"):
        utils.eval_bool("exit")


# tasks with their data checked


def CheckedTranslationTask(folder: Path, patch: Patch) -> None:
    with pytest.raises(FileNotFoundError, match="data folder /nowhere does not exist"):
        tasks.setup_task(OmegaConf.structured(TranslationConfig(_name="translation", data="/nowhere")))


def CheckedMaskedLMTask(folder: Path, patch: Patch) -> None:
    with pytest.raises(FileNotFoundError, match="data folder /nowhere does not exist"):
        tasks.setup_task(OmegaConf.structured(MaskedLMConfig(_name="masked_lm", data="/nowhere")))


def CheckedSentencePredictionTask(folder: Path, patch: Patch) -> None:
    options: Any = SentencePredictionConfig(_name="sentence_prediction", data="/nowhere")
    with pytest.raises(ValueError, match="--num-classes is -1: say how many"):
        tasks.setup_task(OmegaConf.structured(options))


def CheckedSentenceRankingTask(folder: Path, patch: Patch) -> None:
    with pytest.raises(ValueError, match="--num-classes is 1: say how many candidates"):
        tasks.setup_task(
            Namespace(task="sentence_ranking", criterion="sentence_ranking", data="/nowhere", num_classes=1)
        )
