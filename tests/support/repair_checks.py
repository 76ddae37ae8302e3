"""For every repair of ``luna_fairseq.compat`` a function of its name that fails where the repair is switched off.

Each gets an empty folder, and a patch that is taken back when it ends.
"""

import atexit
import functools
import json
import logging
import math
import multiprocessing
import os
import subprocess
import sys
import threading
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable, Dict, List, Optional

import numpy as np
import pytest
import torch
import torch.distributed
from fairseq import checkpoint_utils, tasks, utils
from fairseq.data import (
    Dictionary,
    FairseqDataset,
    LanguagePairDataset,
    LRUCacheDataset,
    TokenBlockDataset,
    data_utils,
)
from fairseq.data.iterators import BufferedIterator
from fairseq.dataclass import utils as dataclass_utils
from fairseq.distributed import utils as distributed_utils
from fairseq.file_io import PathManager
from fairseq.models import distributed_fairseq_model, fconv
from fairseq.optim import AMPOptimizer
from fairseq.optim.sgd import SGD
from fairseq.tasks import FairseqTask
from fairseq.tasks.masked_lm import MaskedLMConfig
from fairseq.tasks.sentence_prediction import SentencePredictionConfig
from fairseq.tasks.translation import TranslationConfig
from hydra._internal import utils as hydra_utils
from omegaconf import OmegaConf
from torch.utils.data._utils import worker

from luna_fairseq.compat import REPAIRS
from luna_fairseq.errors import CheckpointError, CheckpointMismatch, DataError
from support.evil import Evil
from support.models import make_dictionary, make_sentences
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
    return {"hide_warnings": not printed, "keep_the_root_logger": logging.getLogger().level != logging.DEBUG}

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
    patch.setattr(logging.getLogger(), "level", logging.DEBUG)
    for name, level in (("fairseq.tasks.text_to_speech", logging.INFO), ("hydra", logging.DEBUG)):
        logger = logging.getLogger(name)
        patch.setattr(logger, "_cache", {})
        assert not logger.isEnabledFor(level)


def keep_the_root_logger(folder: Path, patch: Patch) -> None:
    assert _works_in_a_fresh_process("keep_the_root_logger")


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


def compare_checksums(folder: Path, patch: Patch) -> None:
    state = torch.load(save(trained(folder), folder / "x.pt"))
    weights = state["model"]["linear.weight"].numpy().tobytes()
    content = bytearray((folder / "x.pt").read_bytes())
    content[content.find(weights) + 1] ^= 1
    (folder / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="is cut short or damaged"):
        checkpoint_utils.load_checkpoint_to_cpu(str(folder / "x.pt"))


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
    (folder / "checkpoint1.pt").touch()
    trainer = make_trainer(folder)
    asked: List[str] = []
    patch.setattr(trainer, "load_checkpoint", lambda path, *args, **kwargs: asked.append(path), raising=False)
    patch.setattr(trainer, "get_train_iterator", lambda **kwargs: SimpleNamespace(epoch=1), raising=False)
    checkpoint_utils.load_checkpoint(trainer.cfg.checkpoint, trainer)
    assert asked == [str(folder / "checkpoint1.pt")]


def refuse_a_missing_file(folder: Path, patch: Patch) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pt: correct --restore-file"):
        make_trainer(folder).load_checkpoint(str(folder / "nowhere.pt"))


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


def break_at_sentences(folder: Path, patch: Patch) -> None:
    lines = make_sentences([5, 9])
    blocks = TokenBlockDataset(lines, [5, 9], block_size=None, pad=1, eos=2, break_mode="eos")
    assert [len(block) for block in blocks] == [5, 9]


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
    assert (counted.best, counted.num_runs, trainer.cfg.optimization.max_epoch) == (1.25, 3, 0)
    trainer.cfg.checkpoint.patience = 3
    trainer.load_checkpoint(path)
    assert trainer.cfg.optimization.max_epoch == -1


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
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = distributed_fairseq_model.DistributedDataParallel(
            torch.nn.Linear(2, 1), device_ids=[0], output_device=0
        )
        assert model.device_ids is None
    finally:
        torch.distributed.destroy_process_group()


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
    listing = _Listing()
    atexit.unregister(listing)  # type: ignore[arg-type]
    try:
        for function in listing.found:
            if function.__module__ == "luna_fairseq.compat.ending":
                function()
        assert not thread.is_alive()
    finally:
        for _ in buffered:
            pass


# options


def evaluate_data_only(folder: Path, patch: Patch) -> None:
    assert vars(fconv)["eval"]("[(512, 3)] * 2") == [(512, 3), (512, 3)]
    with pytest.raises(ValueError, match="was not evaluated"):
        utils.eval_bool("exit")


# tasks


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
