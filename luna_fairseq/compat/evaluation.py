"""Evaluation: what is asked for is understood and belongs together, and something is scored."""

import argparse
import ast
import contextvars
import difflib
import os
import re
import sys
from typing import Any, Dict, List, NoReturn, Optional, Set

from luna_fairseq.compat._replace import named, replaces
from luna_fairseq.compat.data import file_of
from luna_fairseq.compat.matching import rows_that_differ
from luna_fairseq.errors import CheckpointMismatch, DataError

# What --model-overrides of this program says, and no checkpoint has known yet.
_asked: Dict[str, Any] = {}
# What our own models say of another dictionary, which name no file.
_OURS = re.compile(r"number of symbols is (\d+) here and (\d+) in the checkpoint")
# The names of all options of the checkpoints that are being loaded, if anything is asked.
_known: contextvars.ContextVar[Optional[Set[str]]] = contextvars.ContextVar("_known", default=None)


def read_overrides(text: Any) -> Dict[str, Any]:
    """What an option ``--model-overrides`` says.

    Args:
        text: such as ``{'dropout': 0.0}``.

    Raises:
        ValueError: if it is no dictionary of plain values by the names of options.
    """
    try:
        found = ast.literal_eval(text)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise ValueError(
            f"--model-overrides is {text}: write a dictionary of options by their names, such as "
            "\"{'decoder_layerdrop': 0.0}\""
        )
    return found


def _note_overrides(root: Any) -> None:
    """Read the option from fairseq's whole config, if it has that."""
    options = root.get("common_eval") if hasattr(root, "get") else None
    if options is not None and "model_overrides" in options:
        overrides = read_overrides(options.model_overrides)
        _asked.clear()
        _asked.update(overrides)


@replaces(
    "fairseq.tasks",
    "setup_task",
    fairseq="ends with a traceback where --model-overrides is no dictionary: in translating, and in fairseq-eval-lm",
    here="the option is shown, with one that would do",
    since="fairseq 0.12.3",
)
def refuse_what_is_no_dictionary(original: Any, cfg: Any, **kwargs: Any) -> Any:
    """Each of them sets up its task before it reads the option."""
    from omegaconf import OmegaConf

    if OmegaConf.is_config(cfg) and not kwargs.get("from_checkpoint"):
        _note_overrides(cfg._get_root())
    return original(cfg, **kwargs)


@replaces(
    "fairseq.distributed.utils",
    "call_main",
    fairseq="the same in fairseq-validate, which sets up the checkpoint's task, and later",
    here="the same",
    since="fairseq 0.12.3",
)
def refuse_what_is_no_dictionary_to_validate(original: Any, cfg: Any, main: Any, **kwargs: Any) -> Any:
    _note_overrides(cfg)
    return original(cfg, main, **kwargs)


def _taken(options: Any, asked: Dict[str, Any], known: Set[str]) -> Set[str]:
    """The names of what is asked that fairseq finds in options, a group of them or all.

    Args:
        options: plain.
        asked: by their names; groups as dictionaries.
        known: where all names are added.
    """
    found: Set[str] = set()
    for name, value in options.items():
        known.add(str(name))
        if isinstance(value, dict):
            part = asked.get(name)
            if isinstance(part, dict):
                _taken(value, {}, known)
                for inside in set(part) - set(value):
                    _say_unknown(f"{name}.{inside}", f"the group {name} of the checkpoint", value)
                found.add(name)
            else:
                found |= _taken(value, asked, known)
        elif isinstance(value, argparse.Namespace):  # which takes everything
            found |= set(asked)
        elif name in asked:
            found.add(name)
    return found


def _say_unknown(name: str, where: str, known: Any) -> NoReturn:
    near = difflib.get_close_matches(name.rpartition(".")[2], list(map(str, known)), 3)
    meant = f"did you mean {', '.join(near)}?" if near else "leave it out"
    if name in known:  # as a group; or it is in one that is given, too
        meant = "give its options, by their names, and each one once"
    raise CheckpointMismatch(f"--model-overrides names {name}, which is no option of {where}: {meant}")


@replaces(
    "fairseq.checkpoint_utils",
    "overwrite_args_by_name",
    fairseq="does not tell which names of --model-overrides a checkpoint has",
    here="they are noted",
    since="fairseq 0.12.3",
)
def note_known_overrides(original: Any, cfg: Any, overrides: Any) -> None:
    from omegaconf import OmegaConf

    known = _known.get()
    if known is not None:
        for name in _taken(OmegaConf.to_container(cfg), _asked, known):
            _asked.pop(name, None)
    original(cfg, overrides)


