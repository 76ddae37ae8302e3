"""The hub of a translation model: long inputs, and several callers at the same time."""

import copy
import dataclasses
import pickle
import threading
from typing import Any, Callable, Dict, List

import pytest
import torch
from fairseq.dataclass.configs import FairseqConfig
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.tasks.translation import TranslationConfig
from omegaconf import OmegaConf
from torch import Tensor, nn

from luna_fairseq.attention_map import AttentionMap, attention_map
from luna_fairseq.tasks._translation import CheckedTranslationTask
from support.models import make_config, make_dictionary


def _hub(**changes: Any) -> GeneratorHubInterface:
    """A hub of an untrained model."""
    torch.manual_seed(1)
    cfg: Any = OmegaConf.structured(FairseqConfig)
    cfg.task = OmegaConf.structured(TranslationConfig(data="/nowhere", max_source_positions=1024))
    cfg.generation.max_len_b = 5
    cfg.dataset.max_tokens = 12000
    dictionary = make_dictionary()
    task = CheckedTranslationTask(cfg.task, dictionary, dictionary)
    options = OmegaConf.create(
        {**dataclasses.asdict(make_config(share_all_embeddings=True, **changes)), "_name": "luna"}
    )
    return GeneratorHubInterface(cfg, task, [task.build_model(options)]).eval()


@pytest.fixture(scope="module")
def hub() -> GeneratorHubInterface:
    return _hub()


@pytest.fixture(scope="module")
def short() -> GeneratorHubInterface:
    """With 12 learned positions."""
    return _hub(encoder_learned_pos=True, decoder_learned_pos=True, max_source_positions=12)


LONG = "w3 " * 40 + "w9"


@pytest.mark.parametrize("shape", ["tensor", "list", "rows"])
def test_long_inputs_are_cut_and_stay_the_callers(
    short: GeneratorHubInterface, shape: str, caplog: pytest.LogCaptureFixture
) -> None:
    long, other = short.encode(LONG), short.encode("w1 w2")
    given: Any = {"tensor": long, "list": [other, long], "rows": torch.stack([long, long])}[shape]
    before = [tokens.clone() for tokens in given]
    found = short.generate(given)
    assert "an input of 42 symbols was cut to 12" in caplog.text
    assert all(torch.equal(now, then) for now, then in zip(given, before, strict=True)) and len(given) == len(before)
    read = torch.cat([long[:11], long[-1:]])
    want = short.generate([read])[0][0]["tokens"]
    hypos = found if shape == "tensor" else found[-1]
    assert torch.equal(hypos[0]["tokens"], want)


def test_a_batch_of_the_training_may_be_smaller_than_a_sentence(hub: GeneratorHubInterface) -> None:
    small = copy.copy(hub)
    small.cfg = copy.deepcopy(hub.cfg)
    small.cfg.dataset.max_tokens = 8
    sentences = [hub.encode(LONG), hub.encode("w1 w2")]
    for skip in (False, True):
        found = small.generate(sentences, skip_invalid_size_inputs=skip)
        wanted = hub.generate(sentences, skip_invalid_size_inputs=skip)
        assert all(torch.equal(a[0]["tokens"], b[0]["tokens"]) for a, b in zip(found, wanted, strict=True))


def test_a_hub_can_be_copied_and_its_model_pickled(hub: GeneratorHubInterface) -> None:
    sentence = hub.encode("w1 w2 w3")
    wanted = hub.generate(sentence)[0]["tokens"]  # and so it was made fast
    assert hub.models[0]._is_generation_fast
    assert torch.equal(copy.deepcopy(hub).generate(sentence)[0]["tokens"], wanted)
    pickled = GeneratorHubInterface(hub.cfg, hub.task, [pickle.loads(pickle.dumps(hub.models[0]))])
    assert torch.equal(pickled.generate(sentence)[0]["tokens"], wanted)
    with pytest.raises(RuntimeError, match="made for generation"):
        pickled.models[0].train()


def test_who_skips_long_inputs_skips_them(short: GeneratorHubInterface, caplog: pytest.LogCaptureFixture) -> None:
    found = short.generate([short.encode(LONG), short.encode("w1 w2")], skip_invalid_size_inputs=True)
    assert len(found) == 1 and "was cut" not in caplog.text


def test_the_attention_of_a_long_sentence_is_that_of_the_part_that_is_read(short: GeneratorHubInterface) -> None:
    found = attention_map(short, LONG)
    assert found.source == [*["w3"] * 11, "</s>"] and found.heads.shape[2] == found.packed.shape[2] == 12


def _same(got: AttentionMap, want: AttentionMap) -> bool:
    texts = (got.translation, got.source, got.target) == (want.translation, want.source, want.target)
    return texts and torch.equal(got.heads, want.heads) and torch.equal(got.packed, want.packed)


SENTENCES = ["w1 w2 w3", "w4", "w5 w6 w7 w8 w9"]


def test_others_may_use_the_model_at_any_moment(hub: GeneratorHubInterface) -> None:
    """At the first calls of the encoder and of a layer another caller comes in between, with other wishes."""

    def printed(sentence: str) -> List[Tensor]:
        return [
            hub.generate([hub.encode(sentence)], print_alignment="hard")[0][0][name]
            for name in ("tokens", "attention")
        ]

    calls: Dict[str, Callable[[], Any]] = {
        "map": lambda: attention_map(hub, SENTENCES[0], 0),
        "translation": lambda: hub.translate(SENTENCES[1]),
        "alignment": lambda: printed(SENTENCES[2]),
    }
    want = {name: call() for name, call in calls.items()}
    model: Any = hub.models[0]
    left = 0

    def interrupt(*_: Any) -> None:
        nonlocal left
        if left > 0:
            rest, left = left - 1, 0
            for name in calls:
                check(name)
            left = rest

    def check(name: str) -> None:
        got = calls[name]()
        if name == "map":
            assert _same(got, want[name])
        elif name == "translation":
            assert got == want[name]
        else:
            assert all(map(torch.equal, got, want[name]))

    places: List[nn.Module] = [model.encoder, model.decoder.layers[0].encoder_attn]
    hooks = [place.register_forward_pre_hook(interrupt) for place in places]
    try:
        for name in calls:
            left = 2  # the encoder, and a step
            check(name)
            assert left == 0
    finally:
        for hook in hooks:
            hook.remove()


def test_threads_share_a_hub(hub: GeneratorHubInterface) -> None:
    calls = [(sentence, layer) for sentence in SENTENCES[:2] for layer in (0, 1)]
    want = [attention_map(hub, *call) for call in calls]
    translations = hub.translate(SENTENCES)
    start = threading.Barrier(4)
    wrong: List[Any] = []

    def work(maps: bool) -> None:
        start.wait()
        for _ in range(2):
            if maps:
                wrong.extend(call for call, right in zip(calls, want, strict=True)
                             if not _same(attention_map(hub, *call), right))  # fmt: skip
            elif hub.translate(SENTENCES) != translations:
                wrong.append("translate")

    def guarded(maps: bool) -> None:
        try:
            work(maps)
        except Exception as error:  # a thread's own would only be printed
            wrong.append(error)

    threads = [threading.Thread(target=guarded, args=(number < 3,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
