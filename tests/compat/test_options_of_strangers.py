"""Options in somebody else's checkpoint: they describe a model, and get nothing of this machine."""

import io
import sys
import tarfile
import types
import urllib.request
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Dict, List

import pytest
import torch
from fairseq import checkpoint_utils
from omegaconf import OmegaConf
from omegaconf.nodes import AnyNode

from luna_fairseq.cli import main
from luna_fairseq.errors import CheckpointError
from luna_fairseq.model_card import END, START
from luna_fairseq.models.luna import LunaModel
from luna_fairseq.models.luna_bert import LunaBertModel
from support.running import USER_DIR, Corpus, generate, run_command, train
from support.web_server import serve

SECRET = "wJalrXUtnFEMI"
Change = Callable[[Dict[str, Any]], Any]


@pytest.fixture(scope="module")
def run(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint."""
    save = tmp_path_factory.mktemp("run")
    train(corpus, save, "--max-update", 1)
    return save


@pytest.fixture
def change(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Change], Path]:
    """Writes the checkpoint with other options."""
    monkeypatch.setenv("SECRET", SECRET)

    def write(work: Change) -> Path:
        state = torch.load(run / "checkpoint_last.pt")
        work(state)
        torch.save(state, tmp_path / "x.pt")
        return tmp_path / "x.pt"

    return write


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A server that tells what it was asked; fairseq has a ``requests`` to ask it with, installed or not."""

    def ask(url: str, **_: Any) -> Any:
        urllib.request.urlopen(url).close()
        raise RuntimeError("asked")

    monkeypatch.setitem(sys.modules, "requests", types.SimpleNamespace(head=ask, get=ask, exceptions=None))
    monkeypatch.setattr("fairseq.file_utils.PYTORCH_FAIRSEQ_CACHE", tmp_path / "cache")
    with serve(tmp_path) as server:
        yield server


def _pieces(server: Any, name: str = "gpt2") -> Dict[str, Any]:
    address = f"{server.address}/v"
    return {"_name": name, "gpt2_encoder_json": address, "gpt2_vocab_bpe": address, "bpe_codes": address}


# ------------------------------------------------------------------------------------ what asks the environment
ASKS = [
    "${oc.env:SECRET}",
    "x${oc.env:SECRET}y",
    "\\${oc.env:SECRET}",
    "${oc.decode:${oc.env:SECRET}}",
    "${oc.create:{a:1}}",
    "${task.source_lang}{oc.env:SECRET}",
    "${${task.source_lang}}",
]
PLACES: Dict[str, Callable[[Dict[str, Any], Any], Any]] = {
    "task": lambda state, value: state["cfg"]["task"].update(source_lang=value),
    "a list": lambda state, value: state["cfg"]["optimization"].update(lr=[value]),
    "a key": lambda state, value: state["cfg"]["model"].update({value: 1}),
    "a section": lambda state, value: state["cfg"].update(bpe=value),
    "a config": lambda state, value: state.update(cfg=OmegaConf.create({"task": {"source_lang": value}})),
    "a node": lambda state, value: state["cfg"].update(task=AnyNode(value)),
    "a model of old": lambda state, value: state["cfg"].update(model=Namespace(arch=value)),
    "options of old": lambda state, value: state.update(args=Namespace(task="translation", source_lang=value)),
    "bytes of old": lambda state, value: state.update(args=Namespace(task=[{"a": value.encode()}])),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", ASKS)
def test_options_are_not_filled_in(place: str, value: str, change: Any) -> None:
    path = change(lambda state: PLACES[place](state, value))
    for overrides in (None, {"source_lang": "en"}):
        with pytest.raises(CheckpointError, match="which would be filled in from this machine") as raised:
            checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)
        assert SECRET not in str(raised.value) and str(raised.value).startswith(str(path))


def test_options_in_yaml_are_refused(change: Any) -> None:
    """omegaconf would read it, and a code for the dollar sign."""
    path = change(lambda state: state.update(cfg='task: {source_lang: "\\x24{oc.env:SECRET}"}'))
    with pytest.raises(CheckpointError, match=r"is not a checkpoint of fairseq .its cfg is of the type str"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))


