"""scripts/wmt14.sh and its parts, on small archives with the layout of the real ones."""

import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, List, Optional, Tuple

import pytest

import fetch_wmt14
import prepare_translation
import score_translation
from support.running import run_script
from support.wmt14_archives import NAMES, sentence_pairs, write_archive


# --------------------------------------------------------------------------------------------- download
class _Server(http.server.BaseHTTPRequestHandler):
    """Serves a folder with ranges; ``trouble`` lists what goes wrong with the next requests."""

    folder: Path
    trouble: List[str]
    asked: List[Optional[str]]

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        asked = self.headers.get("Range")
        self.asked.append(asked)
        trouble = self.trouble.pop(0) if self.trouble else ""
        if trouble == "busy" or not path.exists():
            self.send_error(503 if trouble else 404)
            return
        content = path.read_bytes()
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and trouble != "no ranges" else 0
        if start and start >= len(content):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : len(content) // 2] if trouble == "cut" else content[start:])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(wmt14_archives: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setattr(fetch_wmt14, "PAUSES", (0, 0))
    handler = type("Handler", (_Server,), {"folder": wmt14_archives, "trouble": [], "asked": []})
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    handler.address = f"http://127.0.0.1:{found.server_port}"  # type: ignore[attr-defined]
    yield handler
    found.shutdown()
    found.server_close()


