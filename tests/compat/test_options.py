"""Options that must not run code."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils

from support.running import Corpus


@pytest.mark.parametrize("kind", ["cfg", "args"])
def test_options_in_a_checkpoint_run_no_code(kind: str, corpus: Corpus, tmp_path: Path) -> None:
    """fairseq evaluates some of them: plain strings that today's torch.load lets through."""
    folder = tmp_path / "executed"
    code = f"__import__('os').mkdir({str(folder)!r})"
    task = {"task": "translation", "data": str(corpus.data), "source_lang": "en", "target_lang": "de"}
    model = {"arch": "fconv", "encoder_layers": code, "decoder_layers": code, "decoder_attention": code}
    state = {"model": {}, "args": Namespace(**task, **model), "cfg": None, "optimizer_history": []}
    if kind == "cfg":
        state["args"] = None
        state["cfg"] = {"task": {"_name": "translation", **task}, "model": {"_name": "fconv", **model}}
    state.update(optimizer_history=[{"optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}])
    state["extra_state"] = {"train_iterator": {"epoch": 1}}
    torch.save(state, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"the option .*mkdir.* was not evaluated"):
        checkpoint_utils.load_model_ensemble_and_task([str(tmp_path / "evil.pt")])
    assert not folder.exists()


def test_options_that_are_data_are_evaluated() -> None:
    from fairseq import utils
    from fairseq.models import fconv

    assert fconv.eval("[(512, 3)] * 2 + [(1024, -1)]") == [(512, 3), (512, 3), (1024, -1)]
    assert utils.eval_bool(" True") is True and utils.eval_bool(True, default=True) is True
    assert utils.eval_str_list("[0.5, 1]") == [0.5, 1.0]
    for text in ("open('x')", "().__class__", "[x for x in (1,)]", "lambda: 1", "exit"):
        with pytest.raises(ValueError, match="was not evaluated"):
            fconv.eval(text)