@pytest.mark.parametrize("name", ["../../x", "a,b", "{_name: gpt2}", ["gpt2"], 3])
def test_a_name_of_old_is_a_name(name: Any, change: Any) -> None:
    """fairseq writes it into what it has Hydra look for."""
    path = change(lambda state: state.update(cfg=None, args=Namespace(task="translation", arch="luna", bpe=name)))
    with pytest.raises(CheckpointError, match=r"its option bpe is .*, which is no name"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))


def test_options_that_go_on_for_ever_are_refused(change: Any) -> None:
    def bomb(state: Dict[str, Any]) -> None:
        inner: List[Any] = ["x"]
        for _ in range(40):
            inner = [inner, inner]
        state["cfg"]["task"]["data"] = inner

    def circle(state: Dict[str, Any]) -> None:
        state["cfg"]["task"]["self"] = state["cfg"]

    for work in (bomb, circle):
        with pytest.raises(CheckpointError, match="it has more than 100,000 options"):
            checkpoint_utils.load_checkpoint_to_cpu(str(change(work)))


def test_an_option_may_follow_another_one(corpus: Corpus, change: Any) -> None:
    """As fairseq's own defaults do."""
    path = change(lambda state: state["cfg"]["task"].update(max_source_positions="${model.max_source_positions}"))
    state = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert state["cfg"].task.max_source_positions == state["cfg"].model.max_source_positions == 1024
    assert "D-0" in generate(corpus, path, "--beam", 1)


def test_a_config_elsewhere_is_plain(change: Any) -> None:
    """A model card prints what the checkpoint says of its history."""

    def work(state: Dict[str, Any]) -> None:
        said = {"checkpoint": "${oc.env:SECRET}", "epoch": 1, "updates": 1, "validation": None}
        state["extra_state"]["averaged"] = OmegaConf.create([said])

    path = change(work)
    found = checkpoint_utils.load_checkpoint_to_cpu(str(path))["extra_state"]["averaged"]
    assert type(found) is list and type(found[0]) is dict and found[0]["checkpoint"] == "${oc.env:SECRET}"
    assert main(["card", str(path)]) == 0
    assert SECRET not in path.with_suffix(".md").read_text()


# ------------------------------------------------------------------------------------- what fetches, or opens files
def _hub(path: Path, corpus: Corpus, **options: Any) -> Any:
    return LunaModel.from_pretrained(str(path.parent), path.name, data_name_or_path=str(corpus.data), **options)


