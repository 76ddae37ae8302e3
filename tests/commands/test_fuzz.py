"""Random shapes, masks, dtypes, batches and beams against the reference; random bytes instead of files."""

from pathlib import Path
from typing import Any, Dict, List

import hydra
import pytest
import torch
from fairseq import checkpoint_utils, tasks
from fairseq.data import Dictionary
from hydra.errors import HydraException
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor, nn
from yaml import YAMLError

from luna_fairseq import ops
from luna_fairseq.errors import CheckpointError, DataError
from luna_fairseq.modules import CausalLunaAttention, LunaAttention
from luna_fairseq.ops.naive import naive_attention, naive_causal_luna
from support.models import EOS, PAD, assert_close, make_batch, make_bert, make_lra, make_model, make_sentences
from support.running import ADAM, TINY, TRAIN, USER_DIR, Corpus, run_command

# Of the largest number; inputs are rounded before both computations.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}
DTYPES = st.sampled_from(list(TOLERANCE))
SEEDS = st.integers(0, 999)


def _mask(*shape: int) -> Tensor:
    """Holes anywhere, and something left in each row."""
    mask = torch.rand(shape) < 0.5
    mask[..., torch.randint(shape[-1], (1,))] = False
    return mask


def _tensor(*shape: int, dtype: torch.dtype, strided: bool) -> Tensor:
    x = torch.randn(*shape, dtype=torch.float64).to(dtype)
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if strided else x


@given(
    sizes=st.tuples(*[st.integers(1, 6)] * 5), dtype=DTYPES, masked=st.booleans(), strided=st.booleans(), seed=SEEDS
)
@settings(max_examples=40, deadline=None)
def test_softmax_attention(sizes: Any, dtype: torch.dtype, masked: bool, strided: bool, seed: int) -> None:
    torch.manual_seed(seed)
    batch, heads, n, m, dim = sizes
    query, key, value = (_tensor(batch, heads, k, dim, dtype=dtype, strided=strided) for k in (n, m, m))
    padding = _mask(batch, m) if masked else None
    got = ops.attend(query, key, value, ops.key_mask(padding))
    assert got.dtype == dtype
    for b in range(batch):
        for h in range(heads):
            qkv = (x[b, h].double() for x in (query, key, value))
            want = naive_attention(*qkv, None if padding is None else padding[b])
            assert_close(got[b, h].double(), want, "attend", rel=TOLERANCE[dtype])


@given(
    length=st.integers(1, 140),
    sizes=st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 6)] * 2),
    dtype=DTYPES,
    masks=st.tuples(st.booleans(), st.booleans()),
    seed=SEEDS,
)
@settings(max_examples=30, deadline=None)
def test_causal_attention(length: int, sizes: Any, dtype: torch.dtype, masks: Any, seed: int) -> None:
    """Padding anywhere: before, between and behind the real positions, and rows of P that are not there."""
    torch.manual_seed(seed)
    batch, heads, rows, dim = sizes
    query, key, value = (_tensor(batch, heads, length, dim, dtype=dtype, strided=False) for _ in range(3))
    weights = torch.rand(batch, heads, length, rows, dtype=torch.float64).to(dtype)
    padding, packed = (_mask(batch, k) if on else None for k, on in zip((length, rows), masks, strict=True))
    got, _ = ops.causal_luna_attention(
        query, key, value, weights, packed_mask=ops.key_mask(packed), padding_mask=padding
    )
    assert got.dtype == dtype
    for b in range(batch):
        for h in range(heads):
            inputs = (x[b, h].double() for x in (query, key, value, weights))
            want = naive_causal_luna(*inputs, *(None if mask is None else mask[b] for mask in (packed, padding)))
            real = slice(None) if padding is None else ~padding[b]
            assert_close(got[b, h].double()[real], want[real], "causal", rel=TOLERANCE[dtype])


MODELS = {
    (dtype, untied): make_model(untie_luna_kv=untied).eval().to(dtype)
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    for untied in (False, True)
}
SIDES = st.sampled_from(["left", "right"])
LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