@replaces(
    "fairseq.checkpoint_utils",
    "load_model_ensemble_and_task",
    fairseq="leaves out what --model-overrides asks for by a name that it does not know, and says nothing",
    here="the name is refused, with those that are near; so is what makes a model that the weights do not fit",
    since="fairseq 0.12.3",
)
def refuse_unknown_overrides(original: Any, filenames: List[str], *args: Any, **kwargs: Any) -> Any:
    asked = named(original, filenames, *args, **kwargs)
    overrides = asked.get("arg_overrides") or {}
    if not _asked or asked.get("state") is not None or not set(_asked) <= set(overrides):
        return original(filenames, *args, **kwargs)  # nothing is asked, or by somebody else
    said = dict(_asked)
    known: Set[str] = set()
    token = _known.set(known)
    try:
        loaded = original(filenames, *args, **kwargs)
    except RuntimeError as error:
        if "loading state_dict" not in str(error):
            raise
        raise CheckpointMismatch(
            f"the weights of {' or '.join(filenames)} do not fit the model that --model-overrides {said} makes: "
            "leave out what gives them other sizes"
        ) from error
    finally:
        _known.reset(token)
    if known:  # checkpoints from before fairseq had groups of options take every name
        for name in _asked:
            _say_unknown(name, " or ".join(filenames), known)
    return loaded


def _folder_of(data: Any) -> str:
    """The first folder of fairseq's data, where its dictionaries are."""
    from fairseq import utils

    return str(utils.split_paths(str(data))[0])


@replaces(
    "fairseq.checkpoint_utils",
    "load_model_ensemble",
    fairseq="tells of a dictionary that --lm-path does not fit, or of its file that is missing, as if it were --path",
    here="--lm-path is named, and the dictionary, with both sizes",
    since="fairseq 0.12.3",
)
def explain_a_language_model(
    original: Any, filenames: List[str], arg_overrides: Any = None, task: Any = None, *args: Any, **kwargs: Any
) -> Any:
    """That of fairseq-generate is the only model which is loaded without a task, and with a folder for its data."""
    data = (arg_overrides or {}).get("data")
    try:
        return original(filenames, arg_overrides, task, *args, **kwargs)
    except (OSError, RuntimeError) as error:
        if task is not None or data is None:
            raise
        path, dictionary = filenames[0], os.path.join(_folder_of(data), "dict.txt")
        if not os.path.exists(path):
            raise FileNotFoundError(f"there is no checkpoint {path}: correct --lm-path") from error
        if isinstance(error, FileNotFoundError) and not os.path.exists(dictionary):
            raise FileNotFoundError(
                f"{dictionary} does not exist, and is where the dictionary of --lm-path {path} must be: copy there "
                "the dict.txt of its training, which is that of the target language"
            ) from error
        said = f"{error} {error.__cause__}"
        ours = _OURS.search(said)
        rows = (ours[2], ours[1]) if ours else rows_that_differ(said)
        if rows is not None:
            raise CheckpointMismatch(
                f"--lm-path {path} was trained with a dictionary of {rows[0]} symbols and {dictionary} has {rows[1]}"
                ": copy there the dict.txt of its training, which must be that of the target language"
            ) from error
        raise


def check_language_model(task: Any, model: Any, path: str) -> None:
    """Refuse a language model with which a translation cannot be scored symbol by symbol.

    Args:
        task: of the translation.
        model: the language model.
        path: of its checkpoint.

    Raises:
        CheckpointMismatch: with both dictionaries, or if it is another model.
    """
    from fairseq.models import FairseqLanguageModel

    if not isinstance(model, FairseqLanguageModel):
        raise CheckpointMismatch(
            f"--lm-path {path} holds a {type(model).__name__} and no language model: name one that was trained by "
            "--task language_modeling"
        )
    own, target = getattr(model.decoder, "dictionary", None), task.target_dictionary
    if own is None:
        return
    options = getattr(task, "cfg", None) or getattr(task, "args", None)
    folder = _folder_of(getattr(options, "data", "") or ".")
    language = os.path.join(folder, f"dict.{getattr(options, 'target_lang', None)}.txt")
    files = [os.path.join(folder, "dict.txt"), language if os.path.exists(language) else "that of the target"]
    advice = f"--lm-path {path} must be trained with the dictionary of the target (--srcdict of fairseq-preprocess)"
    if len(own) != len(target):
        raise CheckpointMismatch(f"{files[0]} has {len(own)} symbols and {files[1]} has {len(target)}: {advice}")
    for number in range(len(own)):
        if own[number] != target[number]:
            found = f"{own[number]!r} and that of {files[1]} is {target[number]!r}"
            raise CheckpointMismatch(f"symbol {number} of {files[0]} is {found}: {advice}")


@replaces(
    "fairseq.tasks.fairseq_task.FairseqTask",
    "build_generator",
    fairseq="adds a language model's scores to those of other symbols; fairseq-interactive ignores --lm-path",
    here="dictionaries that differ are refused, with both; so is --lm-path where nobody loads it",
    since="fairseq 0.12.3",
)
def compare_with_the_language_model(
    original: Any, self: Any, models: Any, args: Any, *more: Any, **kwargs: Any
) -> Any:
    asked = named(original, self, models, args, *more, **kwargs)
    model, path = (asked.get("extra_gen_cls_kwargs") or {}).get("lm_model"), getattr(args, "lm_path", None)
    if path and getattr(args, "score_reference", False):
        raise ValueError(f"--lm-path is {path} and --score-reference scores by the model alone: leave one out")
    if model is not None:
        check_language_model(self, model, str(path))
    elif path:
        raise ValueError(f"--lm-path is {path} and only fairseq-generate takes a language model: leave it out here")
    return original(self, models, args, *more, **kwargs)