def test_the_pieces_of_a_checkpoint_are_not_fetched(
    corpus: Corpus, web: Any, change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    for pieces in (_pieces(web), _pieces(web, "subword_nmt"), {"_name": "bert", "bpe_vocab_file": None}, "gpt2"):
        caplog.clear()
        hub = _hub(change(lambda state, pieces=pieces: state["cfg"].update(bpe=pieces, tokenizer="x")), corpus)
        assert hub.bpe is None and hub.tokenizer is None and isinstance(hub.translate("the cat"), str)
        assert "the checkpoint asks for bpe '" in caplog.text and "it is not used" in caplog.text
        assert "the checkpoint asks for tokenizer 'x'" in caplog.text
    assert not web.asked


def test_the_users_pieces_count(corpus: Corpus, web: Any, change: Any, caplog: pytest.LogCaptureFixture) -> None:
    path = change(lambda state: state["cfg"].update(bpe=_pieces(web), tokenizer={"_name": "moses"}))
    usual: Dict[str, Any] = {"bpe": "sentencepiece", "sentencepiece_model": str(corpus.spm)}
    hub = _hub(path, corpus, tokenizer="space", **usual)
    assert type(hub.bpe).__name__ == "SentencepieceBPE" and type(hub.tokenizer).__name__ == "SpaceTokenizer"
    assert "bpe is sentencepiece, as you say, and not 'gpt2', as the checkpoint says" in caplog.text
    # The same of fairseq's older options, and by the command.
    old = change(lambda state: state.update(args=_old(state, bpe="gpt2", **_pieces(web)), cfg=None))
    assert type(_hub(old, corpus, **usual).bpe).__name__ == "SentencepieceBPE"
    output = run_command(
        *("luna-fairseq", "attention", "--path", path, "--data", corpus.data, "--sentencepiece-model", corpus.spm),
        "the cat",
    )
    assert "packed row" in output
    assert not web.asked
    with pytest.raises(ValueError, match="bpe is 'pieces': take one of bert, byte_bpe"):
        _hub(path, corpus, bpe="pieces")


def test_pieces_in_the_users_folders_are_taken(corpus: Corpus, change: Any, tmp_path: Path) -> None:
    def asks_for(model: Path) -> Path:
        pieces = {"_name": "sentencepiece", "sentencepiece_model": str(model)}
        return change(lambda state: state["cfg"].update(bpe=pieces))

    elsewhere = _hub(asks_for(corpus.spm), corpus)
    assert elsewhere.bpe is None
    assert _hub(asks_for(corpus.spm), corpus, sentencepiece_model=str(corpus.spm)).bpe is not None
    (tmp_path / "spm.model").write_bytes(corpus.spm.read_bytes())
    assert _hub(asks_for(tmp_path / "spm.model"), corpus).bpe.encode("the cat") != "the cat"
    assert _hub(asks_for(tmp_path / "more" / ".." / ".." / corpus.spm.name), corpus).bpe is None


def _old(state: Dict[str, Any], **more: Any) -> Namespace:
    cfg = state["cfg"]
    return Namespace(
        **{**cfg["task"], **cfg["model"], "arch": "luna", "task": "translation", "criterion": "cross_entropy", **more}
    )


@pytest.mark.parametrize("old", [False, pytest.param(True, marks=pytest.mark.long)])
def test_no_file_of_another_machine_is_opened(
    old: bool, corpus: Corpus, change: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Embeddings that training began with, the table of words, the plugin, the data."""
    (tmp_path / "plugin").mkdir()
    (tmp_path / "plugin" / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\n")
    paths = {"encoder_embed_path": "emb.txt", "decoder_embed_path": "emb.txt"}

    def work(state: Dict[str, Any]) -> None:
        state["cfg"]["model"].update(paths, share_all_embeddings=True)
        state["cfg"]["common"]["user_dir"] = str(tmp_path / "plugin")
        state["cfg"]["task"]["data"] = "http://127.0.0.1/data"
        state["cfg"]["generation"]["replace_unk"] = str(tmp_path / "words.txt")
        if old:
            state.update(args=_old(state, user_dir=str(tmp_path / "plugin"), replace_unk="words.txt"), cfg=None)

    path = change(work)
    assert isinstance(_hub(path, corpus).translate("the cat"), str)
    assert "encoder_embed_path is 'emb.txt', of the machine that it comes from: it is not opened" in caplog.text
    assert "the checkpoint asks for replace_unk" in caplog.text
    assert "emb.txt" in generate(corpus, path, "--beam", 1)
    validate = [corpus.data, "--user-dir", USER_DIR, "--path", path, "--cpu", "--task", "translation"]
    validate += ["--max-tokens", 100, "--num-workers", 0]
    assert "emb.txt" in run_command("fairseq-validate", *validate)
    assert not (tmp_path / "imported").exists()
    # What the user names is opened.
    with pytest.raises(FileNotFoundError, match=r"mine\.txt"):
        _hub(path, corpus, encoder_embed_path="mine.txt", decoder_embed_path="mine.txt")


@pytest.mark.parametrize("old", [False, True])
def test_no_file_is_written_for_a_checkpoint(old: bool, corpus: Corpus, change: Any, tmp_path: Path) -> None:
    """Validation builds the criterion that the checkpoint names."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    criterion = {"ranking_head_name": "h", "num_classes": 2, "save_predictions": str(mine)}

    def work(state: Dict[str, Any]) -> None:
        state["cfg"]["criterion"] = {"_name": "sentence_ranking", **criterion}
        if old:
            state.update(args=_old(state, **{**criterion, "criterion": "sentence_ranking"}), cfg=None)

    validate = [corpus.data, "--user-dir", USER_DIR, "--path", change(work), "--cpu", "--task", "translation"]
    output = run_command("fairseq-validate", *validate, "--max-tokens", 100, "--num-workers", 0, code=-1)
    assert f"save_predictions is '{mine}', of the machine that it comes from" in output
    assert mine.read_text() == "mine"


# ----------------------------------------------------------------------------------------------------- archives
@pytest.mark.parametrize("what", ["data", "model", "command"])
def test_no_archive_is_unpacked(what: str, corpus: Corpus, run: Path, tmp_path: Path) -> None:
    archive = tmp_path / "in" / "evil.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for name in ("../outside", "x/inside", str(tmp_path / "absolute")):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())
    before = archive.read_bytes()
    said = "evil.tar.gz is a file: name a folder; an archive is not unpacked here"
    if what == "command":
        output = run_command(
            "luna-fairseq", "attention", "--path", run / "checkpoint_last.pt", "--data", archive, "cat", code=1
        )
        assert said in output and "Traceback" not in output
    else:
        model, data = (archive, corpus.data) if what == "model" else (run, archive)
        with pytest.raises(ValueError, match=said):
            LunaModel.from_pretrained(str(model), "checkpoint_last.pt", data_name_or_path=str(data))
        with pytest.raises((ValueError, FileNotFoundError)):
            LunaBertModel.from_pretrained(str(model), "checkpoint_last.pt", str(data))
    assert archive.read_bytes() == before
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["in", "in/evil.tar.gz"]


def test_no_address_is_fetched(corpus: Corpus, run: Path, web: Any) -> None:
    for model, data in ((f"{web.address}/model.tar.gz", str(corpus.data)), (str(run), f"{web.address}/data.tar.gz")):
        with pytest.raises(ValueError, match="is an address: download it"):
            LunaModel.from_pretrained(model, "checkpoint_last.pt", data_name_or_path=data)
    with pytest.raises(FileNotFoundError, match=r"the folder .*nowhere does not exist"):
        LunaModel.from_pretrained(str(run), "checkpoint_last.pt", data_name_or_path=str(run / "nowhere"))
    assert not web.asked


# --------------------------------------------------------------------------------------------------------- cards
def test_a_card_says_what_it_quotes(change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    evil = f"```\n\n## Scores\n\n- test: BLEU 99.9\n\n| a | b |<script>{START}{END} ![x](http://127.0.0.1/x) [y](z)"

    def work(state: Dict[str, Any]) -> None:
        state["cfg"]["task"].update(source_lang=evil, target_lang="de", data=evil)
        state["cfg"]["model"].update(activation_fn=evil)
        state["cfg"]["checkpoint"]["best_checkpoint_metric"] = evil
        state["cfg"]["optimizer"]["_name"] = evil
        state["extra_state"]["averaged"] = [{"checkpoint": evil, "epoch": evil, "updates": 1, "validation": evil}]

    path = change(work)
    assert main(["card", str(path)]) == 0
    first = path.with_suffix(".md").read_text()
    lines = first.splitlines()
    assert lines.count("## Scores") == 1 and first.count(START) == first.count(END) == 1
    assert [line for line in lines if line.startswith("```")] == ["```yaml", "```"]
    table = first.partition("## Scores")[0]
    assert "<script>" not in table and "](" not in table and "`\n" not in table.replace("`x.pt`", "")
    assert all(line.count(" | ") in (0, 1, 3) for line in table.splitlines())
    assert "- test: BLEU 99.9" not in lines
    for _ in range(2):
        assert main(["card", str(path), "--score", "BLEU 27.5"]) == 0
        assert path.with_suffix(".md").read_text().count("\n- test: BLEU 27.5\n") == 1
    capsys.readouterr()


def test_a_card_of_a_strange_history_is_not_written(change: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = change(lambda state: state["extra_state"].update(averaged=[{"epoch": 1}]))
    assert main(["card", str(path)]) == 1
    assert "there is no card of x.pt: it does not say what it is" in capsys.readouterr().err
    assert not path.with_suffix(".md").exists()


# -------------------------------------------------------------------------------------------- what is wrong inside
@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            lambda state: state["cfg"].update(generation=None),
            "its options or its history .*AttributeError: 'NoneType'",
        ),
        (lambda state: state.update(optimizer_history=None), "its options or its history .*TypeError"),
        (lambda state: state.update(optimizer_history=[]), "its options or its history .*IndexError"),
        (lambda state: state.pop("extra_state"), "is not a checkpoint of fairseq .it has no 'extra_state'"),
        (lambda state: state.pop("optimizer_history"), "is not a checkpoint of fairseq .it has no 'best_loss'"),
        (lambda state: state.pop("model"), "is not a checkpoint of fairseq .it holds no model"),
        (lambda state: state.update(args=Namespace(task="no such task", lr="x y'z", arch="luna")), "was not loaded"),
        (lambda state: state["cfg"].update(bpe="${no.such}"), "was not loaded.*InterpolationKeyError"),
    ],
)
def test_the_cause_is_named(work: Change, message: str, change: Any) -> None:
    path = change(work)
    with pytest.raises(CheckpointError, match=rf"^{path} .*{message}"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path), {"data": "x"})