@given(
    lengths=LENGTHS,
    which=st.sampled_from(list(MODELS)),
    side=st.tuples(SIDES, SIDES),
    extra=st.tuples(st.integers(0, 5), st.integers(0, 5)),
    seed=SEEDS,
)
@settings(max_examples=40, deadline=None)
@torch.no_grad()
def test_translation_does_not_depend_on_the_batch(lengths: Any, which: Any, side: Any, extra: Any, seed: int) -> None:
    """Each sentence by itself, in float64, is the reference."""
    sources, targets = make_sentences(lengths, seed=seed), make_sentences(lengths[::-1], seed=seed + 1)
    source, target = (make_batch(s, *how) for s, *how in zip((sources, targets), side, extra, strict=True))
    logits, _ = MODELS[which](source, None, target)
    assert logits.dtype == which[0]
    reference = make_model(untie_luna_kv=which[1]).eval().to(which[0]).double()
    for i, (s, t) in enumerate(zip(sources, targets, strict=True)):
        want = reference(s[None], None, t[None])[0][0]
        rel = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 0.1}[which[0]]
        assert_close(logits[i][target[i].ne(PAD)].double(), want, f"sentence {i}", rel=rel)


@given(lengths=LENGTHS, side=SIDES, extra=st.integers(0, 5), lra=st.booleans(), seed=SEEDS)
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_encoders_do_not_depend_on_the_batch(lengths: Any, side: str, extra: int, lra: bool, seed: int) -> None:
    sentences = make_sentences(lengths, words=20, seed=seed)
    model: nn.Module = ENCODERS["lra" if lra else "bert"]

    def states(batch: Tensor) -> Tensor:
        return (model(batch) if lra else model(batch, features_only=True))[0]

    batch = make_batch(sentences, "right" if lra else side, extra)
    got = states(batch)
    for i, sentence in enumerate(sentences):
        want = states(sentence[None])[0]
        mine = got[i] if lra else got[i][batch[i].ne(PAD)]
        assert_close(mine, want, f"sentence {i}", rel=1e-9)


ENCODERS = {"bert": make_bert().eval().double(), "lra": make_lra(sen_rep_type="mp").eval().double()}


@given(data=st.data(), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3), untied=st.booleans(), seed=SEEDS)
@settings(max_examples=25, deadline=None)
@torch.no_grad()
def test_any_search_is_the_model(data: Any, lengths: List[int], untied: bool, seed: int) -> None:
    """Rows are exchanged, doubled and dropped after each step, in and across sentences, several tokens at times."""
    torch.manual_seed(seed)
    model = MODELS[torch.float64, untied]
    source = make_batch(make_sentences(lengths, seed=seed), "left")
    width = data.draw(st.integers(1, 3), label="rows of a sentence")
    encoder_out = model.encoder.reorder_encoder_out(
        model.encoder(source), torch.arange(len(lengths)).repeat_interleave(width)
    )
    rows = source.repeat_interleave(width, dim=0)
    prefix = torch.full((len(rows), 1), EOS)
    state: Dict[str, Any] = {}
    for step in range(data.draw(st.integers(1, 5), label="steps")):
        got, _ = model.decoder(prefix, encoder_out=encoder_out, incremental_state=state)
        want, _ = model(rows, None, prefix)
        assert_close(got, want[:, -got.size(1) :], f"step {step}", rel=1e-9)
        count = len(rows)
        order = data.draw(
            st.permutations(range(count)) | st.lists(st.integers(0, count - 1), min_size=1, max_size=6), label="order"
        )
        index = torch.tensor(order)
        model.decoder.reorder_incremental_state_scripting(state, index)
        encoder_out = model.encoder.reorder_encoder_out(encoder_out, index)
        more = torch.randint(4, 50, (len(order), data.draw(st.integers(1, 3), label="tokens")))
        rows, prefix = rows[index], torch.cat([prefix[index], more], dim=1)