def _digest(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("trouble", [[], ["cut"], ["busy", "cut", ""], ["cut", "no ranges"]])
def test_a_download_goes_on_where_it_stopped(
    trouble: List[str], server: Any, wmt14_archives: Path, tmp_path: Path
) -> None:
    name = NAMES["europarl"]
    server.trouble.extend(trouble)
    fetch_wmt14.download(f"{server.address}/{name}", tmp_path / name, _digest(wmt14_archives / name))
    assert (tmp_path / name).read_bytes() == (wmt14_archives / name).read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if "cut" in trouble:
        assert server.asked[trouble.index("cut") + 1] == f"bytes={(wmt14_archives / name).stat().st_size // 2}-"


def test_a_download_is_never_taken_for_whole(server: Any, wmt14_archives: Path, tmp_path: Path) -> None:
    name = NAMES["europarl"]
    url, target = f"{server.address}/{name}", tmp_path / name
    server.trouble.extend(["cut", "busy", "busy"])
    with pytest.raises(
        fetch_wmt14.PreparationError, match=r"cannot be downloaded \(503 .*run the same command again"
    ):
        fetch_wmt14.download(url, target, _digest(wmt14_archives / name))
    assert not target.exists() and (tmp_path / f"{name}.part").exists()
    # Everything was there, but for the check.
    (tmp_path / f"{name}.part").write_bytes((wmt14_archives / name).read_bytes())
    fetch_wmt14.download(url, target, _digest(wmt14_archives / name))
    target.unlink()
    with pytest.raises(fetch_wmt14.PreparationError, match=r"has the sha256 .*, not 00: it is removed"):
        fetch_wmt14.download(url, target, "sha256:00")
    assert not list(tmp_path.iterdir())
    with pytest.raises(fetch_wmt14.PreparationError, match=r"nothing.tgz is answered with 404 .*: name a mirror"):
        fetch_wmt14.download(f"{server.address}/nothing.tgz", target, "sha256:00")


def test_a_mirror(server: Any, wmt14_archives: Path, tmp_path: Path) -> None:
    fetch_wmt14.fetch(tmp_path, server.address, wmt14_archives / "SHA256SUMS")
    assert (tmp_path / "raw" / "europarl.en").read_text().count("\n") == 120
    assert len(server.asked) == 5
    (tmp_path / "raw" / "valid.de").unlink()
    fetch_wmt14.fetch(tmp_path, server.address, wmt14_archives / "SHA256SUMS")
    assert len(server.asked) == 5 and (tmp_path / "raw" / "valid.de").exists()


def test_the_known_archives_have_checksums() -> None:
    for archive in fetch_wmt14.ARCHIVES:
        algorithm, _, value = archive.digest.partition(":")
        assert len(value) == hashlib.new(algorithm).digest_size * 2 and archive.url.startswith("https://")
    assert [archive.name for archive in fetch_wmt14.ARCHIVES] == list(NAMES.values())


# ------------------------------------------------------------------------------------------ bad archives
def test_an_archive_writes_nothing_but_what_was_asked_for(tmp_path: Path) -> None:
    evil = {"../evil": b"x", str(tmp_path / "evil"): b"x", "a/../../evil": b"x", "wanted": b"text\n"}
    write_archive(tmp_path / "a.tgz", evil)
    fetch_wmt14.take(tmp_path / "a.tgz", {"name": "wanted"}, tmp_path / "out" / "raw")
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["a.tgz", "out/raw/name"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_what_is_no_plain_file_is_refused(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    entry = tarfile.TarInfo("wanted")
    entry.type, entry.linkname = kind, str(tmp_path / "secret")
    with tarfile.open(tmp_path / "a.tgz", "w:gz") as tar:
        tar.addfile(entry)
    with pytest.raises(fetch_wmt14.PreparationError, match=r"wanted in .* is no plain file"):
        fetch_wmt14.take(tmp_path / "a.tgz", {"name": "wanted"}, tmp_path / "raw")
    assert not (tmp_path / "raw" / "name").exists()


@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_damaged_archive_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tgz"
    write_archive(path, {"other": os.urandom(5000), "wanted": os.urandom(5000)})
    content = path.read_bytes()
    path.write_bytes({"cut": content[:6000], "text": b"no archive" * 99, "empty": b""}[damage])
    with pytest.raises(fetch_wmt14.PreparationError, match=r"a\.tgz"):
        fetch_wmt14.take(path, {"name": "wanted"}, tmp_path / "raw")
    assert not list((tmp_path / "raw").glob("*")) if (tmp_path / "raw").exists() else True


def test_another_archive_is_named(wmt14_archives: Path, tmp_path: Path) -> None:
    with pytest.raises(fetch_wmt14.PreparationError, match="has no x: it is another archive"):
        fetch_wmt14.take(wmt14_archives / NAMES["test"], {"name": "x"}, tmp_path)
    (tmp_path / NAMES["europarl"]).write_bytes(b"other")
    with pytest.raises(fetch_wmt14.PreparationError, match=r"has the sha256 .*, not 0224c7c7.*: get https://"):
        fetch_wmt14.fetch(tmp_path / "out", str(tmp_path), None)


# ------------------------------------------------------------------------------------------- preparation
def _prepare(tmp_path: Path, *options: Any) -> int:
    words = ["--train", tmp_path / "train", "--valid", tmp_path / "valid", "--test", tmp_path / "test"]
    words += ["--out", tmp_path / "out", "--workers", 1, "--smoke", *options]
    return prepare_translation.main([str(word) for word in words])


@pytest.fixture
def text(tmp_path: Path) -> Path:
    for seed, (split, count) in enumerate((("train", 150), ("valid", 10), ("test", 9))):
        pairs = sentence_pairs(count, seed + 40)
        for i, lang in enumerate(("en", "de")):
            (tmp_path / f"{split}.{lang}").write_text("".join(f"{pair[i]}\n" for pair in pairs))
    return tmp_path


def test_cleaning_counts_what_it_leaves_out(text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(text / "train.en", "a") as en, open(text / "train.de", "a") as de:
        first, held_out = (
            (text / "train.en").read_text().split("\n")[0],
            (text / "test.en").read_text().split("\n")[0],
        )
        for source, target in (
            (first, (text / "train.de").read_text().split("\n")[0]),
            (first, "another Katze translation of the same"),
            (held_out, "die Katze"),
            ("\x00 \u200b", "die Katze"),
            ("the cat", "die Katze " * 30),
            ("the cat " * 200, "die Katze " * 200),
        ):
            en.write(f"{source}\n")
            de.write(f"{target}\n")
    assert _prepare(text, "--vocab-size", 60, "--max-ratio", 9) == 0
    said = capsys.readouterr().out
    repeated = 150 - len(
        set(zip(*((text / f"train.{lang}").read_text().split("\n")[:150] for lang in ("en", "de")), strict=True))
    )
    assert f"{153 - repeated} kept; left out: {repeated + 1} repeated, 1 in the held-out sets, 1 empty" in said
    assert (
        f"{151 - repeated} kept; left out: 1 more than 9 times as long as the other side, 1 of more than 250 pieces"
        in said
    )
    out = text / "out" / "smoke"
    assert sorted(path.name for path in out.iterdir()) == ["data-bin", "sentencepiece.model", "settings.json", "text"]
    assert _prepare(text, "--vocab-size", 60, "--max-ratio", 9) == 0
    assert "already prepared" in capsys.readouterr().out
    assert _prepare(text, "--vocab-size", 61, "--max-ratio", 9) == 1
    assert "was begun with vocab_size 60, not 61: repeat it" in capsys.readouterr().err


def test_the_published_recipe(text: Path) -> None:
    line = "It's a cat-dog, isn't it?"
    with open(text / "train.en", "a") as en, open(text / "train.de", "a") as de:
        en.write(f"{line}\n")
        de.write("„Das ist ein Katzen-Hund , nicht wahr ?“\n")
    assert _prepare(text, "--recipe", "moses", "--merges", 20) == 0
    out = text / "out" / "smoke"
    english, german = (out / "text" / f"train.{lang}" for lang in ("en", "de"))
    undone = english.read_text().splitlines()[-1].replace("@@ ", "")
    assert undone == "It &apos;s a cat @-@ dog , isn &apos;t it ?"
    assert german.read_text().splitlines()[-1].replace("@@ ", "").startswith("&quot; Das ist")
    assert len((out / "codes").read_text().splitlines()) == 21
    assert "@@ " in english.read_text()


def test_finished_steps_are_not_done_again(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(prepare_translation.Preparation, "binarise", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _prepare(text, "--vocab-size", 60)
    monkeypatch.setattr(prepare_translation, "tokenise_pairs", lambda pairs: [(a, a, b) for a, b in pairs])
    monkeypatch.setattr(prepare_translation, "learn_sentencepiece", None)
    monkeypatch.setattr(prepare_translation, "encode_pairs", None)
    assert _prepare(text, "--vocab-size", 60) == 0
    assert (text / "out" / "smoke" / "data-bin" / "dict.en.txt").exists()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("short", (), "train.de ends at line 150, before its translation"),
        ("empty", (), "test has an empty line: remove it from both languages"),
        ("missing", (), "valid.de does not exist"),
        ("binary", (), "train.en, line 1 is not UTF-8"),
        ("", ("--max-length", 1), "no training pair is left"),
        ("", ("--vocab-size", 5), "--vocab-size 5 does not work: the characters of this text alone take"),
    ],
)
def test_bad_text(change: str, options: Any, message: str, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if change == "short":
        with open(text / "train.en", "a") as en:
            en.write("more\n")
    elif change == "empty":
        for lang in ("en", "de"):
            (text / f"test.{lang}").write_text("\n")
    elif change == "missing":
        (text / "valid.de").unlink()
    elif change == "binary":
        (text / "train.en").write_bytes(b"\xff\n" + (text / "train.en").read_bytes())
    if "--vocab-size" not in options:
        options = (*options, "--vocab-size", 60)
    assert _prepare(text, *options) == 1
    assert message in capsys.readouterr().err


def _sacrebleu(folder: Path, *options: str) -> Tuple[float, str]:
    """The score of ``folder/hyp`` by the command, and its signature."""
    command = [Path(sys.executable).parent / "sacrebleu", folder / "ref", "-i", folder / "hyp", "-w", "2", *options]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found["score"], found["signature"]


def test_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score_translation.tokenised(['Der "Katzen-Hund" läuft, ja.'], "de") == [
        'Der " Katzen ##AT##-##AT## Hund " läuft , ja .'
    ]
    (tmp_path / "ref").write_text("Der Katzen-Hund läuft heute .\nEin Mann und eine Frau .\n")
    (tmp_path / "hyp").write_text("Der Katzen-Mann läuft heute .\nEin Mann und eine Frau .\n")
    assert score_translation.main([str(tmp_path / "ref"), str(tmp_path / "hyp")]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found[0]["score"], found[0]["signature"]) == _sacrebleu(tmp_path)
    for name in ("ref", "hyp"):
        text = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text.replace("-", " ##AT##-##AT## "))
    assert found[1]["score"] == _sacrebleu(tmp_path, "--tokenize", "none", "--force")[0] != found[0]["score"]
    (tmp_path / "hyp").write_text("Der Katzen-Hund läuft heute .\n")
    assert score_translation.main([str(tmp_path / "ref"), str(tmp_path / "hyp")]) == 1
    assert "give a translation of every sentence" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the whole
@pytest.mark.long
def test_from_archives_to_the_table(wmt14_archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published recipe; test_readme.py runs the other one."""
    settings = {"SOURCE": wmt14_archives, "CHECKSUMS": wmt14_archives / "SHA256SUMS"}
    for name, value in {**{f"WMT14_{key}": value for key, value in settings.items()}, "RECIPE": "moses"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("WORKERS", "1")
    script, config = "scripts/wmt14.sh", "wmt14_luna_untied_32_elu"
    assert "run 'scripts/wmt14.sh download' first" in run_script(tmp_path, script, "prepare", code=1)
    assert "commoncrawl: 125 sentence pairs" in run_script(tmp_path, script, "download")
    raw = tmp_path / "smoke" / "raw"
    assert (raw / "test.en").read_text().splitlines()[0] == "the &quot;cat&quot; <b>"
    said = run_script(tmp_path, script, "prepare")
    assert "1 in the held-out sets" in said and "1 empty" in said and "times as long as the other side" in said
    assert "does not exist: run 'scripts/wmt14.sh train" in run_script(tmp_path, script, "average", config, code=1)
    assert "valid on 'valid' subset" in run_script(tmp_path, script, "train", config)
    assert "already trained" in run_script(tmp_path, script, "train", config)
    run_script(tmp_path, script, "average", config)
    monkeypatch.setenv("LENPEN", "1.0")
    run_script(tmp_path, script, "generate", config)
    assert len((tmp_path / "smoke" / f"{config}.moses" / "test.1.0.de").read_text().splitlines()) == 11
    assert '"signature": "nrefs:1|case:mixed' in run_script(tmp_path, script, "score", config)
    card = (tmp_path / "smoke" / f"{config}.moses" / "average.md").read_text()
    assert re.search(
        r"- newstest2014: BLEU [\d.]+, `nrefs:1\|case:mixed.*\n- newstest2014: tokenised-BLEU [\d.]+", card
    )
    table = run_script(tmp_path, script, "table")
    row = next(line for line in table.splitlines() if line.startswith("| Luna-32 untied, elu |"))
    assert "not run" not in row and "| 27.6, 77.6M |" in row
    assert table.count("not run | not run") == 9 and "nrefs:1" in table
    assert "choose one of" in run_script(tmp_path, script, "train", "nothing", code=1)
    # Scores are those of the average that is there.
    os.utime(tmp_path / "smoke" / f"{config}.moses" / "average.pt")
    assert run_script(tmp_path, script, "table").count("not run | not run") == 10
    assert f"run 'scripts/wmt14.sh generate {config}' first" in run_script(tmp_path, script, "score", config, code=1)


@pytest.mark.long
def test_the_length_penalty_is_tuned(wmt14_archives: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WMT14_SOURCE", str(wmt14_archives))
    monkeypatch.setenv("WMT14_CHECKSUMS", str(wmt14_archives / "SHA256SUMS"))
    config = "wmt14_transformer_adam"
    for command in (
        "download",
        "prepare",
        f"train {config}",
        f"average {config}",
        f"tune {config}",
        f"generate {config}",
    ):
        said = run_script(tmp_path, "scripts/wmt14.sh", *command.split())
        if command.startswith("tune"):
            tuned = said
    scores = {
        line.split("length penalty ")[1][:3]: json.loads(line.split(": ", 1)[1])[0]["score"]
        for line in tuned.splitlines()
        if "{" in line
    }
    best = (tmp_path / "smoke" / f"{config}.sentencepiece" / "lenpen").read_text().strip()
    assert sorted(scores) == ["0.4", "0.6", "0.8", "1.0", "1.2"] and scores[best] == max(scores.values())
    assert f"test.{best}.de" in said
