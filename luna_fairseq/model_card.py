"""A model card: what a checkpoint is and how good it is, in Markdown beside it.

The command writes between two marks; what stands outside of them is somebody's own, and stays.
"""

import json
import platform
import re
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import fairseq
import torch
from fairseq.models import MODEL_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from luna_fairseq._version import __version__
from luna_fairseq.checkpoint_files import open_whole
from luna_fairseq.console import one_line
from luna_fairseq.errors import CheckpointError

START = "<!-- luna-fairseq writes from here ... -->"
END = "<!-- ... to here. What stands before and after is yours and stays. -->"
_SCORE = re.compile(r"^- (?P<test_set>[^:]+): (?P<metric>\S+) (?P<value>\S+)(?:, `(?P<signature>.+)`)?$", re.M)


class Score(NamedTuple):
    """A score on a test set, as the card has it.

    Attributes:
        test_set: such as ``newstest2014``.
        metric: such as ``BLEU``; without blanks.
        value: the number, as it was given.
        signature: sacreBLEU's, or nothing.
    """

    test_set: str
    metric: str
    value: str
    signature: str = ""

    def __str__(self) -> str:
        return f"- {self.test_set}: {self.metric} {self.value}" + (f", `{self.signature}`" if self.signature else "")


def parse_scores(given: str, test_set: str) -> List[Score]:
    """The scores of one ``--score``.

    Args:
        given: a file that ``sacrebleu`` has printed (JSON, one score or a list), or ``METRIC VALUE [SIGNATURE]``.
        test_set: what they were measured on.

    Raises:
        ValueError: if it is neither, or the test set's name cannot be told from the score.
    """
    if not re.fullmatch(r"[^:\n]*[^:\s]", test_set):
        raise ValueError(f"--test-set is {test_set!r}: give a name without a colon")
    if Path(given).is_file():
        try:
            found = json.loads(Path(given).read_text(encoding="utf-8"))
            found = found if isinstance(found, list) else [found]
            scores = [Score(test_set, one["name"], str(one["score"]), one.get("signature", "")) for one in found]
            if not all(_SCORE.fullmatch(str(score)) and "<!--" not in str(score) for score in scores):
                raise ValueError("a line of a card cannot hold it")
            return scores
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{given} holds no score as sacrebleu prints it (JSON with name, score and signature): give "
                "'METRIC VALUE SIGNATURE' instead of the file"
            ) from error
    match = re.fullmatch(r"(\S+)\s+(-?\d+(?:\.\d+)?)(?:\s+([^`\n]*[^`\s]))?", given.strip())
    if match is None:
        raise ValueError(
            f"--score is {given!r}: give a file that sacrebleu has printed, or 'METRIC VALUE SIGNATURE' such as "
            "'BLEU 27.5 nrefs:1|case:mixed|...' or 'accuracy 94.3'"
        )
    return [Score(test_set, match[1], match[2], match[3] or "")]


def card_path(checkpoint: Path) -> Path:
    """Where the card of a checkpoint lies: ``average.md`` beside ``average.pt``."""
    return checkpoint.with_name(f"{checkpoint.name.removesuffix('.pt')}.md")


def history(checkpoint: Dict[str, Any], name: str) -> Dict[str, Any]:
    """How far a checkpoint is in its training.

    Returns:
        ``checkpoint``, its name; ``epoch`` and ``updates``; ``validation``, the metric by which the run tells its
        best checkpoint. What the checkpoint does not say is None.
    """
    extra = checkpoint.get("extra_state") or {}
    iterator = extra.get("train_iterator") or {}
    epoch = iterator.get("epoch")
    if epoch is not None and iterator.get("iterations_in_epoch") == 0:  # saved at the end of the one before
        epoch -= 1
    updates = (checkpoint.get("optimizer_history") or [{}])[-1].get("num_updates")
    value = extra.get("val_loss")
    return {
        "checkpoint": name,
        "epoch": epoch,
        "updates": updates,
        "validation": None if value is None else float(value),
    }