@given(data=st.data(), sizes=st.tuples(*[st.integers(1, 5)] * 3), tie_kv=st.booleans(), dtype=DTYPES, seed=SEEDS)
@settings(max_examples=30, deadline=None)
@torch.no_grad()
def test_both_attentions_on_part_of_a_batch(
    data: Any, sizes: Any, tie_kv: bool, dtype: torch.dtype, seed: int
) -> None:
    """Any rows in any order give those rows' results, whatever is masked."""
    torch.manual_seed(seed)
    batch, n, length = sizes
    x, packed = torch.randn(batch, n, 8).to(dtype), torch.randn(batch, length, 8).to(dtype)
    cross, causal = (kind(8, 2, tie_kv=tie_kv).eval().to(dtype) for kind in (LunaAttention, CausalLunaAttention))
    mask, packed_mask = (torch.rand(batch, k) < 0.4 for k in (n, length))
    rows = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=1, max_size=6)))

    def both(i: Tensor) -> List[Tensor]:
        masks = [ops.key_mask(m[i]) for m in (mask, packed_mask)]
        return [*cross(x[i], packed[i], x[i], *masks)[:2], causal(x[i], packed[i], masks[1], mask[i])]

    for got, want in zip(both(rows), both(torch.arange(batch)), strict=True):
        assert_close(got.double(), want[rows].double(), "rows", rel=TOLERANCE[dtype])


FILES = settings(max_examples=150, deadline=60_000, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Beginnings that lead deeper into a loader: of a zip, of three kinds of pickle, of a tar.
BEGINNINGS = [
    b"",
    b"PK\x03\x04",
    b"\x80\x02}q\x00",
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.",
    b"\x80\x05",
    b"ustar",
]


@given(begin=st.sampled_from(BEGINNINGS), content=st.binary(max_size=300))
@FILES
def test_random_bytes_as_a_checkpoint(begin: bytes, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(begin + content)
    with pytest.raises(CheckpointError, match=r"^\S*x\.pt (\(\d+ bytes\) is cut short or damaged|is no checkp|was)"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))


STATE = {
    "model": {"weight": torch.arange(50.0)},
    "args": None,
    "cfg": None,
    "optimizer_history": [{"optimizer_name": "FairseqAdam", "lr_scheduler_state": {"best": 1.5}, "num_updates": 7}],
    "extra_state": {"train_iterator": None},
}


@given(data=st.data(), what=st.sampled_from(["cut", "flip", "exchange", "insert"]))
@FILES
def test_damaged_checkpoint_is_named_or_harmless(data: Any, what: str, tmp_path: Path) -> None:
    """Padding and dates may change without harm: then everything is loaded as it was."""
    path = tmp_path / "x.pt"
    torch.save(STATE, path)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    if what == "cut":
        del content[at:]
    elif what == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif what == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    else:
        content[at : at + 20] = data.draw(st.binary(min_size=20, max_size=20))
    path.write_bytes(content)
    said = f"{path}"
    try:
        loaded = checkpoint_utils.load_checkpoint_to_cpu(str(path))
    except CheckpointError as error:
        said = str(error)
    else:
        assert torch.equal(loaded["model"].pop("weight"), STATE["model"]["weight"])
        assert loaded == {**STATE, "model": {}}
    assert said.startswith(f"{path}")


@pytest.mark.parametrize(
    "content", [[1, 2], 3, None, "abc", torch.ones(3), {"weight": torch.ones(3)}, {"model": {}}, {"state_dict": {}}]
)
def test_something_else_as_a_checkpoint(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint of fairseq"):
        checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "x.pt"))


LINES = st.lists(
    st.text(max_size=6) | st.builds("{} {}".format, st.text("abc", max_size=3), st.integers()), max_size=8
)


