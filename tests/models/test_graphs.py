"""Models as graphs for any batch and length: torch.jit.trace, torch.export, ONNX; and int8."""

import copy
import io
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, List, Tuple

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from torch import Tensor, nn

from luna_fairseq.export.formats import export_graph, write_graphs
from luna_fairseq.export.graphs import Logits, graphs_of
from support.models import PAD, make_batch, make_bert, make_dictionary, make_lm, make_lra, make_model, make_sentences

SHORT, LONG = [7, 5], [150, 40, 3]
# Tied and published; and with everything that is made another way.
OTHER: Dict[str, Any] = dict(
    untie_luna_kv=True, packed_position_bias=1.0, encoder_learned_pos=True, decoder_learned_pos=True,
    encoder_normalize_before=True, decoder_normalize_before=True, causal_decay=2.0,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its tracers and quantisation
        yield


def _reloaded(traced: Any) -> Any:
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def _pair(lengths: List[int], longest: int = 1000) -> Tuple[Tensor, Tensor, Tensor]:
    sources = make_batch(make_sentences([min(n, longest) for n in lengths], words=20), "left")
    targets = make_batch(make_sentences([min(n, longest) - 1 for n in lengths], words=20, seed=1), "right")
    return sources, sources.ne(PAD).sum(dim=1), targets


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.long) for kind in ("translation", "biased")), "lm", "lra"]
)
def test_a_trace_is_right_for_other_lengths(kind: str) -> None:
    longest = 1000 if kind in ("translation", "biased") else 60
    small, large = _pair(SHORT, longest), _pair(LONG, longest)
    models: Dict[str, Any] = {
        "translation": make_model, "biased": lambda: make_model(**OTHER), "lm": make_lm, "lra": make_lra,
    }  # fmt: skip
    model = models[kind]().eval()
    pick = {"lm": lambda x: (x[2],), "lra": lambda x: (x[0], x[1])}.get(kind, lambda x: x)
    traced = _reloaded(torch.jit.trace(Logits(model), pick(small), check_trace=False))
    with torch.no_grad():
        want, got = model(*pick(large))[0], traced(*pick(large))
    if kind != "lra":  # what stands after the end of a text is read by nobody
        want, got = want[large[2].ne(PAD)], got[large[2].ne(PAD)]
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def _translate(encode: Any, step: Any, names: List[str], moving: List[str], sources: Tensor) -> List[Tensor]:
    """Log-probabilities of five greedy steps."""
    state = dict(zip(names, encode(sources), strict=True))
    tokens = torch.full((sources.size(0), 1), 2)
    found = []
    for _ in range(5):
        log_probs, *after = step(tokens, *state.values())
        state.update(zip(moving, after, strict=True))
        tokens = log_probs.argmax(dim=1, keepdim=True)
        found.append(log_probs)
    return found


def _by_decoding(model: Any, sources: Tensor) -> List[Tensor]:
    """The same as fairseq decodes."""
    encoder_out, state = model.encoder(sources), {}
    tokens = torch.full((sources.size(0), 1), 2)
    found = []
    for _ in range(5):
        logits, _ = model.decoder(tokens, encoder_out, state)
        found.append(logits[:, -1].log_softmax(dim=-1))
        tokens = torch.cat([tokens, found[-1].argmax(dim=1, keepdim=True)], dim=1)
    return found