def count_parameters(model: Dict[str, Any]) -> int:
    """The numbers of a state_dict, shared ones once, and without fairseq's markers."""
    markers = ("version", "_float_tensor")
    once = {(x.data_ptr(), x.shape): x.numel() for name, x in model.items() if not name.endswith(markers)}
    return sum(once.values())


def read_scores(path: Path) -> List[Score]:
    """The scores that a card holds; none if there is no card.

    Raises:
        ValueError: if the file is not a card.
    """
    if not path.exists():
        return []
    _, own, _ = _parts(path)
    own = own.partition("\n## Scores\n")[2].partition("\n<details>")[0]
    return [Score(**{k: v or "" for k, v in match.groupdict().items()}) for match in _SCORE.finditer(own)]


def write_card(path: Path, name: str, checkpoint: Dict[str, Any], scores: List[Score]) -> None:
    """Write the card, or what the command has written of it before; never half of it.

    Args:
        path: the file.
        name: of the checkpoint's file.
        checkpoint: loaded by fairseq; of an average by :func:`luna_fairseq.average.average_checkpoints`.
        scores: the last one of a test set, metric and signature counts.

    Raises:
        ValueError: if the file is there and is not a card.
        CheckpointError: if the checkpoint holds other things than fairseq's.
    """
    before, _, after = _parts(path) if path.exists() else ("", "", "\n")
    latest = {(s.test_set, s.metric, s.signature): s for s in scores}
    try:
        own = _render(name, checkpoint, list(latest.values()))
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"there is no card of {name}: it does not say what it is as fairseq-train does "
            f"({type(error).__name__}: {one_line(error)[:200]})"
        ) from error
    text = f"{before}{START}\n{own}{END}{after}"
    with open_whole(path) as file:
        file.write(text.encode(errors="surrogateescape"))  # a name may be in no encoding


def _parts(path: Path) -> List[str]:
    """What stands before the marks, between them, and after them."""
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    if text.count(START) != 1 or text.count(END) != 1 or text.index(START) > text.index(END):
        raise ValueError(
            f"{path} would become the model card, and has something else in it: rename it, or the checkpoint"
        )
    before, rest = text.split(START)
    return [before, *rest.split(END)]


def _render(name: str, checkpoint: Dict[str, Any], scores: List[Score]) -> str:
    cfg = plain(checkpoint.get("cfg")) or {}
    extra = checkpoint.get("extra_state") or {}
    model, task = cfg.get("model") or {}, cfg.get("task") or {}
    averaged = extra.get("averaged") or []
    runs = averaged or [history(checkpoint, name)]
    metric = (cfg.get("checkpoint") or {}).get("best_checkpoint_metric", "loss")
    architecture = model.get("_name") or model.get("arch")

    rows = {
        "architecture": _code(architecture)
        + "".join(f", {_cell(key)} {_cell(value)}" for key, value in _changes(model).items()),
        "parameters": f"{count_parameters(checkpoint['model']):,}",
        "task": _code(task.get("_name") or task.get("task")) + _cell(_languages(task)),
        "data": _code(task.get("data")),
        "training": _cell(_training(cfg, runs[0], extra.get("previous_training_time"))),
        "weights": f"the mean of the {len(averaged)} checkpoints below" if averaged else "of one checkpoint",
        "this card": f"by luna-fairseq {__version__}, fairseq {fairseq.__version__}, torch {torch.__version__}, "
        f"Python {platform.python_version()}",
        "licence": "not stated: write below under which one the weights may be used, and what the data allows. The "
        "code of luna-fairseq is under MIT",
    }
    lines = [
        f"# {_cell(name)}",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
        "",
    ]
    lines += [f"fairseq loads it with `--user-dir $(luna-fairseq user-dir) --path {name}`.", ""]
    lines += [f"| checkpoint | epoch | updates | validation {_cell(metric)} |", "|---|---|---|---|"]
    for run in runs:
        cells = ["" if run[key] is None else run[key] for key in ("checkpoint", "epoch", "updates", "validation")]
        lines.append("| " + " | ".join(map(_cell, cells)) + " |")
    none = f"None yet; `luna-fairseq card {name} --test-set NAME --score FILE` adds what `sacrebleu` has printed."
    lines += ["", "## Scores", "", *(map(str, scores) if scores else [none]), ""]
    lines += [
        "<details><summary>Config</summary>",
        "",
        "```yaml",
        OmegaConf.to_yaml(_fenced(cfg), sort_keys=True).strip(),
        "```",
        "",
        "</details>",
    ]
    return "\n".join(lines) + "\n"


