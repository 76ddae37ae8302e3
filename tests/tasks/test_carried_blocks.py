"""The task language_modeling: consecutive blocks, and the state that they hand on."""

from pathlib import Path
from typing import Any, Dict, List

import pytest
import torch
from fairseq.data.iterators import EpochBatchIterator
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from omegaconf import OmegaConf

from luna_fairseq.errors import DataError
from luna_fairseq.modules.carried import Carry
from luna_fairseq.tasks._language_modeling import (
    Carrier,
    CarryingLanguageModelingConfig,
    CheckedLanguageModelingTask,
)
from support.models import make_dictionary, make_lm, make_sentences
from support.running import write_indexed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 23 sentences."""
    path = tmp_path_factory.mktemp("text")
    write_indexed(path / "train", make_sentences([3 + i % 5 for i in range(23)]), make_dictionary())
    return path


def _task(folder: Path, **options: Any) -> CheckedLanguageModelingTask:
    known = dict(data=str(folder), tokens_per_sample=4, carry_state=True, seed=1, data_buffer_size=0)
    fixed = dict(
        dataset_impl=None, batch_size=3, batch_size_valid=3, tpu=False, use_plasma_view=False, plasma_path=""
    )
    cfg = OmegaConf.merge(CarryingLanguageModelingConfig(), {**known, **fixed, **options})
    task = CheckedLanguageModelingTask.setup_task(cfg)
    assert isinstance(task, CheckedLanguageModelingTask)
    return task


def _batches(task: Any, shard: int = 0, **options: Any) -> EpochBatchIterator:
    task.load_dataset("train")
    options = {"max_sentences": 3, "num_shards": 1, "disable_iterator_cache": True, **options}
    return task.get_batch_iterator(task.dataset("train"), shard_id=shard, **options)


def _loaded(task: Any) -> Any:
    task.load_dataset("train")
    return task


def _text(task: Any) -> List[int]:
    """What the blocks read, one after the other."""
    blocks = task.dataset("train").dataset
    return torch.cat([blocks[i]["source"] for i in range(len(blocks))]).tolist()


@pytest.mark.parametrize(("rows", "shards"), [(1, 1), (3, 1), (2, 2), (4, 2), (40, 1)])
def test_each_row_reads_its_part_of_the_text_in_order(rows: int, shards: int, folder: Path) -> None:
    """All rows of all shards together read every block once, in every epoch alike; shuffled or not."""
    task = _task(folder)
    parts: List[List[int]] = []
    for shard in range(shards):
        batches = _batches(task, shard, max_sentences=rows, num_shards=shards)
        read: Dict[int, List[int]] = {}
        for epoch in (1, 2):
            first = True
            for batch in batches.next_epoch_itr(shuffle=True):
                if not batch:  # this shard has ended
                    continue
                assert batch["begins"] is first
                first = False
                if epoch == 1:
                    for row, tokens in enumerate(batch["net_input"]["src_tokens"]):
                        read.setdefault(row, []).extend(tokens[tokens.ne(1)].tolist())
        parts += [read[row] for row in sorted(read)]
    assert [token for part in parts for token in part] == _text(task)
    assert len(parts) <= rows * shards and len(set(map(len, parts[:-1]))) <= 1


def test_rows_follow_from_a_number_of_tokens(folder: Path) -> None:
    batch = next(_batches(_task(folder), max_sentences=None, max_tokens=11).next_epoch_itr())
    assert batch["net_input"]["src_tokens"].shape == (2, 4)


def test_rows_are_at_most_those_of_both_limits(folder: Path) -> None:
    """Not as many as --batch-size says, if --max-tokens has room for fewer."""
    for rows, tokens in ((3, 8), (2, 100)):
        batch = next(_batches(_task(folder), max_sentences=rows, max_tokens=tokens).next_epoch_itr())
        assert batch["net_input"]["src_tokens"].shape == (2, 4)
    with pytest.raises(DataError, match="--max-tokens is 3 and a block has 4 tokens: raise it to that, or"):
        _batches(_task(folder), max_tokens=3, max_positions=3, ignore_invalid_inputs=True)


def test_an_evaluation_has_the_rows_that_it_is_told(folder: Path) -> None:
    """However long the blocks are; and no row of padding alone, whose block nobody could name."""
    task = _loaded(_task(folder, pad_to_fixed_bsz=True))
    blocks = len(task.dataset("train"))
    read = list(task.eval_lm_dataloader(task.dataset("train"), max_tokens=5, batch_size=3, num_workers=0))
    assert [len(batch["net_input"]["src_tokens"]) for batch in read] == [len(batch["id"]) for batch in read]
    assert len(read[0]["id"]) == 3 and sum(len(batch["id"]) for batch in read) == blocks


@pytest.mark.parametrize("mode", ["none", "complete"])
def test_a_window_that_leaves_no_room_for_a_block(mode: str, folder: Path) -> None:
    for length in (0, -4):
        with pytest.raises(ValueError, match=f"--tokens-per-sample is {length} without what --context-window takes"):
            _task(folder, tokens_per_sample=length, sample_break_mode=mode)
    _task(folder, tokens_per_sample=0, sample_break_mode="eos")


def test_rows_of_padding_alone_carry_what_they_have(folder: Path) -> None:
    """--pad-to-fixed-bsz: a part that has ended is a row of padding."""
    model, carrier = make_lm().eval(), Carrier(restart=False)
    pieces: Dict[bool, List[torch.Tensor]] = {}
    for padded in (False, True):
        task = _task(folder, pad_to_fixed_bsz=padded, batch_size=5, batch_size_valid=5)
        for batch in _batches(task, max_sentences=5).next_epoch_itr():
            rows = len(batch["id"])
            assert len(batch["net_input"]["src_tokens"]) == (5 if padded else rows)
            sample = carrier.carry_on(batch)
            pieces.setdefault(padded, []).append(model(**sample["net_input"])[0][:rows])
    assert len(pieces[True]) == len(pieces[False]) and pieces[False][-1].size(0) < 5
    for got, want in zip(pieces[True], pieces[False], strict=True):
        assert torch.allclose(got, want, atol=1e-6)


def test_the_training_has_its_state_whatever_its_split_is_called(folder: Path) -> None:
    """--train-subset: the place in the data is saved with what the training carries."""
    task = _loaded(_task(folder))
    task.datasets["other"] = task.datasets.pop("train")
    batches = task.get_batch_iterator(
        task.dataset("other"), max_sentences=3, num_shards=1, disable_iterator_cache=True
    )
    iterator = batches.next_epoch_itr()
    first = task._carriers["train"].carry_on(next(iterator))
    first["net_input"]["carry"].after = {"real": torch.tensor([4, 4, 4])}
    assert batches.state_dict()["carrier"]["blocks"].tolist() == first["id"].tolist()


def test_blocks_that_are_too_long_are_named(folder: Path) -> None:
    with pytest.raises(DataError, match="are longer than the model's positions: --carry-state needs them all"):
        _batches(_task(folder, sample_break_mode="eos"), max_positions=5, ignore_invalid_inputs=True)


def test_a_row_that_is_longer_than_the_learned_positions_is_refused_before_anything_is_read(folder: Path) -> None:
    """Not in its second block; positions from 0, or computed, have no end."""
    tokens = len(_text(_loaded(_task(folder))))
    task = _task(folder)
    _built(task, "luna_lm", decoder_learned_pos=True)
    with pytest.raises(
        DataError, match=r"counts the \d+ tokens of a row, and the model has 8 learned positions: take"
    ):
        _batches(task)
    for fits in (dict(decoder_learned_pos=True, max_target_positions=tokens), {}):
        task = _task(folder)
        _built(task, "luna_lm", **fits)
        assert len(_batches(task))
    task = _task(folder, carry_positions="restart")
    _built(task, "luna_lm", decoder_learned_pos=True)
    assert len(_batches(task))


def test_without_the_option_everything_is_fairseqs(folder: Path) -> None:
    task = _task(folder, carry_state=False)
    batches = _batches(task)
    assert type(batches) is EpochBatchIterator and type(task.dataset("train")).__name__ == "MonolingualDataset"
    sample = {"id": torch.tensor([0])}
    seen: List[Any] = []
    criterion = lambda model, sample: (seen.append(sample) or torch.zeros(()), 1, {})  # type: ignore[func-returns-value]  # noqa: E731
    task.valid_step(sample, make_lm(), criterion)
    assert seen == [sample] and issubclass(CheckedLanguageModelingTask, LanguageModelingTask)


def _sample(*ids: int, begins: bool = False, length: int = 1) -> Dict[str, Any]:
    tokens = torch.tensor(ids).unsqueeze(1).expand(-1, length) + 5
    return {"id": torch.tensor(ids), "begins": begins, "net_input": {"src_tokens": tokens}}


def _go(carrier: Carrier, sample: Dict[str, Any]) -> Carry:
    """Compute a batch: its rows leave the numbers of their blocks."""
    carry: Carry = carrier.carry_on(sample)["net_input"]["carry"]
    assert "carry" not in sample["net_input"]
    carry.after = {"real": sample["id"].clone()}
    return carry


def test_a_carrier_knows_what_comes_after_what(caplog: pytest.LogCaptureFixture) -> None:
    carrier = Carrier(restart=False)
    assert _go(carrier, _sample(0, 4, 8, begins=True)).before == {}
    assert _go(carrier, _sample(1, 5, 9)).before["real"].tolist() == [0, 4, 8]
    assert _go(carrier, _sample(1, 5, 9)).before["real"].tolist() == [0, 4, 8], "the same batch again"
    assert _go(carrier, _sample(2, 6)).before["real"].tolist() == [1, 5], "the last row has ended"
    assert carrier.carry_on({}) == {} and not caplog.records
    saved = carrier.state_dict()
    assert _go(carrier, _sample(7, 9)).before == {} and "comes before block 7" in caplog.text
    assert _go(carrier, _sample(0, 4, begins=True)).before == {}, "the next epoch"
    caplog.clear()
    assert _go(Carrier(restart=False), _sample(3, 7)).before == {} and "comes before block 3" in caplog.text
    carrier.carry.after = {}  # the memory was too small for the batch before
    assert _go(carrier, _sample(1, 5)).before == {} and "comes before block 1" in caplog.text
    other = Carrier(restart=True, at_most=9)
    other.load_state_dict(saved)
    for sample in (_sample(3, 7), _sample(3, 7), _sample(4, 8), _sample(0, begins=True)):
        carry = _go(other, sample)
        assert carry.restart and carry.at_most == 9
        assert carry.before == {} or carry.before["real"].tolist() == (sample["id"] - 1).tolist()


def test_training_and_validation_carry_apart(folder: Path) -> None:
    """A validation in the middle of an epoch leaves the state of the training as it is."""
    task, model = _task(folder), make_lm()
    got: List[Carry] = []

    def criterion(model: Any, sample: Any) -> Any:
        got.append(sample["net_input"]["carry"])
        return model(**sample["net_input"])[0].sum(), 1, {}

    class Optimizer:
        backward = staticmethod(torch.Tensor.backward)

    for step, ids in (("train", [0, 4]), ("valid", [0, 4]), ("train", [1, 5]), ("valid", [1, 5]), ("train", [2, 6])):
        sample = _sample(*ids, begins=ids[0] == 0, length=1 if step == "train" else 3)
        if step == "train":
            task.train_step(sample, model, criterion, Optimizer(), 1)
        else:
            task.valid_step(sample, model, criterion)
    assert [int(carry.before["real"][0]) if carry.before else 0 for carry in got] == [0, 0, 1, 3, 2]
    assert [int(carry.after["real"][0]) for carry in got] == [1, 3, 2, 6, 3]
    task.load_dataset("train")
    batches = task.get_batch_iterator(task.dataset("train"), max_sentences=3)
    assert batches.carrier is task._carriers["train"], "whose state is saved with the place in the data"


def test_a_place_in_the_data_is_saved_with_what_is_carried_there(folder: Path) -> None:
    task = _task(folder)
    batches: Any = _batches(task)
    for i, batch in zip(range(3), batches.next_epoch_itr(), strict=False):
        _go(batches.carrier, batch)
        last = i
    state, part = batches.state_dict(), batches.dataset.part
    assert state["iterations_in_epoch"] == last + 1 and state["carrier"]["carried"]["real"].tolist() == [
        2,
        2 + part,
        2 + 2 * part,
    ]
    again: Any = _batches(_task(folder))
    again.load_state_dict(state)
    batch = next(again.next_epoch_itr())
    assert _go(again.carrier, batch).before["real"].tolist() == [2, 2 + part, 2 + 2 * part]
    again.load_state_dict({**state, "shuffle": True})  # of a training that did not carry
    assert not again.shuffle


@pytest.mark.parametrize("by_model", [False, True])
def test_what_cannot_carry_is_refused(by_model: bool, folder: Path) -> None:
    """The option of the task, or that of the model (fairseq-hydra-train knows no other)."""
    with pytest.raises(ValueError, match="--add-bos-token begins a new one with each block"):
        _built(_task(folder, add_bos_token=True, carry_state=not by_model), "luna_lm", carry_state=by_model)
    with pytest.raises(ValueError, match="--carry-at-most is -3: it must be at least 0"):
        _task(folder, carry_at_most=-3)
    with pytest.raises(ValueError, match="--carry-at-most is 3, and nothing is carried"):
        _task(folder, carry_at_most=3, carry_state=False)
    with pytest.raises(ValueError, match="--context-window and --carry-state both give a block what comes before"):
        _task(folder).eval_lm_dataloader(None, context_window=4)
    if not by_model:
        with pytest.raises(
            ValueError, match="--carry-state needs a model whose state has one size, luna_lm: leave it"
        ):
            _built(_task(folder), "transformer_lm")


def test_one_row_is_read_where_there_is_no_limit(folder: Path) -> None:
    """fairseq takes a --batch-size of -1, too."""
    task = _task(folder)
    task.load_dataset("train")
    for size in (-1, None, 1):
        batches = task.eval_lm_dataloader(task.dataset("train"), batch_size=size)
        assert len(batches) == len(task.dataset("train"))


def _built(task: Any, arch: str, **options: Any) -> Any:
    from fairseq.models import MODEL_DATACLASS_REGISTRY

    sizes = dict(decoder_embed_dim=16, decoder_layers=1, decoder_attention_heads=2)
    more = dict(decoder_input_dim=16, decoder_output_dim=16, add_bos_token=False, max_target_positions=8, tpu=False)
    fixed = {"_name": arch, "tokens_per_sample": 8, **sizes, **more, **options}
    cfg = OmegaConf.create({"task": LanguageModelingConfig(), "model": MODEL_DATACLASS_REGISTRY[arch]()})
    cfg.model.merge_with(fixed)
    OmegaConf.set_struct(cfg, True)
    task.build_model(cfg.model)
    return cfg


def test_the_option_of_the_model_is_for_training(folder: Path) -> None:
    """Who evaluates says by the task's what is wanted; a checkpoint has the options as its task's, too."""
    task = _task(folder, carry_state=False)
    cfg = _built(task, "luna_lm", carry_state=True, carry_positions="restart", carry_at_most=5)
    assert task._carriers["train"].restart and task._carriers["valid"].at_most == 5
    assert (cfg.task.carry_state, cfg.task.carry_positions, cfg.task.carry_at_most) == (True, "restart", 5)
    task = _task(folder, carry_state=False)
    model = task.build_model(
        OmegaConf.create({"_name": "luna_lm", "carry_state": True, "decoder_layers": 1, "tokens_per_sample": 8,
                          "max_target_positions": 8, "add_bos_token": False}),
        from_checkpoint=True,
    )  # fmt: skip
    assert model.carry_state and not task._carriers


@pytest.mark.parametrize(("how", "said"), [({}, True), (dict(carry_positions="restart", carry_at_most=5), False)])
def test_an_evaluation_that_is_not_as_the_training_says_so(
    how: Dict[str, Any], said: bool, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = dict(carry_state=True, carry_positions="restart", carry_at_most=5)
    task = _task(folder, **how)
    task.build_model(
        OmegaConf.create({"_name": "luna_lm", "decoder_layers": 1, "tokens_per_sample": 8, "max_target_positions": 8,
                          "add_bos_token": False, **options}),
        from_checkpoint=True,
    )  # fmt: skip
    assert ("trained with --carry-positions restart --carry-at-most 5, which is not" in caplog.text) is said


def test_every_process_takes_its_own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process saves for all; another number of processes had other rows."""
    carriers = [Carrier(restart=False) for _ in range(2)]
    for rank, carrier in enumerate(carriers):
        carrier.blocks = torch.tensor([rank])
        carrier.carry.after = {"real": torch.tensor([[9, 10 + rank], [9, 20 + rank]])[:, -1]}

    def gather_object(own: Any, everything: Any, group: Any) -> None:
        if everything is not None:
            everything[:] = [own, *(carrier._own_state() for carrier in carriers[1:])]

    def be(rank: int, processes: int) -> None:
        for name, value in {"rank": rank, "world_size": processes, "group": None}.items():
            monkeypatch.setattr(f"fairseq.distributed.utils.get_data_parallel_{name}", lambda value=value: value)

    monkeypatch.setattr("torch.distributed.gather_object", gather_object)
    for rank in (1, 0):
        be(rank, 2)
        carriers[rank].gather()
    saved = carriers[0].state_dict()
    assert "processes" not in carriers[1].state_dict()
    for rank in range(2):
        be(rank, 2)
        again = Carrier(restart=False)
        again.load_state_dict(saved)
        assert again.blocks is not None and again.blocks.tolist() == [rank]
        assert again.carry.after["real"].tolist() == [10 + rank, 20 + rank]
        assert again.carry.after["real"].is_contiguous()
    for processes, state in ((1, saved), (3, saved), (2, Carrier(restart=False).state_dict())):
        be(0, processes)
        again = Carrier(restart=False)
        again.load_state_dict(state)
        assert again.blocks is not None and again.blocks.tolist() == [] and again.carry.after == {}