def _without_a_language_model(task: str, original: Any, self: Any, models: Any, args: Any, **kwargs: Any) -> Any:
    if getattr(args, "lm_path", None):
        raise ValueError(f"--lm-path is {args.lm_path} and --task {task} takes no language model: leave it out")
    return original(self, models, args, **kwargs)


@replaces(
    "fairseq.tasks.translation_lev.TranslationLevenshteinTask",
    "build_generator",
    fairseq="ignores --lm-path",
    here="the option is refused",
    since="fairseq 0.12.3",
)
def refine_without_a_language_model(original: Any, *args: Any, **kwargs: Any) -> Any:
    return _without_a_language_model("translation_lev", original, *args, **kwargs)


@replaces(
    "fairseq.tasks.translation_from_pretrained_bart.TranslationFromPretrainedBARTTask",
    "build_generator",
    fairseq="ignores --lm-path",
    here="the option is refused",
    since="fairseq 0.12.3",
)
def translate_without_a_language_model(original: Any, *args: Any, **kwargs: Any) -> Any:
    return _without_a_language_model("translation_from_pretrained_bart", original, *args, **kwargs)


@replaces(
    "fairseq.tasks.language_modeling.LanguageModelingTask",
    "eval_lm_dataloader",
    fairseq="leaves out blocks longer than the model's positions: fairseq-eval-lm scores the rest, or finds 1",
    here="--tokens-per-sample is refused, with the positions",
    since="fairseq 0.12.3",
)
def refuse_blocks_beyond_the_positions(original: Any, self: Any, dataset: Any, *args: Any, **kwargs: Any) -> Any:
    asked = named(original, self, dataset, *args, **kwargs)
    positions, window = asked.get("max_positions"), asked.get("context_window", 0)
    length = self.args.tokens_per_sample + window  # fairseq has taken it off
    longest = int(max(dataset.sizes, default=0)) + window  # sentences may all be shorter
    if isinstance(positions, int) and min(length, longest) > positions:
        advice = f"give --tokens-per-sample {positions}"
        if getattr(self.args, "carry_state", False):
            advice += ", which loses nothing: with --carry-state each block has all of the text before it"
        raise DataError(
            f"--tokens-per-sample is {length} and the model has {positions} positions, so that such blocks would be "
            f"left out: {advice}"
        )
    return original(self, dataset, *args, **kwargs)


@replaces(
    "fairseq.data.lm_context_window_dataset.LMContextWindowDataset",
    "collater",
    fairseq="takes for a context window what its process has read last: other text with several workers or shards",
    here="it is the text before the block; a shard without a last batch ends",
    since="fairseq 0.12.3",
)
def take_the_text_before(original: Any, self: Any, samples: List[Any]) -> Any:
    """Blocks of a batch follow each other; batches do only where one process reads all of them."""
    import numpy as np

    if not samples:
        return {}
    before: List[Any] = []
    block = int(samples[0]["id"])
    while block > 0 and sum(map(len, before)) < self.context_window:
        block -= 1
        before.insert(0, self.dataset[block]["source"].numpy())
    self.prev_tokens = np.concatenate([np.empty(0, dtype=np.int64), *before])[-self.context_window :]
    return original(self, samples)


_EVALUATIONS = tuple(os.path.join("fairseq_cli", f"{name}.py") for name in ("eval_lm", "generate", "validate"))


def _evaluates() -> bool:
    """Whether fairseq's evaluation is at work in this process."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in ("main", "_main") and frame.f_code.co_filename.endswith(_EVALUATIONS):
            return True
        frame = frame.f_back
    return False


@replaces(
    "fairseq.data.iterators.EpochBatchIterator",
    "__init__",
    fairseq="divides by 0, or shows a number, where a split is empty or all of it was left out as too long",
    here="there is nothing to score, and this is said",
    since="fairseq 0.12.3",
)
def refuse_to_score_nothing(original: Any, self: Any, dataset: Any, *args: Any, **kwargs: Any) -> None:
    original(self, dataset, *args, **kwargs)
    if _evaluates() and len(self.frozen_batches) == 0:
        name, examples = file_of(getattr(dataset, "src", dataset)) or "the data", len(dataset)
        if examples == 0:
            raise DataError(f"there is nothing to score: {name} has no examples; name another split")
        raise DataError(
            f"there is nothing to score: all {examples} examples of {name} are longer than the model's positions; "
            "take another split, or cut them"
        )


@replaces(
    "fairseq_cli.eval_lm",
    "eval_lm",
    fairseq="says that the perplexity is 1 where no token was scored",
    here="it is an error",
    since="fairseq 0.12.3",
)
def refuse_a_perplexity_of_nothing(original: Any, *args: Any, **kwargs: Any) -> Any:
    import torch

    results = original(*args, **kwargs)
    if not isinstance(results["loss"], torch.Tensor):  # fairseq's 0 for a sum of nothing
        raise DataError("no token was scored: name a split with text, or take fewer shards")
    return results