@given(content=st.binary(max_size=200) | LINES.map(lambda lines: "\n".join(lines).encode()))
@FILES
def test_random_bytes_as_a_dictionary(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_bytes(content)
    begins = said = f"{path} is not a dictionary, or is damaged"
    try:
        dictionary = Dictionary.load(str(path))
    except DataError as error:
        said = str(error)
    else:
        assert len(dictionary) > dictionary.nspecial
    assert said.startswith(begins) and "\n" not in said


def _train(data: Path, save: Path) -> str:
    options = [*TINY, *TRAIN, *ADAM, "--max-update", 1, "--save-dir", save]
    return run_command("fairseq-train", data, "--user-dir", USER_DIR, "--arch", "luna", *options, code=1)


def test_damaged_dictionary_of_a_training(corpus: Corpus, tmp_path: Path) -> None:
    """Bytes that are no text, and one that was cut at the end of a line: its symbols are in the data."""
    for split in ("train", "valid"):
        for lang in ("en", "de"):
            for end in ("bin", "idx"):
                name = f"{split}.en-de.{lang}.{end}"
                (tmp_path / name).symlink_to(corpus.data / name)
    whole = (corpus.data / "dict.en.txt").read_text().splitlines(keepends=True)
    for content, message in (
        (b"\x00\xff\xfe junk", f"{tmp_path}/dict.en.txt is not a dictionary, or is damaged"),
        ("".join(whole[:12]).encode(), "and its dictionary ends at 15: the dictionary was cut short"),
    ):
        for lang in ("en", "de"):
            (tmp_path / f"dict.{lang}.txt").write_bytes(content)
        assert message in _train(tmp_path, tmp_path / "save").splitlines()[-1]
        assert not list((tmp_path / "save").glob("*.pt"))


CONFIGS = st.binary(max_size=200) | st.text("ab:-{}[]&*!'\"\n \t#|%@,?1", max_size=60).map(str.encode)


@given(content=CONFIGS)
@example(content=b"x: !!python/object/apply:os.mkdir [executed]")
@example(content=b"?")
@settings(FILES, max_examples=5)
def test_random_bytes_as_a_config(content: bytes, tmp_path: Path) -> None:
    """Composed, or refused with a sentence; nothing in it is run."""
    (tmp_path / "x.yaml").write_bytes(content)
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.1"):
        try:
            found: Any = hydra.compose("x")
        except (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
            found = f"{error}{error.__cause__ or ''}"  # Hydra prints the cause if it has none of its own
    assert isinstance(found, DictConfig | str) and found != ""
    assert not Path("executed").exists()


@pytest.mark.long
@given(content=CONFIGS)
@settings(FILES, max_examples=30)
def test_more_random_bytes_as_a_config(content: bytes, tmp_path: Path) -> None:
    test_random_bytes_as_a_config.hypothesis.inner_test(content, tmp_path)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\xff\xfe junk", "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"),
        (b"task: {_name: translation", 'in "{}", line 1'),
        (b"- a\n- b\n", "primary config 'x' must be a DictConfig"),
    ],
)
def test_bad_config_of_a_training(content: bytes, message: str, tmp_path: Path) -> None:
    """Read by Hydra before it knows the plugin: its own sentences."""
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    options = [f"hydra.run.dir={tmp_path}/hydra", f"+checkpoint.save_dir={tmp_path}/save"]
    output = run_command("fairseq-hydra-train", "--config-dir", tmp_path, "--config-name", "x", *options, code=1)
    assert message.format(path) in output
    assert not (tmp_path / "save").exists()


@pytest.mark.parametrize("group", ["model", "criterion", "optimizer", "lr_scheduler", "bpe"])
def test_name_that_nobody_registered(group: str, corpus: Corpus) -> None:
    cfg = OmegaConf.create({"task": {"_name": "translation", "data": str(corpus.data)}, group: {"_name": "lunar"}})
    with pytest.raises(ValueError, match=f"{group}._name is 'lunar', which nobody registered"):
        tasks.setup_task(cfg.task)
    tasks.setup_task(cfg.task, from_checkpoint=True)  # of an optimizer that is not needed here
    cfg[group] = None
    tasks.setup_task(cfg.task)