def plain(cfg: Any) -> Any:
    """A config as plain dictionaries, lists, numbers and strings."""
    if OmegaConf.is_config(cfg):
        return plain(OmegaConf.to_container(cfg, resolve=False, enum_to_str=True))
    if isinstance(cfg, Namespace):
        return plain(vars(cfg))
    if isinstance(cfg, dict):
        return {str(key): plain(value) for key, value in cfg.items()}
    if isinstance(cfg, list | tuple):
        return [plain(value) for value in cfg]
    return cfg if cfg is None or isinstance(cfg, bool | int | float | str) else str(cfg)


def _escaped(text: str, harmful: str) -> str:
    """The text with each match of ``harmful`` spelt by the numbers of its characters."""
    return re.sub(harmful, lambda match: "".join(f"\\u{ord(char):04x}" for char in match[0]), text)


def _cell(value: Any) -> str:
    """What a checkpoint says, for a cell of a table: it cannot be a link, a picture, HTML or another cell."""
    return _escaped(str(value), r"[^\w .,:;/+@%=~'\[\]-]")


def _code(value: Any) -> str:
    """What a checkpoint says, as code in a cell of a table."""
    return "`" + _escaped(str(value), r"[`|<>\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069]") + "`"


def _fenced(value: Any) -> Any:
    """A config for a block of code: no text in it ends the block, or is a mark of this card."""
    if isinstance(value, dict):
        return {_fenced(key): _fenced(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_fenced(part) for part in value]
    return _escaped(value, "```|~~~|<!--|-->") if isinstance(value, str) else value


def _changes(model: Dict[str, Any]) -> Dict[str, Any]:
    """The options that are not their architecture's defaults; none of a model whose options fairseq does not list."""
    config = MODEL_DATACLASS_REGISTRY.get(model.get("_name"))
    if config is None:
        return {}
    defaults = OmegaConf.to_container(OmegaConf.structured(config), resolve=False, enum_to_str=True)
    assert isinstance(defaults, dict)
    follows = {name for name, value in defaults.items() if str(value).startswith("${")}  # another option
    own = defaults.keys() - follows - {"_name"}
    return {name: model[name] for name in sorted(own & model.keys()) if model[name] != defaults[name]}


def _languages(task: Dict[str, Any]) -> str:
    source, target = task.get("source_lang"), task.get("target_lang")
    return f", {source} to {target}" if source and target else ""


def _training(cfg: Dict[str, Any], run: Dict[str, Any], seconds: Optional[float]) -> str:
    dataset, optimization = cfg.get("dataset") or {}, cfg.get("optimization") or {}
    parts = [f"{run['updates']:,} updates"] if run["updates"] is not None else []
    parts += [f"epoch {run['epoch']}"] if run["epoch"] is not None else []
    parts += [f"{seconds / 3600:.1f} hours"] if seconds else []
    at_once = [
        f"{dataset[key]} {word}"
        for key, word in (("max_tokens", "tokens"), ("batch_size", "sentences"))
        if dataset.get(key)
    ]
    if at_once:
        workers = (cfg.get("distributed_training") or {}).get("distributed_world_size", 1)
        update_freq = (optimization.get("update_freq") or [1])[-1]
        parts.append(f"at most {' and '.join(at_once)} x update_freq {update_freq} x world size {workers}")
    optimizer = cfg.get("optimizer") or {}
    parts += [f"{optimizer['_name']}, lr {optimization.get('lr')}"] if optimizer.get("_name") else []
    return "; ".join(parts)
