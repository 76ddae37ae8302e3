"""The Python interface to a trained language model: fairseq's ``sample`` and ``score``, and texts without end."""

import itertools
from typing import Any, Iterator, List, Optional, Union

import torch
from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

from luna_fairseq.models._hub import KeepUnknownWords
from luna_fairseq.modules.attention import IncrementalState


class LunaLanguageModelHub(GeneratorHubInterface):
    """What ``LunaLanguageModel.from_pretrained`` returns; in evaluation mode.

    ``encode``, ``decode``, ``sample`` and ``score`` are fairseq's: a text of at most the model's positions, all of it
    kept. ``stream`` keeps a state whose size does not grow.
    """

    bpe: Any

    def __init__(self, cfg: Any, task: Any, models: List[Any]) -> None:
        super().__init__(cfg, task, models)
        self.bpe = KeepUnknownWords.around(self.bpe)

    def stream(
        self,
        prompt: Union[str, Tensor] = "",
        length: Optional[int] = None,
        *,
        temperature: float = 1.0,
        topk: int = 0,
        seed: Optional[int] = None,
    ) -> Iterator[int]:
        """Sample a text token by token; memory and time a token do not depend on how many there were before.

        A model that was trained with ``--carry-state`` begins a block every ``--tokens-per-sample`` tokens,
        with positions from 0 and what came before faded if it was so in training. Another one counts on.
        ``from_pretrained(..., carry_state=True, carry_positions="restart")`` has it otherwise.

        Args:
            prompt: what the text begins with: a text, or symbols ``[N]`` int64 without the end of a sentence.
            length: how many tokens to draw; None for as long as they are asked for. The end of a sentence is a token
                like any other.
            temperature: above 0; below 1 sharpens the distribution.
            topk: draw from this many best tokens; 0 for all.
            seed: of the draws; None for another text each time.

        Yields:
            the index of each token, which ``decode(torch.tensor([...]))`` makes a text of.

        Raises:
            ValueError: for a prompt, a length, a temperature or a ``topk`` that cannot be.
        """
        if not 0.0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}: it must be above 0, and finite")
        if not 0 <= topk <= len(self.tgt_dict):
            raise ValueError(f"topk is {topk}: choose from 0 (all) to {len(self.tgt_dict)}")
        if length is not None and length < 0:
            raise ValueError(f"length is {length}: it must be at least 0, or None for a text without end")
        if not isinstance(prompt, str):
            _check_symbols(prompt, len(self.src_dict))
            prompt = prompt[prompt.ne(self.src_dict.pad())].long()
        return self._stream(prompt, length, temperature, topk, seed)

    def _stream(
        self, prompt: Union[str, Tensor], length: Optional[int], temperature: float, topk: int, seed: Optional[int]
    ) -> Iterator[int]:
        if isinstance(prompt, str):
            symbols = self.encode(prompt) if prompt else torch.tensor([], dtype=torch.long)
            prompt = symbols[: len(symbols) - 1]  # without the end of the sentence
        first = self.src_dict.bos() if self.task.args.add_bos_token else self.src_dict.eos()
        tokens = torch.cat([torch.tensor([first]), prompt.cpu()]).to(self.device).unsqueeze(0)
        generator = torch.Generator(self.device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        state: IncrementalState = {}
        before = 0
        for _ in itertools.count() if length is None else range(length):
            out = self._extend(tokens, state, before)
            before += tokens.size(1)
            token = self._draw(out, temperature, topk, generator)
            tokens = token.view(1, 1)
            yield int(token)

    @torch.no_grad()
    def _extend(self, tokens: Tensor, state: IncrementalState, before: int) -> Tensor:
        """The output for the last of these ``tokens``, ``[1, N]``, behind ``before`` others, ``[1, 1, ...]``."""
        model: Any = self.models[0]
        if not model.carry_state:
            return model.decoder.extend(tokens, state)[:, -1:]
        block = self.task.args.tokens_per_sample
        for part in tokens.tensor_split(list(range(block - before % block, tokens.size(1), block)), dim=1):
            if before % block == 0:
                model.decoder.begin_block(state, model.carry_positions == "restart", model.carry_at_most)
            out = model.decoder.extend(part, state)
            before += part.size(1)
        return out[:, -1:]

    @torch.no_grad()
    def _draw(self, out: Tensor, temperature: float, topk: int, generator: torch.Generator) -> Tensor:
        """One token by an output of :meth:`_extend`, ``[1]``."""
        model: Any = self.models[0]
        scores = model.get_normalized_probs((out, None), log_probs=True, sample=None)[0, 0].float()
        scores[self.tgt_dict.pad()] = float("-inf")
        # The best one is 0 and stays so, however small a temperature is; below `tiny` it would be 0 itself.
        scores = (scores - scores.max()) / max(temperature, torch.finfo(scores.dtype).tiny)
        if topk:
            scores = scores.masked_fill(scores < scores.topk(topk).values[-1], float("-inf"))
        return torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)


def _check_symbols(prompt: Tensor, symbols: int) -> None:
    """Raise ValueError for anything but ``[N]`` int64, each a symbol of the dictionary."""
    if not isinstance(prompt, Tensor) or prompt.dim() != 1 or prompt.dtype not in (torch.int32, torch.int64):
        found = f"{prompt.dtype} {list(prompt.shape)}" if isinstance(prompt, Tensor) else type(prompt).__name__
        raise ValueError(f"prompt is {found}: give a text, or symbols as a tensor [N] of int64")
    if len(prompt) and not 0 <= int(prompt.min()) <= int(prompt.max()) < symbols:
        raise ValueError(
            f"prompt has symbols from {int(prompt.min())} to {int(prompt.max())}: the dictionary has 0 to "
            f"{symbols - 1}"
        )