def _session(path: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    return lambda *x: [
        torch.from_numpy(y) for y in session.run(None, {n: v.numpy() for n, v in zip(names, x, strict=True)})
    ]


def _compare(model: Any, encode: Any, step: Any) -> None:
    """Sources longer and shorter than the example, and than the projection length; one and many."""
    graphs = graphs_of(model)
    names = graphs["encode"].outputs
    moving = [name.removeprefix("next_") for name in graphs["step"].outputs[1:]]
    for lengths in ([7, 5], [150, 40, 3], [2, 2], [20], [3]):
        sources = make_batch(make_sentences(lengths), "left")
        with torch.no_grad():
            got = _translate(encode, step, names, moving, sources)
            want = _by_decoding(model, sources)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_encoder_and_decoding_step_can_be_traced() -> None:
    model = make_model().eval()
    encode, step = (
        _reloaded(torch.jit.trace(graph.module, tuple(graph.inputs.values()), check_trace=False))
        for graph in graphs_of(model).values()
    )
    _compare(model, encode, step)


@pytest.mark.long
@pytest.mark.parametrize("how", ["torch-export", "onnx"])
@pytest.mark.parametrize("changes", [{}, OTHER], ids=["published", "other"])
def test_encoder_and_step_translate_alone(how: str, changes: Dict[str, Any], tmp_path: Path) -> None:
    model = make_model(**changes).eval()
    graphs = graphs_of(model)
    if how == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        write_graphs(tmp_path, model, how, {"luna_fairseq": {}})
        encode, step = (_session(tmp_path / f"{name}.onnx") for name in ("encode", "step"))
    else:
        encode, step = (export_graph(graph).module() for graph in graphs.values())
    _compare(model, encode, step)


@pytest.mark.long
@pytest.mark.parametrize("how", ["torch-export", "onnx"])
def test_the_masked_lm_model_as_a_graph(how: str, tmp_path: Path) -> None:
    model = make_bert()
    model.register_classification_head("sentence", num_classes=3)
    model.register_classification_head("pooling_classification_head", num_classes=2)
    graph = graphs_of(model)["model"]
    if how == "onnx":
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
        pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
        write_graphs(tmp_path, model, how, {"luna_fairseq": {}})
        run = _session(tmp_path / "model.onnx")
    else:
        run = export_graph(graph).module()
    for lengths in ([7, 5], [60, 40, 3], [2, 2], [20]):
        tokens = make_batch(make_sentences(lengths), "right")
        real = tokens.ne(PAD)
        with torch.no_grad():
            want = (model(tokens)[0], model(tokens, features_only=True)[0])
            scores = [model(tokens, classification_head_name=name)[0] for name in model.classification_heads]
        got = run(tokens)
        for one, other in zip(got[:2], want, strict=True):
            torch.testing.assert_close(one[real], other[real], rtol=1e-5, atol=1e-5)
        for one, other in zip(got[2:], scores, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_what_has_no_graph_is_named() -> None:
    with pytest.raises(ValueError, match="there are no graphs of LunaLanguageModel"):
        graphs_of(make_lm())
    with pytest.raises(ValueError, match="adaptive-softmax-cutoff"):
        graphs_of(make_model(share_all_embeddings=False, adaptive_softmax_cutoff="10,20"))


def test_a_script_cannot_be_had() -> None:
    """As docs/export.md says, which has to change with it."""
    model = make_model().eval()
    for part in (model, model.encoder, model.decoder):
        with pytest.raises((RuntimeError, ValueError, NotImplementedError, torch.jit.frontend.NotSupportedError)):
            torch.jit.script(part)


def test_int8_translates_by_beam_search() -> None:
    model = make_model().eval()
    eight = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {nn.Linear}, dtype=torch.qint8)
    assert not any(type(module) is nn.Linear for module in eight.decoder.layers.modules())
    sources, lengths, targets = _pair([9, 4])
    with torch.no_grad():
        want, got = model(sources, lengths, targets)[0], eight(sources, lengths, targets)[0]
    assert 0 < (want - got).abs().max() < 0.1 * want.abs().max()
    search = SequenceGenerator([eight], make_dictionary(), beam_size=3, max_len_b=8)
    found = search.generate([eight], {"net_input": {"src_tokens": sources, "src_lengths": lengths}})
    assert [len(one) for one in found] == [3, 3] and all(torch.isfinite(one[0]["score"]) for one in found)
